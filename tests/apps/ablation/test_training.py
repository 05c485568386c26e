"""Fleets whose runs are small scripts, and so take no time."""

import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace

import pytest

from tests.apps.ablation.plans import VARIANTS, finish, plan_of
from unetdist.apps.ablation.training import GIVEN_FILE, LOG_FILE, Fleet, is_finished, training_s
from unetdist.cli import settings
from unetdist.train.config import Config

TRAIN = """
import shutil, signal, sys, time
from pathlib import Path

folder = Path(sys.argv[sys.argv.index("--config") + 1]).parent

def finish():
    shutil.copytree(Path(__file__).parent / "finished" / folder.name, folder, dirs_exist_ok=True)

"""
"""Imports nothing that takes long."""


@pytest.fixture
def plan(tmp_path):
    return plan_of(tmp_path, "seeds: [0, 1]\nvariants: {plain: , group: {model.norm: group}}\n")


@pytest.fixture
def fleet(tmp_path, plan):
    """A fleet that trains by the given lines, which know `folder` and `finish`."""
    for run in plan.runs:
        finish(run, 0.5)
    plan.folder.rename(tmp_path / "finished")

    def make(lines: str, **options) -> Fleet:
        script = tmp_path / "train.py"
        script.write_text(TRAIN + lines)
        return Fleet(scripts=tmp_path, command=[sys.executable, str(script)], **options)

    return make


def nothing() -> None:
    pass


def test_every_run_is_trained_with_its_settings(plan, fleet):
    told = []
    made = fleet("finish()", parallel=2)
    assert made.train(plan.runs, after_each=lambda: told.append(1))
    assert all(is_finished(run) for run in plan.runs)
    assert made.failed == {}
    assert len(told) == 4
    for run in plan.runs:
        given = settings.from_mapping(Config, settings.read_yaml(run.folder / GIVEN_FILE))
        assert given == run.config
        assert made.next_of(run) is None
        assert 0 < training_s(run) < 60


def test_a_run_that_fails_is_named_and_the_others_go_on(plan, fleet):
    made = fleet(
        "if folder.name == 'plain_0': sys.exit('INFO x\\nerror: no more room on /disk')\n"
        "if folder.name == 'group_0': print('odd'); sys.exit(3)\n"
        "if folder.name == 'plain_1': sys.exit(75)\n"
    )
    assert made.train(plan.runs, after_each=nothing)
    assert [made.failed[run.folder] for run in plan.runs] == [
        "exit code 1: no more room on /disk",
        "exit code 3: odd",
        "it was stopped; the same command continues it",
        "its command ended as if all were well, but the run is not finished",
    ]
    assert "no more room" in (plan.runs[0].folder / LOG_FILE).read_text()


def test_a_password_is_handed_to_the_run_alone(fleet, tmp_path):
    url = "https://me:secret@host/a?token=secret"
    (run, *_) = plan_of(tmp_path, VARIANTS, "--data.train", url).runs
    fleet("finish()").train([run], after_each=nothing)
    given = run.folder / GIVEN_FILE
    assert settings.from_mapping(Config, settings.read_yaml(given)).data.train == url
    assert given.stat().st_mode & 0o777 == 0o600


def test_the_time_of_all_attempts_counts(plan, fleet):
    run = plan.runs[0]
    run.folder.mkdir(parents=True)
    (run.folder / "ablation.json").write_text(json.dumps({"training_s": 1000.0}))
    fleet("finish()").train([run], after_each=nothing)
    assert training_s(run) > 1000


def test_a_finished_run_is_scored_image_by_image_on_request(plan, tmp_path):
    run = plan.runs[0]
    fleet = Fleet(scripts=tmp_path, per_image=True)
    assert fleet.next_of(run)[1:] == [str(tmp_path / "train.py"), "--config", str(run.folder / GIVEN_FILE)]
    finish(run, 0.5)
    scoring = fleet.next_of(run)
    assert scoring[1] == str(tmp_path / "evaluate.py")
    assert scoring[scoring.index("--model") + 1] == str(run.folder / "last")
    assert scoring[scoring.index("--data") + 1] == run.config.data.val
    run.per_image_file.touch()
    assert fleet.next_of(run) is None


def test_a_run_with_other_settings_is_not_finished(plan):
    run = plan.runs[0]
    finish(run, 0.5)
    changed = replace(run, config=replace(run.config, seed=5))
    assert is_finished(run)
    assert not is_finished(changed)


def test_a_signal_stops_what_runs(plan, fleet):
    stopped = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
    made = fleet(stopped + "Path(folder.parent, 'here').touch()\ntime.sleep(60)\n")

    def stop():
        end = time.monotonic() + 30
        while not (plan.folder / "here").exists() and time.monotonic() < end:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    began = time.monotonic()
    assert not made.train(plan.runs, after_each=nothing)
    assert time.monotonic() - began < 50
    assert made.failed == {}
    assert not plan.runs[1].folder.exists()
