"""Nothing that a run, a manifest, a list or a URL says chooses a program, a protocol, a server or a path outside."""

import json
from pathlib import Path

import pytest
import yaml

from tests.commands.report.runs import write_run
from tests.faulty_server import serve
from tests.synthetic import write_shards
from unetdist.__main__ import run
from unetdist.cli import settings
from unetdist.cli.json_records import SEAL, sealed
from unetdist.commands import shard as command
from unetdist.data.config import DataConfig
from unetdist.data.loader import open_data
from unetdist.data.manifest import Manifest
from unetdist.errors import ConfigError, DataError
from unetdist.predict.sources import open_source
from unetdist.sharding.dataset_source import from_dataset
from unetdist.storage import remote
from unetdist.train.config import Config


def report(*words):
    pytest.importorskip("plotly", reason="needs the extra `report`")
    run(["report", *map(str, words), "--num-workers", "0", "--pictures", "1"])
    return (Path(words[0]) / "report.html").read_text(encoding="utf-8")


def rename_shards(folder, names):
    """Let the manifest of a data set name its shards anew, as a forger would."""
    file = folder / "manifest.json"
    record = json.loads(file.read_text())
    del record[SEAL]
    for shard, name in zip(record["shards"], names, strict=True):
        shard["name"] = name
    file.write_text(json.dumps(sealed(record)))


@pytest.mark.parametrize("val", ["pipe:touch RAN; cat VAL/{name}", "reference://x::VAL", "ftp://host/val"])
def test_a_report_runs_nothing_that_a_runs_settings_name(tmp_path, val):
    write_shards(tmp_path / "val", 3)
    val = val.replace("RAN", str(tmp_path / "ran")).replace("VAL", str(tmp_path / "val"))
    run = write_run(tmp_path / "run", val=val)
    values = yaml.safe_load((run / "config.yaml").read_text())
    values["data"]["allow_pipe"] = True
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    html = report(run)
    assert "No pictures and no class intervals for run: " in html
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("named_by", ["settings", "manifest"])
def test_a_report_asks_a_server_only_where_the_user_names_it(tmp_path, monkeypatch, named_by):
    monkeypatch.setenv("HOME", str(tmp_path))  # the cache of this user may have the shard of an earlier test
    write_shards(tmp_path / "val", 3)
    with serve(tmp_path / "val") as server:
        data = server.url
        if named_by == "manifest":
            local = tmp_path / "local"
            local.mkdir()
            for file in ("manifest.json", "000000.tar.idx"):
                (local / file).write_bytes((tmp_path / "val" / file).read_bytes())
            sha256 = Manifest.load(local).shards[0].sha256
            (local / "000000.tar.idx").rename(local / f"000000.tar-{sha256[:12]}.idx")
            rename_shards(local, [f"{server.url}/000000.tar"])
            data = str(local)
        run = write_run(tmp_path / "run", val=data)
        html = report(run)
        assert f"{data}, is on a server; give it as --data if you trust it." in html
        assert server.requests == []
        assert html.count('<figure class="card">') == 0
        assert report(run, "--data", data).count('<figure class="card">') == 2
        assert server.num_requests("000000.tar") > 0


@pytest.mark.parametrize(
    "name",
    [
        "reference://x::data:application/json,%7B%7D",
        "zip://a.tar::https://host/b.zip",
        "a::b.tar",
        "simplecache::https://host/000000.tar",
        "ftp://host/000000.tar",
        "github://owner:repo@main/000000.tar",
        "jupyter://host/000000.tar",
        "data://x",
        "http://[::1/000000.tar",
        "../000000.tar",
        "x/../../000000.tar",
        "..",
        "",
    ],
)
def test_a_manifest_names_files_of_its_folder_or_known_protocols(tmp_path, name):
    write_shards(tmp_path / "val", 3)
    rename_shards(tmp_path / "val", [name])
    for location in (tmp_path / "val", f"file://{tmp_path}/val"):
        with pytest.raises(DataError, match=r"manifest\.json: its shard "):
            open_data(DataConfig(train=str(location)), str(location))
    with pytest.raises(DataError, match=r"manifest\.json: its shard "):
        command.verify(command.parse(["verify", str(tmp_path / "val"), "--workers", "1"]))
    with pytest.raises(DataError, match=r"manifest\.json: its shard "):
        open_source(str(tmp_path / "val"), tmp_path / "out")


