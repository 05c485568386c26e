"""`python launch/ablate.py ...`: the same as `unetdist ablate ...`."""

from unetdist.__main__ import main

if __name__ == "__main__":
    main("ablate")
