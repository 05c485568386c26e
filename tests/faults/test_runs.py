"""launch/train.py as a user types it: beside another training, on disks that fail, in launches that cannot work."""

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from tests.synthetic import settings_of, write_shards
from unetdist.cli import settings
from unetdist.cli.logs import run_script
from unetdist.commands import train as script
from unetdist.data import workers
from unetdist.distributed import launch_check
from unetdist.storage.files import hold_lock
from unetdist.train import run_folder
from unetdist.train.run_status import read_status

SCRIPT = Path(__file__).parents[2] / "launch" / "train.py"
PAGE = 4096
LONG, SAVE_EVERY = 8, 2
LONG_RUN = (
    *("--trainer.max_steps", LONG, "--data.val", "null"),
    *("--checkpoint.save_every", SAVE_EVERY, "--checkpoint.keep_last", 2),
)


@pytest.fixture
def train(tmp_path, monkeypatch, capsys):
    """Runs the command, by default in `tmp_path/runs/tiny`; returns its exit code and what it printed."""
    write_shards(tmp_path / "train", 8)
    write_shards(tmp_path / "val", 2)
    file = tmp_path / "settings.yaml"
    values = settings_of(tmp_path / "train", tmp_path / "val", tmp_path / "runs")
    values["trainer"]["log_every"] = 1
    file.write_text(settings.to_yaml(values))

    def run(*words: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            run_script(lambda: script.main(["--config", str(file), *map(str, words)]))
        return end.value.code, capsys.readouterr().err

    return run


@pytest.fixture
def small_disk(tmp_path):
    """An empty disk, whose options `remount` changes."""
    place = tmp_path / "small"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"only root may mount a file system: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)


@pytest.fixture
def weights(tmp_path, train):
    """Reads the weights of a long run, having trained one that nothing happened to: they must be equal."""
    assert train(*LONG_RUN, "--runs_dir", tmp_path / "whole")[0] == 0

    def read(folder: str) -> dict[str, bytes]:
        tensors = load_file(tmp_path / folder / "tiny" / "last" / "model.safetensors")
        return {name: value.numpy().tobytes() for name, value in tensors.items()}

    return read


def test_a_second_training_in_the_folder_is_refused_and_leaves_the_first_as_it_is(train, tmp_path, monkeypatch):
    run = tmp_path / "runs" / "tiny"
    monkeypatch.setattr(run_folder, "WAIT_S", 0.3)
    run.mkdir(parents=True)
    (run / run_folder.LOCK_FILE).touch()
    with hold_lock(run / run_folder.LOCK_FILE):  # as the first does
        code, said = train()
        assert {path.name for path in run.iterdir()} == {run_folder.LOCK_FILE}
    assert code == 1
    assert f"runs/tiny: another training writes there (process {os.getpid()} on " in said
    assert "choose another --name" in said
    assert train()[0] == 0
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 2, 3, 4, 4]  # two of them with a validation


def test_trainings_that_share_their_checkpoints_are_kept_apart_too(train, tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "WAIT_S", 0.0)
    shared = tmp_path / "checkpoints" / "tiny"
    shared.mkdir(parents=True)
    (shared / run_folder.LOCK_FILE).touch()
    with hold_lock(shared / run_folder.LOCK_FILE):
        code, said = train("--checkpoint.folder", shared.parent, "--runs_dir", tmp_path / "other")
    assert code == 1
    assert "checkpoints/tiny: another training writes there" in said
    assert "--checkpoint.folder" in said


@pytest.mark.parametrize("name", ["best", "last"])
def test_a_full_disk_ends_the_run_with_its_name_and_a_status_that_says_failed(train, tmp_path, small_disk, name):
    words = ["--checkpoint.folder", tmp_path / "elsewhere", "--model.widths", "[32, 64]"]
    words += ["--data.val", "null"] if name == "last" else []
    place = small_disk
    remount(place, f"size={12 * PAGE}")  # for all but the weights
    code, said = train("--runs_dir", place, *words)
    assert code == 1
    assert f"error: {place}/tiny/{name}/model.safetensors cannot be written (No space left on device)" in said
    assert "make room" in said
    assert "Traceback" not in said
    status = read_status(place / "tiny")
    assert (status.state, status.is_final) == ("failed", False)
    assert "No space left on device" in status.reason
    remount(place, "size=4m")
    code, said = train("--runs_dir", place, *words)
    assert code == 0
    assert read_status(place / "tiny").state == "finished"


def test_lines_that_a_full_disk_has_no_room_for_are_written_once_there_is(small_disk):
    from unetdist.tracking.metrics_file import MetricsFile

    place = small_disk
    remount(place, f"size={2 * PAGE}")
    file = MetricsFile(place / "metrics.jsonl")
    file.continue_after(0)
    (place / "ballast").write_bytes(bytes(PAGE - 100))
    failed = 0
    for step in range(1, 201):
        try:
            file.write({"train/loss": 0.123456789}, step)
        except OSError:
            failed += 1
    assert failed > 0
    steps = [json.loads(line)["step"] for line in file.path.read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))
    remount(place, f"size={10 * PAGE}")
    file.flush()
    steps = [json.loads(line)["step"] for line in file.path.read_text().splitlines()]
    assert steps == list(range(1, 201))


