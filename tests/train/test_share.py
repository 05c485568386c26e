"""The compiled graph is used only if it does what the plain path does."""

import pytest
import torch

from unetdist.model.losses import LossConfig, build_loss
from unetdist.model.unet import UNet, UNetConfig
from unetdist.train import share as share_module
from unetdist.train.share import LossShare

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
    model = UNet(
        UNetConfig(**{**vars(model_cfg), **changes}), num_classes=3, mean=[120.0] * 3, std=[60.0] * 3
    )
    return model, build_loss(loss_cfg, num_classes=3)


@pytest.fixture
def batch():
    torch.manual_seed(1)
    image = torch.randint(0, 256, (2, 3, 20, 24), dtype=torch.uint8)
    mask = torch.randint(0, 4, (2, 20, 24), dtype=torch.uint8)
    mask[mask == 3] = 255
    return image, mask, torch.tensor([900.0, 2.0], dtype=torch.float64)


@pytest.mark.parametrize("name", CONFIGS)
def test_one_graph_gives_the_loss_gradient_and_statistics_of_the_plain_path(name, batch):
    """And cuts by slices: what cuts for an exported graph of any size would add up all gradients of logits twice."""
    graphs = []

    def compile_(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    torch._dynamo.reset()
    results = []
    for compiler in (None, compile_):
        share = LossShare(*parts(name), compiler=compiler)
        assert share.is_compiled == (compiler is not None)
        loss = share(*batch)
        loss.backward()
        results.append((loss.detach(), [p.grad for p in share.parameters()], list(share.model.buffers())))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)
    assert len(graphs) == 1
    assert not any("index_select" in str(node.target) for node in graphs[0].graph.nodes)


def test_what_is_proven_stays_compiled(batch):
    share = LossShare(*parts(), compiler="aot_eager")
    assert share.prove(*batch) is None
    assert share.is_compiled


def test_another_loss_or_gradient_is_found(batch):
    share = LossShare(*parts(), compiler="aot_eager")
    right = share._graph
    share._graph = lambda *given: 1.2 * right(*given)
    assert (problem := share.prove(*batch)) is not None
    assert problem.startswith("its loss on the first batch is ")
    share._graph = lambda *given: 1.2 * right(*given) - 0.2 * right(*given).detach()
    assert (problem := share.prove(*batch)) is not None
    assert problem.startswith("its norm of the gradient on the first batch is ")
    share._graph = lambda *given: right(*given) * float("nan")
    assert share.prove(*batch) is not None


def test_an_error_of_the_compiler_is_told(batch):
    def broken(graph, inputs):
        raise RuntimeError("no kernel\nfor this")

    torch._dynamo.reset()
    share = LossShare(*parts(), compiler=broken)
    problem = share.prove(*batch)
    assert problem is not None
    assert "no kernel" in problem
    share.use_plain(problem)
    assert (share.is_compiled, share.problem) == (False, problem)
    assert share(*batch).isfinite()


def test_gradients_of_fp16_are_compared_with_the_loss_scaled(batch):
    """Unscaled they are rounded to 0, and any graph would do; scaled too much, they are infinite in both paths."""
    image, mask, _ = batch
    units = torch.tensor([1e12, 2.0], dtype=torch.float64)
    share = LossShare(*parts())
    with torch.autocast("cpu", torch.float16):
        right = share._plain
        share._graph = lambda *given: right(*given) + right(*given) - right(*given).detach()
        assert share.prove(image, mask, units) is None
        for scale in (2.0**30, 2.0**40):
            problem = share.prove(image, mask, units, scale=scale)
            assert problem is not None
            assert problem.startswith("its norm of the gradient on the first batch is ")
        share._graph = right
        assert share.prove(image, mask, units, scale=2.0**40) is None


@pytest.mark.parametrize("has_graphs", [True, False])
def test_cuda_graphs_are_proven_as_they_are_replayed_and_told_of_where_they_are_skipped(
    batch, monkeypatch, caplog, has_graphs
):
    calls = []
    share = LossShare(*parts(), cuda_graphs=True)
    right = share._plain
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: None)
    skips = iter([3, 3 if has_graphs else 4])
    monkeypatch.setattr(share_module, "_skipped_cuda_graphs", lambda: next(skips))
    # The third run of a graph is the first that is replayed.
    share._graph = lambda *given: calls.append(1) or right(*given) * (1.2 if len(calls) == 3 else 1)
    assert "its loss on the first batch is" in str(share.prove(*batch))
    assert len(calls) == 3
    assert share.has_cuda_graphs == has_graphs
    assert ("trains without CUDA graphs" in caplog.text) == (not has_graphs)


@pytest.mark.parametrize("drawn", [{"dropout": 0.5}, {"drop_path": 0.9, "residual": True}], ids=str)
def test_with_dropout_each_path_draws_its_own_numbers_and_only_errors_count(drawn, batch):
    share = LossShare(*parts(**drawn), compiler="aot_eager")
    assert share.prove(*batch) is None


def test_inductor_knows_the_options():
    assert LossShare(*parts(), compiler="inductor", cuda_graphs=True).is_compiled
