import copy
import errno
import json
import logging
import re
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn

from tests.distributed.launcher import run_ranks
from unetdist.distributed.collectives import World
from unetdist.errors import CheckpointError, ConfigError, DataError
from unetdist.train import checkpoint
from unetdist.train.checkpoint import Checkpoints, RunState
from unetdist.train.config import CheckpointConfig, OptimConfig
from unetdist.train.optim import Ema, build_optimizer

ALONE = World()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


@pytest.fixture
def checkpoints(folder):
    checkpoints = Checkpoints(folder, CheckpointConfig(keep_last=2))
    yield checkpoints
    checkpoints.wait()


@pytest.fixture
def slow_disk(checkpoints, monkeypatch):
    """Writes wait until this is set."""
    ready = threading.Event()
    write = checkpoints._files.write

    def wait_and_write(*given):
        assert ready.wait(60)
        write(*given)

    monkeypatch.setattr(checkpoints._files, "write", wait_and_write)
    yield ready
    ready.set()


def run_out_of_memory(*_):
    raise MemoryError


@pytest.fixture
def full_disk(checkpoints, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints._files, "write", refuse)


def test_what_was_saved_last_is_loaded(checkpoints):
    assert checkpoints.load_latest(ALONE) is None
    for step in (5, 10):
        checkpoints.save(step, {"a": torch.arange(step)}, {"step": step})
    checkpoints.wait()
    tensors, facts = checkpoints.load_latest(ALONE)
    assert facts == {"step": 10}
    assert tensors["a"].equal(torch.arange(10))


def test_values_are_kept_whatever_their_type_strides_and_gradients(checkpoints):
    dtypes = (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.uint8,
        torch.bool,
    )
    tensors = {f"{dtype}.{shape}": torch.ones(shape, dtype=dtype) for dtype in dtypes for shape in [(), (0, 3), (2, 5)]}
    tensors["strided"] = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    tensors |= {"turned": torch.randn(3, 4).T, "trained": torch.ones(2, requires_grad=True)}
    checkpoints.save(5, tensors, {}, final=True)
    found, _ = checkpoints.load_latest(ALONE)
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        assert found[name].equal(value), name


def test_saving_a_step_again_changes_its_facts_only(checkpoints, folder):
    """A validation that a signal interrupted is made up for after continuing, at the step that is saved already."""
    checkpoints.save(5, {"a": torch.zeros(1)}, {"validated": False})
    checkpoints.wait()
    again = Checkpoints(folder, CheckpointConfig())
    again.load_latest(ALONE)
    again.save(5, {"a": torch.ones(1)}, {"validated": True}, final=True)
    tensors, facts = checkpoints.load_latest(ALONE)
    assert tensors["a"].equal(torch.zeros(1))
    assert facts == {"validated": True}


def test_saving_the_same_again_writes_nothing(checkpoints, request):
    checkpoints.save(5, {"a": torch.zeros(1)}, {"pair": (1, 2)})
    checkpoints.wait()
    request.getfixturevalue("full_disk")
    checkpoints.save(5, {"a": torch.zeros(1)}, {"pair": (1, 2)}, final=True)


def test_training_goes_on_while_a_checkpoint_is_written(checkpoints, slow_disk):
    weight, facts = torch.zeros(3), {"groups": [{"lr": 1.0}]}
    checkpoints.save(5, {"weight": weight}, facts)
    weight.add_(1)
    facts["groups"][0]["lr"] = 2.0
    assert checkpoints.load_latest(ALONE) is None
    slow_disk.set()
    checkpoints.wait()
    tensors, saved = checkpoints.load_latest(ALONE)
    assert tensors["weight"].equal(torch.zeros(3))
    assert saved == {"groups": [{"lr": 1.0}]}


def test_checkpoints_are_written_one_after_the_other(checkpoints, slow_disk, monkeypatch):
    written = []
    write = checkpoints._files.write
    monkeypatch.setattr(checkpoints._files, "write", lambda step, *given: (write(step, *given), written.append(step)))
    checkpoints.save(5, {"a": torch.zeros(1)}, {})
    second = threading.Thread(target=checkpoints.save, args=(10, {"a": torch.ones(1)}, {}))
    second.start()
    assert written == []
    slow_disk.set()
    second.join()
    checkpoints.wait()
    assert written == [5, 10]
    assert checkpoints.load_latest(ALONE)[0]["a"].equal(torch.ones(1))


