"""`python launch/equivalence.py ...`: the same as `unetdist equivalence ...`."""

from unetdist.__main__ import main

if __name__ == "__main__":
    main("equivalence")
