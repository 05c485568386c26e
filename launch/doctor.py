"""`accelerate launch launch/doctor.py ...`: the same as `unetdist doctor ...`."""

from unetdist.__main__ import main

if __name__ == "__main__":
    main("doctor")