def test_a_disk_that_hangs_costs_checkpoints_but_not_the_training(checkpoints, folder, slow_disk, monkeypatch, caplog):
    monkeypatch.setattr(checkpoint, "PATIENCE_S", 0.05)
    for step in (5, 10):
        checkpoints.save(step, {"a": torch.full((1,), step)}, {"step": step})
    (message,) = caplog.messages
    assert re.search(rf"no checkpoint of step 10: .*{folder}", message)
    slow_disk.set()
    checkpoints.save(15, {"a": torch.zeros(1)}, {"step": 15}, final=True)
    assert checkpoints.load_latest(ALONE)[1] == {"step": 15}
    assert (folder / "step_00000005.json").exists()


def test_the_final_one_is_written_before_save_returns(checkpoints, folder):
    checkpoints.save(5, {"a": torch.zeros(1)}, {}, final=True)
    assert (folder / "latest").read_text() == "step_00000005"


def test_the_log_tells_what_a_checkpoint_cost(checkpoints, caplog):
    with caplog.at_level(logging.INFO, "unetdist"):
        checkpoints.save(5, {"a": torch.zeros(250_000)}, {})
        checkpoints.wait()
    (line,) = caplog.messages
    assert re.fullmatch(r"checkpoint of step 5 saved: 1\.0 MB in \d+\.\d s \(training waited for \d+ ms\)", line)


def test_a_write_that_fails_is_told_and_training_goes_on(checkpoints, folder, caplog, request):
    checkpoints.save(5, {"a": torch.zeros(1)}, {"step": 5}, final=True)
    request.getfixturevalue("full_disk")
    checkpoints.save(10, {"a": torch.ones(1)}, {"step": 10})
    checkpoints.wait()
    (line,) = caplog.messages
    assert line == (
        f"the checkpoint of step 10 cannot be written to {folder} ([Errno 28] No space left on device); that of "
        "step 5 is kept. Make room there, or give --checkpoint.folder another place. Training continues."
    )
    assert checkpoints.load_latest(ALONE)[1] == {"step": 5}


def test_a_final_write_that_fails_ends_the_run(checkpoints, full_disk):
    with pytest.raises(
        CheckpointError, match=r"step 10 cannot be written to .*checkpoints \(.*No space.*\); there is none"
    ):
        checkpoints.save(10, {"a": torch.ones(1)}, {}, final=True)


def test_a_lack_of_memory_costs_a_checkpoint_but_not_the_training(checkpoints, monkeypatch, caplog):
    monkeypatch.setattr("unetdist.train.checkpoint.tensors_to_bytes", run_out_of_memory)
    checkpoints.save(10, {"a": torch.ones(1)}, {})
    checkpoints.wait()
    (line,) = caplog.messages
    assert "step 10 cannot be written" in line
    assert "(MemoryError)" in line


def test_a_write_that_failed_is_made_up_for_by_the_final_one(checkpoints, folder):
    folder.write_text("a file where the folder should be")
    checkpoints.save(10, {"a": torch.ones(1)}, {})
    checkpoints.wait()
    folder.unlink()
    checkpoints.save(10, {"a": torch.ones(1)}, {}, final=True)
    assert checkpoints.load_latest(ALONE)[0]["a"].equal(torch.ones(1))


def test_a_run_does_not_go_on_with_other_data_unless_allowed(folder):
    Checkpoints(folder, CheckpointConfig(), data="one").save(5, {"a": torch.zeros(1)}, {}, final=True)
    with pytest.raises(
        CheckpointError,
        match=r"step 5 in .* was trained on other shards than those of data.train now; .* Choose another --name, give "
        r"the former shards, or accept it with --checkpoint.allow_changes '\[data.train\]'",
    ):
        Checkpoints(folder, CheckpointConfig(), data="other").load_latest(ALONE)
    allowing = CheckpointConfig(allow_changes=("data.train",))
    assert Checkpoints(folder, allowing, data="other").load_latest(ALONE)[1] == {}


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/runs/latest"),
            "the checkpoints cannot be read ([Errno 13] Permission denied: '/runs/latest'); fix that, and run the "
            "same command again.",
        ),
        (DataError("could not be read in 9 attempts", source="s3://a"), "s3://a: could not be read in 9 attempts"),
        (ConfigError("s3://a: install s3fs"), "s3://a: install s3fs"),
    ],
)
def test_a_folder_that_cannot_be_read_says_so(checkpoints, monkeypatch, error, message):
    def refuse(_):
        raise error

    monkeypatch.setattr(type(checkpoints.folder), "names", refuse)
    with pytest.raises(CheckpointError) as raised:
        checkpoints.load_latest(ALONE)
    assert str(raised.value) == message


