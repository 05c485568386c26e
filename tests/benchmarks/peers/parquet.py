"""Pictures as parquet files with Hugging Face `Image` columns, as `push_to_hub` would store them."""

from typing import Any

from tests.benchmarks.peers.protocol import Job

ROWS_PER_FILE = 256


def write_parquet(job: Job, folder: str) -> None:
    """Write FOLDER/NNNNN.parquet with the columns image and mask."""
    from datasets import Dataset, Features, Image

    pairs = job.pairs()
    features = Features({"image": Image(), "mask": Image()})
    for number, at in enumerate(range(0, len(pairs), ROWS_PER_FILE)):
        rows = [(_picture(image), _picture(mask)) for image, mask in pairs[at : at + ROWS_PER_FILE]]
        columns = {name: [row[place] for row in rows] for place, name in enumerate(("image", "mask"))}
        Dataset.from_dict(columns, features=features).to_parquet(f"{folder}/{number:05d}.parquet")


def _picture(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"bytes": file.read(), "path": None}
