"""launch/slurm/train.sbatch with fake SLURM commands (real ones: tests/long/test_slurm.py), and launch/node.sh."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

from unetdist.cli import settings
from unetdist.train.config import Config

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "slurm" / "train.sbatch"
JOB = {"SLURM_JOB_ID": "31042", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "32"}
JOB |= {"SLURMD_NODENAME": "gpu3", "SLURM_JOB_NODELIST": "gpu[3-4]", "VIRTUAL_ENV": "/venv"}

STUBS = {
    "scontrol": 'echo "   NodeAddr=10.0.0.3 NodeHostName=gpu3 "; [ "$1" = show ] || echo "$*" >> "$CALLS"',
    "squeue": 'echo "$STATE"',
    "srun": 'shift; export SLURM_NODEID=1; "$@"; exit "$CODE"',
    "accelerate": 'printf "%s\\n" "$@"',
}


def run(folder: Path, *words: str, code: int = 0, state: str = "RUNNING") -> tuple[int, list[str], str]:
    """Exit code, the words that `accelerate` gets on the second node, and what else SLURM was asked to do."""
    for name, body in STUBS.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    calls = folder / "calls"
    calls.touch()
    env = {**JOB, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    env |= {"CALLS": str(calls), "STATE": state, "CODE": str(code)}
    done = subprocess.run(["bash", SCRIPT, *words], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == ""
    first, *rest = done.stdout.splitlines()
    assert first.endswith(": start 1 of job 31042 on gpu[3-4]")
    return done.returncode, rest, calls.read_text()


def test_each_node_joins_with_its_number(tmp_path):
    code, words, calls = run(tmp_path)
    assert (code, calls) == (0, "")
    assert words[0] == "launch"
    args = launch_command_parser().parse_args(words[1:])
    assert (ROOT / args.config_file).is_file()
    assert (args.num_machines, args.num_processes, args.machine_rank) == (2, 16, 1)
    assert (args.main_process_ip, args.main_process_port) == ("10.0.0.3", 21042)
    assert (args.module, args.training_script) == (True, "unetdist")
    command, *given = args.training_script_args
    assert command == "train"
    config = settings.parse(Config, given, prog="train", description="")
    assert config.data.train == "shards/train"


def test_settings_take_the_place_of_those_in_the_script(tmp_path):
    _, words, _ = run(tmp_path, "--name", "a b")
    assert words[-5:] == ["-m", "unetdist", "train", "--name", "a b"]


@pytest.mark.parametrize(
    ("code", "state", "is_requeued"),
    [
        (75, "RUNNING", True),
        (143, "RUNNING", True),
        (75, "COMPLETING", False),
        (75, "CANCELLED", False),
        (1, "RUNNING", False),
        (0, "RUNNING", False),
    ],
)
def test_what_was_stopped_and_not_cancelled_is_requeued(code, state, is_requeued, tmp_path):
    found, _, calls = run(tmp_path, code=code, state=state)
    assert found == code
    assert calls == ("requeue 31042\n" if is_requeued else "")


def test_sbatch_would_read_the_options():
    """It reads them only above the first command, and those that make a run go on are among them."""
    header = SCRIPT.read_text().split("\nset -u\n")[0]
    assert all(line.startswith("#") or not line for line in header.splitlines())
    options = re.findall(r"^#SBATCH (--\S+)", header, re.MULTILINE)
    assert {"--requeue", "--open-mode=append", "--ntasks-per-node=1"} <= set(options)
    assert any(option.startswith("--signal=B:TERM@") for option in options)


FAKE_LAUNCHER = """
trap 'echo told; sleep 0.2; exit 1' TERM
echo ready
for _ in $(seq 200); do sleep 0.05; done
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_a_node_reaches_the_launcher_and_becomes_exit_code_75(number):
    node = [ROOT / "launch" / "node.sh", "bash", "-c", FAKE_LAUNCHER]

    def heed_interrupts():
        """A shell cannot trap a signal that it inherits as ignored, as every job in the background of a script does."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(["bash", *node], stdout=subprocess.PIPE, text=True, preexec_fn=heed_interrupts) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.communicate(timeout=20)[0] == "told\n"
    assert process.returncode == 75


@pytest.mark.parametrize("code", [0, 1, 3])
def test_without_a_signal_a_node_exits_as_its_launcher_does(code):
    assert subprocess.run(["bash", ROOT / "launch" / "node.sh", "bash", "-c", f"exit {code}"]).returncode == code
