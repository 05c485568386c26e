import io
import logging
import os
import subprocess
import sys

import pytest
from rich.console import Console
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from unetdist.cli import logs
from unetdist.errors import ConfigError


def test_only_rank_0_speaks_of_progress_and_every_rank_of_trouble(capsys):
    logs.set_up_logging(rank=0, world_size=2)
    logs.logger.info("hello")
    logs.set_up_logging(rank=1, world_size=2)
    logs.logger.info("quiet")
    logs.logger.warning("trouble")
    assert capsys.readouterr().err.splitlines() == ["hello", "[rank 1] warning: trouble"]


def test_without_a_terminal_progress_is_a_line_now_and_then(caplog, monkeypatch):
    logs.logger.propagate = True
    clock = iter([0, 5, 65, 70])
    monkeypatch.setattr(logs.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, "unetdist"), logs.progress("sharding", 130) as bar:
        for _ in range(3):
            bar.advance(5, note="2 bad")
    assert caplog.messages == ["sharding: 10/130, 1:05 elapsed, 13:00 left, 2 bad"]


def test_times_name_hours_only_where_there_are_some():
    assert logs._status(5, 10, 59.6, 3661, "") == "5/10, 1:00 elapsed, 1:01:01 left"
    assert logs._status(10, 10, 0, 0, "") == "10/10, 0:00 elapsed"
    assert logs._status(5, None, 0, None, "a.jpg") == "5, 0:00 elapsed, a.jpg"


def test_a_disabled_bar_says_nothing(caplog):
    with caplog.at_level(logging.INFO, "unetdist"), logs.progress("sharding", 1, enabled=False) as bar:
        bar.advance()
    assert not caplog.records


def test_on_a_terminal_progress_is_a_bar(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(logs, "console", Console(file=screen, force_terminal=True, width=100))
    with logs.progress("sharding", 2, stays=True) as bar:
        bar.advance(2, note="done soon")
    assert "sharding" in screen.getvalue()
    assert "2/2, 0:00 elapsed, done soon" in screen.getvalue()


def test_a_display_has_one_line_of_the_innermost_task(monkeypatch):
    monkeypatch.setattr(logs, "console", Console(file=io.StringIO(), force_terminal=True, width=100))

    def shown() -> str:
        with logs.console.capture() as captured:
            logs.console.print(logs._shown[0].get_renderable())
        return captured.get()

    with logs.progress("training", 10):
        with logs.progress("validating", 5):
            assert "validating" in shown()
            assert "training" not in shown()
        assert "training" in shown()
    assert not logs._shown


def test_a_terminal_gets_commands_in_one_piece(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(logs, "console", Console(file=screen, force_terminal=True, width=40))
    logs.set_up_logging()
    command = "next: python launch/predict.py --model runs/camvid/best --input photos --out results --overlay"
    logs.logger.info(command)
    assert screen.getvalue() == f"{command}\n"


def _refuse() -> None:
    raise ConfigError("lr (-1) must be above 0; use 0.001.")


def _interrupt() -> None:
    raise KeyboardInterrupt


def interrupted(code: str, **env: str) -> tuple[int, str]:
    """Exit code and stderr of a program that sends itself Ctrl-C with `interrupt()`."""
    start = """
import os, signal, sys, time
from unetdist.__main__ import leave_on_interrupt
from unetdist.cli.logs import run_script
sys.interrupt = interrupt = lambda: os.kill(os.getpid(), signal.SIGINT)
leave_on_interrupt()
"""
    command = [sys.executable, "-c", start + code]
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


def test_ctrl_c_ends_in_one_line_of_one_process():
    assert interrupted("run_script(interrupt)") == (130, "interrupted\n")
    assert interrupted("run_script(interrupt)", RANK="0") == (130, "interrupted\n")
    assert interrupted("run_script(interrupt)", RANK="1") == (130, "")


def test_ctrl_c_while_modules_load_ends_at_once_although_their_code_goes_on(tmp_path):
    (tmp_path / "swallows.py").write_text(
        "import sys\ntry:\n    sys.interrupt()\nexcept BaseException:\n    pass\nprint('loaded', file=sys.stderr)\n"
    )
    assert interrupted("import swallows", PYTHONPATH=str(tmp_path)) == (130, "interrupted\n")


def test_a_second_ctrl_c_ends_at_once_but_not_the_copy_that_a_launcher_sends():
    code = """
try:
    interrupt()
except KeyboardInterrupt:
    print("waiting", file=sys.stderr, flush=True)
interrupt()
time.sleep({})
interrupt()
print("end", file=sys.stderr)
"""
    assert interrupted(code.format(1.1)) == (130, "waiting\ninterrupted\n")
    assert interrupted(code.format(0)) == (0, "waiting\nend\n")


@pytest.mark.parametrize(
    ("main", "code", "said"),
    [
        (_refuse, 1, "error: lr (-1) must be above 0; use 0.001."),
        (_interrupt, 130, "interrupted"),
        (lambda: 75, 75, ""),
    ],
)
def test_a_script_ends_with_a_code_and_without_a_traceback(main, code, said, capsys):
    with pytest.raises(SystemExit) as exit_info:
        logs.run_script(main)
    assert exit_info.value.code == code
    assert capsys.readouterr().err.strip() == said


def test_the_rank_is_named_in_front_of_an_error(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(SystemExit):
        logs.run_script(_refuse)
    assert capsys.readouterr().err.startswith("[rank 3] error: lr")


def test_torchrun_shows_an_error_as_the_cause(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with pytest.raises(SystemExit):
        logs.run_script(_refuse)
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=1, error_file=str(tmp_path / "error.json"))
    assert "traceback : error: lr (-1) must be above 0; use 0.001." in str(ChildFailedError("train.py", {0: failure}))


def test_our_own_bugs_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        logs.run_script(lambda: 1 // 0)


@pytest.mark.parametrize(
    "text",
    [
        "[/a/gloo/transport/tcp/pair.cc:537] Read error [10.0.0.1]:408: Connection reset by peer\nmore",
        "[Gloo] ranks failed to connect",
        "NCCL error: remote process exited or there was a network error",
    ],
)
def test_a_lost_connection_is_told_in_words(capsys, monkeypatch, tmp_path, text):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))

    def main():
        raise RuntimeError(text)

    with pytest.raises(SystemExit) as exited:
        logs.run_script(main)
    assert exited.value.code == 1
    told = capsys.readouterr().err
    assert told.startswith("[rank 3] error: the connection to another process of the run is lost: it ended, or its")
    assert told.endswith(f"the same command continues the run. ({text.splitlines()[0]})\n")
    assert not (tmp_path / "error.json").exists()


def test_other_errors_of_torch_keep_their_traceback():
    def main():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        logs.run_script(main)


def test_no_log_line_and_no_error_tells_a_password(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error"))
    logs.set_up_logging()
    logs.logger.warning("waiting for %s", "https://me:secret@host/a?token=secret")

    def main():
        raise ConfigError("https://me:secret@host/a?token=secret: gone")

    with pytest.raises(SystemExit):
        logs.run_script(main)
    told = capsys.readouterr().err
    assert told == "warning: waiting for https://***@host/a?***\nerror: https://***@host/a?***: gone\n"
    assert "secret" not in (tmp_path / "error").read_text()
