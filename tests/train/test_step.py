"""One optimizer step; that it does not depend on processes is shown in tests/distributed/test_equivalence.py."""

from importlib import import_module
from types import SimpleNamespace

import pytest
import torch

from tests.no_copies import NoCopies
from tests.synthetic import settings_of, write_shards
from unetdist.cli import settings
from unetdist.data.batch import Batch
from unetdist.distributed.collectives import World
from unetdist.model.config import LossConfig, UNetConfig
from unetdist.model.losses import build_loss
from unetdist.model.unet import UNet
from unetdist.tracking.meter import Meter
from unetdist.train.build import build_trainer
from unetdist.train.config import Config, OptimConfig
from unetdist.train.model_with_loss import ModelWithLoss
from unetdist.train.optim import Ema, build_optimizer
from unetdist.train.step import TrainStep, prefetch_to_device


def make(tmp_path, **sections):
    write_shards(tmp_path / "train", 9)
    values = settings_of(tmp_path / "train", None, tmp_path / "runs", **sections)
    return build_trainer(settings.from_mapping(Config, values))


@pytest.fixture
def build(tmp_path):
    trainers = []

    def build(**sections):
        trainers.append(make(tmp_path, **sections))
        return trainers[-1]

    yield build
    for trainer in reversed(trainers):
        trainer.__exit__()


def test_clipping_limits_the_gradient_and_reports_its_norm_before(build):
    trainer = build(optim={"clip_norm": 1e-3, "kind": "sgd", "lr": 1.0, "momentum": 0, "schedule": "constant"})
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    norm = trainer.train_step(next(iter(trainer.train_batches(0))))
    after = [parameter.detach() for parameter in trainer.model.parameters()]
    moved = torch.cat([(a - b).flatten() for a, b in zip(after, before, strict=True)])
    assert norm > 1e-2
    assert float(moved.norm()) == pytest.approx(1e-3, rel=1e-2)


def test_the_schedule_keeps_the_rate_of_each_level(build):
    trainer = build(
        model={"widths": [4, 8]}, optim={"lr": 0.1, "layer_decay": 0.5, "schedule": "poly", "poly_power": 1.0}
    )
    for step in (0, trainer.schedule.max_steps // 2):
        trainer.step.set_lr(step)
        lr = 0.1 * (1 - step / trainer.schedule.max_steps)
        rates = [group["lr"] for group in trainer.step.optimizer.param_groups]
        assert rates == pytest.approx([lr * 0.5**level for level in range(4) for _ in range(2)])


def test_dropout_is_the_same_when_a_step_is_repeated(build):
    trainer = build(model={"widths": [4, 8], "dropout": 0.5})
    step = next(iter(trainer.train_batches(0)))
    losses = []
    for _ in range(2):
        trainer.step.wrapped.train()
        trainer.step.seed_dropout(3, 0)
        losses.append(
            float(trainer.step.wrapped(step[0].image, step[0].mask, trainer.step.global_denominators(step)).detach())
        )
        torch.rand(3)
    assert losses[0] == losses[1]


META = torch.device("meta")


class Plain:
    """What the step asks of an Accelerator, for one process."""

    scaler = None

    def prepare(self, *parts):
        return parts

    def backward(self, loss):
        loss.backward()

    def unscale_gradients(self):
        pass


@pytest.fixture
def meta_step(monkeypatch):
    adam = import_module("torch.optim.adam")
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *_: None)  # It knows no meta device.
    model = UNet(
        UNetConfig(widths=(4, 8, 8), dropout=0.1, deep_supervision=True), 3, mean=[120.0] * 3, std=[60.0] * 3
    ).to(META)
    optim_cfg = OptimConfig(clip_norm=1.0)
    optimizer = build_optimizer(model, optim_cfg)
    for group in optimizer.param_groups:
        group["fused"] = True  # as on a GPU
    world = World(device=META)
    return TrainStep(
        accelerator=Plain(),
        world=world,
        model_with_loss=ModelWithLoss(model, build_loss(LossConfig(dice_weight=1.0), num_classes=3).to(META)),
        optimizer=optimizer,
        ema=Ema(model, 0.9),
        optim_cfg=optim_cfg,
        max_steps=10,
        seed=0,
        num_micro_batches=2,
        meter=Meter(world),
        watchdog=SimpleNamespace(at=lambda place: None),
        source_of=str,
    )


