"""Equal runs compare equal, each difference is found where it begins, and the settings that allow it are named."""

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

from tests.apps.equivalence_runs import STEPS, config_of, record_of, write_data
from unetdist.apps import equivalence
from unetdist.apps.equivalence import (
    Record,
    RunComparison,
    broken_by,
    check_worlds,
    compare,
    compare_worlds,
    record,
    render,
)
from unetdist.data.augment import Augmenter
from unetdist.errors import ConfigError, DataError, TrainingError
from unetdist.train.config import Config
from unetdist.train.step import TrainStep

SCRIPT = Path(__file__).parents[2] / "launch" / "equivalence.py"


# Records written by hand.


def line(step: int, **changes: Any) -> dict[str, Any]:
    """A line of a record that differs only in `changes`."""
    numbers = {"train/loss": 2.0, "train/grad_norm": 4.0} if step else {}
    return {"step": step, "samples": 7 * step, "ranks_agree": True, "differences": {}, **numbers, **changes}


def changed(step: int, **changes: Any) -> list[dict[str, Any]]:
    return [line(number, **(changes if number == step else {})) for number in range(4)]


REFERENCE = changed(-1)
LONG_NAME = "ema.decoder.3.block.layers.1.norm.running_mean"


def test_rounding_is_equal():
    comparison = compare(REFERENCE, changed(2, differences={"a": 1e-12}), 2)
    assert (comparison.broken, comparison.beyond_rounding) == ([], [])
    assert comparison.largest == {"loss": 0, "gradient": 0, "weights": 1e-12}


def test_the_first_step_and_the_tensor_that_differs_most_are_named():
    other = [*REFERENCE[:2], line(2, differences={"a": 0.1, "b": 0.2}), line(3, differences={"a": 0.9})]
    comparison = compare(REFERENCE, other, 2)
    assert comparison.beyond_rounding == ["step 2: b differs by 2.0e-01"]
    assert comparison.largest["weights"] == 0.9


def test_loss_and_gradient_are_relative():
    comparison = compare(REFERENCE, changed(1, **{"train/loss": 2.5, "train/grad_norm": 5.0}), 2)
    assert comparison.largest == {"loss": 0.2, "gradient": 0.2, "weights": 0}
    assert [text.split(":")[0] for text in comparison.beyond_rounding] == ["step 1", "step 1"]


@pytest.mark.parametrize(
    ("what", "lost"),
    [
        ("loss", {"train/loss": math.nan}),
        ("gradient", {"train/grad_norm": math.nan}),
        ("weights", {"differences": {"a": 0.0, "b": math.nan, "c": 0.5}}),
    ],
)
def test_what_is_not_finite_equals_nothing(what, lost):
    for reference in (REFERENCE, changed(1, **lost)):
        comparison = compare(reference, changed(1, **lost), 2)
        assert comparison.largest[what] == math.inf
        assert comparison.beyond_rounding == [f"step 1: {'b' if what == 'weights' else what} differs by inf"]


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
    comparison = compare(reference, other, 2)
    [text] = comparison.broken
    assert text.startswith("step 2: ")
    assert not comparison.is_as_promised(["model.norm"])


# Records of real runs.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("equivalence")
    write_data(folder)
    return folder


@pytest.fixture(scope="module")
def reference(folder) -> Record:
    return record_of(folder, "runs", "reference", 1)


def test_two_processes_with_accumulation_and_averages_train_what_one_does(folder):
    sections = {"trainer": {"micro_batch_size": 2, "ema_decay": 0.9}}
    one = record_of(folder, "averaged", "one", 1, **sections)
    two = record_of(folder, "averaged", "two", 2, **sections)
    comparison = compare(one, two, 2)
    assert (comparison.broken, comparison.beyond_rounding) == ([], [])
    assert any(name.startswith("ema.") for line in two for name in line["differences"])
    assert [line["step"] for line in two] == list(range(STEPS + 1))
    assert all(line["samples"] and math.isfinite(line["train/loss"]) for line in two[1:])


def test_a_repeat_is_equal_bit_by_bit(folder, reference):
    again = record_of(folder, "runs", "again", 1)
    assert set(compare(reference, again, 1).largest.values()) == {0}


def mean_of_means(config: Config, steps: int) -> None:
    """Train with the loss as the mean over processes of their means."""

    def denominators_of_this_rank(step, batches):
        pixels = torch.cat([batch.class_pixels for batch in batches])
        return step.model_with_loss.loss.denominators(pixels) * step.world.world_size

    TrainStep.global_denominators = denominators_of_this_rank
    record(config, steps)


