"""What is given on the command line is what is done."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.synthetic import write_shards
from unetdist.commands import shard as command
from unetdist.errors import ConfigError, DataError
from unetdist.sharding.convert import ConvertOptions
from unetdist.sharding.plan import WorkPartition


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "ACCELERATE_MIXED_PRECISION", "SLURM_ARRAY_TASK_COUNT"):
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
    monkeypatch.setattr(command, "num_cores", lambda: 8)
    assert command.distribute(written()) == (8, WorkPartition())
    assert command.distribute(written("--workers", "3")) == (3, WorkPartition())
    assert command.distribute(written("--rank", "1", "--world-size", "2")) == (8, WorkPartition(1, 2))
    for name, value in {"RANK": "1", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    assert command.distribute(written()) == (2, WorkPartition(1, 6, is_launched=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--shapes 3 --images x", "--shapes does not go with --images: samples come from one source; leave out"),
        ("--shapes 3 --dataset x", "--shapes does not go with --dataset: samples come from one source"),
        ("--shapes 0 --list x", "--shapes does not go with --list: "),
        ("--dataset x --images x --masks y", "leave out --dataset or --images and --masks."),
        ("--dataset x --list y", "--dataset does not go with --list: samples come from one source"),
        ("--shapes 3 --mask-name {stem}.png", "--shapes does not go with --mask-name: shapes are not files"),
        ("--dataset x --image-name {stem}.png", "--dataset does not go with --image-name: a dataset has columns"),
        ("--list x --image-name a --mask-name b", "--image-name and --mask-name: the list itself names the files"),
        ("--shapes 3 --labels x", "--labels: the shapes have their own classes; leave out --shapes or --labels."),
        ("--shapes 3 --ignore x", "--shapes does not go with --ignore: "),
        ("--shapes 3 --val-list x --val-fraction 0", "--val-list does not go with --val-fraction: each"),
    ],
)
def test_an_option_that_would_go_unheeded_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        written(*arguments.split())


ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    write_shards(tmp_path / "data", 6)
    return tmp_path / "data"


def run(name, *words):
    args = command.parse([name, *map(str, words)])
    return {"verify": command.verify, "stats": command.print_stats, "show": command.show}[name](args)


def test_verify_ends_with_1_where_something_is_wrong(folder, capsys):
    assert run("verify", folder, "--workers", 1) == 0
    assert "good. Verified 6 of 6 samples, 2 shards" in capsys.readouterr().out
    (folder / "000001.tar").unlink()
    assert run("verify", folder, "--workers", 1) == 1
    assert "1 problem; 5 of 6 samples are good.\nlost shard (1)" in capsys.readouterr().out


def test_stats_prints(folder, capsys):
    assert run("stats", folder) == 0
    assert "6 samples in 2 shards" in capsys.readouterr().out


def test_show_draws_the_same_sheet_again(folder, tmp_path, capsys):
    for name in ("a.png", "b.png"):
        assert run("show", folder, "--out", tmp_path / name, "--num", 4, "--seed", 1) == 0
    assert f"{tmp_path}/b.png: samples of {folder}" in capsys.readouterr().out
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    run("show", folder, "--out", tmp_path / "c.png", "--keys", "pictures/001", "pictures/002")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "c.png").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "DATA", "--out", "TAKEN/a.png"], r"--out \(.+a.png\) cannot be written \(.+\); give another"),
        (["verify", "pipe:cat /x/{name}"], r"commands are no longer run"),
    ],
)
def test_a_command_that_cannot_work_is_told(folder, tmp_path, words, message):
    (tmp_path / "taken").write_text("a file where the folder should be")
    replaced = [word.replace("DATA", str(folder)).replace("TAKEN", str(tmp_path / "taken")) for word in words]
    with pytest.raises(ConfigError, match=message):
        run(*replaced)


@pytest.mark.parametrize("words", ["verify x --workers 0", "show x --num 0", "--out x --workers 0"])
def test_a_number_under_1_is_refused(words):
    with pytest.raises(ConfigError, match=r"--(workers|num): .*'0'; use a whole number over 0"):
        command.parse(words.split())


@pytest.mark.parametrize("name", ["verify", "stats", "show"])
def test_a_folder_without_manifest(name, tmp_path):
    with pytest.raises(DataError, match=r"no manifest\.json here, so this is no \(finished\) data set"):
        run(name, tmp_path, *(["--out", tmp_path / "x.png"] if name == "show" else []))


def test_the_parser_is_there_without_torch():
    """Which takes seconds to load, and writing shards does not need it."""
    code = "import sys, unetdist.commands.shard; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "False\n", done.stderr
