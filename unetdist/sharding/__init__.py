"""From images and masks, wherever they are, to a folder of shards.

In: folders, a list, a Hugging Face data set, or tars that others wrote, with a Labels.txt. Out: tars, an index next to
each, and a manifest; or one report of all problems of the input.

`command` reads the options, `sources` lists the samples, `split` distributes them, `first_look` stops early, `writer`
runs it all: `plan` and `folder` organise the jobs, `shard_job` makes a shard, `convert` one sample. `describe` shows
finished shards, `verify` reads them all.
"""