def test_a_wrong_gradient_shows_in_the_first_step_and_its_tensor_is_named(folder, reference):
    other = record_of(folder, "runs", "mean_of_means", 2, mean_of_means)
    comparison = compare(reference, other, 2)
    assert comparison.broken == []
    loss, gradient, weights = comparison.beyond_rounding
    assert loss.startswith("step 1: loss")
    assert gradient.startswith("step 1: gradient")
    assert weights.split()[2] in other[1]["differences"]


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
    [text] = compare(reference, record_of(folder, "runs", "parted", 2, part_at_step_3), 2).broken
    assert text.startswith("step 3: ")


def same_augmentation(config: Config, steps: int) -> None:
    """Train on the same samples, each augmented like sample 0."""
    draws = Augmenter.draws
    Augmenter.draws = lambda augmenter, keys: draws(augmenter, [(epoch, 0) for epoch, _ in keys])
    record(config, steps)


def test_other_pixels_of_the_same_samples_are_other_samples(folder, reference):
    [text] = compare(reference, record_of(folder, "runs", "other_pixels", 1, same_augmentation), 1).broken
    assert text.startswith("step 1: ")


@pytest.mark.parametrize(
    "sections", [{"model": {"norm": "batch"}}, {"model": {"dropout": 0.5}}], ids=["batch norm", "dropout"]
)
def test_weights_that_are_not_promised_do_differ(folder, sections):
    """Otherwise more could be promised."""
    group = "_".join(sections["model"])
    one, two = (record_of(folder, group, f"world_{size}", size, **sections) for size in (1, 2))
    reasons = broken_by(config_of(folder, **sections), (1, 2))
    comparison = compare(one, two, 2)
    assert comparison.beyond_rounding
    assert comparison.is_as_promised(reasons)
    assert not comparison.is_as_promised([])


# Settings and their promises.


@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"norm": "group"}},
        {"model": {"norm": "instance"}},
        {"model": {"norm": "none"}},
        {"model": {"norm": "sync_batch"}},
        {"trainer": {"micro_batch_size": 1, "ema_decay": 0.9}},
        {"loss": {"dice_weight": 1.0, "lovasz_weight": 1.0, "class_weights": "median_frequency"}},
        {"optim": {"kind": "sgd", "clip_norm": 1.0}},
    ],
    ids=str,
)
def test_these_promise_equal_weights(tmp_path, sections):
    assert broken_by(config_of(tmp_path, **sections), (1, 2, 4)) == []


@pytest.mark.parametrize(
    ("sections", "reasons"),
    [
        ({"model": {"norm": "batch"}}, [r"model.norm \(batch\)"]),
        (
            {"model": {"norm": "sync_batch"}, "trainer": {"micro_batch_size": 2}},
            [r"model.norm \(sync_batch\) .+micro_batch_size \(2\)"],
        ),
        ({"model": {"encoder": "resnet34"}}, [r"model.encoder \(resnet34\)"]),
        ({"model": {"drop_path": 0.1, "residual": True}}, [r"model.drop_path \(0.1\)"]),
        ({"model": {"norm": "batch", "dropout": 0.1}}, [r"model.norm", r"model.dropout \(0.1\)"]),
    ],
    ids=["batch", "sync_batch", "encoder", "drop_path", "two reasons"],
)
def test_these_do_not_and_say_why(tmp_path, sections, reasons):
    found = broken_by(config_of(tmp_path, **sections), (1, 2))
    assert len(found) == len(reasons)
    assert all(map(re.match, reasons, found))


def test_worlds_are_checked_before_anything_is_started(tmp_path):
    with pytest.raises(DataError, match=r"no manifest.json here"):
        check_worlds(config_of(tmp_path), (1, 2), device_type="cpu")
    write_data(tmp_path)
    assert check_worlds(config_of(tmp_path), (1, 2, 4), device_type="cpu") == 10
    with pytest.raises(ConfigError, match=r"global_batch_size \(8\) must be divisible by the processes \(3\)"):
        check_worlds(config_of(tmp_path), (1, 3), device_type="cpu")
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
        steps.write(json.dumps({"step": step, "samples": 7, "ranks_agree": True, "differences": {}}) + "\\n")
        metrics.write(json.dumps({"step": step, "train/loss": 1.0 / (1 + step), "trainer": values["trainer"]}) + "\\n")
