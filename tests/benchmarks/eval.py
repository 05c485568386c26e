"""Images/s and peak memory of evaluation and prediction, compared with plain loops over the same pictures.

Ours are `unetdist evaluate` and `unetdist predict` (from shards and from files), from the call to the end with the
loading of the model; the plain loops are what most training code has. Each runs in a fresh process in every round, and
is void if the pixels that it counts, by class and prediction, are not those of ours.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from tests.benchmarks.child import peak_mib
from tests.benchmarks.data_contenders import Job, write_our_shards
from tests.benchmarks.harness import (
    OURS,
    Contender,
    Results,
    VoidError,
    add_measuring,
    print_table,
    run_child,
    write_results,
)
from tests.benchmarks.pictures import Size, add_pictures, palette_of, write_pictures
from tests.benchmarks.train import TrainCase, default_workers, parse_train_case
from tests.benchmarks.train_contenders import DTYPES, MEAN, STD, NchwUNet
from unetdist import __main__ as command
from unetdist.model.config import UNetConfig
from unetdist.model.saved_model import load_model, save_model
from unetdist.model.unet import UNet

EVALUATION = (
    Contender(OURS, "ours"),
    Contender("plain", "plain loop"),
    Contender("plain-best", "plain loop, best flags"),
)
PREDICTION = (
    Contender(OURS, "ours, from files"),
    Contender("shards", "ours, from shards"),
    Contender("plain", "plain loop"),
)

# Rounding decides where two classes are equally likely, so this fraction of the pixels may be counted otherwise.
DISAGREEMENT = 0.02


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `eval`."""
    has_gpu = torch.cuda.is_available()
    case = "student:480x352:8" if has_gpu else "student:128x96:4"
    add_pictures(parser)
    add = parser.add_argument
    shape = {"metavar": "PRESET:WxH:BATCH", "help": f"network, size of the pictures, images per forward pass ({case})"}
    add("--case", type=parse_train_case, default=parse_train_case(case), **shape)
    add("--precision", choices=DTYPES, default="bf16" if has_gpu else "fp32", help="of evaluation (%(default)s)")
    add("--workers", type=int, default=default_workers(), metavar="N", help="worker processes (%(default)s)")
    add("--model", type=Path, metavar="DIR", help="trained weights, as in runs/NAME/best (default: random ones)")
    add_measuring(parser, rounds=5, samples=500 if has_gpu else 200)


def run(args: argparse.Namespace, facts: Mapping[str, Any]) -> None:
    """Measure evaluation, then prediction."""
    case: TrainCase = args.case
    folder = args.work.absolute() / "eval" / f"{case.width}x{case.height}"
    write_pictures(folder / "pictures", args, Size(case.width, case.height), args.samples)
    pictures = Job(str(folder / "pictures"), str(folder / "formats"), 0, case.batch_size)
    job = {
        "pictures": pictures.pictures,
        "shards": write_our_shards(pictures),
        "model": str(args.model or write_model(folder / "model", args)),
        "batch_size": case.batch_size,
        "num_workers": args.workers,
        "precision": args.precision,
    }
    cases = [Results(f"evaluation {case} {args.precision}", EVALUATION), Results(f"prediction {case}", PREDICTION)]
    for results, functions in zip(cases, ("evaluate", "predict"), strict=True):
        counted: dict[str, np.ndarray] = {}

        def child(contender: Contender, functions: str = functions) -> dict[str, Any]:
            return run_child(
                f"tests.benchmarks.eval:{functions}",
                {"name": contender.name, "job": job},
                python=sys.executable,
                log=folder / "logs" / f"{functions}_{contender.name}.log",
            )

        def check(contender: Contender, counted: dict[str, np.ndarray] = counted, child: Any = child) -> dict[str, Any]:
            counted[contender.name] = np.array(child(contender)["confusion"])
            if problem := count_problem(counted[contender.name], counted.get(OURS)):
                raise VoidError(problem)
            return {}

        results.check(check)
        results.measure(
            lambda contender, child=child: {k: v for k, v in child(contender).items() if k != "confusion"}, args.rounds
        )
        print_table(results, {"MiB": lambda row: f"{row['peak_mib']:.0f}"})
    write_results(args.out, "eval", facts, cases, workers=args.workers)


def write_model(folder: Path, args: argparse.Namespace) -> Path:
    """A saved model with random weights."""
    torch.manual_seed(0)
    config, palette = UNetConfig(preset=args.case.preset), palette_of(args)
    model = UNet(config, palette.num_classes, MEAN, STD)
    save_model(folder, model.state_dict(), model=config, palette=palette, resize=None, facts={})
    return folder


def count_problem(counts: np.ndarray, ours: np.ndarray | None) -> str | None:
    """Why a matrix of pixels by class and prediction does not agree with ours, or None."""
    if ours is None:
        return "there is nothing to compare with: ours is void"
    if counts.sum() != ours.sum():
        return f"it counts {counts.sum()} pixels, ours {ours.sum()}"
    fraction = abs(counts - ours).sum() / 2 / ours.sum()
    return f"{100 * fraction:.1f} % of its pixels have another class than ours" if fraction > DISAGREEMENT else None


