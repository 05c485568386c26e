"""Where the tests find real data sets: in `shared/data` beside the checkout, or not at all."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1].parent / "shared" / "data"


def camvid() -> Path:
    """Folder of CamVid with train/{images,masks}, val/{images,masks}, Labels.txt; skips the test without it."""
    return _require("camvid")


def isbi() -> Path:
    """Folder of ISBI 2012 with images, masks, Labels.txt; skips the test without it."""
    return _require("isbi2012")


def _require(name: str) -> Path:
    folder = ROOT / name
    if not folder.is_dir():
        pytest.skip(f"needs the {name} pictures in {folder}")
    return folder
