"""Makes the folder that this one lies in importable as `stillmotion` when nothing is installed.

It is not shipped: an installed package is found before the current folder is searched for it, or is this same checkout.
"""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[1])]
