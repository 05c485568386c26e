"""Plain files, read with OpenCV by a torch Dataset.

As Albumentations' guide to semantic segmentation does it: https://albumentations.ai/docs/3-basic-usage/semantic-segmentation/
with IMREAD_COLOR_RGB, which spares the conversion from BGR.
"""

from typing import Any

import numpy as np

from tests.benchmarks.peers.protocol import Batches, Job, forever, installed, serve, window


def batches(job: Job) -> Batches:
    """Endless batches (B, H, W, 3) and (B, H, W)."""
    import cv2
    import torch
    from torch.utils.data import DataLoader, Dataset

    cv2.setNumThreads(0)

    class Files(Dataset[Any]):
        def __init__(self) -> None:
            self.pairs = job.pairs()
            self.rng = np.random.default_rng(job.seed)

        def __len__(self) -> int:
            return len(self.pairs)

        def __getitem__(self, index: int) -> Any:
            paths = self.pairs[index]
            image: Any = cv2.imread(paths[0], cv2.IMREAD_COLOR_RGB)
            mask: Any = cv2.imread(paths[1], cv2.IMREAD_UNCHANGED)
            top, left, flip = window(mask.shape, job.crop, self.rng)
            rows, columns = slice(top, top + job.crop), slice(left, left + job.crop)
            image, mask = image[rows, columns], mask[rows, columns]
            if flip:
                image, mask = cv2.flip(image, 1), cv2.flip(mask, 1)
            return torch.from_numpy(image), torch.from_numpy(mask)

    return forever(DataLoader(Files(), batch_size=job.batch_size, shuffle=True, drop_last=True))


if __name__ == "__main__":
    serve(batches, installed("torch", "opencv-python-headless"))
