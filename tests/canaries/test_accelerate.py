"""Behaviour of Accelerate and DDP that the framework leans on or works around."""

import inspect
import os

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState, notebook_launcher
from accelerate.commands.launch import launch_command_parser
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

from tests.distributed.launcher import run_ranks
from unetdist.distributed.collectives import make_accelerator


def gradients() -> dict[str, float]:
    """Gradient of w * x at x = 1 + rank, by each road."""
    accelerator = make_accelerator(timeout_s=20)
    model = accelerator.prepare(torch.nn.Linear(1, 1, bias=False, dtype=torch.float64))
    x = torch.tensor([[1.0 + dist.get_rank()]], dtype=torch.float64)
    weight = accelerator.unwrap_model(model).weight

    def gradient() -> float:
        value = weight.grad.item()
        weight.grad = None
        return value

    found = {}
    accelerator.backward(model(x).sum())
    found["prepared"] = gradient()
    with accelerator.no_sync(model):
        accelerator.backward(model(x).sum())
    found["no_sync"] = weight.grad.item()
    accelerator.backward(model(x).sum())
    found["no_sync then sync"] = gradient()
    accelerator.unwrap_model(model)(x).sum().backward()
    found["unwrapped"] = gradient()
    return found


def test_ddp_averages_and_no_sync_holds_back():
    """Why the loss share is multiplied by the world size, and how micro-batches are accumulated."""
    for rank, found in enumerate(run_ranks(gradients, 2)):
        assert found == {"prepared": 1.5, "no_sync": 1.0 + rank, "no_sync then sync": 3.0, "unwrapped": 1.0 + rank}


def scheduler_steps() -> float:
    accelerator = Accelerator(cpu=True, step_scheduler_with_optimizer=True)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 + step)
    optimizer, schedule = accelerator.prepare(optimizer, schedule)
    optimizer.step()
    schedule.step()
    return schedule.get_last_lr()[0]


def test_prepared_scheduler_steps_once_per_process():
    """Why the learning rate is a function of the step and no scheduler is prepared."""
    assert run_ranks(scheduler_steps, 3) == [4.0, 4.0, 4.0]


def divided_gradient() -> float:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    weight = torch.ones((), requires_grad=True)
    accelerator.backward(2.0 * weight)
    return weight.grad.item()


def test_backward_divides_by_its_own_accumulation_count():
    """Why gradient_accumulation_steps stays 1."""
    assert run_ranks(divided_gradient, 1) == [0.5]


def accumulation_from_environment() -> int:
    os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = "4"
    return Accelerator(cpu=True, gradient_accumulation_steps=1).gradient_accumulation_steps


def test_environment_overrides_the_accumulation_count():
    """Why launch_check refuses the variable."""
    assert run_ranks(accumulation_from_environment, 1) == [4]


def precision_from_environment() -> str:
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    return Accelerator(cpu=True, mixed_precision="no").mixed_precision


def test_explicit_precision_wins_over_the_environment():
    """Why "no" in the environment contradicts no setting."""
    assert run_ranks(precision_from_environment, 1) == ["no"]


@pytest.mark.parametrize("prepare", [lambda args: prepare_simple_launcher_cmd_env(args)[1], prepare_multi_gpu_env])
def test_every_process_of_its_launcher_has_a_variable_of_the_compiler(prepare):
    """How launcher.py and signals.py know that a process was launched."""
    args = launch_command_parser().parse_args(["--num_processes=1", "--num_machines=1", "script.py"])
    args.dynamo_backend, args.mixed_precision, args.use_cpu, args.gpu_ids = "no", "no", True, "all"
    assert prepare(args)["ACCELERATE_DYNAMO_BACKEND"] == "NO"


def fp16_on_cpu() -> torch.dtype:
    accelerator = Accelerator(cpu=True, mixed_precision="fp16")
    return accelerator.prepare(torch.nn.Linear(1, 1))(torch.ones(1, 1)).dtype


def test_fp16_on_a_cpu_is_silently_float32():
    """Why make_accelerator refuses it."""
    assert run_ranks(fp16_on_cpu, 1) == [torch.float32]


def unconnected() -> tuple[int, bool]:
    dist.destroy_process_group()
    state = PartialState(cpu=False)
    return state.num_processes, state.distributed_type == DistributedType.NO


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_ranks_stay_alone_on_a_machine_without_gpu_unless_told_cpu():
    """Why make_accelerator passes cpu=True, and compares WORLD_SIZE afterwards."""
    assert run_ranks(unconnected, 2) == [(1, True)] * 2


def buffers_after_forward() -> float:
    accelerator = make_accelerator(timeout_s=20)
    model = accelerator.prepare(torch.nn.BatchNorm1d(1, momentum=1.0))
    for _ in range(2):
        model(torch.full((2, 1), float(dist.get_rank())))
    return accelerator.unwrap_model(model).running_mean.item()


def test_batch_norm_statistics_stay_with_their_rank():
    """Why they must be brought together before validation and saving."""
    assert run_ranks(buffers_after_forward, 2) == [0.0, 1.0]


def test_accelerate_finds_no_newer_name_for_buffer_broadcast():
    """Once Accelerate passes on forward_sync_buffers itself, `_ddp_options` can go."""
    from accelerate.utils import DistributedDataParallelKwargs

    assert "forward_sync_buffers" not in inspect.signature(DistributedDataParallelKwargs).parameters


def test_a_process_keeps_the_first_precision_until_it_is_forgotten():
    """Why `unetdist.train` forgets the state: a second run in a notebook may have another precision."""
    assert Accelerator(cpu=True, mixed_precision="no").mixed_precision == "no"
    with pytest.raises(ValueError, match="already been initialized"):
        Accelerator(cpu=True, mixed_precision="bf16")
    AcceleratorState._reset_state(reset_partial_state=True)
    assert Accelerator(cpu=True, mixed_precision="bf16").mixed_precision == "bf16"
    AcceleratorState._reset_state(reset_partial_state=True)


def test_the_notebook_launcher_forks():
    """Why `unetdist.train` does not use it: the fork of a process that has computed before hangs."""
    assert 'else "fork"' in inspect.getsource(notebook_launcher)
