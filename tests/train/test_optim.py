import copy
import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from unetdist.errors import ConfigError
from unetdist.model.config import UNetConfig
from unetdist.model.unet import UNet
from unetdist.train.config import OptimConfig
from unetdist.train.optim import Ema, build_optimizer, levels_to_the_head, lr_factor


@pytest.mark.parametrize(
    ("settings", "kind"),
    [({}, torch.optim.Adam), ({"kind": "adamw"}, torch.optim.AdamW), ({"kind": "sgd"}, torch.optim.SGD)],
)
def test_kinds(settings, kind):
    assert type(build_optimizer(nn.Linear(2, 2), OptimConfig(**settings))) is kind


def test_settings_reach_the_optimizer():
    adam = build_optimizer(nn.Linear(2, 2), OptimConfig(lr=0.25, betas=(0.8, 0.9)))
    assert (adam.param_groups[0]["lr"], adam.defaults["betas"]) == (0.25, (0.8, 0.9))
    sgd = build_optimizer(nn.Linear(2, 2), OptimConfig(kind="sgd", momentum=0.7, nesterov=True))
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.7, True)


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_only_weights_of_convolutions_decay(norm):
    model = UNet(UNetConfig(widths=(4, 6), norm=norm, deep_supervision=True), 2, [0] * 3, [1] * 3)
    decayed, spared = build_optimizer(model, OptimConfig(weight_decay=0.01)).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.01, 0.0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    decays = {names[parameter] for parameter in decayed["params"]}
    stays = {names[parameter] for parameter in spared["params"]}
    assert decays | stays == set(names.values())
    assert all(name.endswith(("conv.weight", "up.weight", "head.weight")) for name in decays)
    assert all(name.endswith(".bias") or ".norm." in name for name in stays)


WAY = ("head", "decoder.1", "decoder.0", "bottleneck", "encoder.1", "encoder.0")


@pytest.mark.parametrize("options", [{}, {"encoder_blocks": 2, "attention": True}], ids=str)
def test_levels_are_counted_from_the_head_along_the_u(options):
    model = UNet(UNetConfig(widths=(4, 6, 8), deep_supervision=True, **options), 2, [0] * 3, [1] * 3)
    found = levels_to_the_head(model)
    assert found == {
        name: next((k for k, level in enumerate(WAY) if name.startswith(level)), 0)
        for name, _ in model.named_parameters()
    }
    assert {found[f"aux_heads.0.{name}"] for name in ("weight", "bias")} == {0}


@pytest.mark.parametrize("stage", ["layer1", "stages_1", "blocks", "s1"])
def test_the_stages_of_a_network_of_timm_are_levels(stage):
    below = {"conv1": nn.Linear(1, 1), "bn1": nn.Linear(1, 1)}
    stages = nn.ModuleDict({**below, stage: nn.ModuleList([nn.Linear(1, 1)])})
    backbone = nn.ModuleDict({"net": stages})
    model = nn.ModuleDict({"backbone": backbone, "bottleneck": nn.Linear(1, 1), "head": nn.Linear(1, 1)})
    assert {name.removesuffix(".weight"): level for name, level in levels_to_the_head(model).items()} == {
        **{f"backbone.net.{name}": 3 for name in ("conv1", "conv1.bias", "bn1", "bn1.bias")},
        **{f"backbone.net.{stage}.{name}": 2 for name in ("0", "0.bias")},
        **{f"bottleneck{name}": 1 for name in ("", ".bias")},
        **{f"head{name}": 0 for name in ("", ".bias")},
    }


