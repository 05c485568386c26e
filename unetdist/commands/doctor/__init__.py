"""Checks before a long run: from the settings of a run to findings, one line each with its remedy.

`command` runs all checks on every process of the launch: `environment` (versions, processes, folders), `data` (shards,
labels, classes) and `training` (a few steps, a part of a validation, and the forecast from them). The doctor does not
start or modify the run.
"""
