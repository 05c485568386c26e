"""`python launch/report.py ...`: the same as `unetdist report ...`."""

from unetdist.__main__ import main

if __name__ == "__main__":
    main("report")
