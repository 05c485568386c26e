"""MosaicML Streaming: MDS shards, decoded by its own `jpeg` and `png` columns (PIL).

As its quick start and its segmentation data set do it:
https://docs.mosaicml.com/projects/streaming/en/stable/getting_started/quick_start.html
https://docs.mosaicml.com/projects/streaming/en/stable/_modules/streaming/vision/ade20k.html
"""

from typing import Any

import numpy as np

from tests.benchmarks.peers.protocol import Batches, Job, crop_pil, forever, installed, serve


def batches(job: Job) -> Batches:
    """Endless batches (B, H, W, 3) and (B, H, W)."""
    from PIL import Image
    from streaming import MDSWriter, StreamingDataset
    from torch.utils.data import DataLoader

    def write(folder: str) -> None:
        with MDSWriter(out=folder, columns={"x": "jpeg", "y": "png"}, exist_ok=True) as writer:
            for image, mask in job.pairs():
                writer.write({"x": Image.open(image), "y": Image.open(mask)})

    rng = np.random.default_rng(job.seed)

    class Segmentation(StreamingDataset):  # type: ignore[misc]
        def get_item(self, *args: Any, **kwargs: Any) -> Any:
            sample = super().get_item(*args, **kwargs)
            return crop_pil(sample["x"].convert("RGB"), sample["y"], job.crop, rng)

    folder = job.format_once("mds", write)
    dataset = Segmentation(local=folder, shuffle=True, batch_size=job.batch_size)
    return forever(DataLoader(dataset, batch_size=job.batch_size, drop_last=True))


if __name__ == "__main__":
    serve(batches, installed("torch", "pillow", "mosaicml-streaming"))
