"""Everything between files on disk and a `Batch`; README.md describes formats and guarantees.

In: a path or URL of shards, the settings `data` and `augment`, a seed, the rank. Out: endless training steps from any
sample number, and validation batches with each sample once. Labels, image files and drawing of results also live here.
"""
