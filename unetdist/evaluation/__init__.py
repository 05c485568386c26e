"""From logits to exact scores.

In: a model and this rank's part of the validation set. Out: int64 confusion matrices, summed once over all ranks and
checked against the manifest; mIoU with intervals, comparisons, outlines, calibration, and the images worth seeing.
"""
