"""Options of other tools either set the setting that they mean, or are answered with its name."""

import json
import re
from pathlib import Path

import pytest

from unetdist.cli import habits, settings
from unetdist.cli.command_line import Options, as_meant
from unetdist.errors import ConfigError
from unetdist.train.config import Config

CONFIGS = Path(__file__).parents[2] / "configs"


def changed_by(*words):
    """The settings that words change."""
    config = settings.parse(Config, ["--data.train", "shards", *words], prog="unetdist train", description="Train.")
    given = {"data": {"train": "shards"}}
    before = settings.to_mapping(settings.from_mapping(Config, given))
    return {name: new for name, (_, new) in settings.differences(before, settings.to_mapping(config)).items()}


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("--lr 0.01", {"optim.lr": 0.01}),
        ("-lr 0.01", {"optim.lr": 0.01}),
        ("--learning-rate=0.01", {"optim.lr": 0.01}),
        ("--epochs 3", {"trainer.max_epochs": 3.0}),
        ("--num_train_epochs 3", {"trainer.max_epochs": 3.0}),
        ("--max-steps 9", {"trainer.max_steps": 9}),
        ("--data.num-workers 5", {"data.num_workers": 5}),
        ("--workers 5", {"data.num_workers": 5}),
        ("--optimizer sgd --wd 0.1", {"optim.kind": "sgd", "optim.weight_decay": 0.1}),
        ("--reproducible --name x", {"trainer.reproducible": True, "name": "x"}),
        ("optim.lr=0.01 epochs=3", {"optim.lr": 0.01, "trainer.max_epochs": 3.0}),
        ("--name lr=3", None),
        ("--data.val=None --micro_batch_size None", {}),
        ("--class_weights=None --trainer.reproducible=False", {}),
        (
            "--trainer.max_steps=100.0 --trainer.reproducible=True",
            {"trainer.max_steps": 100, **{"trainer.reproducible": True}},
        ),
        ("--trainer.max_steps 1e3 --optim.lr=1e-4", {"trainer.max_steps": 1000, "optim.lr": 1e-4}),
    ],
)
def test_what_can_mean_only_one_setting_sets_it(words, change):
    if change is None:
        with pytest.raises(ConfigError, match=r"name \(lr=3\)"):
            changed_by(*words.split())
    else:
        assert changed_by(*words.split()) == change


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--batch_size 4", "global_batch_size.*validation.batch_size"),
        ("--batch-size=4", "global_batch_size.*validation.batch_size"),
        ("batch_size=4", "global_batch_size.*validation.batch_size"),
        ("-b 4", "global_batch_size.*validation.batch_size"),
        ("--resume", "same command"),
        ("--resume never", "same command"),
        ("--device cpu", "CUDA_VISIBLE_DEVICES"),
        ("--gpus 2", "--processes N"),
        ("--imgsz 640", "augment.crop_size.* shard --resize"),
        ("--weights best.pt", "model.encoder"),
        ("--init_from runs/a/best", "model.encoder"),
        ("--model runs/x", "model.preset"),
        ("--output out", "--runs_dir DIR"),
        ("--source photos", "--data.train DIR"),
        ("--data coco.yaml", "--data.train DIR"),
        ("--folder x", "checkpoint.folder"),
        ("--num_classes 3", "label file"),
        ("--fp16", "trainer.mixed_precision"),
        ("--loss dice", "--loss.ce_weight"),
        ("--window 3", "--data.window or --validation.inference.window"),
        ("--trainer.max_steps=100.5", r"max_steps \(100.5\) must be one of: int"),
        ("--model.widths 8 16", r"'16' .*--model.widths=\["),
        ("--trainer.max_steps --name x", "--trainer.max_steps' needs a value"),
        ("photos", "'photos' belongs to no option"),
        ("--optim.kidn sgd", "did you mean 'optim.kind'"),
    ],
)
def test_what_means_several_or_none_is_answered(words, told):
    with pytest.raises(ConfigError, match=re.compile(told)):
        changed_by(*words.split())


