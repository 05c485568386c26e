"""Ablations whose runs are small scripts, and so take no time."""

import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.synthetic import settings_of
from unetdist.cli import settings
from unetdist.cli.logs import set_up_logging
from unetdist.commands.ablate.ablation import (
    GIVEN_FILE,
    LOG_FILE,
    Ablation,
    AblationRun,
    paired_t_test,
    read_ablation,
    summarise,
    table_of,
)
from unetdist.errors import ConfigError
from unetdist.storage.files import write_json, write_text
from unetdist.train.config import SETTINGS_FILE, Config
from unetdist.train.run_status import STOPPED_EARLY

VARIANTS = "variants:\n  plain:\n  group: {model.norm: group}\n"


def ablation_of(folder: Path, text: str = VARIANTS, *words: str) -> Ablation:
    """The ablation of a YAML text, with a base whose data need not exist."""
    base = settings_of(folder / "train", folder / "val", folder / "runs")
    write_text(folder / "base.yaml", settings.to_yaml(base))
    write_text(folder / "tried.yaml", f"base: {folder / 'base.yaml'}\n{text}")
    return read_ablation(folder / "tried.yaml", words)


def finish(run: AblationRun, miou: float, *, confusion: np.ndarray | None = None):
    """Leave behind what a finished run does."""
    values = settings.to_mapping(run.config)
    values["trainer"]["mixed_precision"] = "bf16"  # that of a launcher
    write_text(run.folder / SETTINGS_FILE, settings.to_yaml(values))
    write_json(run.folder / "status.json", {"state": "finished", "step": 4})
    write_json(run.folder / "last" / "config.json", {"metric": {"name": "val/miou", "value": miou}})
    if confusion is not None:
        np.savez(run.per_image_file, confusion=np.stack([confusion] * 12))


def by_name(ablation):
    return {run.config.name: run for run in ablation.runs}


@pytest.fixture
def ablation(tmp_path):
    return ablation_of(tmp_path, "seeds: [0, 1]\n" + VARIANTS)


# The YAML


def test_every_variant_is_run_with_every_seed(tmp_path):
    ablation = ablation_of(tmp_path)
    names = [run.config.name for run in ablation.runs]
    assert names == ["plain_0", "group_0", "plain_1", "group_1", "plain_2", "group_2"]
    assert [run.config.seed for run in ablation.runs] == [0, 0, 1, 1, 2, 2]
    assert [run.config.model.norm for run in ablation.runs] == ["batch", "group"] * 3
    assert ablation.train == [sys.executable, "-m", "unetdist", "train", "--processes", "1"]
    assert ablation.runs[1].folder == ablation.folder / "group_0" == tmp_path / "runs" / "tried" / "group_0"


def test_empty_entries_and_numbers_as_names_are_fine(tmp_path):
    ablation = ablation_of(
        tmp_path, "settings:\ncommand:\nname:\nseeds: [0]\nvariants: {1: , 2: {model.norm: group}}\n"
    )
    assert [run.config.name for run in ablation.runs] == ["1_0", "2_0"]
    assert ablation.folder.name == "tried"
    assert ablation.train == [sys.executable, "-m", "unetdist", "train", "--processes", "1"]


