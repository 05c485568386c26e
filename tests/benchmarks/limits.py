"""How fast training can be: FLOPs and bytes of a network, and its convolutions measured against the device's peaks.

Without --peaks the peaks are measured, and so is every convolution. With --peaks (788,4300 is an H200 in bf16) nothing
is measured, so that a network can be planned on a laptop. `roofline.py` says what is counted.
"""

import argparse
import math
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any, get_args

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from tests.benchmarks.harness import positive
from tests.benchmarks.roofline import Execution, Layer, Peaks, flops_of, layers_of, seconds_of
from tests.benchmarks.train_contenders import DTYPES
from unetdist.cli.logs import progress
from unetdist.model.config import UNetConfig
from unetdist.storage.files import write_json

CASES = ("64:512x512", "64:352x480", "32:512x512", "16:512x512", "16:352x480")
LEVELS = 5

# Sizes of the measurements of peaks, by device; the copy is far larger than any cache, and twice it fits a small GPU.
MATRIX_SIZE = {"cuda": 8192, "cpu": 1024}
CONV_BATCH = {"cuda": 64, "cpu": 1}
COPY_BYTES = {"cuda": 1 << 30, "cpu": 256 << 20}

# Calls that a GPU gets at once, queued behind a kernel that only waits for some milliseconds: on an idle GPU the time
# of a short call would be that of its launch.
CALLS_AT_ONCE, HEAD_START_CYCLES = 20, 5_000_000


