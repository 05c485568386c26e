import multiprocessing
import os
import signal
import subprocess
import sys
import time
import types
import warnings

import pytest

import unetdist.distributed.signals as signals
from unetdist.distributed.signals import StopSignal
from unetdist.errors import LaunchError


@pytest.fixture
def stop():
    seconds = []
    with StopSignal(on_second=seconds.append) as stop:
        stop.seconds = seconds
        yield stop


def wait_until(condition) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end, "did not happen within 5 s"
        time.sleep(0.005)


@pytest.mark.parametrize("number", signals.STOP_SIGNALS)
def test_a_signal_is_a_request(stop, number):
    assert not stop.requested
    os.kill(os.getpid(), number)
    wait_until(lambda: stop.requested)
    assert stop.received == number


def test_signals_in_quick_succession_are_one_request_a_later_one_exits(stop, monkeypatch):
    monkeypatch.setattr(signals, "SECOND_SIGNAL_AFTER_S", 0.2)
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    wait_until(lambda: stop.requested)
    time.sleep(0.05)
    assert stop.seconds == []
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGINT)
    wait_until(lambda: stop.seconds)
    assert stop.seconds == [128 + signal.SIGINT]


def test_a_second_signal_can_interrupt_instead_of_ending_the_process(monkeypatch):
    monkeypatch.setattr(signals, "SECOND_SIGNAL_AFTER_S", 0.2)
    with StopSignal(on_second=None) as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        wait_until(lambda: stop.requested)
        time.sleep(0.25)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)


def test_a_request_elsewhere_is_one_and_is_told_once(stop, caplog, monkeypatch):
    monkeypatch.setattr(signals.logger, "propagate", True)
    caplog.set_level("INFO", "unetdist")
    assert not stop.requested_anywhere
    for _ in range(2):
        stop.note_elsewhere()
    assert stop.requested_anywhere
    assert not stop.requested
    assert caplog.messages == ["another process was asked to stop: stopping within a few steps, with a checkpoint"]


def test_a_request_here_is_one_anywhere_and_told_by_itself(stop, caplog, monkeypatch):
    monkeypatch.setattr(signals.logger, "propagate", True)
    os.kill(os.getpid(), signal.SIGTERM)
    wait_until(lambda: stop.requested)
    said = len(caplog.messages)
    stop.note_elsewhere()
    assert stop.requested_anywhere
    assert len(caplog.messages) == said


def test_closing_gives_the_signals_back():
    former = [signal.getsignal(number) for number in signals.STOP_SIGNALS]
    with StopSignal() as stop:
        assert [signal.getsignal(number) for number in signals.STOP_SIGNALS] != former
    stop.close()
    assert [signal.getsignal(number) for number in signals.STOP_SIGNALS] == former


def test_forked_children_ignore_the_signals_and_do_not_report_them(stop):
    child = os.fork()
    if child == 0:
        for number in signals.STOP_SIGNALS:
            os.kill(os.getpid(), number)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    time.sleep(0.05)
    assert not stop.requested


def take_a_worker(connection) -> None:
    connection.send("ready")
    while True:
        time.sleep(0.01)


def test_forked_children_obey_their_parent_once_the_watch_is_over():
    """As a loader's workers must: Python ends them by SIGTERM at exit, and waits."""
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: fork beside the watching thread
        with StopSignal():
            worker = context.Process(target=take_a_worker, args=(sending,), daemon=True)
            worker.start()
            assert receiving.recv() == "ready"
            worker.terminate()
            worker.join(timeout=0.2)
            assert worker.is_alive()
        worker.terminate()
        worker.join(timeout=5)
    assert worker.exitcode == 128 + signal.SIGTERM


HUNG = """
import ctypes
from unetdist.distributed import signals
signals.SECOND_SIGNAL_AFTER_S = 0.1
stop = signals.StopSignal()
print("ready", flush=True)
libc = ctypes.CDLL(None)
while True:
    libc.usleep(60_000_000)  # in C, without a look at Python's pending signals, as in a collective
"""


def test_a_second_signal_exits_while_the_main_thread_hangs():
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", HUNG], stdout=pipe, stderr=pipe, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.4)
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM, told
    assert "SIGTERM again: exiting at once" in told


LAUNCHER = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
print(child.pid, flush=True)
child.wait()
"""

LAUNCHED = """
import signal, sys, time
from unetdist.distributed.signals import follow_launcher
follow_launcher()
signal.signal(signal.SIGTERM, lambda *_: (print("told", flush=True), sys.exit(0)))
print("ready", flush=True)
time.sleep(20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
@pytest.mark.parametrize(
    ("variable", "told"), [("ACCELERATE_DYNAMO_BACKEND", True), ("ACCELERATE_MIXED_PRECISION", False)]
)
def test_a_launcher_that_is_killed_takes_its_training_along(variable, told):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE", "TORCH"))}
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, LAUNCHED],
        env={**environment, variable: "no"},
        stdout=subprocess.PIPE,
        text=True,
    )
    with launcher.stdout as out:
        child = int(out.readline())
        assert out.readline() == "ready\n"
        launcher.kill()
        launcher.wait()
        if not told:
            time.sleep(0.3)
            os.kill(child, signal.SIGKILL)
        assert out.read() == ("told\n" if told else "")


WATCHING = """
import time
from unetdist.distributed.signals import StopSignal, follow_launcher
follow_launcher()
with StopSignal() as stop:
    print("ready", flush=True)
    while not stop.requested: time.sleep(0.01)
    time.sleep(0.1)
    print("orphan" if stop.is_orphan else "asked", flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
@pytest.mark.parametrize(("kills", "told"), [("launcher", "orphan"), ("child", "asked")])
def test_an_orphan_knows_that_nobody_asked_it_to_stop(kills, told):
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, WATCHING],
        env={**os.environ, "ACCELERATE_DYNAMO_BACKEND": "no"},
        stdout=subprocess.PIPE,
        text=True,
    )
    with launcher.stdout as out:
        child = int(out.readline())
        assert out.readline() == "ready\n"
        os.kill(launcher.pid if kills == "launcher" else child, signal.SIGTERM)
        assert out.read() == f"{told}\n"
    launcher.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
@pytest.mark.parametrize("env", [{"ACCELERATE_DYNAMO_BACKEND": "no"}, {"TORCHELASTIC_RUN_ID": "none"}])
def test_a_launcher_that_ended_while_libraries_were_loaded_is_noticed(monkeypatch, env):
    """The kernel tells only of deaths after it was asked to."""
    for name in [name for name in os.environ if name.startswith(signals.LAUNCHER_VARIABLES)]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(signals.ctypes, "CDLL", lambda _: types.SimpleNamespace(prctl=lambda *_: 0))
    monkeypatch.setattr(signals, "STARTED_BY", (os.getpid(), 4321))
    signals.follow_launcher()
    monkeypatch.setenv(*next(iter(env.items())))
    with pytest.raises(
        LaunchError, match=r"the launcher \(process 4321\) .* has ended, so this one ends too; start again"
    ):
        signals.follow_launcher()
    monkeypatch.setattr(signals, "STARTED_BY", (1, 4321))  # of the process that forked this one
    signals.follow_launcher()
