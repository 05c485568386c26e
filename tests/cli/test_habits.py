"""Options of other tools either set the setting that they mean, or are answered with its name."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from unetdist.__main__ import run
from unetdist.cli import habits, settings
from unetdist.cli.command_line import as_meant, filled
from unetdist.cli.commands import COMMANDS
from unetdist.commands import evaluate, export, predict, shard
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
        ("--epochs 3 --max_steps 9", r"max_epochs \(3.0\) .*max_steps \(9\).*--trainer.max_steps null"),
        ("--model.widths=[8,16] --preset classic", r"model.preset \(classic\) .* model.widths"),
        ("--optim.kidn sgd", "did you mean 'optim.kind'"),
    ],
)
def test_what_means_several_or_none_is_answered(words, told):
    with pytest.raises(ConfigError, match=re.compile(told)):
        changed_by(*words.split())


@pytest.mark.parametrize("words", ["photo.jpg", "--model runs/x photo.jpg", "--model=runs/x photo.jpg --overlay"])
def test_a_word_without_its_option_is_named_before_what_is_missing(words):
    with pytest.raises(ConfigError, match="'photo.jpg' belongs to no option; missing: .*--input, --out"):
        predict.main(words.split())


def test_a_yaml_is_taken_for_the_config(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\noptim: {lr: 0.5}\ncheckpoint: {folder: None}\n")
    assert changed_by(str(file), "--lr", "0.25") == {"name": "mine", "optim.lr": 0.25}


def test_a_setting_that_the_yaml_leaves_without_effect_is_refused(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("trainer: {max_steps: 9, max_epochs: 3}")
    assert changed_by(str(file)) == {"trainer.max_steps": 9, "trainer.max_epochs": 3.0}
    with pytest.raises(ConfigError, match=r"max_epochs \(2.0\) .*max_steps \(9\)"):
        changed_by(str(file), "epochs=2")
    assert changed_by(str(file), "epochs=2", "--max_steps", "null") == {"trainer.max_epochs": 2.0}


def test_a_forgotten_config_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_data.yaml").write_text("data: {train: x}")
    with pytest.raises(ConfigError, match="missing setting: data.train.*--config my_data.yaml"):
        settings.parse(Config, ["--lr", "0.1"], prog="unetdist train", description="Train.")


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


OTHERS = {"shard": shard.parse, "evaluate": evaluate.parse, "predict": predict.parse, "export": export.parse}


@pytest.mark.parametrize(
    ("line", "given"),
    [
        ("predict --weights a --source x y --output_dir z", {"model": "a", "input": ["x", "y"], "out": Path("z")}),
        ("predict model=a source=x out=z batch=3", {"model": "a", "input": ["x"], "batch_size": 3}),
        ("predict --model a --input k=v --out z --num_workers 5", {"input": ["k=v"], "num_workers": 5}),
        ("evaluate --ckpt a --data d --batch_size 3 --workers 5", {"model": "a", "batch_size": 3, "num_workers": 5}),
        ("export --weights a --output x.onnx --num_images 5", {"model": "a", "num_images": 5}),
        ("shard --image_dir i --mask_dir m --output o --val_fraction 0.2", {"images": Path("i"), "val_fraction": 0.2}),
        ("shard verify o --num-workers 5", {"location": "o", "workers": 5}),
    ],
)
def test_other_commands_take_the_same_habits(line, given):
    command, *words = line.split()
    assert vars(OTHERS[command](words)).items() >= given.items()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("predict --gpus 2", "--device cuda:0"),
        ("predict --imgsz 640", "--scales"),
        ("predict --modle a --input x --out z", "did you mean '--model'.*unetdist predict --help"),
        ("predict --input x --out z", "missing: --model"),
        ("evaluate --source x", "--data is a folder of shards.*unetdist shard"),
        ("evaluate --device cpu", "CUDA_VISIBLE_DEVICES"),
        ("evaluate --batch-size x", "--batch-size: invalid int value"),
        ("export --half", "--precision fp16"),
        ("shard --source x", "--images DIR"),
        ("shard --imgsz 640", "--resize WxH"),
        ("shard --val_split 0.2", "--val-fraction F"),
        ("shard --resume", "same command"),
        ("shard verify o --skip-bad", "unknown option '--skip-bad'.*unetdist shard verify --help"),
    ],
)
def test_other_commands_answer_in_one_line(line, told):
    command, *words = line.split()
    with pytest.raises(ConfigError, match=told) as error:
        OTHERS[command](words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("equivalence --step 3", "did you mean 'steps'"),
        ("doctor --jsn x", "did you mean 'json'"),
        ("ablate --optim.lr 0.1 x.yaml", r"FILE \(0.1\)"),
        ("trian", "unknown command 'trian'; did you mean 'train'"),
    ],
)
def test_words_of_the_commands_themselves_are_suggested(line, told):
    with pytest.raises(ConfigError, match=told):
        run(line.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_80_columns_and_help_all_every_option(command, capsys):
    shown = {}
    for which in ("--help", "--help all", "-h"):
        with pytest.raises(SystemExit) as exited:
            sys.exit(run([command, *which.split()]))
        assert not exited.value.code
        shown[which] = capsys.readouterr().out
        # Columns that a setting's name and default need are not ours to shorten.
        assert [line for line in shown[which].splitlines() if len(line) > 80] == []
    assert shown["-h"] == shown["--help"]
    options = {which: {*re.findall(r"^ +(--[\w.-]+)", text, re.MULTILINE)} for which, text in shown.items()}
    assert options["--help"] <= options["--help all"]
    assert (options["--help"] < options["--help all"]) == ("--help all" in shown["--help"])
    assert len(shown["--help"].splitlines()) < 75


@pytest.mark.parametrize("command", ["train", "doctor", "equivalence", "ablate"])
def test_settings_commands_show_the_ten_settings_that_are_changed_first(command, capsys):
    with pytest.raises(SystemExit):
        run([command, "--help"])
    shown = capsys.readouterr().out
    assert re.findall(r"^  --(\w+\.\w+|name) ", shown, re.MULTILINE) == [*Config.FIRST]
    assert len(re.findall(rf"^  unetdist {command} \w*", shown, re.MULTILINE)) == 2


def test_lines_that_begin_with_spaces_are_not_filled():
    text = "One\ntwo `three four`.\n\n  a command that is longer\n"
    assert filled(text, 12) == "One two\n`three four`.\n\n  a command that is longer"


def test_bash_completes_commands_and_options(tmp_path, capsys):
    run(["completion"])
    (tmp_path / "script").write_text(capsys.readouterr().out)
    asked = (("unetdist", "tr"), ("unetdist", "train", "--optim.l"), ("unetdist", "predict", "--ov"))
    tries = [f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _unetdist unetdist {words[-1]}; "
             "echo ${COMPREPLY[@]}" for words in asked]  # fmt: skip
    bash = ["bash", "-c", f"source {tmp_path / 'script'}; " + "; ".join(tries)]
    done = subprocess.run(bash, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["train", "--optim.lr --optim.layer_decay", "--overlay --overwrite --overlap"]


def test_editors_get_a_schema_of_the_yaml(capsys):
    with pytest.raises(SystemExit):
        settings.parse(Config, ["--print_completion", "jsonschema"], prog="unetdist train", description="Train.")
    schema = json.loads(capsys.readouterr().out)
    jsonschema = pytest.importorskip("jsonschema")
    for file in {*CONFIGS.glob("*.yaml")} - {CONFIGS / "sweep.yaml"}:
        jsonschema.validate(dict(settings.read_yaml(file)), schema)
    with pytest.raises(jsonschema.ValidationError, match="0.001"):
        jsonschema.validate({"data": {"train": "x"}, "optim": {"lr": "0.001"}}, schema)
