"""`python launch/predict.py ...`: the same as `unetdist predict ...`."""

from unetdist.__main__ import main

if __name__ == "__main__":
    main("predict")