def test_each_level_has_its_rate_and_each_parameter_its_level():
    model = UNet(UNetConfig(widths=(4, 6, 8), deep_supervision=True), 2, [0] * 3, [1] * 3)
    config = OptimConfig(lr=0.1, weight_decay=0.01, layer_decay=0.5)
    groups = build_optimizer(model, config).param_groups
    assert [group["lr"] for group in groups] == [0.1 * 0.5**k for k in range(len(WAY)) for _ in range(2)]
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0] * len(WAY)
    names = {parameter: name for name, parameter in model.named_parameters()}
    there = [names[parameter] for group in groups for parameter in group["params"]]
    assert sorted(there) == sorted(names.values())
    for number, group in enumerate(groups):
        levels = {names[parameter].replace("aux_heads", "head") for parameter in group["params"]}
        assert all(name.startswith(WAY[number // 2]) for name in levels)


def test_without_layer_decay_the_groups_are_two_of_one_rate():
    model = UNet(UNetConfig(widths=(4, 6)), 2, [0] * 3, [1] * 3)
    assert [group["lr"] for group in build_optimizer(model, OptimConfig(lr=0.1)).param_groups] == [0.1, 0.1]


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_decay_shrinks_weights_and_leaves_biases(kind):
    layer = nn.Linear(3, 3)
    nn.init.ones_(layer.weight)
    nn.init.ones_(layer.bias)
    optimizer = build_optimizer(layer, OptimConfig(kind=kind, lr=0.1, weight_decay=0.5))
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert (layer.weight < 1).all()
    assert torch.equal(layer.bias, torch.ones(3))


def test_frozen_parameters_and_empty_groups_are_left_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    model[0].requires_grad_(False)
    (group,) = build_optimizer(model, OptimConfig()).param_groups
    assert [id(parameter) for parameter in group["params"]] == [id(model[1].weight)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule": "constant"}, [1, 1, 1, 1]),
        ({"schedule": "constant", "warmup_steps": 3}, [0.25, 0.5, 0.75, 1]),
        ({"schedule": "poly", "poly_power": 1.0}, [1, 0.75, 0.5, 0.25]),
        ({"schedule": "poly"}, [1, 0.75**0.9, 0.5**0.9, 0.25**0.9]),
        ({"schedule": "poly", "poly_power": 1.0, "min_lr_factor": 0.2}, [1, 0.8, 0.6, 0.4]),
        ({"schedule": "cosine"}, [1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]),
        ({"schedule": "cosine", "warmup_steps": 2}, [1 / 3, 2 / 3, 1, 0.5]),
        ({"schedule": "cosine", "min_lr_factor": 0.5}, [1, 0.75 + math.sqrt(0.125) / 2, 0.75, None]),
    ],
)
def test_learning_rate_of_four_steps(settings, expected):
    factors = [lr_factor(step, 4, OptimConfig(**settings)) for step in range(4)]
    for factor, value in zip(factors, expected, strict=True):
        assert value is None or factor == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(("schedule", "last"), [("cosine", 2.467198171342e-4), ("poly", 0.01**0.9)])
@pytest.mark.parametrize("min_lr_factor", [0.0, 0.1])
def test_the_last_step_has_the_rate_of_torchs_schedulers_and_of_the_documentation(schedule, last, min_lr_factor):
    """`min_lr_factor` would be reached by the step after it."""
    config = OptimConfig(schedule=schedule, min_lr_factor=min_lr_factor)
    assert lr_factor(99, 100, config) == pytest.approx(min_lr_factor + (1 - min_lr_factor) * last, rel=1e-9)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    if schedule == "cosine":
        theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100, eta_min=min_lr_factor)
    elif min_lr_factor:
        return  # it has no such setting
    else:
        theirs = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=100, power=0.9)
    for step in range(100):
        assert lr_factor(step, 100, config) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        theirs.step()
    told = next(p for p in inspect.getsource(OptimConfig).split('"""') if "poly and cosine fall" in p)
    assert f"has {0.0002} (cosine) or {0.016} (poly)" in told


