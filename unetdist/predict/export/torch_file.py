"""torch.export: a graph with its weights in one file, which torch runs without this package."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch.export import ExportedProgram

from unetdist.model.inference import Predict
from unetdist.predict.export.trace import quiet
from unetdist.storage.files import write_atomic


def write_torch(program: ExportedProgram, file: Path, metadata: Mapping[str, str]) -> None:
    """Write a traced network; each entry of `metadata` is a file of that name inside."""
    with write_atomic(file) as out, quiet():
        torch.export.save(program, out, extra_files=dict(metadata))


def open_torch(file: Path) -> Predict:
    """The network in a file, run by torch."""
    with open(file, "rb") as opened:
        network: Predict = torch.export.load(opened).module()
    return network
