"""`accelerate launch launch/train.py ...`: the same as `unetdist train ...`."""

from unetdist.__main__ import main

if __name__ == "__main__":
    main("train")