@pytest.fixture
def micro_batches():
    return [
        Batch(
            image=torch.zeros(2, 3, 18, 24, dtype=torch.uint8, device=META),
            mask=torch.zeros(2, 18, 24, dtype=torch.uint8, device=META),
            ids=torch.zeros(2, dtype=torch.int64, device=META),
            class_pixels=torch.zeros(2, 3, dtype=torch.int64, device=META),
        )
        for _ in range(2)
    ]


def test_a_step_whose_batch_has_arrived_neither_copies_nor_reads_back(meta_step, micro_batches):
    with NoCopies():
        for _ in range(2):
            grad_norm = meta_step(micro_batches, 0)
    assert grad_norm.device == META
    assert all(value.device == META for value in meta_step.model.state_dict().values())


def test_a_read_back_would_be_found(meta_step, micro_batches):
    meta_step.clip_gradients = lambda: torch.tensor(float(next(meta_step.model.parameters()).sum()))
    with NoCopies(), pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta tensors"):
        meta_step(micro_batches, 0)


def test_a_copy_would_be_found(meta_step, micro_batches):
    on_host = meta_step.model_with_loss.loss.class_weights.new_ones(3, device="cpu")
    meta_step.model_with_loss.loss.denominators = lambda counts: counts[:-1].double() * on_host.to(META)
    with NoCopies(), pytest.raises(AssertionError, match="_to_copy.default between cpu and meta"):
        meta_step(micro_batches, 0)


CONFIGS = {
    "plain": (UNetConfig(widths=(4, 8, 8)), LossConfig()),
    "residual": (UNetConfig(widths=(4, 8, 8), encoder_blocks=2, attention=True, norm="group"), LossConfig()),
    "all": (
        UNetConfig(widths=(4, 8), residual=True, deep_supervision=True, upsample="bilinear", norm="group"),
        LossConfig(dice_weight=1.0, focal_weight=0.5, lovasz_weight=0.5, label_smoothing=0.1),
    ),
}


def parts(name="plain", **changes):
    torch.manual_seed(0)
    model_cfg, loss_cfg = CONFIGS[name]
    model = UNet(UNetConfig(**{**vars(model_cfg), **changes}), num_classes=3, mean=[120.0] * 3, std=[60.0] * 3)
    return model, build_loss(loss_cfg, num_classes=3)


@pytest.fixture
def batch():
    torch.manual_seed(1)
    image = torch.randint(0, 256, (2, 3, 20, 24), dtype=torch.uint8)
    mask = torch.randint(0, 4, (2, 20, 24), dtype=torch.uint8)
    mask[mask == 3] = 255
    return image, mask, torch.tensor([900.0, 2.0], dtype=torch.float64)


@pytest.mark.parametrize("name", ["residual", "all"])
def test_one_graph_gives_the_loss_gradient_and_statistics_of_the_plain_path(name, batch):
    """It crops with slices: the crop of an exported graph would add up all gradients of logits twice."""
    graphs = []

    def compile_(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    torch._dynamo.reset()
    results = []
    for compiler in (None, compile_):
        network = ModelWithLoss(*parts(name), compiler=compiler)
        assert network.is_compiled == (compiler is not None)
        loss = network(*batch)
        loss.backward()
        results.append((loss.detach(), [p.grad for p in network.parameters()], list(network.model.buffers())))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)
    assert len(graphs) == 1
    assert not any("index_select" in str(node.target) for node in graphs[0].graph.nodes)


def test_a_graph_that_equals_the_plain_path_stays_compiled(batch):
    network = ModelWithLoss(*parts(), compiler="aot_eager")
    assert network.prove(*batch) is None
    assert network.is_compiled


def test_a_graph_with_another_loss_or_gradient_is_refused(batch):
    network = ModelWithLoss(*parts(), compiler="aot_eager")
    right = network._graph
    network._graph = lambda *given: 1.2 * right(*given)
    assert (problem := network.prove(*batch)) is not None
    assert problem.startswith("its loss on the first batch is ")
    network._graph = lambda *given: 1.2 * right(*given) - 0.2 * right(*given).detach()
    assert (problem := network.prove(*batch)) is not None
    assert problem.startswith("its norm of the gradient on the first batch is ")
    network._graph = lambda *given: right(*given) * float("nan")
    assert network.prove(*batch) is not None


