"""The commands of `unetdist`, which nothing imports.

In: a command line, settings, shards, finished runs. Out: the work of one command, and its exit code. `cli.commands`
lists them; each module reads its options before it loads torch, so that help and mistakes are answered at once.
"""
