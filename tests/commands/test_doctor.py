"""The doctor on a tiny data set: what is wrong is found, and nothing of the run is started or changed."""

import importlib.util
import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from tests.distributed.launcher import run_ranks
from tests.synthetic import PALETTE_RECORDS, settings_of, write_shards
from unetdist.cli import settings
from unetdist.cli.logs import logger
from unetdist.commands.doctor import data, environment, training
from unetdist.commands.doctor import examine as command
from unetdist.commands.doctor.examination import Examination, by_rank, describe, duration, listed
from unetdist.commands.doctor.examine import connect, examine, run_checks
from unetdist.data.manifest import Manifest
from unetdist.distributed.collectives import World, all_reduce_sum
from unetdist.distributed.rendezvous import open_store
from unetdist.errors import ConfigError, LaunchError
from unetdist.evaluation.config import ValidationConfig
from unetdist.evaluation.evaluate import LeftEarlyError
from unetdist.storage.files import write_text
from unetdist.train import build
from unetdist.train.config import Config
from unetdist.train.performance import FastPath
from unetdist.train.trainer import Schedule

BUDGET_S = 0.05


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    write_shards(folder / "train", 12)
    write_shards(folder / "val", 4, size=(30, 20))
    return folder


@pytest.fixture
def folder(sharded, tmp_path):
    """A copy of the data that a test may damage."""
    return shutil.copytree(sharded, tmp_path / "data")


def config_of(folder, **sections):
    values = settings_of(folder / "train", folder / "val", folder / "runs", **sections)
    return settings.from_mapping(Config, values)


def exam_of(folder, **sections):
    config = config_of(folder, **sections)
    return Examination(config=config, world=World(), budget_s=BUDGET_S)


def found_by(check, exam, *args):
    """Findings of a check or a judge by their subjects; of several with one subject, the first."""
    check(exam, *args)
    return {each.what: each for each in reversed(exam.findings)}


def levels(check, *args):
    exam = exam_of(Path())
    check(exam, *args)
    return [each.level for each in exam.findings]


def told(folder, config, capsys):
    """Examine: the exit code, the JSON file, the findings by subject, and the screen."""
    file = folder / "found.json"
    code = examine(config, json_file=file, budget_s=BUDGET_S)
    found = json.loads(file.read_text())
    file.unlink()
    screen = capsys.readouterr()
    assert screen.err == ""  # no log of the trial
    return code, found, {each["what"]: each for each in found["findings"]}, screen.out


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def forget_last_class(folder):
    """The manifest knows two classes, the masks hold three."""
    manifest = Manifest.load(folder)
    replace(
        manifest,
        palette_records=tuple(record for record in PALETTE_RECORDS if record["index"] != 2),
        class_pixels=manifest.class_pixels[:2],
        class_images=manifest.class_images[:2],
        presence_pixels=manifest.presence_pixels[:2],
    ).save(folder)


# The whole command


def test_a_good_run_passes_and_nothing_is_left_of_the_trial(folder, capsys):
    before = contents(folder)
    code, found, named, screen = told(folder, config_of(folder, trainer={"ema_decay": 0.9}), capsys)
    assert code == 0, screen
    assert (found["run"], found["processes"], found["problems"]) == ("tiny", 1, 0)
    groups = [each["group"] for each in found["findings"]]
    wanted = ["software", "launch", "data", "folders", "training", "forecast"]
    assert list(dict.fromkeys(groups)) == wanted
    assert "accelerate 1." in named["versions"]["fact"]
    assert named["training set"]["fact"].startswith("12 samples in 3 shard(s), ")
    assert named["train labels"]["fact"].startswith("12 samples decoded")
    assert named["network"]["fact"].endswith("; 4 steps of 4 samples: 1.3 passes over the data")
    assert " for 4 images, " in named["validation"]["fact"]
    measured = found["measured"]
    assert measured["run_s"] > 4 * measured["step_s"] > 0
    assert measured["checkpoint_bytes"] > 3 * measured["weights_bytes"]  # weights, two moments, averaged weights
    assert "the run can start" in screen
    assert contents(folder) == before
    assert not (folder / "runs").exists()


