import json
import os

import pytest

from tests.apps.doctor.cases import BUDGET_S, config_of, told, write_data
from tests.distributed.launcher import run_ranks
from unetdist.apps.doctor.command import connect, examine, refusal
from unetdist.apps.doctor.findings import problem
from unetdist.apps.doctor.report import Screen
from unetdist.errors import ConfigError


@pytest.fixture
def folder(tmp_path):
    write_data(tmp_path)
    return tmp_path


def by_name(found):
    return {each["what"]: each for each in found["findings"]}


def test_all_that_is_well_is_told_and_nothing_is_left(folder, capsys):
    before = sorted(folder.rglob("*"))
    code, found, screen = told(folder, config_of(folder))
    assert code == 0, screen
    assert found["problems"] == 0
    groups = [each["group"] for each in found["findings"]]
    wanted = ["software", "machine", "processes", "data", "training", "folders", "forecast"]
    assert list(dict.fromkeys(groups)) == wanted
    assert found["measured"]["run_s"] > 0
    assert "the run can begin" in screen
    assert sorted(folder.rglob("*")) == sorted([*before, folder / "found.json"])
    assert capsys.readouterr().err == ""  # no log of what was tried


def test_problems_of_all_kinds_are_found_in_one_go(folder):
    (folder / "train" / "000001.tar").unlink()
    (folder / "runs").write_text("a file where the folder should be")
    code, found, screen = told(folder, config_of(folder, tracking={"tracker": "wandb"}))
    assert code == 1
    bad = [name for name, each in by_name(found).items() if each["level"] == "problem"]
    assert {"train shards", "results", "checkpoints"} <= set(bad)
    assert "mend the problems first" in screen


def test_a_refused_launch_is_a_problem_and_the_data_is_looked_at(folder, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    code, found, _ = told(folder, config_of(folder))
    named = by_name(found)
    assert code == 1
    assert "accelerate launch started one process only" in named["launch"]["fact"]
    assert named["train labels"]["level"] == "ok"
    assert named["training"]["fact"] == "not tried: mend the launch first"


def test_refused_settings_are_a_problem_and_the_machine_is_looked_at(tmp_path):
    code, found, _ = told(tmp_path, None, refused=[problem("settings", "no; yes.")])
    named = by_name(found)
    assert code == 1
    assert named["settings"]["fact"] == "no; yes."
    assert named["memory"]["level"] == "ok"
    assert found["run"] is None


def test_a_file_that_cannot_be_written_is_named(folder):
    with pytest.raises(ConfigError, match=r"--json \(.+found.json\) cannot be written \(.+\); give another"):
        examine(None, json_file=folder / "train" / "000000.tar" / "found.json", screen=Screen())


def test_processes_that_do_not_meet_are_told_of():
    bad = refusal(RuntimeError("[gloo]\n no such interface"))
    assert bad.fact == "the processes could not be connected ([gloo] no such interface)"
    assert bad.remedy


def test_what_the_launch_warns_of_is_a_finding(folder, monkeypatch):
    from unetdist.apps.doctor import command

    def warns(**_):
        command.logger.warning("slow precision")
        raise ConfigError("no fp16 here")

    monkeypatch.setattr(command, "make_accelerator", warns)
    world, (bad,) = connect(config_of(folder))
    assert (world.is_main, bad.level, bad.fact) == (True, "problem", "no fp16 here")


def examine_on_ranks(folder):
    config = config_of(folder)
    rank = int(os.environ["RANK"])
    file = folder / f"found{rank}.json"
    return examine(config, json_file=file, budget_s=BUDGET_S, screen=Screen())


def test_several_processes_examine_together(folder):
    assert run_ranks(examine_on_ranks, 2, folder, timeout_s=100.0) == [0, 0]
    found = json.loads((folder / "found0.json").read_text())
    named = by_name(found)
    assert named["ranks"]["fact"].startswith("2 on 1 machine: ")
    assert named["checkpoints"]["level"] == "ok"
    assert named["sums"]["fact"].endswith(" % of a step")
    assert not (folder / "found1.json").exists()


def examine_with_data_lost_on_rank_1(folder):
    if os.environ["RANK"] == "1":
        folder = folder / "elsewhere"
    config = config_of(folder)
    return examine(config, budget_s=BUDGET_S, screen=Screen(), json_file=folder / "found.json")


def test_data_that_one_rank_does_not_see_is_told_of_with_the_rank(folder):
    assert run_ranks(examine_with_data_lost_on_rank_1, 2, folder, timeout_s=100.0) == [1, 1]
    named = by_name(json.loads((folder / "found.json").read_text()))
    assert named["training set"]["fact"].startswith("rank 1: ")
    assert "no manifest.json here" in named["training set"]["fact"]
