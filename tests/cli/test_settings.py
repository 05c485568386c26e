import time
from dataclasses import dataclass, field
from typing import Literal

import pytest

from unetdist.cli import settings
from unetdist.errors import ConfigError
from unetdist.train.config import Config


@dataclass(frozen=True, kw_only=True)
class Loss:
    kind: Literal["ce", "focal"] = "ce"
    """Which loss."""

    smoothing: float = 0.0
    """Label smoothing, 0..1."""

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ConfigError(f"loss.smoothing ({self.smoothing}) must be at least 0 and below 1; use 0.1.")


@dataclass(frozen=True, kw_only=True)
class Model:
    widths: tuple[int, ...] = (16, 32)
    crop: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Root:
    name: str
    loss: Loss = field(default_factory=Loss)
    model: Model = field(default_factory=Model)


def parse(*argv):
    return settings.parse(Root, [str(a) for a in argv], prog="train.py", description="Train.")


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write


def test_the_command_line_wins_over_the_file_over_the_default(write):
    file = write("name: x\nloss:\n  smoothing: 1e-3\n  kind: focal\n")
    words = ["--loss.kind", "ce", "--model.widths", "[1,2,3]", "--model.crop=[4,5]"]
    config = Root(name="x", loss=Loss(smoothing=0.001), model=Model(widths=(1, 2, 3), crop=(4, 5)))
    assert parse("--config", file, *words) == config
    assert parse(*words, f"--config={file}") == config  # in any order


def test_a_field_that_one_section_alone_has_may_go_without_it():
    config = parse("--name", "x", "--kind", "focal", "--smoothing=0.25", "--model.widths", "[3]", "--crop", "null")
    assert config == Root(name="x", loss=Loss(kind="focal", smoothing=0.25), model=Model(widths=(3,)))


@dataclass(frozen=True, kw_only=True)
class TwoLosses:
    kind: str = "both"
    first: Loss = field(default_factory=Loss)
    second: Loss = field(default_factory=Loss)


def test_a_field_of_several_sections_asks_for_its_section():
    with pytest.raises(ConfigError, match=r"'--smoothing' may be --first.smoothing or --second.smoothing; write"):
        settings.parse(TwoLosses, ["--smoothing", "0.1"], prog="train.py", description="Train.")
    parsed = settings.parse(TwoLosses, ["--kind", "one"], prog="train.py", description="Train.")
    assert parsed == TwoLosses(kind="one")


@dataclass(frozen=True, kw_only=True)
class Score:
    loss: Loss = field(default_factory=Loss)


@dataclass(frozen=True, kw_only=True)
class Nested:
    score: Score = field(default_factory=Score)


def test_a_section_may_hold_a_section(write):
    file = write("score:\n  loss:\n    smoothing: 0.25\n")
    argv = ["--config", str(file), "--score.loss.kind", "focal"]
    config = settings.parse(Nested, argv, prog="train.py", description="Train.")
    assert config == Nested(score=Score(loss=Loss(kind="focal", smoothing=0.25)))
    assert settings.from_mapping(Nested, settings.to_mapping(config)) == config
    with pytest.raises(ConfigError, match=r"unknown option '--score.loss.knd'; did you mean 'score.loss.kind'\?"):
        settings.parse(Nested, ["--score.loss.knd", "ce"], prog="train.py", description="Train.")
    with pytest.raises(ConfigError, match="unknown setting 'score.loss.knd'; did you mean 'kind'"):
        settings.from_mapping(Nested, {"score": {"loss": {"knd": "ce"}}})


