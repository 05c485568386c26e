import warnings

import pytest
from accelerate import PartialState

from tests.tracking.samples import PALETTE, picture, shown
from unetdist.cli.logs import logger
from unetdist.tracking.config import TrackingConfig
from unetdist.tracking.dashboard import StepRow, TrackedRun
from unetdist.tracking.local_dashboards import MlflowRun

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the packages that it imports
    mlflow = pytest.importorskip("mlflow")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    PartialState(cpu=True)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    yield
    mlflow.end_run()
    mlflow.set_tracking_uri(None)


def open_run(folder, config=None):
    config = {"optim": {"lr": 0.1}, "name": "r"} if config is None else config
    run = TrackedRun(TrackingConfig(project="p"), folder, "r", config, PALETTE, step=0)
    return MlflowRun(run)


def steps(folder, name):
    run_id = (folder / "mlflow_id").read_text().strip()
    return [metric.step for metric in mlflow.MlflowClient().get_metric_history(run_id, name)]


@pytest.mark.slow
def test_a_restart_is_the_same_run_and_adds_what_is_missing(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(logger, "info", lambda text, *args: said.append(text % args))
    folder, best = tmp_path / "runs/r", tmp_path / "runs/r/best"
    best.mkdir(parents=True)
    (best / "model.safetensors").write_text("weights")
    run = open_run(folder)
    assert mlflow.get_tracking_uri() == f"sqlite:///{tmp_path / 'runs/mlflow.db'}"
    assert said == [f"MLflow: mlflow ui --backend-store-uri {mlflow.get_tracking_uri()}"]
    run.send(StepRow(10, {"train/loss": 0.5, "val/iou/a (b)": 0.25}, shown(picture("a"))))
    run.close({"best/miou": 0.25, "best/step": 10}, best)

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    mlflow.set_tracking_uri(None)  # as in a new process
    again = open_run(folder, {"optim": {"lr": 0.1}, "name": "r", "watched": "otherwise"})
    assert again.last_step == 10
    again.send(StepRow(20, {"train/loss": 0.5}))
    again.close({"best/miou": 0.25, "best/step": 10}, None)

    assert steps(folder, "train/loss") == [10, 20]
    assert steps(folder, "val/iou/a _b_") == [10]
    client = mlflow.MlflowClient()
    (only,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert only.info.run_id == (folder / "mlflow_id").read_text().strip()
    assert only.info.run_name == "r"
    assert only.data.params == {"optim.lr": "0.1", "name": "r"}
    assert (only.data.tags["best/miou"], only.data.tags["best/step"]) == ("0.25", "10")
    files = client.list_artifacts(only.info.run_id, "best")
    assert [file.path for file in files] == ["best/model.safetensors"]
    images = [file.path for file in client.list_artifacts(only.info.run_id, "images")]
    assert {name.split("/")[1].split("+")[0] for name in images} == {"val-confusion", "val-pictures-0"}

    (folder / "mlflow_id").write_text("0123")  # of another store
    warned = []
    monkeypatch.setattr(logger, "warning", lambda text, *args: warned.append(text % args))
    anew = open_run(folder)
    assert "0123" in warned[0]
    assert mlflow.get_tracking_uri() in warned[0]
    assert (folder / "mlflow_id").read_text().strip() != "0123"
    assert anew.last_step == -1
    anew.close({}, None)
