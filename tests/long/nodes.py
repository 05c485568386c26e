"""Two machines on this one: namespaces with a network, a host name and processes of their own, and the same disk.

Needs root, `unshare` and `nsenter` (util-linux) and `ip` (iproute2); nothing outside the namespaces is touched.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil

TOOLS = ("unshare", "nsenter", "ip")
MACHINE = ("--net", "--uts", "--mount", "--pid")


def missing() -> str:
    """Why this machine cannot be several; nothing where it can."""
    if absent := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"needs {', '.join(absent)}"
    if os.geteuid() != 0:
        return "needs root, for namespaces"
    tried = f"unshare {' '.join(MACHINE)} --fork ip link add hub type bridge"
    done = subprocess.run(tried.split(), capture_output=True, text=True)
    return f"namespaces or bridges are not permitted here: {done.stderr.strip()}" if done.returncode else ""


class Namespace:
    """Namespaces that live as long as their first process."""

    def __init__(self, kinds: Sequence[str], first: str) -> None:
        """Make them, also of processes, so that all end with the first: it runs the shell's `first`, and sleeps."""
        script = f"{first}; echo ready; sleep infinity & wait"
        self._holder = subprocess.Popen(
            ["unshare", *{*kinds, "--pid"}, "--fork", "--kill-child", "bash", "-ec", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._holder.stdout is not None
        assert (said := self._holder.stdout.readline()) == "ready\n", said
        self._pid = psutil.Process(self._holder.pid).children()[0].pid
        self._kinds = kinds

    def command(self, *words: str) -> list[str]:
        """`words` as a command that runs in here."""
        return ["nsenter", "--target", str(self._pid), *self._kinds, *words]

    def call(self, text: str) -> None:
        """Run a command to its end."""
        subprocess.run(self.command(*text.split()), check=True, stdin=subprocess.DEVNULL)

    @property
    def first_pid(self) -> int:
        """As processes outside of it see its first process."""
        return self._pid

    def kill(self) -> None:
        """End all of its processes at once, as a power cut does."""
        with suppress(ProcessLookupError):
            os.kill(self._pid, 9)
        self._holder.wait()
        assert self._holder.stdout is not None
        self._holder.stdout.close()


class Node:
    """A machine, with a cable to the hub."""

    def __init__(self, hub: Namespace, number: int, hosts: Path) -> None:
        """Switch it on."""
        self.name = f"node{number}"
        self._hub, self._port = hub, f"port{number}"
        own_files = f"mount -t proc proc /proc; mount --bind {hosts} /etc/hosts"
        self._own = Namespace(MACHINE, f"{own_files}; hostname {self.name}; ip link set lo up")
        hub.call(f"ip link add {self._port} type veth peer name eth0 netns {self._own.first_pid}")
        hub.call(f"ip link set {self._port} master hub")
        self._own.call(f"ip address add {address_of(number)}/24 dev eth0")
        self._own.call("ip link set eth0 up")
        self.plug_in()

    def start(self, words: Sequence[str], log: Path, env: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        """Start a command; its output goes to `log`."""
        with open(log, "ab") as output:
            return subprocess.Popen(
                self._own.command(*words),
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def processes(self) -> list[psutil.Process]:
        """All that run on it but the first and what that began, as this machine sees them."""
        first = psutil.Process(self._own.first_pid)
        own = {first.pid, *(child.pid for child in first.children() if child.name() == "sleep")}
        found = []
        for process in psutil.process_iter():
            with suppress(OSError, psutil.Error):
                is_here = _pid_namespace(process) == _pid_namespace(first)
                if is_here and process.pid not in own and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def unplug(self) -> None:
        """Cut the cable: nobody is told, packets are lost."""
        self._hub.call(f"ip link set {self._port} down")

    def plug_in(self) -> None:
        """Mend the cable."""
        self._hub.call(f"ip link set {self._port} up")

    def crash(self) -> None:
        """Cut the power: its processes end, and no word of it reaches the network."""
        self.unplug()
        self._own.kill()
        # Connections that were open keep the network of the dead for minutes.
        self._hub.call(f"ip link delete {self._port}")


class Nodes:
    """Machines node0, node1, ..., joined by a hub; switched off at the end of the `with`."""

    def __init__(self, count: int, folder: Path) -> None:
        """Switch them on; `folder` keeps their /etc/hosts."""
        self._hosts = folder / "hosts"
        lines = ["127.0.0.1 localhost", *(f"{address_of(number)} node{number}" for number in range(count))]
        self._hosts.write_text("\n".join(lines) + "\n")
        self._hub = Namespace(("--net",), "ip link add hub type bridge; ip link set hub up")
        self._nodes = [Node(self._hub, number, self._hosts) for number in range(count)]

    def __getitem__(self, number: int) -> Node:
        return self._nodes[number]

    def replace(self, number: int) -> Node:
        """A machine that crashed comes back, with nothing on its mind."""
        self._nodes[number] = Node(self._hub, number, self._hosts)
        return self._nodes[number]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for namespace in (*(node._own for node in self._nodes), self._hub):
            namespace.kill()


def _pid_namespace(process: psutil.Process) -> Path:
    return Path(f"/proc/{process.pid}/ns/pid").readlink()


def address_of(number: int) -> str:
    """Within the hub's network."""
    return f"10.77.0.{number + 1}"
