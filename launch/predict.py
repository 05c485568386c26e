"""Segment images with a trained model: `python launch/predict.py --model runs/x/best --input DIR --out DIR`.

For each image NAME.* it writes NAME_ids.png: the class ids of Labels.txt, one byte per pixel, at the image's
own size and turned upright. Files that cannot be read are listed at the end, and the exit code is then 1.
"""

import argparse
from pathlib import Path

import torch

from unetdist.host_memory import keep_all_freed
from unetdist.inference_options import add_inference_options, inference_of
from unetdist.logs import run_script, set_up_logging
from unetdist.predict import find_device, predict_files
from unetdist.saved_model import load_model


def main() -> int:
    """Parse, load, predict."""
    parser = argparse.ArgumentParser(
        prog="launch/predict.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="a trained model: runs/NAME/best")
    parser.add_argument(
        "--input", required=True, type=Path, metavar="PATH", help="image, or folder searched with its folders"
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder for the results; keeps inner folders"
    )
    parser.add_argument(
        "--overlay",
        action="store_true",
        help="also write NAME_overlay.png: the image under its classes' colours, with a legend",
    )
    add_inference_options(parser)
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where to compute: cpu, cuda, cuda:1 (default here: %(default)s)",
    )
    args = parser.parse_args()
    inference = inference_of(args)
    set_up_logging()
    device = find_device(args.device)
    keep_all_freed()
    saved = load_model(args.model, device=device)
    failures = predict_files(
        saved, args.input, args.out, overlay=args.overlay, inference=inference, device=device
    )
    return 1 if failures else 0


if __name__ == "__main__":
    run_script(main)
