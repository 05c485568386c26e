"""A real run under launch/supervise.py survives the death of each of its parts, and leaves nothing behind."""

import signal

import pytest

from tests.launch.supervised import Supervised, survivors, train_supervised

pytestmark = pytest.mark.long


def kill_launcher(run: Supervised) -> None:
    run.launcher().kill()


def kill_last_rank(run: Supervised) -> None:
    run.ranks()[-1].kill()


@pytest.mark.parametrize("mishap", [kill_launcher, kill_last_rank])
def test_what_dies_is_started_again(tmp_path, mishap):
    with train_supervised(tmp_path) as run:
        run.train_beyond(5, attempt=1)
        former = run.processes()[1:]
        mishap(run)
        run.train_beyond(5, attempt=2)
        assert not survivors(former)
        assert run.output().count("WARNING restart 1 of 3 in 1 s: the launcher ") == 1
        all_of_it = run.processes()
        run.supervisor.send_signal(signal.SIGTERM)
        assert run.end() == 75, run.output()
        assert not survivors(all_of_it)
        assert (run.status().state, run.status().attempts) == ("stopped", 2)


def test_a_killed_supervisor_takes_all_along_and_the_same_command_continues(tmp_path):
    with train_supervised(tmp_path) as run:
        run.train_beyond(5, attempt=1)
        all_of_it = run.processes()
        run.supervisor.kill()
        assert not survivors(all_of_it)
    reached = run.status().step
    assert reached > 5
    with train_supervised(tmp_path) as run:
        run.train_beyond(reached + 1, attempt=2)
        assert f"continuing at step {reached} of " in run.output()


def test_a_launcher_of_one_process_which_hands_no_signal_on(tmp_path):
    with train_supervised(tmp_path, world_size=1) as run:
        run.train_beyond(5, attempt=1)
        all_of_it = run.processes()
        run.supervisor.send_signal(signal.SIGTERM)
        assert run.end() == 75, run.output()
        assert not survivors(all_of_it)
        assert run.status().step > 5


def test_a_setting_that_is_wrong_is_given_up_soon(tmp_path):
    """It is found before the run has a folder to say so in."""
    with train_supervised(tmp_path, max_steps=-1) as run:
        assert run.end() == 1, run.output()
        assert "ERROR giving up after 2 restart(s), for the run did not even begin" in run.output()