def parse_network(text: str) -> tuple[UNetConfig, tuple[int, int]]:
    """WIDTHS:HxW, with the channels of each level, or of the first of five."""
    found = re.fullmatch(r"([1-9]\d*(?:,[1-9]\d*)*):([1-9]\d*)x([1-9]\d*)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"invalid WIDTHS:HxW value: {text!r}; use 16:352x480 or 16,32,64:352x480")
    widths = tuple(map(int, found[1].split(",")))
    if len(widths) == 1:
        widths = tuple(widths[0] << level for level in range(LEVELS))
    return UNetConfig(widths=widths), (int(found[2]), int(found[3]))


def parse_peaks(text: str) -> Peaks:
    """TFLOP/s,GB/s."""
    try:
        tflops, gbytes = map(float, text.split(","))
    except ValueError:
        tflops = gbytes = math.nan
    if not (0 < tflops < math.inf and 0 < gbytes < math.inf):
        raise argparse.ArgumentTypeError(f"invalid TFLOP/s,GB/s value: {text!r}; use 788,4300")
    return Peaks(tflops * 1e12, gbytes * 1e9)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `limits`."""
    add = parser.add_argument
    add(
        "--cases",
        type=parse_network,
        nargs="+",
        default=[parse_network(CASES[-1])],
        metavar="WIDTHS:HxW",
        help=f"channels of each level, or of the first of {LEVELS}, and size ({CASES[-1]})",
    )
    add("--batch-size", type=positive, default=32, metavar="N", help="(%(default)s)")
    add("--classes", type=positive, default=12, metavar="N", help="(%(default)s)")
    default = "bf16" if torch.cuda.is_available() else "fp32"
    add("--precision", choices=DTYPES, default=default, help="(%(default)s)")
    add("--peaks", type=parse_peaks, metavar="TFLOP/s,GB/s", help="peaks of a device that is not here")


def run(args: argparse.Namespace, facts: Mapping[str, Any]) -> None:
    """Count, measure, print, write."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peaks = args.peaks or measure_peaks(device, args.precision)
    torch.backends.cudnn.benchmark = True
    cases = []
    console = Console()
    console.print(f"peaks: {peaks.flops / 1e12:.3g} TFLOP/s, {peaks.bandwidth / 1e9:.0f} GB/s ({args.precision})")
    for config, size in args.cases:
        layers = layers_of(config, args.classes, size)
        case = limits_of(layers, args.batch_size, peaks, DTYPES[args.precision].itemsize)
        case = {"widths": list(config.level_widths), "size": list(size), **case}
        speeds = ", ".join(f"{name} {speed:.4g}" for name, speed in case["images_per_s"].items())
        widths = "-".join(map(str, config.level_widths))
        console.print(f"U-Net {widths}, {size[0]}x{size[1]}: {case['gflop_per_image']:.4g} GFLOP an image", end="")
        console.print(f"; images/s of training at most: {speeds}")
        if args.peaks is None:
            case["passes"] = time_layers(layers, args.batch_size, device, args.precision, peaks)
            console.print(_table(case["passes"]))
        cases.append(case)
    name = torch.cuda.get_device_name() if device.type == "cuda" else facts["cpu"]
    more = {"device": name, "peaks": asdict(peaks), "batch_size": args.batch_size, "precision": args.precision}
    write_json(args.out / "limits.json", {**facts, **more, "num_classes": args.classes, "cases": cases})


def limits_of(layers: Sequence[Layer], batch_size: int, peaks: Peaks, value_bytes: int) -> dict[str, Any]:
    """FLOPs of training on one image, and the most images/s by how much is fused."""
    speeds = {
        execution: batch_size
        / seconds_of(layers, execution, batch_size=batch_size, peaks=peaks, value_bytes=value_bytes)
        for execution in get_args(Execution)
    }
    return {"gflop_per_image": flops_of(layers) / 1e9, "images_per_s": speeds}


def time_layers(
    layers: Sequence[Layer], batch_size: int, device: torch.device, precision: str, peaks: Peaks
) -> list[dict[str, Any]]:
    """Every convolution alone, forward and both gradients, on random numbers in channels last."""
    rows = []
    with progress("timing layers", len(layers)) as bar:
        for layer in layers:
            calls, num_bytes = calls_of(layer, batch_size, device, DTYPES[precision])
            flops = layer.flops * batch_size
            for name, call in calls.items():
                seconds = seconds_per_call(call, device)
                rows.append(
                    {
                        "layer": layer.name,
                        "pass": name,
                        "in_shape": layer.in_shape,
                        "out_shape": layer.out_shape,
                        "ms": 1000 * seconds,
                        "tflop_per_s": flops / seconds / 1e12,
                        "gbyte_per_s": num_bytes / seconds / 1e9,
                        "of_roof": peaks.seconds(flops, num_bytes) / seconds,
                    }
                )
            bar.advance(1, layer.name)
    return rows


def calls_of(
    layer: Layer, batch_size: int, device: torch.device, dtype: torch.dtype
) -> tuple[dict[str, Callable[[], Any]], int]:
    """The passes of a layer, each as a call, and the bytes that each moves."""

    def random(*shape: int) -> torch.Tensor:
        values = torch.randn(*shape, device=device, dtype=dtype)
        return values.contiguous(memory_format=torch.channels_last)

    given, out = random(batch_size, *layer.in_shape), random(batch_size, *layer.out_shape)
    channels, side = (layer.in_shape[0], layer.out_shape[0]), layer.kernel_size
    weight = random(*(channels if layer.is_transposed else channels[::-1]), side, side)
    stride, padding = (2, 0) if layer.is_transposed else (1, side // 2)
    rest = ([stride] * 2, [padding] * 2, [1, 1], layer.is_transposed, [0, 0], 1)

    def backward(*wanted: bool) -> Any:
        return torch.ops.aten.convolution_backward(out, given, weight, None, *rest, [*wanted, False])

    calls: dict[str, Callable[[], Any]] = {"forward": lambda: torch.ops.aten.convolution(given, weight, None, *rest)}
    if not layer.is_first:
        calls["input gradient"] = lambda: backward(True, False)
    calls["weight gradient"] = lambda: backward(False, True)
    return calls, sum(tensor.numel() * tensor.element_size() for tensor in (given, out, weight))


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("layer", "channels", "pass", box=None)
    for heading in ("ms", "TFLOP/s", "GB/s", "of roof"):
        table.add_column(heading, justify="right")
    for row in rows:
        numbers = (
            f"{row['ms']:.3f}",
            f"{row['tflop_per_s']:.3g}",
            f"{row['gbyte_per_s']:.0f}",
            f"{row['of_roof']:.2f}",
        )
        channels = f"{row['in_shape'][0]} > {row['out_shape'][0]}"
        table.add_row(row["layer"].removesuffix(".conv"), channels, row["pass"], *numbers)
    return table


def measure_peaks(device: torch.device, precision: str) -> Peaks:
    """FLOP/s of a matrix product or convolution, whichever is faster, and bytes/s of a copy, read and written.

    The best of several calls: other programs can only take from a peak. The numbers are random, because GPUs are
    faster on zeros. On some CPUs the library of convolutions is twice as fast as that of matrix products.
    """
    dtype, size, batch = DTYPES[precision], MATRIX_SIZE[device.type], CONV_BATCH[device.type]
    had_tf32, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, True
    try:
        left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        product = 2 * size**3 / seconds_per_call(lambda: left @ right, device, of=min)
        image = torch.randn(batch, 256, 64, 64, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        weight = torch.randn(256, 256, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        seconds = seconds_per_call(lambda: F.conv2d(image, weight, padding=1), device, of=min)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = had_tf32
    convolution = 2 * batch * 64**2 * 256**2 * 9 / seconds
    source = torch.randint(0, 256, (COPY_BYTES[device.type],), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = 2 * source.numel() / seconds_per_call(lambda: target.copy_(source), device, of=min)
    return Peaks(max(product, convolution), copy)


def seconds_per_call(
    call: Callable[[], object],
    device: torch.device,
    *,
    budget_s: float = 0.2,
    of: Callable[[Sequence[float]], float] = statistics.median,
) -> float:
    """Median, or what `of` says, of at least 5 calls, and of as many as `budget_s` has room for."""
    for _ in range(2):
        call()
    times: list[float] = []
    while len(times) < 5 or sum(times) < budget_s:
        if device.type != "cuda":
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
            continue
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(CALLS_AT_ONCE + 1)]
        torch.cuda._sleep(HEAD_START_CYCLES)
        marks[0].record()
        for mark in marks[1:]:
            call()
            mark.record()
        marks[-1].synchronize()
        times += [began.elapsed_time(ended) / 1000 for began, ended in pairwise(marks)]
    return of(times)