def load_on_each(folders: list[Path]) -> object:
    rank = dist.get_rank()
    world = World(rank=rank, world_size=len(folders))
    try:
        found = Checkpoints(folders[rank], CheckpointConfig()).load_latest(world)
    except CheckpointError as error:
        return str(error)
    return found and (found[0]["a"].tolist(), found[1])


def test_all_ranks_load_what_rank_zero_chose(tmp_path):
    assert run_ranks(load_on_each, 2, [tmp_path] * 2) == [None, None]
    writing = Checkpoints(tmp_path, CheckpointConfig())
    writing.save(5, {"a": torch.arange(3)}, {"step": 5}, final=True)
    writing.save(10, {"a": torch.arange(4)}, {"step": 10}, final=True)
    assert run_ranks(load_on_each, 2, [tmp_path] * 2) == [([0, 1, 2, 3], {"step": 10})] * 2
    (tmp_path / "step_00000010.safetensors").write_bytes(b"rubbish")
    assert run_ranks(load_on_each, 2, [tmp_path] * 2) == [([0, 1, 2], {"step": 5})] * 2
    (tmp_path / "step_00000005.safetensors").write_bytes(b"rubbish")
    one, other = run_ranks(load_on_each, 2, [tmp_path] * 2)
    assert one == other
    assert "holds no whole checkpoint" in one


def test_nodes_that_do_not_share_the_folder_are_named_on_all_ranks(tmp_path):
    """Each node would train on weights of its own: those of another run, or fresh ones."""
    here, older, empty = tmp_path / "here", tmp_path / "older", tmp_path / "empty"
    for folder, value in ((here, 1.0), (older, 2.0)):
        Checkpoints(folder, CheckpointConfig()).save(5, {"a": torch.full((3,), value)}, {}, final=True)
    zero, one, two = run_ranks(load_on_each, 3, [here, older, empty])
    told = f"rank 1, 2 cannot read the checkpoint of step 5 that rank 0 reads in {here}"
    remedy = "; give --checkpoint.folder, or --runs_dir, a place that all nodes share."
    assert zero == told + remedy
    assert f"({older}/step_00000005.safetensors is damaged: its sha256 is " in one
    assert f"({empty}/step_00000005.safetensors is missing)" in two
    assert one.endswith(remedy)
    assert two.endswith(remedy)


def test_the_error_of_a_run_that_diverged_comes_after_its_checkpoint(checkpoints, folder, slow_disk):
    checkpoints.save(5, {"a": torch.zeros(1)}, {})
    threading.Timer(0.1, slow_disk.set).start()
    assert f"the checkpoints in {folder} are kept" in str(checkpoints.diverged("the loss is nan"))
    assert (folder / "latest").exists()


def test_checkpoints_lie_in_the_folder_of_the_run_or_in_a_place_of_their_own():
    run = Path("runs/tiny")
    assert str(CheckpointConfig().folder_of(run)) == "runs/tiny/checkpoints"
    assert str(CheckpointConfig(folder="/mnt/all").folder_of(run)) == "/mnt/all/tiny"
    assert str(CheckpointConfig(folder="s3://bucket/all/").folder_of(run)) == "s3://bucket/all/tiny"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"keep_last": 0}, r"checkpoint.keep_last \(0\) must be at least 1; use 2"),
        ({"save_every": 0}, r"checkpoint.save_every \(0\) must be at least 1 step, or null"),
        (
            {"folder": "https://host/runs"},
            r"checkpoint.folder \(https://host/runs\) cannot be written to; give a path, or a URL such as s3://bucket",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        CheckpointConfig(**values)


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
