"""A training run.

In: settings. Out: a run folder with checkpoints, metrics, and the weights of the best validation mIoU. `build` wires
the parts, `trainer` is the loop, `step` one optimizer step.
"""
