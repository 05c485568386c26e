"""`python launch/shard_dataset.py ...`: the same as `unetdist shard ...`."""

from unetdist.__main__ import main

if __name__ == "__main__":
    main("shard")
