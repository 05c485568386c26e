"""`accelerate launch launch/evaluate.py ...`: the same as `unetdist evaluate ...`."""

from unetdist.__main__ import main

if __name__ == "__main__":
    main("evaluate")
