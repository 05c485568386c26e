"""Plain files, read with PIL by a torch Dataset.

As torchvision.datasets.VOCSegmentation does it:
https://docs.pytorch.org/vision/stable/_modules/torchvision/datasets/voc.html
"""

from typing import Any

import numpy as np

from tests.benchmarks.peers.protocol import Batches, Job, crop_pil, forever, installed, serve


def batches(job: Job) -> Batches:
    """Endless batches (B, H, W, 3) and (B, H, W)."""
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    class Files(Dataset[Any]):
        def __init__(self) -> None:
            self.pairs = job.pairs()
            self.rng = np.random.default_rng(job.seed)

        def __len__(self) -> int:
            return len(self.pairs)

        def __getitem__(self, index: int) -> Any:
            image, mask = self.pairs[index]
            return crop_pil(Image.open(image).convert("RGB"), Image.open(mask), job.crop, self.rng)

    return forever(DataLoader(Files(), batch_size=job.batch_size, shuffle=True, drop_last=True))


if __name__ == "__main__":
    serve(batches, installed("torch", "pillow"))