def test_problems_of_all_kinds_are_found_in_one_go(folder, monkeypatch, capsys):
    (folder / "train" / "000001.tar").unlink()
    (folder / "runs").write_text("a file where the folder should be")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    code, _, named, screen = told(folder, config_of(folder, tracking={"tracker": "mlflow"}), capsys)
    assert code == 1
    bad = {what for what, each in named.items() if each["level"] == "problem"}
    assert {"dashboards", "train shards", "checkpoints"} <= bad
    assert 'pip install "unetdist[mlflow]"' in named["dashboards"]["fact"]
    assert "fix the problems first" in screen
    assert f"{folder / 'runs'} cannot be written to" in named["checkpoints"]["fact"]
    assert ".partial" not in named["checkpoints"]["fact"]
    assert "give --runs_dir" in named["checkpoints"]["fact"]
    assert (folder / "runs").read_text() == "a file where the folder should be"


def test_a_refused_launch_ends_it_as_it_would_end_the_run(folder, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(LaunchError, match="accelerate launch started one process only"):
        examine(config_of(folder))


def test_processes_that_cannot_connect_are_told_the_interfaces_to_name(folder, monkeypatch):
    def fail(**_):
        raise RuntimeError("[gloo]\n no such interface")

    monkeypatch.setattr(command, "make_accelerator", fail)
    with pytest.raises(LaunchError, match=r"\(\[gloo\] no such interface\): export GLOO_SOCKET_IFNAME .* one of \w+"):
        connect(config_of(folder))


def test_a_json_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--json \(.+found.json\) cannot be written \(.+\); give another"):
        examine(config_of(tmp_path), json_file=tmp_path / "file" / "found.json")


# Several processes


def examine_on_ranks(folder, lost_on):
    """Two examinations: of data that one rank does not see, then of good data."""
    rank = int(os.environ["RANK"])
    codes = []
    for name, seen in (("lost", folder / "elsewhere" if rank == lost_on else folder), ("good", folder)):
        file = folder / f"{name}{rank}.json"
        config = config_of(seen)
        exam = Examination(
            config=config,
            world=World(rank=rank, world_size=2, local_world_size=2),
            store=open_store(name),
            budget_s=BUDGET_S,
        )
        run_checks(exam, [])
        write_text(file, json.dumps(exam.to_mapping()))
        codes.append(exam.count("problem"))
    return codes


def test_several_processes_examine_together_and_a_rank_without_data_is_named(folder):
    assert run_ranks(examine_on_ranks, 2, folder, 1, timeout_s=100.0) == [[2, 0], [2, 0]]
    good, lost = (json.loads((folder / f"{name}0.json").read_text()) for name in ("good", "lost"))
    named = {each["what"]: each for each in good["findings"]}
    assert named["processes"]["fact"].startswith("2 on 1 machine(s): ")
    assert named["all-reduce"]["level"] == "ok"
    assert named["checkpoints"]["fact"].endswith("is seen by 2 process(es)")
    assert named["training step"]["level"] == "ok"
    named = {each["what"]: each for each in lost["findings"]}
    assert named["training set"]["fact"].startswith("rank 1: ")
    assert "no manifest.json here" in named["training set"]["fact"]
    assert named["training"]["remedy"] == "fix the data first"


def ask_on_ranks():
    rank = int(os.environ["RANK"])
    exam = Examination(config=None, world=World(rank=rank, world_size=2), store=open_store("ask"))

    def local():
        if rank == 1:
            raise ConfigError("not here; go there.")

    def together():
        return float(all_reduce_sum(torch.ones(())))

    answers = [exam.ask("local", local), exam.ask("together", together), exam.ask("own", lambda: rank)]
    exam.leave()
    return answers, [(each.what, each.level, each.fact) for each in exam.findings]


def test_a_rank_that_fails_is_named_and_the_others_go_on():
    expected = ([None, [2.0, 2.0], [0, 1]], [("local", "problem", "rank 1: not here; go there.")])
    assert run_ranks(ask_on_ranks, 2) == [expected, expected]


def test_a_rank_that_does_not_answer_is_named(monkeypatch):
    store = SimpleNamespace(set=lambda *_: None, check=lambda _: False)
    exam = Examination(config=None, world=World(world_size=2), store=store)
    clock = iter(range(0, 10_000, 1_000))
    monkeypatch.setattr("unetdist.commands.doctor.examination.time.monotonic", lambda: float(next(clock)))
    with pytest.raises(LaunchError, match=r"rank 0 has not answered for 1800 s"):
        exam.gather(1)


# Findings


def test_a_check_that_crashes_is_a_problem_with_its_place(tmp_path):
    def broken():
        raise ZeroDivisionError("by nothing")

    exam = exam_of(tmp_path)
    assert exam.ask("crashed", broken) is None
    (bad,) = exam.findings
    assert (bad.level, bad.what) == ("problem", "crashed")
    assert "the check itself failed: ZeroDivisionError: by nothing, at " in bad.fact
    assert "test_doctor.py:" in bad.fact


def test_warnings_of_the_log_become_findings_and_the_rest_of_it_is_not_shown(tmp_path, capsys):
    def talk():
        logger.warning("trains without %s", "the compiler")
        logger.error("trains without %s", "the compiler")
        logger.info("by the way")

    exam = exam_of(tmp_path)
    assert exam.ask("talk", talk) == [None]
    (heard,) = exam.findings
    assert (heard.level, heard.fact) == ("warning", "trains without the compiler")
    assert "compiler" not in capsys.readouterr().err
    assert not logger.filters


def test_errors_are_described_by_their_kind():
    assert describe(ConfigError("a (1)\n  must be 2; use 2.")) == "a (1) must be 2; use 2."
    assert "trainer.micro_batch_size" in describe(torch.OutOfMemoryError("CUDA"))
    assert describe(RuntimeError("[/x/gloo/pair.cc] closed")).startswith("the connection to another process")
    assert describe(OSError(28, "No space left", "/x")) == "[Errno 28] No space left: '/x'"


@pytest.mark.parametrize(
    ("texts", "joined"),
    [(["a", "a"], "a"), (["a", "b", "a"], "rank 0, 2: a; rank 1: b"), ([None, "b"], "rank 1: b"), ([None, None], "")],
)
def test_ranks_that_agree_are_quoted_once(texts, joined):
    assert by_rank(texts) == joined


def test_long_lists_are_cut_and_times_are_for_people():
    assert listed([]) is None
    assert listed(["a", "b", "c"]) == "a; b; c"
    assert listed(["a", "b", "c", "d", "e"]) == "a; b; c; and 2 more"
    times = [duration(s) for s in (0.002, 0.5, 12, 120, 7200, 259200)]
    assert times == ["2 ms", "500 ms", "12.0 s", "2.0 min", "2.0 h", "3.0 days"]


def test_each_finding_is_one_line_below_its_heading(tmp_path):
    lines = io.StringIO()
    exam = exam_of(tmp_path)
    exam.console = Console(file=lines, soft_wrap=True)
    exam.group = "software"
    exam.note("ok", "torch", "2.13 [cpu]", "not needed")
    exam.group = "launch"
    exam.note("problem", "disk", "x" * 200, "free it")
    assert lines.getvalue() == (
        "\nsoftware\n  ok       torch              2.13 [cpu]\n"
        f"\nlaunch\n  problem  disk               {'x' * 200} (free it)\n"
    )


# Environment


def test_packages_that_differ_between_ranks_and_drivers_are_found(monkeypatch, tmp_path):
    facts = {"versions": "a", "timm": None, "gpu": "cannot use it"}
    ranks = [facts, {**facts, "versions": "b"}]
    exam = exam_of(tmp_path)
    monkeypatch.setattr(exam, "ask", lambda *_: ranks)
    found = found_by(environment.check_software, exam)
    assert (found["versions"].level, found["versions"].fact) == ("warning", "rank 0: a; rank 1: b")
    assert found["GPU driver"].level == "warning"


def test_a_driver_that_torch_cannot_use_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert environment.gpu_fault(tmp_path / "none") is None
    assert "cannot use it" in environment.gpu_fault(tmp_path)


CORES = {"cores": 4, "threads": 2, "local": 2, "is_cpu": True}


@pytest.mark.parametrize(("changed", "threads"), [({"threads": 4}, 2), ({"local": 8}, 1)])
def test_too_few_cores_for_the_processes_are_warned_of(changed, threads, tmp_path):
    found = found_by(environment.judge_cores, exam_of(tmp_path), {**CORES, **changed})["cores"]
    assert (found.level, f"OMP_NUM_THREADS={threads}," in found.remedy) == ("warning", True)
    assert levels(environment.judge_cores, CORES) == ["ok"]


def test_unequal_devices_are_warned_of(monkeypatch, tmp_path):
    rank = {**CORES, "node": "here", "device": "A, 80 GB"}
    exam = exam_of(tmp_path)
    monkeypatch.setattr(
        exam, "ask", lambda what, *_, **__: [rank, {**rank, "device": "B"}] if what == "processes" else 2
    )
    found = found_by(environment.check_launch, exam)
    assert found["processes"].fact == "2 on 1 machine(s): here (rank 0, 1)"
    assert (found["devices"].level, found["devices"].fact) == ("warning", "rank 0: A, 80 GB; rank 1: B")


# Data


def test_a_missing_data_set_is_a_problem_and_the_other_is_still_checked(folder):
    (folder / "train" / "manifest.json").unlink()
    found = found_by(data.check_data, exam_of(folder))
    assert found["training set"].level == "problem"
    assert "no manifest.json here" in found["training set"].fact
    assert found["val shards"].level == "ok"


def test_missing_cut_and_exchanged_shards_are_named_once(folder):
    (folder / "train" / "000000.tar").unlink()
    cut = folder / "train" / "000001.tar"
    cut.write_bytes(cut.read_bytes()[:-512])
    (folder / "train" / "000002.tar.idx").write_bytes((folder / "train" / "000001.tar.idx").read_bytes())
    found = found_by(data.check_data, exam_of(folder))
    bad = found["train shards"]
    assert bad.level == "problem"
    assert "000000.tar: cannot be opened (No such file or directory)" in bad.fact
    assert "000001.tar: has " in bad.fact
    assert "000002.tar" in bad.fact
    assert "is not the index that the manifest lists" in bad.fact
    assert bad.remedy.startswith("copy the data set again")
    assert "train labels" not in found


def test_labels_out_of_range_are_named_and_no_step_is_tried(folder):
    for split in ("train", "val"):
        forget_last_class(folder / split)
    exam = exam_of(folder)
    bad = found_by(data.check_data, exam)["train labels"]
    assert bad.level == "problem"
    assert "mask holds class index 2, but there are 2 classes" in bad.fact
    assert "; and 1 more" in bad.fact
    assert f"unetdist shard verify {folder / 'train'}" in bad.remedy
    found = found_by(training.check_training, exam)
    assert "mask holds class index 2" in found["first batch"].fact
    assert "training step" not in found
    exam = exam_of(folder, data={"on_bad_sample": "blank"})
    assert found_by(data.check_data, exam)["train labels"].level == "warning"


def test_shards_that_there_was_no_time_for_are_counted(tmp_path):
    exam = exam_of(tmp_path)
    exam.data["train"] = (None, SimpleNamespace(ignored_pixels=75, num_pixels=100))
    rank = {"opened": 5, "of": 9, "wrong": [], "decoded": 9, "bad": []}
    found = found_by(data.judge_samples, exam, "train", [rank])
    assert (found["train shards"].level, "5 of 9" in found["train shards"].fact) == ("warning", True)
    assert "unetdist shard verify" in found["train shards"].remedy
    assert (found["train labels"].level, "75.0 % ignored" in found["train labels"].fact) == ("warning", True)


@pytest.mark.parametrize("split", ["val", "train"])
def test_classes_that_never_occur_are_named(folder, split):
    manifest = Manifest.load(folder / split)
    replace(manifest, class_pixels=(*manifest.class_pixels[:2], 0)).save(folder / split)
    found = found_by(data.check_data, exam_of(folder))
    assert (found[f"{split} classes"].level, found[f"{split} classes"].fact) == ("warning", "in no image: tree")
    assert found[f"{'val' if split == 'train' else 'train'} classes"].level == "ok"


def test_different_classes_are_found(folder):
    manifest = Manifest.load(folder / "val")
    records = ({**manifest.palette_records[0], "name": "other"}, *manifest.palette_records[1:])
    replace(manifest, palette_records=records).save(folder / "val")
    exam = exam_of(folder)
    data.check_data(exam)
    found = found_by(training.check_training, exam)["network"]
    assert (found.level, "other classes than the training shards" in found.fact) == ("problem", True)


def test_samples_in_both_sets_are_found(folder):
    write_shards(folder / "val", 4)  # samples of the training set, in another shard
    found = found_by(data.check_data, exam_of(folder))["train and val"]
    assert found.level == "problem"
    assert "4 of 4 validation samples are also in the training set" in found.fact
    assert "val/000000.tar" in found.fact
    write_shards(folder / "val", 30)  # and 18 that are not
    found = found_by(data.check_data, exam_of(folder))["train and val"]
    assert (found.level, "12 of 30 validation samples" in found.fact) == ("warning", True)


def test_a_run_without_validation_is_warned_of(folder):
    found = found_by(data.check_data, exam_of(folder, data={"val": None}))["validation set"]
    assert (found.level, found.remedy) == ("warning", "--data.val SHARDS")


# Folders


def test_the_folder_of_a_run_is_left_as_it_is(tmp_path):
    exam = exam_of(tmp_path)
    assert {each.level for each in found_by(environment.check_folders, exam).values()} == {"ok"}
    assert list(tmp_path.iterdir()) == []
    write_text(exam.run_dir / "checkpoints" / "latest", "step_00000002")
    before = contents(tmp_path)
    assert found_by(environment.check_folders, exam_of(tmp_path))["checkpoints"].level == "ok"
    assert contents(tmp_path) == before


def test_checkpoints_elsewhere_are_checked_there(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in (str(elsewhere), f"file://{elsewhere}"):
        exam = exam_of(tmp_path, checkpoint={"folder": name})
        found = found_by(environment.check_folders, exam)["checkpoints"]
        assert (found.level, str(elsewhere) in found.fact) == ("ok", True)
        assert not [path for path in elsewhere.rglob("*") if path.is_file()]


def test_a_folder_that_another_rank_does_not_see_is_a_problem(tmp_path):
    seen = [True, False, True, False]
    bad = found_by(environment.judge_shared, exam_of(tmp_path), "/x", seen)["checkpoints"]
    assert (bad.level, bad.fact.startswith("rank 1, 3 ")) == ("problem", True)
    assert "a place that all machines share" in bad.remedy


# Training and forecast


def test_a_setting_that_cannot_be_trained_is_found(folder):
    exam = exam_of(folder, optim={"warmup_steps": 4})
    data.check_data(exam)
    bad = found_by(training.check_training, exam)["network"]
    assert (bad.level, "optim.warmup_steps (4)" in bad.fact) == ("problem", True)


def test_a_loss_that_is_not_finite_and_a_broken_compiler_are_found(folder, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no kernel for this")

    monkeypatch.setattr(build, "choose", lambda *_, **__: FastPath(compiler=broken))
    exam = exam_of(folder, optim={"lr": 1e30, "kind": "sgd"}, data={"val": None})
    exam.budget_s = 1.0
    data.check_data(exam)
    training.check_training(exam)
    (bad,) = [each for each in exam.findings if each.level == "problem"]
    assert (bad.what, "lower --optim.lr" in bad.remedy) == ("training step", True)
    heard = [each for each in exam.findings if each.what == "training step" and each.level == "warning"]
    assert any("no kernel for this" in each.fact for each in heard)


def test_memory_that_is_nearly_used_up_is_warned_of():
    rank = {"device": 95, "device_total": 100, "host": 10, "free": 100}
    assert levels(training.judge_memory, [rank]) == ["warning"]
    assert levels(training.judge_memory, [{**rank, "device": 50, "free": 0}]) == ["warning"]
    assert levels(training.judge_memory, [{**rank, "device": 50}]) == ["ok"]


def test_peak_memory_counts_what_was_freed():
    much = 200_000_000
    torch.ones(much, dtype=torch.uint8)
    assert training.peak_memory(torch.device("cpu"))["host"] > much


@pytest.mark.parametrize(("batches", "batch_s", "seconds"), [(10, 1.0, 10.0), (10, 4.0, 40.0), (0, 1.0, 0.0)])
def test_a_whole_validation_takes_as_long_as_its_part_suggests(tmp_path, monkeypatch, batches, batch_s, seconds):
    clock = [0.0]
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def validate(model, is_over):
        for _ in range(batches):
            if is_over():
                raise LeftEarlyError
            clock[0] += batch_s

    validator = SimpleNamespace(
        cfg=ValidationConfig(batch_size=2), expected=SimpleNamespace(num_samples=20), score=validate
    )
    exam = exam_of(tmp_path)
    exam.budget_s = 11.0
    assert training.score(exam, SimpleNamespace(evaluated_model=None), validator) == pytest.approx(seconds)


@pytest.fixture
def trainer():
    schedule = Schedule(max_steps=1000, eval_every=300, save_every=100, log_every=10)
    return SimpleNamespace(schedule=schedule, validator=object(), global_batch_size=4)


def test_hours_are_those_of_steps_and_validations(tmp_path, trainer):
    exam = exam_of(tmp_path)
    exam.measured = {"first_s": 10.0, "step_s": 7.2, "validation_s": 450.0}
    found = found_by(training.judge_time, exam, trainer)["time"]
    assert found.fact == "2.5 h (1,000 steps 2.0 h, 4 validation(s) 30.0 min)"
    assert exam.measured["run_s"] == pytest.approx(10 + 7200 + 1800)


def test_steps_that_wait_for_data_and_long_validations_are_warned_of(tmp_path, trainer):
    exam = exam_of(tmp_path)
    step = {"number": 2, "first_s": 1.0, "step_s": 0.1, "data_s": 0.09, "loss": 1.0, "skipped": 0}
    step |= {"checkpoint_bytes": 4, "weights_bytes": 1}
    loader = found_by(training.judge_steps, exam, trainer, [step])["loader"]
    assert (loader.level, "90 % of their time" in loader.fact) == ("warning", True)
    assert loader.remedy.startswith("--data.num_workers 2")
    found = found_by(training.judge_validation, exam, trainer, 4, 31.0)["validation"]
    assert (found.level, "trainer.eval_every" in found.remedy) == ("warning", True)


@pytest.mark.parametrize(("free", "level"), [(1_000_000, "problem"), (3_600_000, "warning"), (9_000_000, "ok")])
def test_a_disk_that_is_too_small_is_found(tmp_path, monkeypatch, free, level):
    exam = exam_of(tmp_path)
    exam.measured = {"checkpoint_bytes": 1_000_000, "weights_bytes": 250_000}
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    found = training.find_space(exam)
    assert (found[0], found[1].startswith("3.5 MB ")) == (level, True)
    assert exam.measured["disk_bytes"] == 3_500_000
