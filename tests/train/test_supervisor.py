"""Supervision of fake launchers; that of real ones is in tests/launch/test_supervise.py and tests/long/."""

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from unetdist.errors import ConfigError
from unetdist.train import supervisor
from unetdist.train.config import Config
from unetdist.train.run_status import Attempt, Status, read_status
from unetdist.train.supervisor import run_dir_of

ROOT = Path(__file__).parents[2]

LAUNCHER = """
import os, signal, subprocess, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from unetdist.train.run_status import Attempt
run_dir = Path(sys.argv[sys.argv.index("--runs_dir") + 1]) / "run"
run_dir.mkdir(parents=True, exist_ok=True)
number = len(list(run_dir.glob("launch*")))
(run_dir / f"launch{{number}}").touch()
attempt = Attempt(run_dir, is_main=True)

def begin(step):
    attempt.begin(step)
    attempt.at(step + 1)

def stop(*_):
    attempt.end("stopped", 5)
    sys.exit(1)
"""


def start(tmp_path, body, *options, first_pause_s="0.01", prelude=""):
    """A supervisor over a launcher that does `body`; its output is a file that the next launch appends to."""
    script = tmp_path / "launcher.py"
    script.write_text(LAUNCHER.format(root=str(ROOT)) + textwrap.dedent(body))
    driver = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv[0] = 'supervise.py'\n"
        "from unetdist import supervisor\n"
        f"supervisor.LAST_WORDS_S = 1\n{prelude}\n"
        f"supervisor.Supervisor.__init__.__kwdefaults__['first_pause_s'] = {first_pause_s}\n"
        f"exec(open({str(ROOT / 'launch' / 'supervise.py')!r}).read())"
    )
    command = [sys.executable, str(script), "train.py", "--runs_dir", str(tmp_path)]
    return subprocess.Popen(
        [sys.executable, "-c", driver, *options, "--", *command], stderr=subprocess.PIPE, text=True
    )


def run(tmp_path, body, *options, prelude=""):
    process = start(tmp_path, body, *options, prelude=prelude)
    _, told = process.communicate(timeout=60)
    return process.returncode, told


def launches(tmp_path):
    return len(list((tmp_path / "run").glob("launch*")))


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_run_that_finishes(tmp_path):
    assert run(tmp_path, "begin(0); attempt.end('finished', 9)") == (0, "")


def test_restarted_until_it_finishes(tmp_path):
    code, told = run(
        tmp_path,
        """
        begin(number)
        if number == 0: os.kill(os.getpid(), signal.SIGKILL)
        if number == 1: attempt.fail("a rank hangs"); sys.exit(1)
        attempt.end("finished", 9)
        sys.exit(1 if number == 2 else 0)  # some process may be told off while it ends
        """,
    )
    assert code == 0
    assert told.splitlines() == [
        "WARNING restart 1 of 100 in 0 s: the launcher was ended by SIGKILL, the run stood at step 0",
        "WARNING restart 2 of 100 in 0 s: the launcher ended with code 1, the run stood at step 1: a rank hangs",
    ]
    assert launches(tmp_path) == 3


def test_not_more_often_than_asked_for(tmp_path):
    code, told = run(tmp_path, "begin(number); sys.exit(1)", "--max-restarts", "2")
    assert (code, launches(tmp_path)) == (1, 3)
    assert told.splitlines()[-1] == (
        "ERROR giving up after 2 restart(s): the launcher ended with code 1, the run stood at step 2"
    )


def test_what_would_fail_again_is_not_restarted(tmp_path):
    code, told = run(tmp_path, "attempt.fail('optim.lr (-1) must be above 0', is_final=True); sys.exit(1)")
    assert (code, launches(tmp_path)) == (1, 1)
    assert told == "ERROR not restarted, for it would fail again: optim.lr (-1) must be above 0\n"


def test_an_old_failure_is_not_that_of_this_launch(tmp_path):
    (tmp_path / "run").mkdir()
    Attempt(tmp_path / "run", is_main=True).fail("a former mistake", is_final=True)
    assert run(tmp_path, "number or sys.exit(1); begin(0); attempt.end('finished', 9)")[0] == 0


def test_a_command_line_that_never_begins_a_run_is_given_up_soon(tmp_path):
    code, told = run(tmp_path, "sys.exit(2)")
    assert (code, launches(tmp_path)) == (1, 3)
    assert told.splitlines()[-1] == (
        "ERROR giving up after 2 restart(s), for the run did not even begin: the launcher ended with code 2"
    )


def test_long_launches_that_never_begin_a_run_are_given_up_too(tmp_path):
    """As where another machine does not come back."""
    short = "supervisor.LONGEST_PAUSE_S = 0; supervisor.LONGEST_ABSENCE_S = 0.5"
    code, told = run(tmp_path, "time.sleep(0.2); sys.exit(1)", prelude=short)
    assert code == 1
    assert "for the run did not even begin" in told.splitlines()[-1]


