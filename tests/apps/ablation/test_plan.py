import pytest

from tests.apps.ablation.plans import VARIANTS, plan_of, write_base
from unetdist.apps.ablation.plan import read_plan
from unetdist.errors import ConfigError
from unetdist.storage.files import write_text


def test_every_variant_is_planned_with_every_seed(tmp_path):
    plan = plan_of(tmp_path)
    names = [run.config.name for run in plan.runs]
    assert names == ["plain_0", "group_0", "plain_1", "group_1", "plain_2", "group_2"]
    assert [run.config.seed for run in plan.runs] == [0, 0, 1, 1, 2, 2]
    assert [run.config.model.norm for run in plan.runs] == ["batch", "group"] * 3
    assert plan.variants == ("plain", "group")
    assert plan.command is None
    assert plan.name == "tried"
    assert plan.folder == tmp_path / "runs" / "tried"
    assert plan.runs[1].folder == plan.folder / "group_0"


def test_settings_are_laid_over_the_base_then_words_then_variants(tmp_path):
    text = """
name: mine
seeds: [7]
command: accelerate launch launch/train.py
settings:
  model.widths: [2, 4]
  trainer: {max_steps: 9}
  optim.kind: sgd
variants:
  plain: {}
  both: {model: {norm: group, dropout: 0.5}, optim.lr: 0.5}
"""
    plan = plan_of(tmp_path, text, "--optim.kind", "adamw", "--data.val=elsewhere")
    plain, both = (run.config for run in plan.runs)
    assert (plain.model.widths, plain.trainer.max_steps, plain.optim.kind) == ((2, 4), 9, "adamw")
    assert (both.model.norm, both.model.dropout, both.optim.lr, both.optim.kind) == (
        "group",
        0.5,
        0.5,
        "adamw",
    )
    assert both.data.val == "elsewhere"
    assert both.trainer.global_batch_size == 4
    assert (plan.name, plan.runs[1].config.seed) == ("mine", 7)
    assert plan.command == ("accelerate", "launch", "launch/train.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("varients: {}\n", r"tried\.yaml: unknown key 'varients'; did you mean 'variants'\?"),
        ("seeds: [0]\n", r"variants must name two or more, each with the settings .* `plain: \{\}`"),
        ("variants: {plain: }\n", r"variants must name two or more"),
        ("variants: {plain: , a/b: }\n", r"variant 'a/b' becomes a folder; use letters, digits"),
        ("variants: {plain: , b: 3}\n", r"variant 'b' must hold settings, not 3; use `model\.norm: group`"),
        (
            "variants: {plain: , b: {seed: 3}}\n",
            r"variant 'b' sets seed, which the ablation itself sets; remove it",
        ),
        (
            "variants: {plain: , b: {model.nrom: group}}\n",
            r"variant 'b': unknown setting 'model\.nrom'.*'norm'\?",
        ),
        ("variants: {plain: , b: {model.norm: grup}}\n", r"variant 'b': model\.norm \(grup\) must be one of"),
        (
            "variants: {plain: , b: {model.dropout: 2}}\n",
            r"variant 'b': model\.dropout \(2\.0\) must be at least 0",
        ),
        (
            VARIANTS + "settings: [1]\n",
            r"settings must hold settings, not \[1\]; use `trainer\.max_epochs: 20`",
        ),
        (VARIANTS + "settings: {model.nrom: group}\n", r"unknown option '--model\.nrom'; did you mean"),
        (
            VARIANTS + "seeds: [0, 0]\n",
            r"seeds \(\[0, 0\]\) must be a list of different numbers; use \[0, 1, 2\]",
        ),
        (VARIANTS + "seeds: 3\n", r"seeds \(3\) must be a list of different numbers"),
        (VARIANTS + "command: [a]\n", r"command \(\['a'\]\) must be what trains, without settings; use"),
        (VARIANTS + "settings: {data.val: null}\n", r"data\.val is not set, .* give --data\.val SHARDS"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        plan_of(tmp_path, text)


def test_a_base_is_needed(tmp_path):
    write_text(tmp_path / "x.yaml", VARIANTS)
    with pytest.raises(ConfigError, match=r"x\.yaml: base must be the path of a config file, such as"):
        read_plan(tmp_path / "x.yaml")


def test_a_setting_for_all_cannot_be_one_of_a_variant(tmp_path):
    with pytest.raises(
        ConfigError, match=r"--model\.norm is for all runs, but variant 'group' of .* in one place"
    ):
        plan_of(tmp_path, VARIANTS, "--model.norm=batch")


def test_names_must_be_folders(tmp_path):
    write_base(tmp_path)
    with pytest.raises(ConfigError, match="name"):
        plan_of(tmp_path, VARIANTS + "name: a/b\n")
