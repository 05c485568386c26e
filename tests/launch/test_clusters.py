"""The files for clusters: read by the ecosystem's own checkers; and what their commands come to on each machine."""

import os
import shlex
import stat
import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser

from unetdist.cli import settings
from unetdist.train.config import Config

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "launch" / "kubernetes"
SKYPILOT = ROOT / "launch" / "skypilot" / "train.yaml"


def documents():
    return {
        document["kind"]: document
        for file in sorted(KUBERNETES.glob("*.yaml"))
        for document in yaml.safe_load_all(file.read_text())
    }


def names(value, path=""):
    """Dotted paths of all keys."""
    if isinstance(value, dict):
        return {f"{path}.{key}" for key in value}.union(*(names(item, f"{path}.{key}") for key, item in value.items()))
    if isinstance(value, list):
        return set().union(*(names(item, f"{path}[{number}]") for number, item in enumerate(value)))
    return set()


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("JobSet", "JobsetV1alpha2JobSet"),
        ("TrainingRuntime", "TrainerV1alpha1TrainingRuntime"),
        ("TrainJob", "TrainerV1alpha1TrainJob"),
    ],
)
def test_kubeflow_knows_every_key(kind, model):
    """Its models leave out what they do not know."""
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="kubeflow_trainer_api is not installed")
    document = documents()[kind]
    assert names(getattr(models, model).from_dict(document).to_dict()) == names(document)


def job_templates():
    found = documents()
    return [found["JobSet"]["spec"], found["TrainingRuntime"]["spec"]["template"]["spec"]]


def test_kubernetes_takes_the_jobs():
    """The schema knows `podFailurePolicy` and the rest of batch/v1; JobSet's own CRD leaves them open."""
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for spec in job_templates():
        (replicated,) = spec["replicatedJobs"]
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "node"},
            "spec": replicated["template"]["spec"],
        }
        validate.validate(job, validate.latest_version(), strict=True)


def test_what_is_stopped_with_a_checkpoint_is_no_failure():
    for spec in job_templates():
        job = spec["replicatedJobs"][0]["template"]["spec"]
        assert job["template"]["spec"]["restartPolicy"] == "Never"  # podFailurePolicy asks for it
        rule = job["podFailurePolicy"]["rules"][0]
        assert rule["action"] == "Ignore"
        assert rule["onExitCodes"]["values"] == [75]
        (container,) = job["template"]["spec"]["containers"]
        assert rule["onExitCodes"]["containerName"] == container["name"]
    assert yaml.safe_load(SKYPILOT.read_text())["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]


def test_skypilot_takes_the_task():
    sky = pytest.importorskip("sky", reason="skypilot is not installed")
    assert sky.Task.from_yaml(str(SKYPILOT)).num_nodes == 2


def jobset_command():
    (container,) = documents()["JobSet"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"][
        "containers"
    ]
    values = {variable["name"]: variable["value"] for variable in container["env"]}
    return [*container["command"], *container["args"]], {**values, "JOB_COMPLETION_INDEX": "1"}


def trainjob_command():
    trainer = documents()["TrainJob"]["spec"]["trainer"]
    values = {
        "PET_NNODES": str(trainer["numNodes"]),
        "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
        "PET_NODE_RANK": "1",
        "PET_MASTER_ADDR": "camvid-node-0-0.camvid",
        "PET_MASTER_PORT": "29500",
    }
    return [*trainer["command"], *trainer["args"]], values


def skypilot_command():
    task = yaml.safe_load(SKYPILOT.read_text())
    values = {
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NUM_GPUS_PER_NODE": "8",
        "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        **task["envs"],
    }
    return ["bash", "-c", task["run"]], values


@pytest.mark.parametrize(
    ("given", "first"),
    [
        (jobset_command, "unetdist-node-0-0.unetdist"),
        (trainjob_command, "camvid-node-0-0.camvid"),
        (skypilot_command, "10.0.0.1"),
    ],
)
def test_each_machine_joins_with_its_number(given, first, tmp_path):
    """`accelerate` on the path is one that prints its words."""
    command, values = given()
    stub = tmp_path / "accelerate"
    stub.write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done\n')
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(command, env={**values, "PATH": path}, cwd=ROOT, capture_output=True, text=True, check=True)
    name, *words = done.stdout.splitlines()
    assert name == "launch", shlex.join(words)
    args = launch_command_parser().parse_args(words)
    assert args.max_restarts == 3
    assert (ROOT / args.config_file).is_file()
    assert (args.num_machines, args.num_processes, args.machine_rank) == (2, 16, 1)
    assert (args.main_process_ip, args.main_process_port) == (first, 29500)
    assert args.training_script == "launch/train.py"
    config = settings.parse(Config, args.training_script_args, prog="train", description="")
    assert config.data.train.endswith("/shards/train")
    assert config.runs_dir.endswith("/runs")
