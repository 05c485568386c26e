"""Score a trained model exactly: `unetdist evaluate --model runs/x/best --data shards/val`.

Each sample is scored once, at its own size, with the same result on any number of processes. Prints a table of the
classes, and the mIoU with its 95 % bootstrap interval over images. `--compare A B` instead of `--model` scores two
models on the same images and prints their difference, with an interval and a test over images.
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from unetdist.cli.command_line import Options
from unetdist.cli.commands import typed
from unetdist.cli.credentials import mask
from unetdist.cli.logs import console
from unetdist.distributed.launcher import add_processes_option, start_processes
from unetdist.errors import writable
from unetdist.evaluation.config import ValidationConfig
from unetdist.model.config import add_inference_options, inference_of
from unetdist.storage.files import write_atomic, write_json

if TYPE_CHECKING:
    from unetdist.evaluation.evaluate import Report
    from unetdist.evaluation.validator import Validator

# Not "loss": that of the run may be another one, with weights.
LOSS_NAME = "cross entropy"


def main(argv: Sequence[str]) -> int:
    """Parse, start the processes if it takes several, and score."""
    args = parse(argv)
    cfg = ValidationConfig(
        batch_size=args.batch_size, inference=inference_of(args), boundary=args.boundary, calibration=args.calibration
    )
    code = start_processes("evaluate", argv, args.processes)
    if code is None:
        evaluate(args, cfg)
    return code or 0


def evaluate(args: argparse.Namespace, cfg: ValidationConfig) -> None:
    """Collective. Score, print and write."""
    from unetdist.evaluation.validator import evaluations

    with evaluations(
        args.compare or [args.model],
        args.data,
        cfg=cfg,
        num_workers=args.num_workers,
        mixed_precision=args.mixed_precision,
    ) as (models, world):
        keeps_images = args.compare is not None or args.per_image is not None
        reports = [validator.score(saved.model, per_image=keeps_images) for validator, saved in models]
        if world.is_main:
            numbers = show(args, reports[0]) if args.compare is None else show_difference(args, reports)
            if args.json is not None:
                with writable("--json", args.json):
                    write_json(args.json, numbers)
            if args.per_image is not None:
                write_per_image(args.per_image, reports[0], models[0][0])


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = Options(typed("evaluate"), table="evaluate", description=__doc__)
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", metavar="DIR", help="trained model: runs/NAME, or OWNER/NAME of the Hugging Face Hub")
    what.add_argument("--compare", nargs=2, metavar=("A", "B"), help="two trained models to compare")
    add("--data", required=True, metavar="DIR", help="shards to score on: a path or URL")
    add("--json", metavar="FILE", help="write all numbers and the confusion matrix to this file")
    add("--per-image", metavar="FILE.npz", help="write the confusion matrix of every image to this file")
    add("--boundary", action="store_true", help="also score outlines: boundary IoU")
    add("--calibration", action="store_true", help="also compare confidence with accuracy, in bins for --json")
    add("--batch-size", type=int, default=1, help="images per forward pass (default: %(default)s)")
    add("--num-workers", type=int, default=2, help="loader processes (default: %(default)s)")
    add("--mixed-precision", choices=("no", "fp16", "bf16"), help="number format (default: the launcher's, or no)")
    add_inference_options(parser)
    add_processes_option(parser)
    args = parser.parse_args(argv)
    if args.compare and args.per_image:
        parser.error("--per-image needs one model; give --model instead of --compare")
    if args.per_image and not args.per_image.endswith(".npz"):
        parser.error(f"--per-image ({args.per_image}) must be a file name that ends with .npz")
    return args


def show(args: argparse.Namespace, report: "Report") -> dict[str, Any]:
    """Print the report of one model, and return the numbers for `--json`."""
    from unetdist.tracking.terminal import scores_table

    console.print(scores_table(report, of=mask(args.data), loss_name=LOSS_NAME))
    return {"model": args.model, "data": mask(args.data), **report.to_mapping()}


def write_per_image(file: str, report: "Report", validator: "Validator") -> None:
    """Write the confusion matrix of every image, with the images' keys."""
    import numpy as np

    arrays: dict[str, Any] = {
        "ids": np.arange(report.num_samples),
        "keys": np.array([validator.key_of(sample_id) for sample_id in range(report.num_samples)]),
        "confusion": report.per_image,  # (N, C, C) int64, rows target
        "classes": np.array(report.scores.class_names),
    }
    with writable("--per-image", file), write_atomic(file) as out:
        np.savez_compressed(out, **arrays)


def show_difference(args: argparse.Namespace, reports: "list[Report]") -> dict[str, Any]:
    """Print the reports of two models and their comparison, and return the numbers for `--json`."""
    from unetdist.evaluation.comparison import compare
    from unetdist.tracking.terminal import comparison_table, scores_table

    a, b = (report.per_image for report in reports)
    assert a is not None
    assert b is not None
    comparison = compare(a, b)
    for report, name in zip(reports, args.compare, strict=True):
        console.print(scores_table(report, of=name, loss_name=LOSS_NAME))
    console.print(comparison_table(comparison, tuple(args.compare), of=mask(args.data)))
    models = [{"model": name, **report.to_mapping()} for name, report in zip(args.compare, reports, strict=True)]
    return {"data": mask(args.data), "comparison": comparison.to_mapping(), "models": models}