def test_an_error_of_the_compiler_is_the_reason_for_the_plain_path(batch):
    def broken(graph, inputs):
        raise RuntimeError("no kernel\nfor this")

    torch._dynamo.reset()
    network = ModelWithLoss(*parts(), compiler=broken)
    problem = network.prove(*batch)
    assert problem is not None
    assert "no kernel" in problem
    network.use_plain(problem)
    assert (network.is_compiled, network.problem) == (False, problem)
    assert network(*batch).isfinite()


def test_gradients_of_fp16_are_compared_with_the_loss_scaled(batch):
    """Without scale they round to 0, and any graph would pass; scaled too much, they are infinite in both paths."""
    image, mask, _ = batch
    denominators = torch.tensor([1e12, 2.0], dtype=torch.float64)
    network = ModelWithLoss(*parts())
    with torch.autocast("cpu", torch.float16):
        right = network._plain
        network._graph = lambda *given: right(*given) + right(*given) - right(*given).detach()
        assert network.prove(image, mask, denominators) is None
        for scale in (2.0**30, 2.0**40):
            problem = network.prove(image, mask, denominators, scale=scale)
            assert problem is not None
            assert problem.startswith("its norm of the gradient on the first batch is ")
        network._graph = right
        assert network.prove(image, mask, denominators, scale=2.0**40) is None


@pytest.mark.parametrize("has_graphs", [True, False])
def test_cuda_graphs_are_compared_when_they_replay_and_reported_if_skipped(batch, monkeypatch, caplog, has_graphs):
    calls = []
    network = ModelWithLoss(*parts(), cuda_graphs=True)
    right = network._plain
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: None)
    counters = torch._dynamo.utils.counters["inductor"]
    monkeypatch.setitem(counters, "cudagraph_skips", 3)

    def graph(*given):
        calls.append(1)
        counters["cudagraph_skips"] += not has_graphs
        # The third run of a graph is the first that is replayed.
        return right(*given) * (1.2 if len(calls) == 3 else 1)

    network._graph = graph
    assert "its loss on the first batch is" in str(network.prove(*batch))
    assert len(calls) == 3
    assert network.has_cuda_graphs == has_graphs
    assert ("without CUDA graphs" in caplog.text) == (not has_graphs)


@pytest.mark.parametrize("drawn", [{"dropout": 0.5}, {"drop_path": 0.9, "residual": True}], ids=str)
def test_with_dropout_each_path_draws_its_own_numbers_and_only_errors_count(drawn, batch):
    network = ModelWithLoss(*parts(**drawn))
    plain = network._plain
    network._graph = lambda *given: 1.2 * plain(*given)
    assert network.prove(*batch) is None


def test_inductor_knows_the_options():
    assert ModelWithLoss(*parts(), compiler="inductor", cuda_graphs=True, is_deterministic=True).is_compiled


def numbered_batch(number):
    return Batch(
        image=torch.full((1, 3, 2, 2), number, dtype=torch.uint8),
        mask=torch.full((1, 2, 2), number, dtype=torch.uint8),
        ids=torch.tensor([number]),
        class_pixels=torch.tensor([[4, number]]),
        num_bad=number,
    )


def test_every_step_arrives_in_order_with_its_micro_batches():
    steps = [[numbered_batch(1), numbered_batch(2)], [numbered_batch(3), numbered_batch(4)]]
    there = list(prefetch_to_device(iter(steps), torch.device("cpu")))
    assert [[int(b.ids) for b in step] for step in there] == [[1, 2], [3, 4]]
    assert [[b.num_bad for b in step] for step in there] == [[1, 2], [3, 4]]


def test_pixels_go_to_the_device_and_ids_stay():
    ((there,),) = prefetch_to_device([[numbered_batch(1)]], torch.device("meta"))
    assert {there.image.device.type, there.mask.device.type, there.class_pixels.device.type} == {"meta"}
    assert there.ids.tolist() == [1]


def test_nothing_is_taken_ahead():
    taken = []

    def steps():
        for number in range(3):
            taken.append(number)
            yield [numbered_batch(number)]

    fed = prefetch_to_device(steps(), torch.device("cpu"))
    next(fed)
    assert taken == [0]
