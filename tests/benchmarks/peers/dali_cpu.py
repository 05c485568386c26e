"""NVIDIA DALI on the CPU: decoding of only the crop, one thread.

Two file readers with one seed give pairs: https://github.com/NVIDIA/DALI/issues/3192
One random anchor for image and mask goes to a decoder that decodes only the window:
https://docs.nvidia.com/deeplearning/dali/user-guide/docs/operations/nvidia.dali.fn.decoders.image_slice.html
"""

import sys
from typing import Any

from tests.benchmarks.peers.protocol import UNFILTERED_MASKS, Batches, Job, installed, serve

UNFILTERED = "unfiltered"
"""Argument of the script: masks as our own shards hold them."""


def batches(job: Job) -> Batches:
    """Endless batches (B, H, W, 3) and (B, H, W, 1)."""
    from nvidia.dali import fn, math, pipeline_def, types

    pairs = job.pairs(UNFILTERED_MASKS) if UNFILTERED in sys.argv else job.pairs()
    images, masks = zip(*pairs, strict=True)

    @pipeline_def  # type: ignore[untyped-decorator,unused-ignore]
    def pipeline() -> Any:
        reading = {"random_shuffle": True, "seed": job.seed + 1}
        encoded, _ = fn.readers.file(files=list(images), name="images", **reading)
        encoded_mask, _ = fn.readers.file(files=list(masks), name="masks", **reading)
        height, width = (fn.peek_image_shape(encoded)[axis] for axis in (0, 1))
        top = fn.random.uniform(range=[0.0, 1.0]) * (height - job.crop + 1)
        left = fn.random.uniform(range=[0.0, 1.0]) * (width - job.crop + 1)
        start = fn.cast(math.floor(fn.stack(top, left)), dtype=types.INT32)
        window = {"start": start, "shape": [job.crop, job.crop], "axes": [0, 1]}
        image = fn.decoders.image_slice(encoded, device="cpu", output_type=types.RGB, **window)
        mask = fn.decoders.image_slice(encoded_mask, device="cpu", output_type=types.GRAY, **window)
        flip = fn.random.coin_flip()
        return fn.flip(image, horizontal=flip), fn.flip(mask, horizontal=flip)

    running = pipeline(batch_size=job.batch_size, num_threads=1, device_id=None, seed=job.seed + 1)
    running.build()
    return _run(running)


def _run(pipeline: Any) -> Batches:
    while True:
        image, mask = pipeline.run()
        yield image.as_array(), mask.as_array()


if __name__ == "__main__":
    serve(batches, installed("nvidia-dali-cuda120"))
