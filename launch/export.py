"""`python launch/export.py ...`: the same as `unetdist export ...`."""

from unetdist.__main__ import main

if __name__ == "__main__":
    main("export")
