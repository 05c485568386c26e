"""`--processes N`: which processes a command starts, and what is left of them on the screen and in the exit code."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from accelerate.commands.config import config_args

from tests.synthetic import settings_of, write_shards
from unetdist.distributed import launcher
from unetdist.distributed.signals import LAUNCHER_VARIABLES
from unetdist.errors import LaunchError
from unetdist.train.run_status import read_status


def of_launchers() -> list[str]:
    """The variables by which a process knows its launcher, as far as they are set."""
    beginnings = (*launcher.RENDEZVOUS, *LAUNCHER_VARIABLES, "SLURM_STEP_NUM_TASKS")
    return [name for name in os.environ if name.startswith(beginnings)]


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """Words that Accelerate's launcher would get, without variables and files of launches of this machine."""
    for name in of_launchers():
        monkeypatch.delenv(name)
    monkeypatch.setattr(config_args, "default_config_file", str(tmp_path / "default_config.yaml"))
    words: list[list[str]] = []
    monkeypatch.setattr(launcher, "_launch", lambda given, stopped: words.append(given) or 0)
    return words


def write_default(values):
    with open(config_args.default_config_file, "w") as file:
        yaml.safe_dump({"compute_environment": "LOCAL_MACHINE", "num_machines": 1, "use_cpu": True, **values}, file)


def start(processes=None):
    return launcher.start_processes("train", ["--name", "x"], processes)


def test_a_machine_without_gpus_needs_no_launcher(launched):
    assert start() is start(1) is None
    assert launched == []


def test_every_gpu_gets_a_process(launched, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert start() == 0
    assert start(1) is None
    (words,) = launched
    assert words[words.index("--num_processes") + 1] == "4"
    assert words[-5:] == ["-m", "unetdist", "train", "--name", "x"]


def test_more_processes_than_gpus_are_refused(launched, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(LaunchError, match=r"--processes \(3\) .* 2 GPU"):
        start(3)


def test_the_script_that_was_typed_is_started_again(launched, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["launch/train.py"])
    assert start(2) == 0
    assert launched[0][-3:] == ["launch/train.py", "--name", "x"]


def test_a_process_of_a_launch_starts_no_others(launched, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert start() is start(2) is None
    with pytest.raises(LaunchError, match=r"--processes \(3\) .* 2 "):
        start(3)


def test_what_accelerate_config_wrote_counts_unless_a_number_is_given(launched):
    write_default({"distributed_type": "MULTI_GPU", "num_processes": 2, "mixed_precision": "bf16"})
    assert start() == 0
    assert start(3) == 0
    for words, count in zip(launched, "23", strict=True):
        assert words[:3] == ["--multi_gpu", "--num_processes", count]
        assert "--mixed_precision" not in words  # the file's counts


def test_two_machines_of_accelerate_config_start_as_it_wrote(launched):
    write_default({"distributed_type": "MULTI_GPU", "num_processes": 4, "num_machines": 2, "machine_rank": 1})
    assert start() == 0
    assert launched == [["--multi_gpu", "-m", "unetdist", "train", "--name", "x"]]


def test_two_processes_of_accelerate_config_on_a_cpu_are_started(launched):
    write_default({"distributed_type": "MULTI_CPU", "num_processes": 2})
    assert start() == 0
    assert launched[0][:3] == ["--multi_gpu", "--num_processes", "2"]


@pytest.mark.parametrize("kind", ["FSDP", "XLA", "DEEPSPEED", "MEGATRON_LM"])
@pytest.mark.parametrize("processes", [None, 1, 2])
def test_another_engine_in_the_file_is_refused(kind, processes, launched):
    write_default({"distributed_type": kind, "num_processes": 2})
    with pytest.raises(LaunchError, match=rf"distributed_type \({kind}\)"):
        start(processes)
    assert launched == []


def test_a_file_that_accelerate_cannot_read_is_told_without_its_traceback(launched):
    write_default({"distributed_type": "NO", "num_processes": 1, "no_such_line": 1})
    with pytest.raises(LaunchError, match="no_such_line"):
        start()


def test_the_file_of_a_single_process_is_heard_without_its_launcher(launched, monkeypatch):
    names = ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU", "CUDA_VISIBLE_DEVICES")
    for name in names:
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    write_default({"distributed_type": "NO", "num_processes": 1, "mixed_precision": "bf16", "gpu_ids": "1"})
    assert start() is None
    assert [os.environ[name] for name in names] == ["bf16", "True", "1"]


TASK = {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "1", "SLURM_STEP_NODELIST": "n[03-04,9],x1", "SLURM_NODEID": "2"}
TASK |= {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "2(x2),3"}


def test_a_task_of_srun_is_a_process():
    assert launcher.variables_of_task(TASK) == {
        **{"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "7", "LOCAL_WORLD_SIZE": "3"},
        **{"MASTER_ADDR": "n03", "MASTER_PORT": "20771"},
    }
    one_node = TASK | {"SLURM_STEP_TASKS_PER_NODE": "8", "SLURM_NODEID": "0"}
    variables = launcher.variables_of_task(one_node)
    assert (variables["WORLD_SIZE"], variables["MASTER_ADDR"]) == ("8", "127.0.0.1")


@pytest.fixture
def command(tmp_path):
    """Words of a training on two processes."""
    write_shards(tmp_path / "train", 8)
    values = settings_of(tmp_path / "train", None, tmp_path / "runs")
    values["trainer"] |= {"max_steps": 3000, "log_every": 1}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(values))
    words = ["train", "--processes", "2", "--config", str(tmp_path / "settings.yaml")]
    return [sys.executable, "-m", "unetdist", *words]


def begin(command, tmp_path):
    env = {name: value for name, value in os.environ.items() if name not in of_launchers()}
    env |= {"OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path)}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_ctrl_c_stops_all_processes_with_a_checkpoint_and_without_a_traceback(command, tmp_path):
    process = begin(command, tmp_path)
    deadline = time.monotonic() + 120
    while "train/loss" not in (
        metrics.read_text() if (metrics := tmp_path / "runs/tiny/metrics.jsonl").exists() else ""
    ):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75
    assert "Traceback" not in output
    assert "torch/" not in output
    assert "same command continues" in output
    assert read_status(tmp_path / "runs/tiny").state == "stopped"


@pytest.mark.slow
def test_an_error_of_the_processes_is_all_that_is_shown(command, tmp_path):
    process = begin([*command, "--data.train", str(tmp_path / "none")], tmp_path)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert f"error: {tmp_path / 'none'}" in output
    assert "Traceback" not in output
    assert "torch/" not in output