def test_a_yaml_is_taken_for_the_config(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\noptim: {lr: 0.5}\n")
    assert changed_by(str(file), "--lr", "0.25") == {"name": "mine", "optim.lr": 0.25}


def test_whole_numbers_keep_their_digits():
    assert as_meant("9007199254740993", int) == "9007199254740993"
    assert as_meant("None", str) == "None"


def test_names_of_the_table_are_settings():
    """A habit whose setting was renamed would silently become unknown."""
    known = {*settings.flat(settings.to_mapping(settings.from_mapping(Config, {"data": {"train": "x"}}))), "config"}
    texts = habits.COMMANDS["train"].values()
    assert {text for text in texts if " " not in text} <= known
    named = {word for text in texts for word in re.findall(r"\b[a-z]+\.[a-z_]+\b", text)}
    assert {name.removeprefix("--") for name in named} <= known


def options():
    parser = Options("unetdist predict", table="predict", first=("--model", "--input"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--input", nargs="+", help="the pictures")
    parser.add_argument("--batch-size", type=int, default=1, help="how many at once")
    parser.add_argument("--device")
    return parser


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ("--model a --batch_size 3", {"batch_size": 3}),
        ("--weights a --source x y", {"input": ["x", "y"]}),
        ("model=a batch=3", {"batch_size": 3}),
        ("--model=a --input k=v", {"input": ["k=v"]}),
    ],
)
def test_other_commands_take_the_same_habits(words, given):
    default = {"model": "a", "input": None, "batch_size": 1, "device": None}
    assert vars(options().parse_args(words.split())) == default | given


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--model a --gpus 2", "--device cuda:0"),
        ("--model a --imgsz 640", "own size"),
        ("--modle a", "unknown option '--modle'; did you mean '--model'.*unetdist predict --help"),
        ("--batch-size x --model a", "--batch-size: invalid int value"),
        ("", "missing: --model"),
    ],
)
def test_other_commands_answer_in_one_line(words, told):
    with pytest.raises(ConfigError, match=told) as error:
        options().parse_args(words.split())
    assert "\n" not in str(error.value)


def test_help_is_short_and_help_all_has_the_rest(capsys):
    shown = {}
    for words in ("--help", "--help all", "-h"):
        with pytest.raises(SystemExit) as exited:
            options().parse_args(words.split())
        assert exited.value.code == 0
        shown[words] = capsys.readouterr().out
    assert "the pictures" in shown["--help"]
    assert "how many at once" not in shown["--help"]
    assert "--help all" in shown["--help"]
    assert "how many at once" in shown["--help all"]
    assert shown["-h"] == shown["--help"]


@pytest.mark.parametrize("which", ["--help", "--help all"])
def test_help_of_settings_has_80_columns(which, capsys):
    with pytest.raises(SystemExit):
        settings.parse(Config, which.split(), prog="unetdist train", description="Train `it all`.\n\n  one\n  two")
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "\n  one\n  two\n" in shown
    assert "  unetdist train --config my_data.yaml\n" in shown
    assert ("--optim.poly_power 0.9" in shown) == (which == "--help all")
    listed = re.findall(r"^  --[\w.]+ ", shown, re.MULTILINE)
    assert len(listed) == 10 if which == "--help" else len(listed) > 90


def test_editors_get_a_schema_of_the_yaml(capsys):
    with pytest.raises(SystemExit):
        settings.parse(Config, ["--print_completion", "jsonschema"], prog="unetdist train", description="Train.")
    schema = json.loads(capsys.readouterr().out)
    jsonschema = pytest.importorskip("jsonschema")
    for file in sorted(CONFIGS.glob("*.yaml")):
        jsonschema.validate(dict(settings.read_yaml(file)), schema)
    with pytest.raises(jsonschema.ValidationError, match="0.001"):
        jsonschema.validate({"data": {"train": "x"}, "optim": {"lr": "0.001"}}, schema)
