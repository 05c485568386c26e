import copy

import pytest
import torch
from torch import nn

from unetdist.errors import ConfigError
from unetdist.train.ema import Ema


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


def test_averages_weights_and_statistics_and_copies_counters():
    model = network()
    ema = Ema(model, decay=0.3)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    # The warm-up: 1/10, 2/11, 3/12, 4/13 (above 0.3: capped).
    for seed, decay in enumerate([1 / 10, 2 / 11, 3 / 12, 0.3, 0.3]):
        step(model, seed)
        ema.update(model)
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value
            else:
                expected[name] = value.clone()
    averaged = ema.module.state_dict()
    assert averaged["1.num_batches_tracked"] == 5
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
    for name, value in ema.module.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_loading_goes_on_exactly():
    model = network()
    whole, halves = Ema(model, decay=0.9), Ema(model, decay=0.9)
    for seed in range(6):
        if seed == 3:
            state = copy.deepcopy(halves.state_dict())
            halves = Ema(network(), decay=0.9)
            halves.load_state_dict(state)
        step(model, seed)
        whole.update(model)
        halves.update(model)
    assert halves.num_updates == 6
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, halves.module.state_dict()[name]), name


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_outside_its_range_is_refused(decay):
    with pytest.raises(ConfigError, match=rf"ema_decay \({decay}\) must be at least 0 and below 1; use"):
        Ema(network(), decay)
