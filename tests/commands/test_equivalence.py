"""Equal runs compare equal, each difference is found where it begins, and a setting that allows it is named."""

import io
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tests.commands.equivalence_runs import STEPS, config_of, record_of, write_data
from unetdist.commands.equivalence import runs as equivalence
from unetdist.commands.equivalence.runs import (
    Record,
    RunComparison,
    check_worlds,
    compare,
    compare_worlds,
    record,
    render,
    shared_micro_batch_size,
    why_bits_may_differ,
)
from unetdist.data.augment import Augmenter
from unetdist.errors import ConfigError, DataError, TrainingError
from unetdist.train.config import Config
from unetdist.train.step import TrainStep

SHA256 = {"weights": "ab", "averaged weights": "cd"}


# Records written by hand.


def line(step: int, amounts: dict[str, float] | None = None, **changes: Any) -> dict[str, Any]:
    """A line of a record in which only weights differ, by `amounts`, and `changes`."""
    numbers = {"train/loss": 2.0, "train/grad_norm": 4.0} if step else {}
    sha256 = {**SHA256, "weights": "ef"} if amounts else SHA256
    state = {"sha256": sha256, "differences": amounts or {}}
    return {"step": step, "samples": 7 * step, "ranks_agree": True, **state, **numbers, **changes}


def changed(step: int, *amounts: Any, **changes: Any) -> list[dict[str, Any]]:
    return [line(number, *amounts, **changes) if number == step else line(number) for number in range(4)]


REFERENCE = changed(-1)
LONG_NAME = "model.decoder.3.block.layers.1.norm.weight"


def test_the_first_step_and_the_tensor_that_differs_most_are_named():
    amounts = {"model.a": 0.1, "model.b": 0.2, "ema.a": 0.3}
    other = [*REFERENCE[:2], line(2, amounts), line(3, {"model.a": 0.9})]
    comparison = compare(REFERENCE, other, 2, [])
    assert comparison.parted == ["step 2, weights: model.b differs by 2.0e-01"]
    assert comparison.largest == {"loss": None, "gradient norm": None, "weights": 0.9, "averaged weights": None}


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_the_last_digit_of_a_number_counts(name):
    other = changed(1, **{f"train/{name}": REFERENCE[1][f"train/{name}"] + 1e-15})
    [text] = compare(REFERENCE, other, 2, []).parted
    assert re.match(rf"step 1, .+ train/{name} differs by \d", text)


def test_a_loss_that_is_not_finite_equals_only_its_like():
    lost = changed(1, **{"train/loss": math.nan})
    assert compare(lost, lost, 2, []).parted == []
    assert compare(lost, REFERENCE, 2, []).parted == ["step 1, loss: train/loss differs by nan"]


@pytest.mark.parametrize(
    ("reference", "other"),
    [
        (REFERENCE, changed(2, samples=8)),
        (REFERENCE, changed(2, ranks_agree=False)),
        (changed(2, ranks_agree=False), REFERENCE),
    ],
    ids=["samples", "ranks", "ranks of the reference"],
)
def test_samples_and_agreement_are_promised_under_any_settings(reference, other):
    comparison = compare(reference, other, 2, ["model.norm"])
    [text] = comparison.broken
    assert text.startswith("step 2: ")
    assert not comparison.is_as_promised


# Records of real runs.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("equivalence")
    write_data(folder)
    return folder


@pytest.fixture(scope="module")
def reference(folder) -> Record:
    return record_of(folder, "runs", "reference", 1)


def test_two_processes_train_the_bits_of_one(folder, reference):
    two = record_of(folder, "runs", "two", 2)
    comparison = compare(reference, two, 2, [])
    assert (comparison.broken, comparison.parted) == ([], [])
    assert [line["step"] for line in two] == list(range(STEPS + 1))
    assert all(line["samples"] and math.isfinite(line["train/loss"]) for line in two[1:])
    assert two[1]["sha256"].keys() == {"weights", "running statistics", "averaged weights", "optimizer state"}
    assert all(two[2]["sha256"][kind] != sha256 for kind, sha256 in two[1]["sha256"].items())


def test_three_processes_differ_by_rounding(folder, reference):
    """Otherwise more could be promised."""
    comparison = compare(reference, record_of(folder, "runs", "three", 3), 3, ["3 processes"])
    assert comparison.parted
    assert max(amount or 0 for amount in comparison.largest.values()) < 1e-3
    assert comparison.is_as_promised


def mean_of_means(config: Config, steps: int) -> None:
    """Train with the loss as the mean over processes of their means."""

    def denominators_of_this_rank(step, batches):
        loss = step.model_with_loss.loss
        counts = loss.counts(torch.cat([batch.class_pixels for batch in batches]))
        return loss.denominators(counts) * step.world.world_size

    TrainStep.global_denominators = denominators_of_this_rank
    record(config, steps)


