"""A training run.

In: settings (`config`). Out: a run folder with checkpoints, metrics, and the weights of the best validation mIoU.
`build` wires the parts, `trainer` is the loop, `step` makes one optimizer step. README.md walks through them.
"""
