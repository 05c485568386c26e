"""Hugging Face datasets, map-style: an Arrow table with a transform.

As its guides do it: https://huggingface.co/docs/datasets/semantic_segmentation (set_transform)
https://huggingface.co/docs/datasets/use_with_pytorch (DataLoader)
"""

from typing import Any

import numpy as np

from tests.benchmarks.peers.parquet import write_parquet
from tests.benchmarks.peers.protocol import Batches, Job, crop_pil, forever, installed, serve


def batches(job: Job) -> Batches:
    """Endless batches (B, H, W, 3) and (B, H, W)."""
    from datasets import load_dataset
    from torch.utils.data import DataLoader, default_collate

    rng = np.random.default_rng(job.seed)

    def transforms(examples: dict[str, Any]) -> dict[str, Any]:
        pairs = zip(examples["image"], examples["mask"], strict=True)
        cropped = [crop_pil(image.convert("RGB"), mask, job.crop, rng) for image, mask in pairs]
        images, masks = zip(*cropped, strict=True)
        return {"image": list(images), "mask": list(masks)}

    def collate(examples: list[dict[str, Any]]) -> Any:
        return default_collate([(example["image"], example["mask"]) for example in examples])

    folder = job.format_once("parquet", lambda folder: write_parquet(job, folder))
    dataset: Any = load_dataset(
        "parquet", data_files=f"{folder}/*.parquet", split="train", cache_dir=f"{job.work}/arrow"
    )
    dataset.set_transform(transforms)
    loader = DataLoader(dataset, batch_size=job.batch_size, shuffle=True, drop_last=True, collate_fn=collate)
    return forever(loader)


if __name__ == "__main__":
    serve(batches, installed("torch", "pillow", "datasets"))
