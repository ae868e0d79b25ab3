import sys

try:
    from stillmotion.trainer.cli import main  # absolute: `python -m trainer` starts this file outside the package
except ModuleNotFoundError as missing:
    if str(missing.name).startswith("stillmotion"):
        raise
    message = f'error: {missing.name} is not installed; pip install -e ".[trainer]" in the checkout installs it'
    print(message, file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main())
