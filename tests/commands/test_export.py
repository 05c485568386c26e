"""`unetdist export` as a user types it."""

import pytest

from tests.predict.export.models import saved_model
from tests.synthetic import write_shards
from unetdist.commands import export as script
from unetdist.errors import ConfigError, DataError
from unetdist.model.saved_model import save_model
from unetdist.predict.export import graph


@pytest.fixture
def model(tmp_path):
    pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    saved = saved_model()
    folder = tmp_path / "run" / "best"
    save_model(folder, saved.model.state_dict(), model=saved.model.config, palette=saved.palette, resize=None, facts={})
    return folder


def export(model, out, *words):
    return script.main(["--model", str(model), "--out", str(out), *map(str, words)])


def test_a_graph_is_written_and_agrees(model, tmp_path, capsys):
    assert export(model, tmp_path / "new/x.onnx", "--argmax") == 0
    output = capsys.readouterr().out
    assert "drawn shapes; give --check" in " ".join(output.split())
    assert output.count("agrees") >= 3


def test_onnx_in_bytes_is_written_and_compared_on_its_calibration(model, tmp_path, capsys):
    write_shards(tmp_path / "val", 3)
    export(model, tmp_path / "x.onnx", "--precision", "int8", "--calibrate", tmp_path / "val")
    output = "".join(capsys.readouterr().out.split())
    assert "exported(int8)andtrainedmodel,3images" in output
    assert (tmp_path / "x.onnx").is_file()


def test_an_image_that_cannot_be_read_is_named_before_anything_is_written(model, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.png: "):
        export(model, tmp_path / "x.onnx", "--check", tmp_path)
    assert not (tmp_path / "x.onnx").exists()


def test_what_does_not_agree_ends_with_1(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(graph, "open_onnx", lambda file: lambda image: saved_model().model(image).roll(1, 1))
    assert export(model, tmp_path / "x.onnx") == 1
    assert "DIFFERS" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--precision", "int8"), r"--precision int8 and --calibrate go together: .* such as --precision int8 --cal"),
        (("--num-images", 0), r"--num-images \(0\) must be 1 or more; use 128"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_read(tmp_path, words, message):
    with pytest.raises(ConfigError, match=message):
        export(tmp_path / "nothing", tmp_path / "x.onnx", *words)


def test_a_file_that_cannot_be_written_is_named(model, tmp_path):
    (tmp_path / "taken").write_text("a file where the folder should be")
    with pytest.raises(ConfigError, match=r"--out \(.+x.onnx\) cannot be written \(.+\); give another file"):
        export(model, tmp_path / "taken/x.onnx")
