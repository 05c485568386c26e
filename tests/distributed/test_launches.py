"""What `accelerate launch` really does with each file of configs/accelerate/ and in each trap.

test_restarts.py shows that cpu.yaml connects its processes.
"""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "accelerate"
SCRIPT = ROOT / "tests" / "distributed" / "report_world.py"


def start(*arguments: str) -> subprocess.Popen[str]:
    """`accelerate launch` with an environment as in a fresh shell; GPUs hidden, whatever the machine has."""
    cluster = ("ACCELERATE_", "SLURM_", "MASTER_", "WORLD_", "RANK", "LOCAL_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(cluster)}
    env.update(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", HF_HOME="/nonexistent")
    return subprocess.Popen(
        [sys.executable, "-m", "accelerate.commands.launch", *arguments, str(SCRIPT)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    with process:
        try:
            output, _ = process.communicate(timeout=120)
        finally:
            process.kill()
    return process.returncode, output


def reports(output: str) -> list[dict[str, int]]:
    found = [json.loads(text) for text in re.findall(r"\{.*?\}", output)]  # two ranks may share a line
    return sorted(found, key=lambda report: report["rank"])


def free_port() -> str:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return str(listening.getsockname()[1])


@pytest.mark.parametrize("name", [path.name for path in sorted(CONFIGS.iterdir())])
def test_every_file_is_what_accelerate_reads(name):
    """Unknown keys raise; and the precision stays the training YAML's, so that the two cannot disagree."""
    config = load_config_from_file(str(CONFIGS / name))
    words = ["--config_file", str(CONFIGS / name), "train.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert args.multi_gpu is (config.distributed_type == DistributedType.MULTI_GPU)
    assert args.num_processes % args.num_machines == 0
    assert args.mixed_precision == "no"
    assert args.dynamo_backend == "no"


def test_there_is_a_file_for_each_kind_of_machine():
    names = {path.stem for path in CONFIGS.iterdir()}
    assert names == {"cpu", "one_gpu", "one_node", "several_nodes"}


def test_cpu_file_hides_the_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", load_config_from_file(str(CONFIGS / "cpu.yaml")).gpu_ids)
    assert torch.cuda._parse_visible_devices() == []


def test_cpu_flag_starts_one_process_and_is_refused():
    code, output = finish(start("--cpu", "--num_processes", "2"))
    assert code == 1
    assert "error: accelerate launch started one process only" in output
    assert "unetdist train --processes 2" in output
    assert reports(output) == []


def test_accelerate_starts_fewer_processes_than_the_machines_cannot_share():
    """Why check_launch compares the numbers; test_launch_check.py shows that it refuses them."""
    words = ["--config_file", str(CONFIGS / "several_nodes.yaml"), "--num_processes", "3", "train.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    args.machine_rank = 1  # rank 0 would look for a free port
    prepare_multi_gpu_env(args)
    assert (args.nproc_per_node, args.nnodes) == ("1", "2")


@pytest.mark.slow
def test_several_nodes_file_connects_machines():
    words = ["--config_file", str(CONFIGS / "several_nodes.yaml"), "--main_process_port", free_port()]
    machines = [start(*words, "--num_processes", "2", "--machine_rank", rank) for rank in ("0", "1")]
    results = [finish(machine) for machine in machines]
    assert [code for code, _ in results] == [0, 0], results
    assert [reports(output) for _, output in results] == [
        [{"rank": rank, "world_size": 2, "total": 2}] for rank in range(2)
    ]
