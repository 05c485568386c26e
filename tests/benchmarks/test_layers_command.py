import json

from tests.benchmarks import __main__ as benchmark


def test_layers_are_measured_printed_and_drawn(tmp_path, capsys):
    words = "layers --widths 4 8 --size 16 24 --batch-size 1 --classes 3 --out"
    assert benchmark.main([*words.split(), str(tmp_path)]) == 0
    record = json.loads((tmp_path / "layers.json").read_text())
    assert record["network"] == "U-Net 4-8, 24x16, batch 1, fp32"
    assert {"layer", "pass", "ms", "share_of_roof"} <= set(record["passes"][0])
    speeds = record["limit_images_per_s"]
    assert speeds["ideal"] > speeds["compiled"] > speeds["eager"] > 0
    assert record["peaks"]["flops"] > 0
    assert (tmp_path / "layers.png").stat().st_size > 1000
    out = capsys.readouterr().out
    assert "encoder.0.layers.0" in out
    assert "an image; training at most" in out
