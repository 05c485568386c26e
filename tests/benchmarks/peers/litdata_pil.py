"""LitData: chunks written by `optimize`, read by StreamingDataset, decoded by PIL.

As its guides do it (a subclass that transforms, StreamingDataLoader): https://lightning.ai/docs/litdata/quick-start
https://lightning.ai/docs/litdata/features/custom-data-transforms
The columns are bytes, not its `Image`: that makes RGB of masks, and needs torchvision.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.peers.protocol import Batches, Job, crop_pil, forever, installed, serve


def read_pair(pair: tuple[str, str]) -> dict[str, bytes]:
    """One sample for `optimize`, which runs this in a process of its own."""
    image, mask = pair
    return {"image": Path(image).read_bytes(), "mask": Path(mask).read_bytes()}


def batches(job: Job) -> Batches:
    """Endless batches (B, H, W, 3) and (B, H, W)."""
    import litdata
    from PIL import Image

    def write(folder: str) -> None:
        litdata.optimize(
            fn=read_pair, inputs=job.pairs(), output_dir=folder, num_workers=1, chunk_bytes="64MB"
        )

    rng = np.random.default_rng(job.seed)

    class Segmentation(litdata.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Any:
            sample = super().__getitem__(index)
            image, mask = (Image.open(io.BytesIO(sample[name])) for name in ("image", "mask"))
            return crop_pil(image.convert("RGB"), mask, job.crop, rng)

    folder = job.format_once("litdata", write)
    dataset = Segmentation(folder, shuffle=True, drop_last=True)
    return forever(litdata.StreamingDataLoader(dataset, batch_size=job.batch_size, drop_last=True))


if __name__ == "__main__":
    serve(batches, installed("torch", "pillow", "litdata"))
