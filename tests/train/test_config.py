import ast
import dataclasses
import inspect
import itertools

import pytest

from unetdist.cli import settings
from unetdist.errors import ConfigError
from unetdist.train.config import Config

REQUIRED = {"data": {"train": "shards"}}


def test_little_has_to_be_said():
    config = settings.from_mapping(Config, REQUIRED)
    assert (config.name, config.seed, config.model.preset) == ("run", 0, "student")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "a/b"}, r"name \(a/b\) becomes a folder; use letters, digits"),
        ({"name": ".."}, "becomes a folder"),
        ({"seed": -1}, r"seed \(-1\) must not be negative; use 0"),
        ({"seed": 2**63}, r"seed \(9223372036854775808\) must be below 2\^63; use 0"),
        ({"data": {}}, r"missing setting: data.train; give it in the --config file or as --data.train VALUE"),
    ],
)
def test_what_cannot_work_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        settings.from_mapping(Config, {**REQUIRED, **values})


def sections():
    return [
        Config,
        *(field.type for field in dataclasses.fields(Config) if dataclasses.is_dataclass(field.type)),
    ]


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_every_setting_is_explained(section):
    (definition,) = ast.parse(inspect.getsource(section)).body
    for node, after in itertools.pairwise(definition.body):
        if isinstance(node, ast.AnnAssign):
            assert isinstance(after, ast.Expr), (
                f"{section.__name__}.{node.target.id} has no docstring below it"
            )


def test_help_shows_the_explanations(capsys):
    with pytest.raises(SystemExit):
        settings.parse(Config, ["--help"], prog="launch/train.py", description="Trains.")
    shown = " ".join(capsys.readouterr().out.split())
    assert "Samples per optimizer step, over all processes. (type: int, default: 16)" in shown
