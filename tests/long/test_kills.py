"""A run that is killed again and again, and continued by the same command, ends as if nothing had happened."""

import json
import os
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.long.launched import Launched, train_to_the_end, whole_lines
from tests.synthetic import write_shards

pytestmark = pytest.mark.long

BATCH, MICRO_BATCH = 12, 3
SAVE_EVERY = 5
NUM_KILLS = 30
MOMENTS = ("start-up", "step", "checkpoint")

MAX_STEPS = 900
"""More than so many attempts can make, so that each of them is killed."""

SETTINGS = (
    "--data.num_workers 1 --augment.crop_size [16,16] --augment.flip_horizontal 0.5 --model.widths [8,16,32] "
    f"--model.dropout 0.1 --trainer.global_batch_size {BATCH} --trainer.micro_batch_size {MICRO_BATCH} "
    "--trainer.log_every 1 --trainer.eval_every 50 --trainer.ema_decay 0.9 "
    f"--checkpoint.save_every {SAVE_EVERY} --tracking.tracker none"
).split()


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder / "train", 37)
    write_shards(folder / "val", 5)
    return ("--data.train", str(folder / "train"), "--data.val", str(folder / "val"))


def words_of(run_dir: Path, shards: tuple[str, ...], max_steps: int) -> tuple[str, ...]:
    where = ("--runs_dir", str(run_dir.parent), "--name", run_dir.name)
    return (*SETTINGS, *shards, *where, "--trainer.max_steps", str(max_steps))


