"""launch/train.py as a user types it, on disks that fail: it continues or says why not, and nothing is lost."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.synthetic import write_shards
from unetdist.cli.logs import run_script

SCRIPT = Path(__file__).parents[2] / "launch" / "train.py"
MAX_STEPS = 8
SAVE_EVERY = 2

spec = importlib.util.spec_from_file_location("launch_train", SCRIPT)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


@pytest.fixture
def train(tmp_path, monkeypatch, capsys):
    """Runs the command for the run in a folder of that name; its exit code and what it printed."""
    write_shards(tmp_path / "train", 8)

    def run(folder: str, *words: str) -> tuple[int, str]:
        given = {
            **{"--runs_dir": tmp_path / folder, "--name": "run", "--data.train": tmp_path / "train"},
            **{"--data.num_workers": 0, "--augment.crop_size": "[16, 16]", "--model.widths": "[4, 8]"},
            **{
                "--trainer.global_batch_size": 4,
                "--trainer.max_steps": MAX_STEPS,
                "--tracking.tracker": "none",
            },
            **{"--checkpoint.save_every": SAVE_EVERY, "--checkpoint.keep_last": 2},
        }
        monkeypatch.setattr(
            sys, "argv", ["train.py", *(str(x) for pair in given.items() for x in pair), *words]
        )
        with pytest.raises(SystemExit) as end:
            run_script(script.main)
        return end.value.code, capsys.readouterr().err

    return run


@pytest.fixture
def weights(tmp_path, train):
    """Reads the weights of a run, having trained another that nothing happened to: they must be equal."""
    assert train("whole")[0] == 0

    def read(folder: str) -> dict[str, bytes]:
        tensors = load_file(tmp_path / folder / "run" / "last" / "model.safetensors")
        return {name: value.numpy().tobytes() for name, value in tensors.items()}

    return read


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"only root may mount a file system: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)


def test_on_a_full_disk_it_trains_on_and_continues_once_there_is_room(tmp_path, train, weights, small_disk):
    checkpoint = tmp_path / "whole" / "run" / "checkpoints" / f"step_{MAX_STEPS:08d}.safetensors"
    remount(small_disk, f"size={checkpoint.stat().st_size + 32 * 1024}")
    code, said = train("full", "--checkpoint.folder", str(small_disk))
    assert code == 1
    for step in range(2 * SAVE_EVERY, MAX_STEPS, SAVE_EVERY):
        assert f"the checkpoint of step {step} cannot be written to {small_disk}" in said
        assert "that of step 2 is kept. Make room there" in said
    assert f"error: the checkpoint of step {MAX_STEPS} cannot be written to {small_disk}" in said
    remount(small_disk, "size=16m")
    code, said = train("full", "--checkpoint.folder", str(small_disk))
    assert code == 0
    assert f"continuing at step 2 of {MAX_STEPS}" in said
    assert weights("full") == weights("whole")


def test_a_truncated_checkpoint_and_a_lost_pointer_cost_the_steps_since_the_one_before(
    tmp_path, train, weights
):
    expected = weights("whole")
    folder = tmp_path / "whole" / "run" / "checkpoints"
    newest = folder / f"step_{MAX_STEPS:08d}.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    (folder / "latest").unlink()
    (tmp_path / "whole" / "run" / "last" / "model.safetensors").unlink()
    code, said = train("whole")
    assert code == 0
    assert f"{newest.name} has " in said
    assert "the checkpoint before it is used" in said
    assert f"continuing at step {MAX_STEPS - SAVE_EVERY} of {MAX_STEPS}" in said
    assert weights("whole") == expected


def test_a_read_only_disk_is_an_error_and_the_run_continues_once_it_can_be_written(
    train, weights, small_disk
):
    elsewhere = ("--checkpoint.folder", str(small_disk))
    assert train("read_only", *elsewhere)[0] == 0
    newest = small_disk / "run" / f"step_{MAX_STEPS:08d}.json"
    newest.unlink()  # as if it had been killed before
    remount(small_disk, "ro")
    code, said = train("read_only", *elsewhere)
    assert code == 1
    assert f"error: {small_disk}/run/config.yaml cannot be written (Read-only file system)" in said
    assert "give --checkpoint.folder a folder that you may write to" in said
    remount(small_disk, "rw")
    code, said = train("read_only", *elsewhere)
    assert code == 0
    assert f"continuing at step {MAX_STEPS - SAVE_EVERY} of {MAX_STEPS}" in said
    assert weights("read_only") == weights("whole")