def test_a_manifest_on_a_server_names_no_file_of_this_machine(tmp_path):
    write_shards(tmp_path / "www", 3)
    for name in (f"{tmp_path}/www/000000.tar", f"file://{tmp_path}/www/000000.tar"):
        rename_shards(tmp_path / "www", [name])
        with serve(tmp_path / "www") as server, pytest.raises(DataError, match="a file of this machine"):
            Manifest.load(server.url)
        assert Manifest.load(tmp_path / "www").shards[0].name == name  # as indexing with --out writes it


@pytest.mark.parametrize(
    "text",
    [
        "data: {train: x}\noptim: {class_path: os.system, init_args: {command: touch RAN}}",
        "data: {train: x, class_path: os.system}",
        "data: !!python/object/apply:os.system ['touch RAN']",
        "data: {train: !!python/object/apply:os.system ['touch RAN']}",
        "data: {train: x}\nconfig: other.yaml",
        "data: {train: 'pipe:touch RAN', allow_pipe: true}",
    ],
)
def test_settings_name_no_class_no_object_and_no_other_file(tmp_path, text):
    file = tmp_path / "config.yaml"
    file.write_text(text.replace("RAN", str(tmp_path / "ran")))
    (tmp_path / "other.yaml").write_text("data: {train: x}")
    with pytest.raises(ConfigError):
        settings.parse(Config, ["--config", str(file)], prog="", description="")
    for words in (["--optim", "{class_path: os.system}"], ["--optim.class_path", "os.system"]):
        with pytest.raises(ConfigError, match="unknown option|is a section"):
            settings.parse(Config, ["--data.train", "x", *words], prog="", description="")
    assert not (tmp_path / "ran").exists()


def test_the_suffix_of_a_file_is_no_name_on_the_hub(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: pytest.fail("asked"))
    (tmp_path / "a.squad").touch()
    with pytest.raises(DataError, match=r"must end in one of \.parquet"):
        from_dataset(str(tmp_path / "a.squad"))
    with pytest.raises(DataError, match="chains locations, which is refused"):
        from_dataset(str(tmp_path / "reference::a.json"))


@pytest.mark.parametrize("entry", ["ftp://host/a.png", "reference://x::data:y", "github://o:r@main/a.png"])
@pytest.mark.parametrize("kind", ["list", "words", "alone"])
def test_predict_takes_pictures_by_known_protocols_alone(tmp_path, entry, kind):
    (tmp_path / "all.txt").write_text(f"{entry}\n")
    location = {"list": tmp_path / "all.txt", "words": [entry, entry], "alone": entry}[kind]
    with pytest.raises(ConfigError, match=r"^(ftp|reference|github)://.*(not supported|refused)"):
        open_source(location, tmp_path / "out")


def test_the_files_of_another_protocol_are_never_opened(monkeypatch):
    monkeypatch.setattr(remote, "RETRY_S", 0.0)
    for url in ("memory://x/a", "dir://a::file:///b", "https://host/a::file:///etc/hostname"):
        with pytest.raises(ConfigError, match="not supported|refused"):
            remote.read(url)


def test_a_host_may_be_an_address_of_ipv6():
    for url in ("http://[::1]:8000/a.tar", "https://me@[2001:db8::1]/a.tar", "hf://datasets/a/b@main/c.tar"):
        assert remote.refusal(url) is None
    assert "refused" in remote.refusal("http://[::1]/a::b")