def test_words_override_the_settings_for_all_and_variants_override_both(tmp_path):
    text = """
name: mine
seeds: [7]
command: accelerate launch launch/train.py
settings:
  model.widths: [2, 4]
  trainer: {max_steps: 9}
  optim.kind: sgd
variants:
  plain: {}
  both: {model: {norm: group, dropout: 0.5}, optim.lr: 0.5}
"""
    ablation = ablation_of(tmp_path, text, "--optim.kind", "adamw", "--data.val=elsewhere")
    plain, both = (run.config for run in ablation.runs)
    assert (plain.model.widths, plain.trainer.max_steps, plain.optim.kind) == ((2, 4), 9, "adamw")
    assert (both.model.norm, both.model.dropout, both.optim.lr) == ("group", 0.5, 0.5)
    assert (both.data.val, both.trainer.global_batch_size) == ("elsewhere", 4)
    assert (ablation.folder.name, both.seed) == ("mine", 7)
    assert ablation.train == ["accelerate", "launch", "launch/train.py"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("varients: {}\n", r"tried\.yaml: .*'varients'; did you mean 'variants'\?"),
        ("variants: {plain: }\n", r"variants must name two or more"),
        ("variants: {plain: , a/b: }\n", r"name \(a/b_0\) becomes a folder"),
        ("variants: {plain: , b: 3}\n", r"tried\.yaml: variants.*3"),
        ("variants: {plain: , b: {seed: 3}}\n", r"variant 'b' changes --seed"),
        ("variants: {plain: , b: {model.nrom: group}}\n", r"variant 'b': .*model\.nrom'.*norm'\?"),
        ("variants: {plain: , b: {model.dropout: 2}}\n", r"variant 'b': model\.dropout \(2\.0\)"),
        (VARIANTS + "settings: [1]\n", r"tried\.yaml: settings.*\[1\]"),
        (VARIANTS + "settings: {model.nrom: group}\n", r"'--model\.nrom'; did you mean"),
        (VARIANTS + "seeds: [0, 0]\n", r"seeds \(\[0, 0\]\) .*use \[0, 1, 2\]"),
        (VARIANTS + "command: [a]\n", r"tried\.yaml: command"),
        (VARIANTS + "settings: {data.val: null}\n", r"data\.val .* give --data\.val SHARDS"),
        (VARIANTS + "name: a/b\n", "name"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        ablation_of(tmp_path, text)


def test_a_base_is_needed_and_a_setting_of_a_variant_cannot_be_for_all(tmp_path):
    with pytest.raises(ConfigError, match=r"variant 'group' changes --model\.norm, which is set for all"):
        ablation_of(tmp_path, VARIANTS, "--model.norm=batch")
    write_text(tmp_path / "x.yaml", VARIANTS)
    with pytest.raises(ConfigError, match=r"x\.yaml: .*base"):
        read_ablation(tmp_path / "x.yaml")


# Training

TRAIN = """
import shutil, signal, sys, time
from pathlib import Path

folder = Path(sys.argv[sys.argv.index("--config") + 1]).parent

def finish():
    shutil.copytree(Path(__file__).parent / "finished" / folder.name, folder, dirs_exist_ok=True)

"""
"""Imports nothing that takes long."""


@pytest.fixture
def trained_by(tmp_path, ablation):
    """Makes an ablation that trains by the given lines, which know `folder` and `finish`."""
    for run in ablation.runs:
        finish(run, 0.5)
    ablation.folder.rename(tmp_path / "finished")

    def make(lines: str) -> Ablation:
        script = tmp_path / "train.py"
        script.write_text(TRAIN + lines)
        return replace(ablation, train=[sys.executable, str(script)])

    return make


def nothing() -> None:
    pass


def test_every_run_is_trained_with_its_settings(trained_by):
    published = []
    made = trained_by("finish()")
    assert made.complete(2, after_each=lambda: published.append(1)) == 0
    assert len(published) == 4
    for run in made.runs:
        assert run.is_finished
        given = settings.from_mapping(Config, settings.read_yaml(run.folder / GIVEN_FILE))
        assert given == run.config
        assert made.is_complete(run)


def test_a_run_that_fails_is_named_and_the_others_go_on(trained_by, capsys):
    set_up_logging()
    made = trained_by(
        "if folder.name == 'plain_0': sys.exit('error: no more room on /disk')\n"
        "if folder.name == 'group_0': print('odd'); sys.exit(3)\n"
        "if folder.name == 'plain_1': sys.exit(75)\n"
    )
    assert made.complete(1, after_each=nothing) == 1
    seen = capsys.readouterr().err
    for run, reason in zip(
        made.runs,
        [
            f"exit code 1; {made.runs[0].folder / LOG_FILE} says why",
            f"exit code 3; {made.runs[1].folder / LOG_FILE} says why",
            "it was stopped; the same command continues it",
            "its command exited with 0, but the run is not finished",
        ],
        strict=True,
    ):
        assert f"{run.folder} failed: {reason}" in seen
    assert "no more room" in (made.runs[0].folder / LOG_FILE).read_text()


def test_a_password_is_given_to_the_run_alone(trained_by, tmp_path):
    url = "https://me:secret@host/a?token=secret"
    made = trained_by("finish()")
    (run, *_) = ablation_of(tmp_path, VARIANTS, "--data.train", url).runs
    replace(made, runs=(run,)).complete(1, after_each=nothing)
    given = run.folder / GIVEN_FILE
    assert settings.from_mapping(Config, settings.read_yaml(given)).data.train == url
    assert given.stat().st_mode & 0o777 == 0o600


def test_a_finished_run_is_scored_image_by_image_on_request(ablation, tmp_path):
    run = ablation.runs[0]
    finish(run, 0.5)
    assert ablation.is_complete(run)
    (tmp_path / "evaluate.py").write_text("import sys; print(*sys.argv[1:])")
    scoring = replace(ablation, runs=(run,), evaluate=[sys.executable, str(tmp_path / "evaluate.py")])
    assert not scoring.is_complete(run)
    assert scoring.complete(1, after_each=nothing) == 0
    words = (run.folder / LOG_FILE).read_text().split()
    assert words[words.index("--model") + 1] == str(run.folder / "last")
    assert words[words.index("--data") + 1] == run.config.data.val
    assert words[words.index("--per-image") + 1] == str(run.per_image_file)
    run.per_image_file.touch()
    assert scoring.is_complete(run)


def test_a_run_with_other_settings_is_neither_finished_nor_counted(ablation):
    run = ablation.runs[0]
    finish(run, 0.5)
    assert run.is_finished
    assert not replace(run, config=replace(run.config, seed=5)).is_finished
    values = settings.to_mapping(run.config)
    values["optim"]["lr"] = 0.123
    write_text(run.folder / SETTINGS_FILE, settings.to_yaml(values))
    assert summarise(ablation)[0]["miou"] == {}


def test_a_signal_stops_the_runs_and_starts_no_other(trained_by):
    stopped = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
    made = trained_by(stopped + "Path(folder.parent, 'here').touch()\ntime.sleep(60)\n")

    def stop():
        end = time.monotonic() + 30
        while not (made.folder / "here").exists() and time.monotonic() < end:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    began = time.monotonic()
    assert made.complete(1, after_each=nothing) == STOPPED_EARLY
    assert time.monotonic() - began < 50
    assert not made.runs[1].folder.exists()


# Results


def test_seeds_are_paired_with_those_of_the_first_variant(tmp_path):
    ablation = ablation_of(tmp_path)
    for summary in summarise(ablation):
        assert (summary["mean"], summary["difference"], summary["over_images"]) == (None, None, None)
    runs = by_name(ablation)
    for name, miou in (("plain_0", 0.5), ("plain_1", 0.6), ("group_1", 0.65), ("group_2", 0.8)):
        finish(runs[name], miou)
    plain, group = summarise(ablation)
    assert (plain["variant"], plain["miou"], plain["seeds"]) == ("plain", {"0": 0.5, "1": 0.6}, 3)
    assert plain["mean"] == pytest.approx(0.55)
    assert plain["standard_deviation"] == pytest.approx(0.1 / 2**0.5)
    assert (plain["difference"], group["p_over_seeds"]) == (None, None)
    assert group["miou"] == {"1": 0.65, "2": 0.8}
    assert group["difference"] == pytest.approx(0.05)
    assert group["changes"] == {"model.norm": "group"}
    assert json.loads(json.dumps(group)) == group


def test_images_are_compared_over_the_seeds_that_both_have(ablation):
    runs = by_name(ablation)
    wrong, right = np.array([[8, 2], [2, 8]]), np.array([[10, 0], [0, 10]])
    finish(runs["plain_0"], 0.6, confusion=wrong)
    assert summarise(ablation)[1]["over_images"] is None
    finish(runs["group_0"], 1.0, confusion=right)
    finish(runs["group_1"], 1.0, confusion=wrong)
    found = summarise(ablation)[1]["over_images"]
    assert (found["a"]["miou"], found["b"]["miou"]) == (pytest.approx(2 / 3), 1.0)
    assert found["num_samples"] == 12
    assert found["p_value"] < 0.01


@pytest.mark.parametrize(
    ("freedom", "t", "p"), [(1, 12.706, 0.05), (2, 4.303, 0.05), (9, 3.250, 0.01), (10, 1.812, 0.1)]
)
def test_p_values_are_those_of_the_tables(freedom, t, p):
    number = freedom + 1
    spread = np.linspace(-1, 1, number)
    differences = spread + t * spread.std(ddof=1) / number**0.5
    assert paired_t_test(differences.tolist()) == pytest.approx(p, rel=2e-3)
    assert paired_t_test((-differences).tolist()) == pytest.approx(p, rel=2e-3)


def test_few_or_equal_differences_have_plain_p_values():
    assert paired_t_test([0.1]) is None
    assert paired_t_test([0.0, 0.0]) == 1
    assert paired_t_test([0.1, 0.1]) == 0


def test_the_table_has_a_row_per_variant_and_leaves_unknown_cells_open():
    plain = {"variant": "plain", "seeds": 3, "miou": {"0": 0.5, "1": 0.52}, "mean": 0.51}
    plain |= {"standard_deviation": 0.0141, "difference": None, "p_over_seeds": None, "over_images": None}
    other = {**plain, "variant": "other", "difference": 0.015, "p_over_seeds": 0.25, "over_images": {"p_value": 0.0601}}
    heading, *rows = (line.split() for line in table_of([plain, other]).splitlines())
    assert (heading[0], heading[-1]) == ("variant", "images")
    assert rows == [
        ["plain", "2/3", "0.5100", "0.0141", "-", "-", "-"],
        ["other", "2/3", "0.5100", "0.0141", "0.0150", "0.2500", "0.0601"],
    ]
