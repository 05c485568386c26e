"""WebDataset tars as anybody would pack them: ordinary JPEGs and PNG masks, no index."""

import tarfile
from collections.abc import Sequence
from pathlib import Path

SAMPLES_PER_TAR = 256


def write_tars(folder: str, pairs: Sequence[tuple[str, str]]) -> None:
    """Write FOLDER/NNNNN.tar with NAME.jpg and NAME.mask.png of the (image, mask) paths."""
    for number, at in enumerate(range(0, len(pairs), SAMPLES_PER_TAR)):
        with tarfile.open(Path(folder, f"{number:05d}.tar"), "w") as tar:
            for image, mask in pairs[at : at + SAMPLES_PER_TAR]:
                stem = Path(image).stem
                tar.add(image, f"{stem}.jpg")
                tar.add(mask, f"{stem}.mask.png")
