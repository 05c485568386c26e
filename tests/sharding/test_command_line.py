"""What is given on the command line is what is done."""

import re

import pytest

from unetdist.cli.logs import logger
from unetdist.errors import ConfigError
from unetdist.sharding import command
from unetdist.sharding.convert import ConvertOptions
from unetdist.sharding.plan import WorkPartition


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "ACCELERATE_MIXED_PRECISION",
        "SLURM_ARRAY_TASK_COUNT",
    ):
        monkeypatch.delenv(name, raising=False)


def written(*arguments):
    return command.parse(["--out", "out", *arguments])


def test_defaults_are_those_of_the_options():
    assert command.convert_options(written()) == ConvertOptions()
    assert command.convert_options(command.parse(["index", "x"])) == ConvertOptions()


def test_options_reach_the_conversion():
    args = written(
        *[
            "--resize",
            "8x6",
            "--image-format",
            "jpg",
            "--image-range",
            "0",
            "9",
            "--keep-bytes",
            "--mask-format",
            "ids",
        ],
        *["--unknown-colors", "nearest", "--skip-bad", "--max-pixels", "7"],
    )
    assert command.convert_options(args) == ConvertOptions(
        resize=(8, 6),
        image_format="jpg",
        image_range=(0, 9),
        seekable=False,
        mask_format="ids",
        unknown_colors="nearest",
        skip_bad=True,
        max_pixels=7,
    )


def test_the_processes_of_a_machine_share_its_cores(monkeypatch):
    monkeypatch.setattr(command, "available_cores", lambda: 8)
    assert command.run_options(written()).workers == 8
    assert command.run_options(written()).partition == WorkPartition()
    assert command.run_options(written("--workers", "3")).workers == 3
    assert command.run_options(written("--rank", "1", "--world-size", "2")).partition == WorkPartition(1, 2)
    for name, value in {"RANK": "1", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    options = command.run_options(written("--overwrite"))
    assert (options.workers, options.overwrite, options.partition) == (
        2,
        True,
        WorkPartition(1, 6, is_launched=True),
    )


def test_a_launcher_that_started_one_process_of_several_is_told(monkeypatch, caplog):
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr("unetdist.distributed.launch_check.asked_processes", lambda: 2)
    command.run_options(written())
    assert not caplog.text
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert command.run_options(written()).partition == WorkPartition()
    assert "--config_file configs/accelerate/cpu.yaml" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--shapes 3 --images x",
            "--shapes does not go with --images: samples come from one source; leave out",
        ),
        ("--shapes 3 --dataset x", "--shapes does not go with --dataset: samples come from one source"),
        ("--shapes 0 --list x", "--shapes does not go with --list: "),
        ("--dataset x --images x --masks y", "leave out --dataset or --images and --masks."),
        ("--dataset x --list y", "--dataset does not go with --list: samples come from one source"),
        ("--shapes 3 --mask-name {stem}.png", "--shapes does not go with --mask-name: shapes are not files"),
        (
            "--dataset x --image-name {stem}.png",
            "--dataset does not go with --image-name: a dataset has columns",
        ),
        (
            "--list x --image-name a --mask-name b",
            "--image-name and --mask-name: the list itself names the files",
        ),
        (
            "--shapes 3 --labels x",
            "--labels: the shapes have their own classes; leave out --shapes or --labels.",
        ),
        ("--shapes 3 --ignore x", "--shapes does not go with --ignore: "),
        ("--shapes 3 --val-list x --val-fraction 0", "--val-list does not go with --val-fraction: each"),
    ],
)
def test_an_option_that_would_go_unheeded_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        written(*arguments.split())