@given(
    schedule=st.sampled_from(["constant", "poly", "cosine"]),
    warmup_steps=st.integers(0, 20),
    more_steps=st.integers(1, 50),
    min_lr_factor=st.floats(0, 1),
)
def test_learning_rate_rises_then_falls_and_ends_at_its_minimum(schedule, warmup_steps, more_steps, min_lr_factor):
    config = OptimConfig(schedule=schedule, warmup_steps=warmup_steps, min_lr_factor=min_lr_factor)
    max_steps = warmup_steps + more_steps
    factors = [lr_factor(step, max_steps, config) for step in range(max_steps + 2)]
    rising, falling = factors[: warmup_steps + 1], factors[warmup_steps:]
    assert factors[0] > 0
    assert rising == sorted(set(rising))
    assert falling == sorted(falling, reverse=True)
    assert falling[0] == 1
    assert factors[-1] == pytest.approx(1 if schedule == "constant" else min_lr_factor)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, r"lr \(0.0\) must be above 0; use 0.001"),
        ({"weight_decay": -0.1}, r"weight_decay \(-0.1\) must be at least 0; use 0 for none"),
        ({"layer_decay": 0.0}, r"layer_decay \(0.0\) must be above 0 and at most 1; use 0.9, or 1 for none"),
        ({"layer_decay": 1.1}, r"layer_decay \(1.1\) must be above 0 and at most 1; use 0.9, or 1 for none"),
        ({"momentum": 1.0}, r"momentum \(1.0\) must be at least 0 and below 1; use 0.9"),
        ({"nesterov": True, "momentum": 0.0}, r"nesterov \(True\) must be false without momentum; use momentum: 0.9"),
        ({"betas": (0.9, 1.0)}, r"betas \(\(0.9, 1.0\)\) must be at least 0 and below 1; use \[0.9, 0.999\]"),
        ({"warmup_steps": -1}, r"warmup_steps \(-1\) must be at least 0; use 0 for none"),
        ({"poly_power": 0.0}, r"poly_power \(0.0\) must be above 0; use 0.9"),
        ({"min_lr_factor": 1.5}, r"min_lr_factor \(1.5\) must be between 0 and 1; use 0"),
        ({"clip_norm": float("nan")}, r"clip_norm \(nan\) must be at least 0; use 0 for no clipping"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        OptimConfig(**settings)


def test_a_warmup_as_long_as_the_run_is_refused():
    with pytest.raises(ConfigError, match=r"^optim.warmup_steps \(10\) must be below the 10 steps .* at most 9"):
        lr_factor(0, 10, OptimConfig(warmup_steps=10))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).double()


def step(model, seed):
    """Change weights and statistics as a training step would."""
    generator = torch.Generator().manual_seed(seed)
    model.train()(torch.randn(4, 2, 5, 5, dtype=torch.float64, generator=generator))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, dtype=torch.float64, generator=generator)


def test_averages_weights():
    model = network()
    ema = Ema(model, decay=0.3)
    expected = {name: value.detach().clone() for name, value in model.named_parameters()}
    # The warm-up: 1/10, 2/11, 3/12, 4/13 (above 0.3: capped).
    for seed, decay in enumerate([1 / 10, 2 / 11, 3 / 12, 0.3, 0.3]):
        step(model, seed)
        assert ema.update(model) == decay
        for name, value in model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * value.detach()
    averaged = ema.module.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(averaged[name], value, rtol=0, atol=1e-12, msg=name)


def test_the_average_is_a_copy_that_does_not_train():
    model = network()
    ema = Ema(model, decay=0.9)
    before = copy.deepcopy(ema.module.state_dict())
    step(model, 0)
    assert not ema.module.training
    assert not any(parameter.requires_grad for parameter in ema.module.parameters())
    for name, value in ema.module.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_no_decay_is_the_model_itself():
    model = network()
    ema = Ema(model, decay=0.0)
    step(model, 0)
    ema.update(model)
    for name, value in ema.module.named_parameters():
        assert torch.equal(value, model.state_dict()[name]), name
