import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trackio", reason="trackio is not installed: it asks for an older Pillow than the tests have")

TOLD = """
import os, sys
from pathlib import Path
from accelerate import PartialState
from tests.tracking.samples import PALETTE, picture, shown
from unetdist.tracking.dashboard import StepRow, TrackedRun, TrackingConfig
from unetdist.tracking.local_dashboards import TrackioRun
PartialState(cpu=True)
folder, config = Path(sys.argv[1]), {"optim": {"lr": 0.1}}
run = TrackioRun(TrackedRun(TrackingConfig(project="p"), folder, "r", config, PALETTE, step=0))
for step in (10, 20, 30):
    report = shown(picture("a")) if step == 20 else None
    if step > run.last_step:
        run.send(StepRow(step, {"train/loss": 0.5}, report))
    if step == int(sys.argv[2]):
        os.kill(os.getpid(), 9)
run.close({}, None)
from trackio.sqlite_storage import SQLiteStorage
(name,) = SQLiteStorage.get_runs("p")
print("ROWS", [(log["step"], "val/pictures/0" in log) for log in SQLiteStorage.get_logs("p", name)])
"""


@pytest.mark.slow
def test_a_restart_is_the_same_run_and_adds_what_is_missing(tmp_path):
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "TRACKIO_DIR": str(tmp_path / "trackio")}
    for kill_at, code in ((20, -9), (0, 0), (0, 0)):
        words = [sys.executable, "-c", TOLD, str(tmp_path / "run"), str(kill_at)]
        done = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
    assert "ROWS [(10, False), (20, True), (30, False)]" in done.stdout
    assert 'trackio show --project "p"' in done.stdout
