"""WebDataset, its fluid interface with decode("pil").

As its README does it: https://github.com/webdataset/webdataset (shuffle, decode, to_tuple, map, batched, WebLoader).
"""

from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.peers.protocol import Batches, Job, crop_pil, installed, serve
from tests.benchmarks.peers.tars import write_tars


def batches(job: Job) -> Batches:
    """Endless batches (B, H, W, 3) and (B, H, W)."""
    import torch
    import webdataset

    folder = job.format_once("tars", lambda folder: write_tars(folder, job.pairs()))
    rng = np.random.default_rng(job.seed)

    def transform(sample: tuple[Any, Any]) -> tuple[Any, Any]:
        # decode("pil") turns grey masks into RGB; each channel of them holds the class.
        image, mask = crop_pil(*sample, job.crop, rng)
        return image, mask[..., 0]

    urls = sorted(map(str, Path(folder).glob("*.tar")))
    dataset = (
        webdataset.WebDataset(urls, shardshuffle=100, seed=job.seed)
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg", "mask.png")
        .map(transform)
        .batched(job.batch_size, collation_fn=torch.utils.data.default_collate, partial=False)
        .repeat()
    )
    return iter(webdataset.WebLoader(dataset, batch_size=None, num_workers=0))


if __name__ == "__main__":
    serve(batches, installed("torch", "pillow", "webdataset"))
