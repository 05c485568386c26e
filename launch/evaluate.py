"""Score a trained model exactly: `accelerate launch launch/evaluate.py --model runs/x/best --data shards/val`.

Each sample is scored once, at its own size, on any number of processes with the same result. Prints a table of the
classes and the mIoU with its 95 % bootstrap interval over images.
"""

import argparse

from unetdist.errors import ConfigError
from unetdist.logs import console, logger, run_script
from unetdist.scoring import evaluation
from unetdist.storage import write_json
from unetdist.tracking.terminal import scores_table


def main() -> None:
    """Parse, score, print and write."""
    parser = argparse.ArgumentParser(prog="launch/evaluate.py", description=__doc__)
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="a trained model, such as runs/NAME/best"
    )
    parser.add_argument("--data", required=True, metavar="DIR", help="shards to score it on: a path or URL")
    parser.add_argument(
        "--allow-pipe", action="store_true", help="--data may be pipe:COMMAND, run by a shell"
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write all numbers, the confusion matrix too, to this file"
    )
    parser.add_argument(
        "--batch-size", type=int, default=1, help="images per forward pass (default: %(default)s)"
    )
    parser.add_argument("--num-workers", type=int, default=2, help="loader processes (default: %(default)s)")
    parser.add_argument(
        "--mixed-precision", choices=("no", "fp16", "bf16"), default="no", help="number format (default: no)"
    )
    args = parser.parse_args()
    with evaluation(
        args.model,
        args.data,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        mixed_precision=args.mixed_precision,
        allow_pipe=args.allow_pipe,
    ) as (validator, saved, world):
        report = validator.score(saved.model)
        if not world.is_main:
            return
        console.print(
            scores_table(
                report.scores,
                report.confusion,
                report.loss,
                report.interval,
                of=args.data,
                loss_name="cross entropy",  # a run's own loss may be another, with weights
            )
        )
        if args.json is not None:
            try:
                write_json(args.json, {"model": args.model, "data": args.data, **report.to_mapping()})
            except OSError as error:
                raise ConfigError(
                    f"--json ({args.json}) cannot be written ({error.strerror}); give another file."
                ) from None
            logger.info("all numbers are in %s", args.json)


if __name__ == "__main__":
    run_script(main)