def test_a_wrong_gradient_shows_in_all_state_of_the_first_step(folder, reference):
    comparison = compare(reference, record_of(folder, "runs", "mean_of_means", 2, mean_of_means), 2, [])
    assert comparison.broken == []
    kinds = [re.match("step 1, (.+):", text)[1] for text in comparison.parted if text.startswith("step 1")]
    assert kinds == ["loss", "gradient norm", "weights", "optimizer state", "averaged weights"]


def part_at_step_3(config: Config, steps: int) -> None:
    """Train with a weight that only one process changes, in step 3."""
    train_step = TrainStep.__call__

    def step_and_part(step, micro_batches, number):
        grad_norm = train_step(step, micro_batches, number)
        if number == 2 and step.world.rank == 1:
            next(step.model.parameters()).data.add_(1e-9)
        return grad_norm

    TrainStep.__call__ = step_and_part
    record(config, steps)


def test_processes_that_part_are_named_with_the_step(folder, reference):
    [text] = compare(reference, record_of(folder, "runs", "parted", 2, part_at_step_3), 2, []).broken
    assert text.startswith("step 3: ")


def same_augmentation(config: Config, steps: int) -> None:
    """Train on the same samples, each augmented like sample 0."""
    draws = Augmenter.draws
    Augmenter.draws = lambda augmenter, keys: draws(augmenter, [(epoch, 0) for epoch, _ in keys])
    record(config, steps)


def test_other_pixels_of_the_same_samples_are_other_samples(folder, reference):
    [text] = compare(reference, record_of(folder, "runs", "other_pixels", 1, same_augmentation), 1, []).broken
    assert text.startswith("step 1: ")


# Settings and their promises.


@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"norm": "group"}},
        {"model": {"encoder": "resnet34"}},
        {"model": {"drop_path": 0.1, "residual": True}},
        {"trainer": {"mixed_precision": "bf16"}},
        {"loss": {"dice_weight": 1.0, "lovasz_weight": 1.0, "class_weights": "median_frequency"}},
    ],
    ids=str,
)
def test_these_promise_equal_bits(tmp_path, sections):
    assert why_bits_may_differ(config_of(tmp_path, **sections), (1, 2, 4, 12)) == []


def test_these_do_not_and_say_why(tmp_path):
    one, two = why_bits_may_differ(config_of(tmp_path), (6, 2, 3))
    assert re.match(r"6 processes .+ 12 micro-batches", one)
    assert re.match(r"3 processes .+ 12 micro-batches", two)
    [reason] = why_bits_may_differ(config_of(tmp_path, model={"norm": "sync_batch"}), (1, 2))
    assert re.match(r"model.norm \(sync_batch\)", reason)


@pytest.mark.parametrize(("worlds", "samples"), [((1, 2, 4), 3), ((2, 3), 2), ((1, 16), 12)])
def test_without_a_size_runs_share_the_largest_micro_batch_that_fits_all(tmp_path, worlds, samples):
    config = config_of(tmp_path, trainer={"micro_batch_size": None})
    assert shared_micro_batch_size(config, worlds) == samples
    assert shared_micro_batch_size(config_of(tmp_path), worlds) == 1


def test_worlds_are_checked_before_anything_is_started(tmp_path):
    with pytest.raises(DataError, match=r"no manifest.json here"):
        check_worlds(config_of(tmp_path), (1, 2), device_type="cpu")
    write_data(tmp_path)
    assert check_worlds(config_of(tmp_path), (1, 2, 4), device_type="cpu") == 10
    with pytest.raises(ConfigError, match=r"global_batch_size \(12\) must be divisible by the processes \(5\)"):
        check_worlds(config_of(tmp_path), (1, 5), device_type="cpu")
    sync_batch = config_of(tmp_path, model={"norm": "sync_batch"})
    with pytest.raises(ConfigError, match=r"sync_batch\) must have a GPU for each of the 2 processes"):
        check_worlds(sync_batch, (1, 2), device_type="cpu")
    check_worlds(sync_batch, (1, 2), device_type="cuda")


# Launches.

FAKE = """
import json, sys, yaml
from pathlib import Path
values = yaml.safe_load(Path(sys.argv[-1]).read_text())
run = Path(values["runs_dir"]) / values["name"]
run.mkdir()
with open(run / "steps.jsonl", "w") as steps, open(run / "metrics.jsonl", "w") as metrics:
    for step in range(int(sys.argv[-3]) + 1):
        line = {"step": step, "samples": 7, "ranks_agree": True, "sha256": {}, "differences": {}}
        steps.write(json.dumps(line) + "\\n")
        metrics.write(json.dumps({"step": step, "train/loss": 1.0 / (1 + step), "trainer": values["trainer"]}) + "\\n")
"""


