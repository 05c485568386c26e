"""launch/supervise.py over a real `accelerate launch`; long mishaps are in tests/long."""

import signal

from tests.launch.supervised import survivors, train_supervised


def test_a_signal_that_would_kill_the_launcher_stops_the_run(tmp_path):
    with train_supervised(tmp_path) as run:
        run.train_beyond(5, attempt=1)
        all_of_it = run.processes()
        run.supervisor.send_signal(signal.SIGUSR1)
        assert run.end() == 75, run.output()
        assert not survivors(all_of_it)
        assert (run.status().state, run.status().attempts) == ("stopped", 1)
        assert "restart" not in run.output()
