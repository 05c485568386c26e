"""launch/slurm/train.sbatch on a SLURM of two nodes: stopped, preempted, cancelled."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.long.launched import ROOT, train_to_the_end, whole_lines
from tests.long.slurm import Slurm, missing
from tests.synthetic import write_shards

WHY_NOT = missing()
pytestmark = [pytest.mark.long, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]

SCRIPT = ROOT / "launch" / "slurm" / "train.sbatch"
OPTIONS = ("--gpus-per-node=1", "--cpus-per-task=1")
"""In place of those that the script's comments ask to be changed."""

MAX_STEPS = 600
SETTINGS = (
    "--data.num_workers 1 --augment.crop_size [16,16] --model.widths [8,16] --model.norm group "
    f"--trainer.global_batch_size 8 --trainer.max_steps {MAX_STEPS} --trainer.log_every 1 "
    "--checkpoint.save_every 10 --tracking.tracker none"
).split()


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with Slurm() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder / "train", 37)
    return folder / "train"


class Job:
    """The script, submitted as it is."""

    def __init__(self, slurm: Slurm, run_dir: Path, shards: Path, num_nodes: int) -> None:
        self.slurm, self.run_dir = slurm, run_dir
        self.log = run_dir.with_name(f"{run_dir.name}.log")
        self.log.parent.mkdir(parents=True)
        options = (*OPTIONS, f"--nodes={num_nodes}")
        words = words_of(run_dir, shards)
        self.number = slurm.submit(SCRIPT, *words, cwd=ROOT, options=[*options, f"--output={self.log}"])

    def train_beyond(self, step: int) -> None:
        """Wait until more than so many steps are made."""
        metrics = self.run_dir / "metrics.jsonl"
        self.wait_until(lambda: metrics.exists() and len(whole_lines(metrics)) > step)
        assert len(whole_lines(metrics)) < MAX_STEPS, "too late for a mishap"

    def wait_for_start(self, number: int) -> None:
        """Wait until it was requeued and runs for the `number`th time."""
        self.wait_until(lambda: self.fact("Restarts") == str(number - 1) and self.fact("JobState") == "RUNNING")

    def wait_until(self, is_true) -> None:
        """Wait for something to happen; the end of the job before it fails the test."""
        self.slurm.wait_until(lambda: self._is_alive() and is_true(), self.log)

    def _is_alive(self) -> bool:
        assert self.fact("JobState") in ("PENDING", "RUNNING", "COMPLETING", "PREEMPTED"), self.output()
        return True

    def end(self) -> str:
        """Wait for it; what SLURM says that it came to."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.slurm.wait_until(lambda: self.fact("JobState") in over, self.log)
        return self.fact("JobState")

    def fact(self, name: str) -> str:
        return self.slurm.fact(self.number, name)

    def output(self) -> str:
        return self.slurm.output() + self.log.read_text(errors="replace")


def words_of(run_dir: Path, shards: Path) -> tuple[str, ...]:
    where = ("--runs_dir", str(run_dir.parent), "--name", run_dir.name)
    return (*where, "--data.train", str(shards), *SETTINGS)


def urgent_script(folder: Path) -> Path:
    """Something short that another user wants."""
    (folder / "urgent.sh").write_text("#!/bin/sh\nhostname\n")
    return folder / "urgent.sh"


def status_of(run_dir: Path) -> str:
    return str(json.loads((run_dir / "status.json").read_text())["state"])


def test_a_job_that_is_stopped_and_preempted_requeues_itself_and_ends_as_if_nothing_had_happened(
    slurm, shards, tmp_path
):
    whole = tmp_path / "whole" / "run"
    train_to_the_end(whole, 0, 2, words_of(whole, shards))
    job = Job(slurm, tmp_path / "requeued" / "run", shards, num_nodes=2)
    job.train_beyond(30)
    # what --signal=B:TERM does before the time limit
    slurm.call("scancel", "--batch", "--signal=TERM", job.number)
    job.wait_for_start(2)
    assert status_of(job.run_dir) == "stopped"
    stopped_at = len(whole_lines(job.run_dir / "metrics.jsonl"))
    job.train_beyond(stopped_at + 30)
    urgent = slurm.submit(
        urgent_script(tmp_path), cwd=tmp_path, options=["--partition=high", "--nodes=2", "--exclusive"]
    )
    slurm.wait_until(lambda: slurm.fact(urgent, "JobState") == "COMPLETED", job.log)
    assert status_of(job.run_dir) == "stopped"
    assert job.end() == "COMPLETED", job.output()
    assert job.fact("Restarts") == "2"
    assert job.log.read_text().count("continuing at step") == 2, job.output()
    assert status_of(job.run_dir) == "finished"
    last = Path("checkpoints", f"step_{MAX_STEPS:08d}.safetensors")
    assert (job.run_dir / last).read_bytes() == (whole / last).read_bytes()
    steps = [json.loads(line)["step"] for line in whole_lines(job.run_dir / "metrics.jsonl")]
    assert steps == list(range(1, MAX_STEPS + 1))


def test_a_job_that_is_cancelled_stays_cancelled_with_a_checkpoint(slurm, shards, tmp_path):
    job = Job(slurm, tmp_path / "cancelled" / "run", shards, num_nodes=1)
    job.train_beyond(30)
    slurm.call("scancel", job.number)
    assert job.end() == "CANCELLED", job.output()
    slurm.wait_until(lambda: slurm.call("squeue", "-h", "-j", job.number).strip() == "", job.log)
    assert status_of(job.run_dir) == "stopped"
    assert job.fact("Restarts") == "0"


def test_the_tasks_of_srun_are_the_processes(slurm, shards, tmp_path):
    run_dir, log, script = tmp_path / "run", tmp_path / "log", tmp_path / "srun.sbatch"
    script.write_text('#!/bin/bash\nexec srun python -m unetdist train "$@"\n')
    options = ["--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1", f"--output={log}"]
    words = [*words_of(run_dir, shards), "--trainer.max_steps", "3"]
    number = slurm.submit(script, *words, cwd=ROOT, options=options)
    over = ("COMPLETED", "FAILED", "CANCELLED")
    slurm.wait_until(lambda: slurm.fact(number, "JobState") in over, log)
    assert slurm.fact(number, "JobState") == "COMPLETED", log.read_text()
    assert "4 processes" in (run_dir / "status.json").read_text()
    assert status_of(run_dir) == "finished"