def test_thirty_kills_leave_no_trace(tmp_path, shards):
    whole, killed = tmp_path / "whole" / "run", tmp_path / "killed" / "run"
    train_to_the_end(whole, 0, 2, words_of(whole, shards, MAX_STEPS))
    chance = random.Random(4)
    moments = [moment for _ in range(NUM_KILLS // 3) for moment in chance.sample(MOMENTS, 3)]
    words = words_of(killed, shards, MAX_STEPS)
    train_through_kills(killed, words, [(2, moment) for moment in moments], chance)
    train_to_the_end(killed, len(moments), 2, words)
    assert contents(killed / "last") == contents(whole / "last")
    assert contents(killed / "best") == contents(whole / "best")
    assert final_checkpoint(killed, MAX_STEPS) == final_checkpoint(whole, MAX_STEPS)
    assert metrics(killed) == metrics(whole)
    assert samples_of_steps(killed, MAX_STEPS) == samples_of_steps(whole, MAX_STEPS)


def test_kills_leave_no_trace_though_each_restart_has_another_number_of_processes(tmp_path, shards):
    chance = random.Random(5)
    attempts = [(chance.choice([1, 2, 4]), ("step", "checkpoint")[i % 2]) for i in range(10)]
    max_steps = 60 * len(attempts)
    whole, killed = tmp_path / "whole" / "run", tmp_path / "killed" / "run"
    env = {"SPOILED_STEP": "30"}
    train_to_the_end(whole, 0, 1, words_of(whole, shards, max_steps), **env)
    words = words_of(killed, shards, max_steps)
    train_through_kills(killed, words, attempts, chance, **env)
    train_to_the_end(killed, len(attempts), 2, words, **env)
    for name in ("last", "best"):
        expected, found = (load_file(run_dir / name / "model.safetensors") for run_dir in (whole, killed))
        assert expected.keys() == found.keys()
        assert [key for key, value in expected.items() if not found[key].equal(value)] == []
    assert final_checkpoint(killed, max_steps) == final_checkpoint(whole, max_steps)
    assert metrics(killed) == metrics(whole)
    assert max(line.get("train/bad_steps", 0) for line in metrics(whole)) == 1
    assert samples_of_steps(killed, max_steps) == samples_of_steps(whole, max_steps)


def train_through_kills(
    run_dir: Path, words: tuple[str, ...], attempts: list[tuple[int, str]], chance: random.Random, **env: str
) -> None:
    """Start a run as often as there are attempts, on as many processes as each has, and kill each at its moment."""
    checkpoints = run_dir / "checkpoints"
    saved = 0
    for number, (world_size, moment) in enumerate(attempts):
        attempt = Launched(run_dir, number, world_size, words, **env)
        try:
            victim = kill(attempt, moment, checkpoints, chance)
            assert attempt.end() != 0, attempt.output()
        finally:
            attempt.kill_all()
        steps = attempt.steps()
        span = f"in steps {steps[0]} to {steps[-1]}" if steps else "before its first step"
        print(f"attempt {number} on {world_size}: {moment}, {victim} killed {span}", flush=True)
        assert not steps or steps[0] == saved + 1
        saved = max(committed(checkpoints), default=0)
        assert saved >= (steps[-1] - 2 * SAVE_EVERY if steps else 0)


def kill(attempt: Launched, moment: str, checkpoints: Path, chance: random.Random) -> str:
    """SIGKILL for the launcher or a rank at such a moment; which."""
    if moment == "checkpoint":
        return kill_writer(attempt, checkpoints, chance.randrange(3))
    if moment == "start-up":
        over = time.monotonic() + chance.uniform(0, 20)
        attempt.wait_until(lambda: time.monotonic() > over or attempt.steps())
    else:
        steps = chance.randint(12, 30)
        attempt.wait_until(lambda: len(attempt.steps()) >= steps)
        time.sleep(chance.uniform(0, 0.03))
    victims: dict[str, int] = {f"rank {rank}": process.pid for rank, process in attempt.ranks().items()}
    victims["launcher"] = attempt.launcher.pid
    victim = chance.choice(sorted(victims))
    os.kill(victims[victim], signal.SIGKILL)
    return victim


def kill_writer(attempt: Launched, checkpoints: Path, spared: int) -> str:
    """SIGKILL for rank 0 while a checkpoint is half written, not in the first `spared` such moments."""
    before = committed(checkpoints)
    attempt.wait_until(lambda: committed(checkpoints) - before)  # it has removed what others left half written
    writer = attempt.ranks()[0]
    seen: set[int] = set()

    def is_caught() -> bool:
        half = half_written(checkpoints) - seen
        if not half:
            return False
        writer.suspend()
        if not half & half_written(checkpoints) or len(seen) < spared:
            seen.update(half)
            writer.resume()
            return False
        return True

    attempt.wait_until(is_caught, every_s=0)
    writer.kill()
    return "rank 0"


def half_written(checkpoints: Path) -> set[int]:
    """Steps whose checkpoint is begun and not committed."""
    names = [path.name for path in checkpoints.iterdir()]
    begun = {int(found[1]) for name in names if (found := re.match(r"\.?step_(\d+)\.", name))}
    return begun - committed(checkpoints)


def committed(checkpoints: Path) -> set[int]:
    """Steps whose checkpoint exists."""
    return {int(path.stem.removeprefix("step_")) for path in checkpoints.glob("step_*.json")}


def contents(folder: Path) -> dict[str, bytes]:
    """Each file of saved weights and each tensor in it; the header of a safetensors file has no order."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".safetensors"}
    tensors = load_file(folder / "model.safetensors")
    return files | {name: value.numpy().tobytes() for name, value in tensors.items()}


def final_checkpoint(run_dir: Path, step: int) -> tuple[bytes, Any]:
    file = run_dir / "checkpoints" / f"step_{step:08d}"
    return file.with_suffix(".safetensors").read_bytes(), json.loads(file.with_suffix(".json").read_text())


def metrics(run_dir: Path) -> list[dict[str, float]]:
    """All lines, without the times."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def samples_of_steps(run_dir: Path, max_steps: int) -> dict[int, list[list[int]]]:
    """By step, the samples of its global batch, in the attempt that the result goes back to: the last that made it.

    A step that was made before, and lost, was fed the same.
    """
    folder = run_dir.with_name(f"{run_dir.name}_record")
    attempts: dict[int, dict[int, list[list[int]]]] = {}
    for path in folder.iterdir():
        for step, samples in map(json.loads, whole_lines(path)):
            attempts.setdefault(int(path.stem), {}).setdefault(step, []).extend(samples)
    result: dict[int, list[list[int]]] = {}
    for number in sorted(attempts):
        for step, samples in attempts[number].items():
            if len(samples) < BATCH:  # killed before all ranks had theirs
                assert all(sample in result.get(step, samples) for sample in samples)
            else:
                assert result.setdefault(step, sorted(samples)) == sorted(samples)
    assert sorted(result) == list(range(1, max_steps + 1))
    return result
