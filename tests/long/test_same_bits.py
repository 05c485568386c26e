"""The same bits on 1, 2, 4 and 8 processes, for every part of a training that could draw, add or round by process."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.launcher import run_ranks
from tests.long.test_kills import metrics
from tests.synthetic import settings_of, write_shards
from unetdist.cli import settings
from unetdist.train.build import build_trainer
from unetdist.train.config import Config

pytestmark = pytest.mark.long

STEPS = 30

USUAL: dict[str, Any] = {
    "augment": {"crop_size": [32, 32], "scale_min": 0.7, "scale_max": 1.4, "flip_horizontal": 0.5},
    "model": {"preset": "student", "norm": "batch", "dropout": 0.1},
    "loss": {"class_weights": "median_frequency", "dice_weight": 0.5},
    "optim": {"lr": 0.01, "clip_norm": 1.0},
    "trainer": {"global_batch_size": 16, "micro_batch_size": 2, "max_steps": STEPS, "ema_decay": 0.9, "log_every": 1},
}
SMALL = {"preset": None, "widths": [4, 8, 8]}
CASES: dict[str, dict[str, Any]] = {
    "student": {},
    "group norm": {"model": {"norm": "group"}},
    "residual, drop path": {
        "model": {"preset": None, "widths": [8, 16, 32], "encoder_blocks": 2, "residual": True, "drop_path": 0.2}
    },
    "CutMix, ClassMix": {"model": SMALL, "augment": {"cutmix": 0.5, "classmix": 0.3}},
    "bf16": {"model": SMALL, "augment": {"crop_size": [16, 16]}, "trainer": {"mixed_precision": "bf16"}},
    "fused Adam": {"model": SMALL, "fused": True},
    "fused SGD": {"model": SMALL, "fused": True, "optim": {"kind": "sgd", "lr": 0.05, "nesterov": True}},
}


def hashes(values: dict[str, Any], fused: bool) -> tuple[dict[str, str], list[dict[str, float]]]:
    """Train to the end; sha256 of all that a checkpoint holds, and on rank 0 what was logged in each step."""
    with build_trainer(settings.from_mapping(Config, values)) as trainer:
        for group in trainer.step.optimizer.param_groups:
            group["fused"] = fused
        trainer.fit()
        tensors, _ = trainer.run_state.pack()
        folder = Path(values["runs_dir"], values["name"])
    found = {name: value.detach().contiguous().view(-1).view(torch.uint8) for name, value in tensors.items()}
    return {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in found.items()}, metrics(folder)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, 37, sizes=((48, 64), (60, 40)))
    return folder


@pytest.mark.filterwarnings("ignore:mixed_precision")
@pytest.mark.parametrize("case", CASES)
def test_all_state_and_every_logged_number_has_the_same_bits(shards, tmp_path, case):
    sections = {name: {**USUAL[name], **CASES[case].get(name, {})} for name in USUAL}
    expected: Any = None
    for num_workers in (0, 2) if case == "student" else (0,):
        for world_size in (1, 2, 4, 8):
            name = f"{world_size}_{num_workers}"
            values = settings_of(shards, None, tmp_path, data={"num_workers": num_workers}, **sections) | {"name": name}
            ranks = run_ranks(hashes, world_size, values, "fused" in CASES[case], timeout_s=600)
            expected = expected or ranks[0]
            assert len(expected[1]) == STEPS
            assert ranks[0][1] == expected[1], name
            for found, _ in ranks:
                assert [key for key, value in expected[0].items() if found[key] != value] == [], name
            digest = hashlib.sha256(json.dumps(expected).encode()).hexdigest()[:16]
            print(f"{case}: {world_size} processes, {num_workers} workers: {len(expected[0])} tensors, {digest}")
