import copy
import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from unetdist.errors import CheckpointError
from unetdist.train.ema import Ema
from unetdist.train.optim import OptimConfig, build_optimizer
from unetdist.train.run_state import RunState


def optimizers(model):
    yield torch.optim.Adam(model.parameters(), lr=0.1)
    yield torch.optim.AdamW(model.parameters(), lr=0.1, amsgrad=True)
    yield torch.optim.SGD(model.parameters(), lr=0.1)
    yield torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    yield build_optimizer(model, OptimConfig(lr=0.1, layer_decay=0.5))


@pytest.mark.parametrize("kind", range(5))
def test_a_run_continues_bit_by_bit_from_its_packed_state(kind, tmp_path):
    def make():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
        return model, list(optimizers(model))[kind], Ema(model, 0.9)

    def steps(model, optimizer, ema, count):
        for index in range(count):
            torch.manual_seed(index)
            optimizer.zero_grad()
            model(torch.randn(4, 3)).square().mean().backward()
            optimizer.step()
            ema.update(model)

    parts = make()
    steps(*parts, 3)
    tensors, facts = RunState(*parts).pack()
    save_file({name: value.contiguous() for name, value in tensors.items()}, tmp_path / "x.safetensors")
    tensors, facts = copy.deepcopy(tensors), json.loads(json.dumps(facts))
    steps(*parts, 2)

    others = make()
    steps(*others, 1)
    RunState(*others).unpack(tensors, facts, source="x")
    steps(*others, 2)
    for part, other in ((parts[0], others[0]), (parts[2].module, others[2].module)):
        for name, value in part.state_dict().items():
            assert value.equal(other.state_dict()[name]), name
    assert parts[2].num_updates == others[2].num_updates


def test_the_state_of_the_optimizer_keeps_the_strides_of_its_parameter():
    """Files hold no strides; a fused step with other strides mixes up weights on a CPU, and fails on CUDA."""

    def make():
        torch.manual_seed(0)
        model = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
        return model, torch.optim.Adam(model.parameters(), lr=0.1, fused=True)

    def step(model, optimizer):
        torch.manual_seed(1)
        model(torch.randn(2, 4, 5, 5)).square().mean().backward()
        optimizer.step()

    (model, optimizer), (other, other_optimizer) = make(), make()
    step(model, optimizer)
    tensors, facts = RunState(model, optimizer).pack()
    tensors = {name: value.clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    RunState(other, other_optimizer).unpack(tensors, facts, source="x")
    for parts in ((model, optimizer), (other, other_optimizer)):
        parts[1].zero_grad()
        step(*parts)
    assert model.weight.equal(other.weight)


@pytest.mark.parametrize(("saved_fused", "own_fused"), [(True, None), (None, True)])
def test_a_run_that_moves_to_another_machine_steps_as_is_best_there(saved_fused, own_fused):
    """On CUDA a step that is not fused waits for the device at each parameter, and fails under fp16's scaler."""
    model = nn.Linear(1, 1)
    tensors, facts = RunState(model, torch.optim.Adam(model.parameters(), fused=saved_fused)).pack()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.5, fused=own_fused)
    RunState(model, optimizer).unpack(tensors, facts, source="x")
    assert optimizer.param_groups[0]["fused"] is own_fused
    assert optimizer.param_groups[0]["lr"] == 1e-3


def test_the_loss_scaler_is_part_of_the_state():
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))  # the scale exists once it was used
    tensors, facts = RunState(model, optimizer, scaler=scaler).pack()
    other = torch.amp.GradScaler("cpu", init_scale=2.0)
    RunState(model, optimizer, scaler=other).unpack(tensors, facts, source="x")
    assert other.state_dict()["scale"] == 8.0


def test_the_state_of_another_model_says_so():
    model = nn.Linear(1, 1)
    tensors, facts = RunState(model, torch.optim.SGD(model.parameters(), lr=0.1)).pack()
    other = nn.Linear(2, 1)
    with pytest.raises(
        CheckpointError, match="runs/x was made by another model .*size mismatch.*; use that run's settings"
    ):
        RunState(other, torch.optim.SGD(other.parameters(), lr=0.1)).unpack(tensors, facts, source="runs/x")