def test_a_status_that_cannot_be_written_is_told_in_the_terminal(tmp_path, caplog, monkeypatch):
    from unetdist.storage import files as storage
    from unetdist.train.run_status import RunStatus

    def full(*args):
        raise OSError(28, "No space left on device")

    attempt = RunStatus(tmp_path, is_main=True)
    attempt.begin(0)
    monkeypatch.setattr(storage, "write_json", full)
    attempt.fail("first")
    assert json.loads((tmp_path / "status.json").read_text())["reason"] == "first"  # in place
    monkeypatch.setattr(storage, "write_json_in_place", full)
    attempt.fail("the disk is full")
    assert "status.json cannot be written (No space left on device)" in caplog.text
    assert "failed: the disk is full" in caplog.text


def test_options_of_the_launcher_that_would_do_nothing_are_refused(train, monkeypatch, tmp_path):
    class Launcher:
        def __init__(self, pid):
            pass

        def cmdline(self):
            return ["python", "accelerate", "launch", "--gradient_accumulation_steps", "4", "train.py"]

    monkeypatch.setattr(launch_check.psutil, "Process", Launcher)
    code, said = train()
    assert code == 1
    assert "--gradient_accumulation_steps (4) does nothing" in said
    assert "trainer.micro_batch_size" in said
    assert not (tmp_path / "runs").exists()


def test_on_a_full_disk_it_trains_on_and_continues_once_there_is_room(tmp_path, train, weights, small_disk):
    checkpoint = tmp_path / "whole" / "tiny" / "checkpoints" / f"step_{LONG:08d}.safetensors"
    remount(small_disk, f"size={checkpoint.stat().st_size + 32 * 1024}")
    code, said = train(*LONG_RUN, "--runs_dir", tmp_path / "full", "--checkpoint.folder", small_disk)
    assert code == 1
    for step in range(2 * SAVE_EVERY, LONG, SAVE_EVERY):
        assert f"the checkpoint of step {step} cannot be written to {small_disk}" in said
        assert "that of step 2 is kept. Make room there" in said
    assert f"error: the checkpoint of step {LONG} cannot be written to {small_disk}" in said
    remount(small_disk, "size=16m")
    code, said = train(*LONG_RUN, "--runs_dir", tmp_path / "full", "--checkpoint.folder", small_disk)
    assert code == 0
    assert f"continuing at step 2 of {LONG}" in said
    assert weights("full") == weights("whole")


def test_a_truncated_checkpoint_and_a_lost_pointer_cost_the_steps_since_the_one_before(tmp_path, train, weights):
    expected = weights("whole")
    folder = tmp_path / "whole" / "tiny" / "checkpoints"
    newest = folder / f"step_{LONG:08d}.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    (folder / "latest").unlink()
    (tmp_path / "whole" / "tiny" / "last" / "model.safetensors").unlink()
    code, said = train(*LONG_RUN, "--runs_dir", tmp_path / "whole")
    assert code == 0
    assert f"{newest.name} has " in said
    assert "the checkpoint before it is used" in said
    assert f"continuing at step {LONG - SAVE_EVERY} of {LONG}" in said
    assert weights("whole") == expected


def test_a_read_only_disk_is_an_error_and_the_run_continues_once_it_can_be_written(
    tmp_path, train, weights, small_disk
):
    words = (*LONG_RUN, "--runs_dir", tmp_path / "read_only", "--checkpoint.folder", small_disk)
    assert train(*words)[0] == 0
    newest = small_disk / "tiny" / f"step_{LONG:08d}.json"
    newest.unlink()  # as if it had been killed before
    remount(small_disk, "ro")
    code, said = train(*words)
    assert code == 1
    assert f"error: {small_disk}/tiny/config.yaml cannot be written (Read-only file system)" in said
    assert "give --checkpoint.folder a folder that you may write to" in said
    remount(small_disk, "rw")
    code, said = train(*words)
    assert code == 0
    assert f"continuing at step {LONG - SAVE_EVERY} of {LONG}" in said
    assert weights("read_only") == weights("whole")


def test_too_few_open_files_for_the_workers_are_told_before_any_starts(train, monkeypatch):
    limits = SimpleNamespace(**vars(workers.resource) | {"getrlimit": lambda kind: (40, 40)})
    monkeypatch.setattr(workers, "resource", limits)
    code, said = train("--data.num_workers", 2)
    assert code == 1
    assert "error: data.num_workers (2) needs about" in said
    assert "ulimit -n 4096" in said
    assert "Traceback" not in said
