"""Score a trained model exactly: `accelerate launch launch/evaluate.py --model runs/x/best --data shards/val`."""

import argparse

from unetdist.build import evaluate_saved_model
from unetdist.logs import run_script


def main() -> None:
    """Parse, score, print and write."""
    parser = argparse.ArgumentParser(prog="launch/evaluate.py", description=__doc__)
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="a trained model, such as runs/NAME/best"
    )
    parser.add_argument(
        "--data", required=True, metavar="DIR", help="shards with manifest.json to score it on"
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
    evaluate_saved_model(
        args.model,
        args.data,
        json_file=args.json,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        mixed_precision=args.mixed_precision,
    )


if __name__ == "__main__":
    run_script(main)
