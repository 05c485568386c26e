"""From images and masks, wherever they are, to a folder of shards.

In: folders, a Hugging Face data set, or tars that others wrote, with a Labels.txt. Out: tars, an index next to each,
and a manifest; all problems of the input in one list. `verify`, `stats` and `show` read finished shards.
"""
