"""A password and a token of a URL reach the server, and no file, page or line of any command."""

import importlib.util
import json
import sys
import threading
from base64 import b64encode

import pytest
import yaml

from tests.commands.report.runs import write_run
from tests.faulty_server import FaultyServer, serve
from tests.synthetic import settings_of, write_shards
from unetdist import __main__ as command
from unetdist.errors import ConfigError

SECRETS = (b"Pa55word", b"T0ken")


def run(name, monkeypatch, *words):
    """A command, with its words where a process has them."""
    monkeypatch.setattr(sys, "argv", ["unetdist", name, *map(str, words)])
    return command.run(sys.argv[1:])


def tell_tales(folder):
    """The files below a folder that hold a secret."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    return [str(file) for file in files if any(secret in file.read_bytes() for secret in SECRETS)]


def with_secrets(url):
    return url.replace("http://", "http://me:Pa55word@") + "?token=T0ken"


@pytest.fixture
def heard(monkeypatch):
    """(path with query, Authorization) of each request."""
    heard = []

    def answer(self, handler):
        heard.append((handler.path, handler.headers["Authorization"]))
        return original(self, handler)

    original = FaultyServer._answer
    monkeypatch.setattr(FaultyServer, "_answer", answer)
    return heard


@pytest.fixture
def served(tmp_path):
    write_shards(tmp_path / "www/train", 8)
    write_shards(tmp_path / "www/val", 3)
    with serve(tmp_path / "www") as server:
        yield server


def test_a_training_and_what_follows_keep_no_secret(served, heard, tmp_path, monkeypatch, capfd):
    trackers = [name for name in ("wandb", "tensorboard") if importlib.util.find_spec(name)]
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_DATA_DIR", ""), ("HOME", str(tmp_path / "home"))):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_DATA_DIR")
    (tmp_path / "home").mkdir()
    values = settings_of(tmp_path, tmp_path, tmp_path / "runs", tracking={"tracker": ",".join(trackers)})
    values["data"] |= {"cache_dir": str(tmp_path / "cache"), "retry_s": 0.0}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    train, val = (with_secrets(f"{served.url}/{part}") for part in ("train", "val"))
    words = ["--data.train", train, f"--data.val={val}"]
    assert run("train", monkeypatch, "--config", tmp_path / "mine.yaml", *words) == 0
    for thread in threading.enumerate():  # on a busy machine wandb may start when its process would have ended
        if thread.name.startswith("dashboard-"):
            thread.join(120)
    password = b64encode(b"me:Pa55word").decode()
    assert all(path.endswith("?token=T0ken") and sent == f"Basic {password}" for path, sent in heard)
    assert len(heard) > 4

    kept = tmp_path / "runs/tiny/config.yaml"
    shown = f"{served.url.replace('http://', 'http://***@')}/train?***"
    assert yaml.safe_load(kept.read_text())["data"]["train"] == shown
    with pytest.raises(ConfigError, match=r"/train\?\*\*\*: .* give the whole URL again"):
        run("train", monkeypatch, "--config", kept)
    assert run("train", monkeypatch, "--config", kept, "--tracker", "none", *words) == 0

    best = tmp_path / "runs/tiny/best"
    out = ["--json", tmp_path / "runs/numbers.json", "--per-image", tmp_path / "runs/images.npz"]
    run("evaluate", monkeypatch, "--model", best, "--data", val, "--num-workers", 0, *out)
    assert json.loads((tmp_path / "runs/numbers.json").read_text())["data"].endswith("/val?***")
    told = "".join(capfd.readouterr())
    assert not any(secret.decode() in told for secret in SECRETS)
    assert tell_tales(tmp_path / "runs") == []
    assert tell_tales(tmp_path / "cache") == []


def test_a_report_of_an_older_run_tells_no_secret(served, tmp_path, monkeypatch):
    """Whose config.yaml still holds some."""
    pytest.importorskip("plotly", reason="needs the extra `report`")
    val = with_secrets(f"{served.url}/val")
    folder = write_run(tmp_path / "run", val=val)
    assert tell_tales(folder) == [str(folder / "config.yaml")]
    for data in ([], ["--data", val]):
        run("report", monkeypatch, folder, "--num-workers", 0, "--pictures", 1, "--out", tmp_path / "x/x.html", *data)
        assert tell_tales(tmp_path / "x") == []
    assert (tmp_path / "x/x.html").read_text().count('<figure class="card">') == 2