def evaluate(name: str, job: dict[str, Any]) -> dict[str, Any]:
    """Score all pictures once; confusion, images, seconds and peak memory."""
    if name == OURS:
        with TemporaryDirectory() as folder:
            out = Path(folder, "scores.json")
            precision = "no" if job["precision"] == "fp32" else job["precision"]
            words = ["--data", job["shards"], "--json", str(out), "--mixed-precision", precision]
            found = timed(lambda: run_command("evaluate", job, words), job)
            return {**found, "confusion": json.loads(out.read_text(encoding="utf-8"))["confusion"]}
    confusion: list[np.ndarray] = []
    found = timed(lambda: confusion.append(plain_evaluation(job, best=name == "plain-best")), job)
    return {**found, "confusion": confusion[0].tolist()}


def predict(name: str, job: dict[str, Any]) -> dict[str, Any]:
    """Write the predicted class of every pixel as a PNG for each picture; the confusion is counted afterwards."""
    with TemporaryDirectory() as folder:
        given = job["shards"] if name == "shards" else str(Path(job["pictures"], "images"))
        if name == "plain":
            found = timed(lambda: plain_prediction(job, Path(folder)), job)
        else:
            found = timed(lambda: run_command("predict", job, ["--input", given, "--out", folder]), job)
        classes = load_model(job["model"]).model.num_classes
        counts = np.zeros((classes, classes), np.int64)
        for path in sorted(Path(folder).rglob("*_ids.png")):
            mask = Path(job["pictures"], "masks", path.name.replace("_ids.png", ".png"))
            target, pred = (np.asarray(Image.open(each)).reshape(-1) for each in (mask, path))
            counts += count(target, pred, classes)
    return {**found, "confusion": counts.tolist()}


def timed(call: Callable[[], object], job: Mapping[str, Any]) -> dict[str, float]:
    """Images, seconds and peak memory of one pass over all pictures."""
    began = time.perf_counter()
    call()
    seconds = time.perf_counter() - began
    images = len(list(Path(job["pictures"], "images").iterdir()))
    return {"images": images, "seconds": seconds, "peak_mib": peak_mib()}


def run_command(name: str, job: Mapping[str, Any], words: list[str]) -> None:
    """Run a command in this process, as its users do."""
    options = ["--model", job["model"], "--batch-size", job["batch_size"]]
    options += ["--num-workers", max(1, job["num_workers"])]  # predict needs one.
    if code := command.run([name, *map(str, options), *words]):
        raise RuntimeError(f"unetdist {name} ended with exit code {code}")


class Whole(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Whole pictures and their masks."""

    def __init__(self, pictures: str, *, as_bytes: bool) -> None:
        self.as_bytes = as_bytes
        self.images = sorted(Path(pictures, "images").iterdir())
        self.masks = Path(pictures, "masks")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        path = self.images[index]
        image, mask = (np.array(Image.open(each)) for each in (path, self.masks / f"{path.stem}.png"))
        pixels = torch.from_numpy(image).permute(2, 0, 1)
        return pixels if self.as_bytes else pixels.float().contiguous(), torch.from_numpy(mask).long()


def plain_loop(job: Mapping[str, Any], *, best: bool) -> Any:
    """Predictions and masks of every batch; `best`: channels last, autotuning, bytes to the device."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = best
    saved = load_model(job["model"], device=device).model
    layout, kind = (torch.channels_last, UNet) if best else (torch.contiguous_format, NchwUNet)
    saved.__class__ = kind  # Same weights, in the layout of the loop.
    model = saved.eval().to(memory_format=layout)
    loader = DataLoader(
        Whole(job["pictures"], as_bytes=best),
        batch_size=job["batch_size"],
        num_workers=job["num_workers"],
        pin_memory=device.type == "cuda",
    )
    dtype = DTYPES[job["precision"]]
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        for image, mask in loader:
            yield model(image.to(device, non_blocking=best)).argmax(1), mask


def plain_evaluation(job: Mapping[str, Any], *, best: bool) -> np.ndarray:
    """Confusion of all pictures; `best` counts on the device, and copies once."""
    classes = load_model(job["model"]).model.num_classes
    total: Any = 0
    for pred, mask in plain_loop(job, best=best):
        pred, mask = (pred, mask.to(pred.device)) if best else (pred.cpu(), mask)
        valid = mask < classes
        total = total + torch.bincount(mask[valid] * classes + pred[valid], minlength=classes**2)
    return total.view(classes, classes).cpu().numpy()


def plain_prediction(job: Mapping[str, Any], out: Path) -> None:
    """A PNG of class indices for each picture."""
    names = iter(sorted(Path(job["pictures"], "images").iterdir()))
    for pred, _ in plain_loop({**job, "precision": "fp32"}, best=False):
        for ids in pred.to(torch.uint8).cpu().numpy():
            Image.fromarray(ids).save(out / f"{next(names).stem}_ids.png")


def count(target: np.ndarray, pred: np.ndarray, classes: int) -> np.ndarray:
    """Pixels by class and prediction, without those that are ignored."""
    valid = target < classes
    pairs = target[valid].astype(np.int64) * classes + pred[valid]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