"""


@pytest.fixture
def launched(monkeypatch, folder):
    """Start programs in place of the launches; the command lines that those would have had, and their settings."""
    commands: list[list[str]] = []
    popen = subprocess.Popen

    def start(code: str) -> list[list[str]]:
        def launch(words, *, env):
            visible = env.get("CUDA_VISIBLE_DEVICES")
            commands.append([*words, Path(words[-1]).read_text(encoding="utf-8"), f"CUDA_VISIBLE_DEVICES={visible}"])
            return popen([sys.executable, "-c", code, *words[-4:]])

        monkeypatch.setattr(equivalence.subprocess, "Popen", launch)
        return commands

    return start


def test_each_run_is_a_launch_on_the_cpu_with_the_file_for_its_size(folder, launched):
    commands = launched(FAKE)
    config = config_of(folder, tracking={"tracker": "wandb"}, trainer={"mixed_precision": "bf16", "max_steps": 3})
    comparisons = compare_worlds(config, (1, 2, 4), steps=20, script=SCRIPT)
    assert [row.world_size for row in comparisons] == [2, 4]
    assert all(row.is_as_promised([]) for row in comparisons)
    files = [Path(words[words.index("--config_file") + 1]) for words in commands]
    assert all(file.is_file() for file in files)
    assert [file.name for file in files] == ["one_gpu.yaml", "cpu.yaml", "cpu.yaml"]
    assert [words[words.index("--num_processes") + 1] for words in commands] == ["1", "2", "4"]
    assert {words[words.index("--record") + 1] for words in commands} == {"3"}  # the whole training
    for words in commands:
        assert "tracker: none" in words[-2]
        assert "mixed_precision: 'no'" in words[-2]
        assert words[-1] == "CUDA_VISIBLE_DEVICES="
        assert not Path(words[-3]).exists()
    assert not Path(config.runs_dir, config.name).exists()


def test_gpus_are_used_where_there_are_enough(folder, launched, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(equivalence.torch.cuda, "device_count", lambda: 2)
    commands = launched(FAKE)
    compare_worlds(config_of(folder), (2, 1), steps=1, script=SCRIPT)
    assert Path(commands[0][commands[0].index("--config_file") + 1]).name == "one_node.yaml"
    assert commands[0][-1] == "CUDA_VISIBLE_DEVICES=None"


def test_a_run_that_fails_is_named_below_its_output(folder, launched, capfd):
    launched("import sys; print('error: no room'); sys.exit(3)")
    with pytest.raises(TrainingError, match=r"the run on 2 processes ended with exit code 3"):
        compare_worlds(config_of(folder), (2, 1), steps=1, script=SCRIPT)
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
        compare_worlds(config_of(folder), (1, 2), steps=1, script=SCRIPT)
    assert started[0].returncode is not None


# Texts for the user.

BATCH_NORM = "model.norm (batch) normalises each process's own part"


def text_of(rows: list[RunComparison], reasons: list[str], width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(render("shapes: compared with 1 process", rows, reasons))
    return console.file.getvalue()


def test_equal_worlds_are_as_promised():
    text = text_of([compare(REFERENCE, changed(3, differences={LONG_NAME: 1e-12}), 2)], [])
    assert "As promised" in text
    assert "1.0e-12" in text
    assert LONG_NAME not in text


def test_a_broken_promise_names_process_step_and_tensor():
    wrong = changed(2, differences={LONG_NAME: 0.5}, **{"train/loss": 2.2})
    rows = [compare(REFERENCE, REFERENCE, 2), compare(REFERENCE, wrong, 4)]
    text = " ".join(text_of(rows, []).split())
    assert "The promise is broken" in text
    assert "DIFFERS" in text
    assert "4 processes, step 2: loss differs by 9.1e-02" in text
    assert f"4 processes, step 2: {LONG_NAME} differs by 5.0e-01" in text
    assert "2 processes," not in text


def test_settings_that_allow_a_difference_are_named():
    text = text_of([compare(REFERENCE, changed(1, differences={LONG_NAME: 0.5}), 2)], [BATCH_NORM])
    assert "may differ" in text
    assert "Equal weights are not promised" in text
    assert f"- {BATCH_NORM}" in text
    parted = " ".join(text_of([compare(REFERENCE, changed(1, samples=9), 2)], [BATCH_NORM]).split())
    assert "2 processes, step 1: other samples" in parted
    assert "not only because of: - model.norm" in parted


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_longer_than_the_terminal(width):
    text = text_of([compare(REFERENCE, changed(1, differences={LONG_NAME: 0.5}), 2)], [BATCH_NORM], width)
    assert max(map(len, text.splitlines())) <= width
    assert "may differ" in text
