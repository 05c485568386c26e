"""Score a trained model exactly: `accelerate launch launch/evaluate.py --model runs/x/best --data shards/val`.

Each sample is scored once, at its own size, on any number of processes with the same result. Prints a table of the
classes and the mIoU with its 95 % bootstrap interval over images. `--compare A B` in place of `--model` scores two
models on the same images and says how far apart they are, with an interval and a test over images.
"""

import argparse
from typing import Any

from PIL import Image

from unetdist.cli.credentials import mask
from unetdist.cli.logs import console, logger, run_script
from unetdist.errors import ConfigError
from unetdist.evaluation.calibration import reliability_diagram
from unetdist.evaluation.comparison import compare
from unetdist.evaluation.evaluate import Report, ValidationConfig
from unetdist.evaluation.image_counts import write_per_image
from unetdist.evaluation.scoring import evaluations
from unetdist.model.inference import add_inference_options, inference_of
from unetdist.storage.files import write_atomic, write_json
from unetdist.tracking.terminal import comparison_table, scores_table


def main() -> None:
    """Parse, score, print and write."""
    args = _parse()
    cfg = ValidationConfig(
        batch_size=args.batch_size,
        inference=inference_of(args),
        boundary=args.boundary,
        calibration=args.calibration or args.reliability_diagram is not None,
    )
    with evaluations(
        args.compare or [args.model],
        args.data,
        cfg=cfg,
        num_workers=args.num_workers,
        mixed_precision=args.mixed_precision,
    ) as (models, world):
        keeps_images = args.compare is not None or args.per_image is not None
        reports = [validator.score(saved.model, per_image=keeps_images) for validator, saved in models]
        if not world.is_main:
            return
        if args.compare is not None:
            _tell_difference(args, reports)
            return
        (report,) = reports
        _print(report, mask(args.data))
        if args.json is not None:
            _write_json(args.json, {"model": args.model, "data": mask(args.data), **report.to_mapping()})
        if report.per_image is not None:
            validator = models[0][0]
            keys = [validator.key_of(sample_id) for sample_id in range(report.num_samples)]
            write_per_image(args.per_image, report.per_image, keys, report.scores.class_names)
            logger.info("the matrix of every image is in %s", args.per_image)
        if args.reliability_diagram is not None:
            _draw(report, args.reliability_diagram, mask(args.data))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="launch/evaluate.py", description=__doc__)
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", metavar="DIR", help="a trained model, such as runs/NAME/best")
    what.add_argument("--compare", nargs=2, metavar=("A", "B"), help="two trained models, to be compared")
    add("--data", required=True, metavar="DIR", help="shards to score it on: a path or URL")
    add("--json", metavar="FILE", help="write all numbers, the confusion matrix too, to this file")
    add("--per-image", metavar="FILE.npz", help="write the confusion matrix of every image to this file")
    add("--boundary", action="store_true", help="score outlines too: boundary IoU")
    add("--calibration", action="store_true", help="compare confidence and accuracy too")
    add("--reliability-diagram", metavar="FILE.png", help="draw what --calibration finds")
    add("--batch-size", type=int, default=1, help="images per forward pass (default: %(default)s)")
    add("--num-workers", type=int, default=2, help="loader processes (default: %(default)s)")
    add("--mixed-precision", choices=("no", "fp16", "bf16"), default="no", help="number format (default: no)")
    add_inference_options(parser)
    args = parser.parse_args()
    if args.compare and (args.per_image or args.reliability_diagram):
        parser.error(
            "--per-image and --reliability-diagram are of one model; give --model instead of --compare"
        )
    return args


def _print(report: Report, data: str) -> None:
    console.print(
        scores_table(
            report,
            of=data,
            loss_name="cross entropy",  # a run's own loss may be another, with weights
        )
    )


def _tell_difference(args: argparse.Namespace, reports: list[Report]) -> None:
    a, b = (report.per_image for report in reports)
    assert a is not None
    assert b is not None
    comparison = compare(a, b)
    for report, name in zip(reports, args.compare, strict=True):
        _print(report, name)
    console.print(comparison_table(comparison, tuple(args.compare), of=mask(args.data)))
    if args.json is not None:
        models = [
            {"model": name, **report.to_mapping()} for name, report in zip(args.compare, reports, strict=True)
        ]
        _write_json(
            args.json, {"data": mask(args.data), "comparison": comparison.to_mapping(), "models": models}
        )


def _write_json(file: str, numbers: dict[str, Any]) -> None:
    try:
        write_json(file, numbers)
    except OSError as error:
        raise ConfigError(
            f"--json ({file}) cannot be written ({error.strerror}); give another file."
        ) from None
    logger.info("all numbers are in %s", file)


def _draw(report: Report, file: str, title: str) -> None:
    assert report.reliability is not None
    try:
        with write_atomic(file) as out:
            Image.fromarray(reliability_diagram(report.reliability, title)).save(out, "PNG")
    except OSError as error:
        raise ConfigError(
            f"--reliability-diagram ({file}) cannot be written ({error.strerror}); give another file."
        ) from None
    logger.info("the reliability diagram is in %s", file)


if __name__ == "__main__":
    run_script(main)
