"""Hugging Face datasets, streaming: parquet files read from front to back through a shuffle buffer.

As its guides do it: https://huggingface.co/docs/datasets/stream (shuffle, map)
https://huggingface.co/docs/datasets/use_with_pytorch (DataLoader)
"""

from typing import Any

import numpy as np

from tests.benchmarks.peers.parquet import write_parquet
from tests.benchmarks.peers.protocol import Batches, Job, crop_pil, installed, serve


def batches(job: Job) -> Batches:
    """Endless batches (B, H, W, 3) and (B, H, W)."""
    from datasets import config, load_dataset
    from torch.utils.data import DataLoader, default_collate

    # The five seconds that it sleeps at the end of an epoch are nothing in a long one, so they shall not count here.
    config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0
    rng = np.random.default_rng(job.seed)

    def transform(example: dict[str, Any]) -> dict[str, Any]:
        image, mask = crop_pil(example["image"].convert("RGB"), example["mask"], job.crop, rng)
        return {"pair": (image, mask)}

    def collate(examples: list[dict[str, Any]]) -> Any:
        return default_collate([example["pair"] for example in examples])

    folder = job.format_once("parquet", lambda folder: write_parquet(job, folder))
    dataset: Any = load_dataset("parquet", data_files=f"{folder}/*.parquet", split="train", streaming=True)
    dataset = dataset.shuffle(seed=job.seed, buffer_size=1000)
    dataset = dataset.map(transform, remove_columns=["image", "mask"])

    def epochs() -> Batches:
        epoch = 0
        while True:
            dataset.set_epoch(epoch)
            yield from DataLoader(dataset, batch_size=job.batch_size, drop_last=True, collate_fn=collate)
            epoch += 1

    return epochs()


if __name__ == "__main__":
    serve(batches, installed("torch", "pillow", "datasets"))
