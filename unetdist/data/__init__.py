"""Shards -> batches.

In: shards (tar files with an index and a manifest) in a folder or behind a URL, and the settings of the sections `data`
and `augment`. Out: an endless sequence of training batches whose order is a pure function of (seed, epoch), and each
validation sample once. Workers read, decode, augment and mix samples, and write them into shared memory.
Also here: Labels.txt and masks (`labels/`), image files (`image_file`), drawing classes over images (`drawing`).
"""
