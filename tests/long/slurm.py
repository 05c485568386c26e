"""A SLURM of two nodes on this machine: controller, two slurmd and munge on loopback, all of it in one folder.

Needs root and Debian's `slurm-wlm` and `munge`, of which nothing else needs to run. Its processes, and those of its
jobs, have a namespace of their own, and end with it.
"""

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from tests.long.launched import DEADLINE_S, environment
from tests.long.nodes import Namespace
from tests.long.nodes import missing as missing_namespaces

DAEMONS = ("munged", "slurmctld", "slurmd")
NODES = ("n0", "n1")
PATH = f"{sys.prefix}/bin:{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

REQUEUED_AFTER_S = 20
"""How long a job rests before it starts again, and how long its credentials are good for; 120 unless said."""

CONF = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire={rest}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool_%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd_%n.pid
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
SchedulerParameters=batch_sched_delay=1,bf_interval=1,sched_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=120
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF
NodeName=n0 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 Gres=gpu:1
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 Gres=gpu:1
"""


def missing() -> str:
    """Why there can be no SLURM here; nothing where there can."""
    if absent := [name for name in (*DAEMONS, "sbatch", "scontrol") if shutil.which(name, path=PATH) is None]:
        return f"needs {', '.join(absent)}: apt-get install slurm-wlm munge"
    return missing_namespaces()


class Slurm:
    """The cluster, with one make-believe GPU on each node; jobs of the partition `high` preempt those of the other."""

    def __init__(self) -> None:
        """Start it, and wait for its nodes."""
        self.folder = Path(tempfile.mkdtemp(prefix="slurm_"))  # a socket's path must be short
        self.env = environment(
            PATH=PATH, VIRTUAL_ENV=sys.prefix, SLURM_CONF=str(self.folder / "slurm.conf"), GLOO_SOCKET_IFNAME="lo"
        )
        hosts = self.folder / "hosts"  # where the names of the nodes lead
        hosts.write_text(Path("/etc/hosts").read_text() + f"127.0.0.1 {' '.join(NODES)}\n")
        first = f"mount -t proc proc /proc; mount --bind {hosts} /etc/hosts"
        self._inside = Namespace(("--mount", "--pid"), first)
        self._daemons: list[subprocess.Popen[bytes]] = []
        with ExitStack() as on_error:
            on_error.callback(self._tear_down)
            self._start()
            on_error.pop_all()

    def _start(self) -> None:
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        host = socket.gethostname().split(".")[0]
        conf = CONF.format(folder=self.folder, host=host, ports=free_ports(3), rest=REQUEUED_AFTER_S)
        (self.folder / "slurm.conf").write_text(conf)
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null Flags=no_gpu_env\n")
        files = [f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "pid", "seed")]
        files += [f"--{name}={self.folder}/munge.{name}" for name in ("socket", "log-file")]
        self._start_daemon("munged", "--force", "--foreground", *files)
        self.wait_until((self.folder / "munge.socket").exists)
        self._start_daemon("slurmctld", "-D")
        for name in NODES:
            self._start_daemon("slurmd", "-D", "-N", name)
        self.wait_until(lambda: set(self.call("sinfo", "-h", "-N", "-o", "%T").split()) == {"idle"})

    def _start_daemon(self, *words: str) -> None:
        with open(self.folder / f"{words[0]}.out", "ab") as output:
            daemon = subprocess.Popen(
                self._inside.command(*words),
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._daemons.append(daemon)

    def call(self, *words: str, cwd: Path | None = None) -> str:
        """What one of SLURM's commands prints, errors too."""
        done = subprocess.run(words, env=self.env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return done.stdout

    def submit(self, script: Path, *words: str, cwd: Path, options: Sequence[str]) -> str:
        """`sbatch`; the number of the job."""
        said = self.call("sbatch", "--parsable", *options, str(script), *words, cwd=cwd)
        assert said.strip().isdigit(), said
        return said.strip()

    def fact(self, job: str, name: str) -> str:
        """Of `scontrol show job`, such as JobState."""
        shown = self.call("scontrol", "show", "job", job)
        found = re.search(rf"\b{name}=(\S*)", shown)
        assert found, shown
        return found[1]

    def wait_until(self, is_true: Callable[[], bool], log: Path | None = None) -> None:
        """Wait for something to happen; at the deadline the test fails with the `log`."""
        deadline = time.monotonic() + DEADLINE_S
        while not is_true():
            assert time.monotonic() < deadline, self.output() + (log.read_text() if log else "")
            time.sleep(0.2)

    def output(self) -> str:
        """What jobs there are, and the last words of the daemons."""
        files = sorted(self.folder.glob("*.out"))
        texts = [f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in files]
        return "\n".join([self.call("squeue"), self.call("sinfo", "-N"), *texts])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._tear_down()

    def _tear_down(self) -> None:
        self._inside.kill()
        for daemon in self._daemons:
            daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Of loopback, different ones."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
