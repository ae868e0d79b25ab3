import sys

from stillmotion.trainer.cli import main  # absolute: `python -m trainer` starts this file outside the package

if __name__ == "__main__":
    sys.exit(main())
