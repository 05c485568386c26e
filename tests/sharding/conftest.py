"""Folders of images and masks, written once and copied for every test; and what shards of them contain."""

import os
import shutil
from pathlib import Path

import pytest

from tests.sharding.ingested import contents, write
from tests.sharding.picture_folders import write_folders


@pytest.fixture(scope="session")
def _template(tmp_path_factory) -> Path:
    return write_folders(tmp_path_factory.mktemp("template") / "data")


@pytest.fixture
def root(_template, tmp_path) -> Path:
    """A copy of 20 images and masks that a test may change."""
    return Path(shutil.copytree(_template, tmp_path / "data"))


@pytest.fixture(scope="session")
def whole(_template, tmp_path_factory) -> dict[str, str]:
    """Names and hashes of the shards that one process writes of them."""
    out = tmp_path_factory.mktemp("whole") / "out"
    write(_template, out)
    return contents(out)


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch) -> None:
    """Files reach the disk when the system likes: no test here cuts the power, and a sync takes milliseconds."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