@pytest.fixture
def launched(monkeypatch, folder):
    """Start programs in place of the launches; the command lines of those, their settings, threads and GPUs."""
    commands: list[list[Any]] = []
    popen = subprocess.Popen

    def start(code: str) -> list[list[Any]]:
        def launch(words, *, env):
            environment = [env.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")]
            commands.append([*words, Path(words[-1]).read_text(encoding="utf-8"), environment])
            return popen([sys.executable, "-c", code, *words[-4:]])

        monkeypatch.setattr(equivalence.subprocess, "Popen", launch)
        return commands

    return start


@pytest.mark.parametrize("threads", [None, "3"])
def test_each_run_is_a_launch_on_the_cpu_with_the_same_threads_and_micro_batch(folder, launched, threads, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    commands = launched(FAKE)
    config = config_of(
        folder,
        tracking={"tracker": "wandb"},
        trainer={"mixed_precision": "bf16", "max_steps": 3, "micro_batch_size": None},
    )
    comparisons = compare_worlds(config, (1, 2, 4), steps=20)
    assert [row.world_size for row in comparisons] == [2, 4]
    assert all(row.is_as_promised for row in comparisons)
    assert [words[words.index("--processes") + 1] for words in commands] == ["1", "2", "4"]
    assert {words[words.index("--record") + 1] for words in commands} == {"3"}  # the whole training
    for words in commands:
        assert "tracker: none" in words[-2]
        assert "mixed_precision: bf16" in words[-2]
        assert "micro_batch_size: 3" in words[-2]
        assert words[-1] == [threads or "1", ""]
        assert not Path(words[-3]).exists()
    assert not Path(config.runs_dir, config.name).exists()


def test_gpus_are_used_where_there_are_enough(folder, launched, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(equivalence.torch.cuda, "device_count", lambda: 2)
    commands = launched(FAKE)
    compare_worlds(config_of(folder), (2, 1), steps=1)
    assert commands[0][-1][1] is None


def test_a_run_that_fails_is_named_below_its_output(folder, launched, capfd):
    launched("import sys; print('error: no room'); sys.exit(3)")
    with pytest.raises(TrainingError, match=r"the run on 2 processes ended with exit code 3"):
        compare_worlds(config_of(folder), (2, 1), steps=1)
    assert "error: no room" in capfd.readouterr().out


def test_a_run_does_not_outlive_the_command(folder, launched, monkeypatch):
    launched("import time; time.sleep(600)")
    popen, started = equivalence.subprocess.Popen, []

    def interrupt():
        del started[0].wait
        raise KeyboardInterrupt

    def keep(*args, **kwargs):
        started.append(popen(*args, **kwargs))
        started[0].wait = interrupt
        return started[0]

    monkeypatch.setattr(equivalence.subprocess, "Popen", keep)
    with pytest.raises(KeyboardInterrupt):
        compare_worlds(config_of(folder), (1, 2), steps=1)
    assert started[0].returncode is not None


# Texts for the user.


def text_of(rows: list[RunComparison], width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(render("shapes: compared with 1 process", rows))
    return console.file.getvalue()


def test_equal_worlds_are_as_promised():
    text = text_of([compare(REFERENCE, REFERENCE, 3, ["3 processes cannot"])])
    assert "As promised" in text
    assert text.count(" equal ") == 4
    assert "cannot" not in text


def test_a_broken_promise_names_process_step_and_tensor():
    wrong = changed(2, {LONG_NAME: 0.5}, **{"train/loss": 2.2})
    rows = [compare(REFERENCE, REFERENCE, 2, []), compare(REFERENCE, wrong, 4, [])]
    text = " ".join(text_of(rows).split())
    assert "The promise is broken" in text
    assert "4 processes, step 2, loss: train/loss differs by 2.0e-01" in text
    assert f"4 processes, step 2, weights: {LONG_NAME} differs by 5.0e-01" in text
    assert "2 processes," not in text


def test_settings_that_allow_a_difference_are_named():
    text = text_of([compare(REFERENCE, changed(1, {LONG_NAME: 0.5}), 3, ["3 processes cannot"])])
    assert "Equal bits are not promised" in text
    assert "- 3 processes cannot" in text
    wrong = changed(1, {LONG_NAME: 0.5}, samples=9)
    text = " ".join(text_of([compare(REFERENCE, wrong, 3, ["3 processes cannot"])]).split())
    assert "3 processes, step 1: other samples" in text
    assert "not only because: - 3 processes cannot" in text


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_longer_than_the_terminal(width):
    rows = [compare(REFERENCE, changed(1, {LONG_NAME: 0.5}), size, ["model.norm"]) for size in (2, 4, 8, 16)]
    text = text_of(rows, width)
    assert max(map(len, text.splitlines())) <= width
    assert text.count(" 5.0e-01 ") == 4
