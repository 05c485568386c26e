"""Two machines train together, lose each other or themselves, and come to the weights of a run without mishap."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.long.launched import CONFIGS, DEADLINE_S, ROOT, environment, train_to_the_end, whole_lines
from tests.long.nodes import Nodes, missing
from tests.synthetic import write_shards
from unetdist.distributed.rendezvous import WAIT_S

WHY_NOT = missing()
pytestmark = [pytest.mark.long, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]

MAX_STEPS = 600
HEARTBEAT_S = 10
SETTINGS = (
    "--data.num_workers 1 --augment.crop_size [16,16] --model.widths [8,16] --trainer.global_batch_size 8 "
    f"--trainer.max_steps {MAX_STEPS} --trainer.log_every 1 --trainer.heartbeat_s {HEARTBEAT_S} "
    "--checkpoint.save_every 10 --tracking.tracker none"
).split()
LAUNCH = (
    f"{sys.executable} -m accelerate.commands.launch --config_file {CONFIGS / 'several_nodes.yaml'} "
    "--num_machines 2 --num_processes 2 --main_process_ip node0 --main_process_port 29500"
).split()
RESTARTED = ("bash", "-c", 'until "$@"; do sleep 1; done', "until")
"""What Kubernetes does with a pod whose launcher failed."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with shards and with `whole`, a run of two processes that nothing happened to."""
    folder = tmp_path_factory.mktemp("nodes")
    write_shards(folder / "train", 37)
    run_dir = folder / "whole" / "run"
    train_to_the_end(run_dir, 0, 2, words_of(run_dir))
    return folder


def words_of(run_dir: Path) -> tuple[str, ...]:
    where = ("--runs_dir", str(run_dir.parent), "--name", run_dir.name)
    return (*where, "--data.train", str(run_dir.parents[1] / "train"), *SETTINGS)


class Job:
    """The same command on each node, but for the number of the node."""

    def __init__(self, nodes: Nodes, run_dir: Path, restarted: tuple[str, ...] = ()) -> None:
        self.nodes, self.run_dir, self.restarted = nodes, run_dir, restarted
        run_dir.parent.mkdir(exist_ok=True)
        self.commands = [self._start(0), self._start(1)]

    def _start(self, number: int) -> "subprocess.Popen[bytes]":
        training = (*LAUNCH, "--machine_rank", str(number), str(ROOT / "launch" / "train.py"))
        words = (*self.restarted, *training, *words_of(self.run_dir))
        return self.nodes[number].start(words, self.log(number), environment(GLOO_SOCKET_IFNAME="eth0"))

    def start_again(self, number: int) -> None:
        """On a node that comes back."""
        self.commands[number].wait(DEADLINE_S)  # what was started on it ended with it
        self.commands[number] = self._start(number)

    def log(self, number: int) -> Path:
        return self.run_dir.with_name(f"{self.run_dir.name}_node{number}.log")

    def output(self) -> str:
        """Of both."""
        return "\n".join(f"--- node{number}\n{self.log(number).read_text(errors='replace')}" for number in (0, 1))

    def train_beyond(self, step: int) -> None:
        """Wait until more than so many steps are made."""
        metrics = self.run_dir / "metrics.jsonl"
        self.wait_until(lambda: metrics.exists() and len(whole_lines(metrics)) > step)
        assert len(whole_lines(metrics)) < MAX_STEPS, "too late for a mishap"

    def wait_until(self, is_true: Callable[[], bool], of: tuple[int, ...] = (0, 1)) -> None:
        """Wait for something to happen; a command `of` these nodes that ends before it fails the test."""
        deadline = time.monotonic() + DEADLINE_S
        while not is_true():
            assert all(self.commands[number].poll() is None for number in of), self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.05)

    def end(self, wait_s: float = DEADLINE_S) -> list[int]:
        """Wait for the end of both; their exit codes."""
        try:
            codes = [command.wait(wait_s) for command in self.commands]
        except subprocess.TimeoutExpired:
            pytest.fail(f"one of them does not end\n{self.output()}")
        deadline = time.monotonic() + DEADLINE_S
        while left := [*self.nodes[0].processes(), *self.nodes[1].processes()]:
            assert time.monotonic() < deadline, f"{left} outlive their launcher\n{self.output()}"
            time.sleep(0.1)
        return codes


def check_result(run_dir: Path) -> None:
    """Weights and optimizer bit by bit, and each step once in the metrics."""
    last = Path("checkpoints", f"step_{MAX_STEPS:08d}.safetensors")
    assert (run_dir / last).read_bytes() == (run_dir.parents[1] / "whole" / "run" / last).read_bytes()
    steps = [json.loads(line)["step"] for line in whole_lines(run_dir / "metrics.jsonl")]
    assert steps == list(range(1, MAX_STEPS + 1))


def test_a_cut_cable_ends_both_with_the_reason_and_once_mended_they_continue(runs):
    run_dir = runs / "cut" / "run"
    with Nodes(2, runs) as nodes:
        job = Job(nodes, run_dir)
        job.train_beyond(30)
        nodes[1].unplug()
        assert job.end() == [1, 1], job.output()
        for rank in (0, 1):
            assert f"[rank {rank}] error: no progress for {HEARTBEAT_S} s" in job.log(rank).read_text()
            assert f"node node{rank}, process " in (run_dir / "stacks" / f"rank_{rank}.txt").read_text()
        nodes[1].plug_in()
        job = Job(nodes, run_dir)
        assert job.end() == [0, 0], job.output()
        assert "continuing at step" in job.log(0).read_text()
    check_result(run_dir)


@pytest.mark.parametrize(("lost", "back"), [(0, "late"), (1, "late"), (1, "at once")])
def test_a_machine_that_crashes_is_taken_in_again_when_it_comes_back(runs, lost, back):
    run_dir = runs / f"lost_{lost}_{back.replace(' ', '_')}" / "run"
    kept = 1 - lost
    with Nodes(2, runs) as nodes:
        job = Job(nodes, run_dir, RESTARTED)
        job.train_beyond(30)
        nodes[lost].crash()
        if back == "late":
            job.wait_until(lambda: "the launcher can restart it" in job.log(kept).read_text(), of=(kept,))
        nodes.replace(lost)
        job.start_again(lost)
        # it can meet a launcher that is ending, and then nothing happens for WAIT_S
        assert job.end(WAIT_S + DEADLINE_S) == [0, 0], job.output()
    check_result(run_dir)