def test_news_that_come_late_are_heard(tmp_path):
    """Of a run that another machine stopped: written by now, but not seen yet when the launcher ends."""
    late = "times = iter([0, 0, 7]); supervisor.status_time = lambda _: next(times)"
    code, _ = run(tmp_path, "begin(3); attempt.end('stopped', 3); sys.exit(1)", prelude=late)
    assert (code, launches(tmp_path)) == (75, 1)


@pytest.mark.parametrize("number", supervisor.SIGNALS)
def test_each_signal_stops_the_run(tmp_path, number):
    process = start(tmp_path, "signal.signal(signal.SIGTERM, stop); begin(4); time.sleep(60)")
    wait_for(lambda: read_status(tmp_path / "run") is not None)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert read_status(tmp_path / "run") == Status(state="stopped", step=5, attempts=1)


def test_a_run_that_another_machine_stopped(tmp_path):
    code, told = run(tmp_path, "begin(4); attempt.end('stopped', 5); sys.exit(1)")
    assert (code, told, launches(tmp_path)) == (75, "", 1)


def test_a_signal_ends_the_pause_before_a_restart(tmp_path):
    process = start(tmp_path, "begin(0); sys.exit(1)", first_pause_s="60")
    wait_for(lambda: (tmp_path / "run" / "status.json").exists())
    assert process.stderr.readline().startswith("WARNING restart 1 of 100 in 60 s")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 75


SLOW_CHILD = """
begin(0)
child = subprocess.Popen([sys.executable, "-c", '''
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, {action})
Path(sys.argv[1]).write_text("")
time.sleep(60)
''', str(run_dir / "child_is_up")], start_new_session=True)
while not (run_dir / "child_is_up").exists(): time.sleep(0.01)
(run_dir / "child").write_text(str(child.pid))
{then}
"""


@pytest.mark.parametrize("action", ["lambda *_: sys.exit(0)", "signal.SIG_IGN"])
def test_nothing_is_left_of_a_launcher_that_died(tmp_path, action):
    """Not even what ignores SIGTERM, and what left the launcher's session."""
    body = SLOW_CHILD.format(action=action, then="os.kill(os.getpid(), signal.SIGKILL)")
    code, _ = run(tmp_path, "if number: attempt.begin(0); attempt.end('finished', 1); sys.exit(0)\n" + body)
    assert code == 0
    assert not psutil.pid_exists(int((tmp_path / "run" / "child").read_text()))


@pytest.mark.skipif(sys.platform != "linux", reason="needs the parent-death signal")
def test_a_killed_supervisor_ends_its_launcher(tmp_path):
    process = start(
        tmp_path,
        """
        signal.signal(signal.SIGTERM, stop)
        begin(4)
        (run_dir / "pid").write_text(str(os.getpid()))
        time.sleep(60)
        """,
    )
    wait_for(lambda: (tmp_path / "run" / "pid").exists() and (tmp_path / "run" / "pid").read_text())
    process.kill()
    process.wait()
    process.stderr.close()
    wait_for(lambda: read_status(tmp_path / "run").state == "stopped")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "runs/run"),
        (["--name", "a"], "runs/a"),
        (["--name=a", "--runs_dir", "/there"], "/there/a"),
        (["--config", "x.yaml"], "/from/file"),
        (["--config=x.yaml", "--name", "b"], "/from/b"),
        (["--name", "b", "--config", "x.yaml"], "/from/file"),
    ],
)
def test_the_run_folder_of_a_command(tmp_path, monkeypatch, words, expected):
    """The later one wins, as in the training itself."""
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text("name: file\nruns_dir: /from\ndata:\n  train: x\n")
    command = ["accelerate", "launch", "--name", "no", "launch/train.py", *words]
    assert run_dir_of(command) == Path(expected)


def test_the_defaults_are_those_of_the_settings():
    fields = {field.name: field.default for field in dataclasses.fields(Config)}
    assert {name: fields[name] for name in supervisor._DEFAULTS} == supervisor._DEFAULTS


def test_a_command_without_training_is_refused():
    with pytest.raises(
        ConfigError,
        match=r"the command to supervise \(accelerate test\) does not run launch/train.py; type `python",
    ):
        run_dir_of(["accelerate", "test"])


def test_a_missing_command_is_refused(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "launch" / "supervise.py", "--max-restarts", "3"],
        capture_output=True,
        text=True,
        env={**os.environ},
    )
    assert done.returncode == 1
    assert (
        "error: no command to supervise; type it behind --, such as `-- accelerate launch ...`."
        in done.stderr
    )
