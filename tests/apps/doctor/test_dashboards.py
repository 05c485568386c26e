import importlib.util
import socket

import pytest

from tests.apps.doctor.cases import case_of, findings_of, only
from unetdist.apps.doctor import dashboards

wandb = pytest.importorskip("wandb")


@pytest.fixture
def closed_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def test_each_is_told_with_how_it_is_written(tmp_path):
    tracking = {"tracker": "wandb,tensorboard", "mode": "offline"}
    (found,) = findings_of(case_of(tmp_path, tracking=tracking), *dashboards.CHECKS)
    assert (found.level, found.fact) == ("ok", "wandb (offline), tensorboard (in files here)")
    assert findings_of(case_of(tmp_path, tracking={"tracker": "none"}), *dashboards.CHECKS) == []


def test_a_missing_package_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    found = only(
        findings_of(case_of(tmp_path, tracking={"tracker": "mlflow"}), *dashboards.CHECKS), "dashboards"
    )
    assert found.level == "problem"
    assert "(mlflow) must be installed; run pip install -e '.[mlflow]'" in found.fact


def test_a_server_that_is_away_is_told_of(tmp_path, monkeypatch, closed_port):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port}")
    fine, away = findings_of(case_of(tmp_path, tracking={"tracker": "mlflow"}), *dashboards.CHECKS)
    assert fine.fact == "mlflow (online)"
    assert (away.level, away.fact) == (
        "warning",
        f"mlflow's server http://127.0.0.1:{closed_port}: Connection refused",
    )
    assert away.remedy.startswith("training goes on without it")


def test_wandb_online_is_asked_for(tmp_path, monkeypatch, closed_port):
    wandb.teardown()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed_port}")
    tracking = {"tracker": "wandb", "mode": "online"}
    fine, away = findings_of(case_of(tmp_path, tracking=tracking), *dashboards.CHECKS)
    wandb.teardown()
    assert fine.fact == "wandb (online)"
    assert away.fact.startswith(f"wandb's server http://127.0.0.1:{closed_port}: ")


def test_somebody_answers():
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert dashboards.unreachable(f"http://127.0.0.1:{server.getsockname()[1]}/api") == ""
    assert dashboards.unreachable("https://nobody.invalid") != ""