def test_the_resolved_file_reads_back_to_an_equal_object(write):
    config = Root(name="x", model=Model(widths=(3,), crop=(1, 2)), loss=Loss(smoothing=0.25))
    assert parse("--config", write(settings.to_yaml(settings.to_mapping(config)))) == config
    assert settings.from_mapping(Root, settings.to_mapping(config)) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nloss: {smothing: 1}", r"run.yaml: unknown setting 'loss.smothing'; did you mean 'smoothing'\?"),
        ("name: x\nlos: {}", r"unknown setting 'los'; did you mean 'loss'\?"),
        ("name: x\nzzz: 1", "unknown setting 'zzz'; known: name, loss, model"),
        ("name: x\nmodel: 3", "'model' is a section, not a value .3.; write its settings below it, such as 'widths"),
        ("name: x\nname: y", r"'name' is given twice \(line 2\); remove one"),
        ("name: [", "run.yaml: not readable as YAML"),
        ("", "run.yaml: holds no settings"),
        ("loss:\n\tkind: ce", "run.yaml: not readable as YAML: .*line 2.*spaces for tabs"),
        ("data:\n  train: x\n val: y", "run.yaml: not readable as YAML: .*line 3.*spaces before"),
        ('name: "C:\\Users"', "run.yaml: not readable as YAML: .*line 1.*write paths with /"),
        ("name: x\nloss: {kind: foo}", r"loss.kind \(foo\) must be one of: 'ce', 'focal'\.$"),
        ("name: x\nloss: {kind: off}", r"loss.kind \(False\) must be one of: .*: write them in quotes\.$"),
        ("name: x\nloss: {smoothing: much}", r"loss.smoothing \(much\) must be float\."),
        ("name: x\nloss: {smoothing: 2}", "must be at least 0 and below 1; use 0.1"),
        ("model: {}", "missing setting: name; give it in the --config file or as --name VALUE"),
    ],
)
def test_a_wrong_file_is_refused_with_what_where_and_remedy(write, text, message):
    with pytest.raises(ConfigError, match=message):
        parse("--config", write(text))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--loss.smothing", "1"], r"unknown option '--loss.smothing'; did you mean 'loss.smoothing'\?"),
        (["--zzz=1"], "unknown option '--zzz'; see --help"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: No such file or directory; give --config the path"),
        (["--model.widths", "[1.5]"], r"^model.widths \(1.5\) must be int\.$"),
        (["--model.crop", "32"], r"^model.crop \(32\) must be one of: \[int, int\], null\.$"),
        (["loose"], r"'loose' belongs to no option; write a setting as --section.field value\.$"),
    ],
)
def test_a_wrong_command_line_is_refused(argv, message):
    with pytest.raises(ConfigError, match=message):
        parse("--name", "x", *argv)


def test_a_saved_mapping_from_another_version_names_its_place():
    with pytest.raises(ConfigError, match="best/config.json: unknown setting 'loss.old'"):
        settings.from_mapping(Root, {"name": "x", "loss": {"old": 1}}, where="best/config.json")
    with pytest.raises(ConfigError, match=r"best/config.json: loss.kind \(1\) must be one of"):
        settings.from_mapping(Root, {"name": "x", "loss": {"kind": 1}}, where="best/config.json")


def test_differences_are_named_by_their_dotted_path():
    old, new = {"a": 1, "s": {"x": 1, "y": [1]}}, {"a": 1, "s": {"x": 2, "y": [1]}, "b": None}
    assert settings.differences(old, new) == {"s.x": (1, 2)}


@pytest.mark.parametrize("flag", ["--help", "--print_config"])
def test_help_and_print_config_show_every_setting(flag, capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse("--name", "x", flag)
    assert exit_info.value.code == 0
    shown = capsys.readouterr().out
    assert "smoothing" in shown
    assert flag == "--print_config" or "Label smoothing, 0..1." in shown


def test_defaults_are_those_of_the_settings_that_have_one():
    values = settings.to_mapping(Root(name="x"))
    del values["name"]
    assert settings.defaults(Root) == values


def test_settings_are_laid_over_section_by_section():
    below, above = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 4}, "e": {"f": 5}, "d": None}
    assert settings.laid_over(below, above) == {"a": {"b": 1, "c": 4}, "d": None, "e": {"f": 5}}
    assert below == {"a": {"b": 1, "c": 2}, "d": 3}


def test_settings_by_their_dotted_names():
    assert settings.flat({"a": {"b": {"c": 1}, "d": [2]}, "e": None}) == {"a.b.c": 1, "a.d": [2], "e": None}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: &a [1]\nmodel: {widths: *a}", r"\*a, line 2"),
        ("model: &a {widths: *a}", r"\*a, line 1"),
        ("name: " + "[" * 1500 + "]" * 1500, "nested too deep"),
        ("? " * 3000 + "a", "nested too deep"),
        ("model: {widths: [" + "9" * 5000 + "]}", "not readable as YAML.*5000 digits"),
        ("? [a]\n: b", "not readable as YAML"),
        ("name: 2001-99-99", "not readable as YAML.*month"),
        ("name: " + "x" * 132_000, "more than 131072 bytes"),
    ],
    ids=["alias", "self", "deep", "deep keys", "digits", "keys", "date", "long"],
)
def test_a_file_that_stands_for_more_than_settings_is_refused_within_seconds(write, text, told):
    file = write(text)
    began = time.process_time()
    with pytest.raises(ConfigError, match=f"run.yaml: .*{told}") as error:
        parse("--config", file)
    assert time.process_time() - began < 10
    assert len(str(error.value)) < 1000


def test_a_file_as_long_as_allowed_is_read_within_seconds(write):
    began = time.process_time()
    config = parse("--config", write("name: x\nmodel: {widths: [" + "1," * 60_000 + "]}"))
    assert time.process_time() - began < 20
    assert len(config.model.widths) == 60_000


@pytest.mark.parametrize("nulls", [{"data": {"train": "x", "num_workers": None}}, {"name": None}])
def test_null_in_place_of_a_value_is_refused(nulls):
    with pytest.raises(ConfigError, match="a setting is null that needs a value"):
        settings.from_mapping(Config, {"data": {"train": "x"}, **nulls})
