import argparse
import json

import pytest

from tests.apps.report.runs import validation_set
from tests.benchmarks import predict_command
from tests.predict.export.models import saved_model
from unetdist.data.shapes import write_shapes
from unetdist.errors import ConfigError
from unetdist.model.saved_model import save_model


def arguments(*words):
    parser = argparse.ArgumentParser()
    predict_command.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


@pytest.mark.slow
def test_predicting_beside_scoring(tmp_path, capsys):
    saved = saved_model()
    save_model(
        tmp_path / "model",
        saved.model.state_dict(),
        model=saved.model.config,
        palette=saved.palette,
        resize=None,
        facts={},
    )
    data = validation_set(tmp_path)
    write_shapes(tmp_path / "files", count=3, seed=0, size=(32, 32))
    where = ("--model", tmp_path / "model", "--data", data, "--out", tmp_path / "out")
    predict_command.run(
        arguments(*where, "--images", tmp_path / "files/images", "--rounds", 1), {"cpu": "some"}
    )
    found = json.loads((tmp_path / "out/predict.json").read_text())
    assert (found["cpu"], found["num_images"]) == ("some", 7)
    for name in (predict_command.EVALUATE, predict_command.SHARDS, predict_command.FILES):
        (only,) = found["rounds"][name]
        assert only["images_per_s"] == pytest.approx(7 / only["seconds"])
        assert only["most_mib"] >= only["late_mib"] > 50
    assert found["in_short"][predict_command.EVALUATE]["of_evaluate"] == 1
    assert "predict.py, shards" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"launch/evaluate.py failed: .*nowhere.* Try it by itself"):
        predict_command.watched(
            ["launch/evaluate.py", "--model", str(tmp_path / "nowhere"), "--data", str(data)]
        )


def test_the_medians_are_of_ratios_within_a_round():
    def found(*speeds):
        return [{"images_per_s": speed, "seconds": 1.0} for speed in speeds]

    in_short = predict_command.short(
        {predict_command.EVALUATE: found(10, 20, 30), predict_command.SHARDS: found(11, 18, 30)}
    )
    assert in_short[predict_command.SHARDS]["of_evaluate"] == 1
    assert in_short[predict_command.SHARDS]["images_per_s"] == 18
