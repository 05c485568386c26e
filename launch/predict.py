"""Segment images with a trained model: `python launch/predict.py --model runs/x/best --input DIR --out DIR`.

For each image NAME.* it writes NAME_ids.png: the class ids of Labels.txt, one byte per pixel, at the image's
own size and turned upright; of a GeoTIFF NAME_ids.tif, with its place on the earth. Several processes,
`accelerate launch launch/predict.py ...`, share the images. Images whose results are there are skipped, so that the
same command continues; --overwrite predicts them again. Files that cannot be read are listed at the end, and the exit
code is then 1.

--input is one of
  an image, or several
  a folder, which is searched with its folders
  a pattern in quotes: "photos/**/*.jpg"
  a text file (.txt, .lst, .list) with a path or URL (https, s3, gs, hf) per line; paths are seen from where you are
  a folder of shards, local or remote; results are named by the samples' keys
  a video: frame 123 of NAME.mp4 becomes NAME_000123
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from unetdist.cli.logs import run_script, set_up_logging
from unetdist.distributed.collectives import World, make_accelerator, world_of
from unetdist.distributed.hardware import keep_all_freed
from unetdist.errors import ConfigError
from unetdist.model.inference import add_inference_options, inference_of
from unetdist.model.saved_model import load_model
from unetdist.predict import Outputs, find_device, predict_files


def main() -> int:
    """Parse, load, predict."""
    args = _parse()
    inference = inference_of(args)
    set_up_logging()
    accelerator = _join(args.device)
    world = World(device=_device(args.device)) if accelerator is None else world_of(accelerator)
    set_up_logging(rank=world.rank, world_size=world.world_size)
    keep_all_freed()
    saved = load_model(args.model, device=world.device)
    if args.image_range is not None:
        saved = replace(saved, image_range=_ascending(*args.image_range))
    failures = predict_files(
        saved,
        args.input,
        args.out,
        outputs=Outputs(color=args.color, overlay=args.overlay, probabilities=args.probabilities),
        inference=inference,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        every=args.every,
        overwrite=args.overwrite,
        world=world,
    )
    if accelerator is not None:
        accelerator.end_training()  # Else the connections end as if the processes had died.
    return 1 if failures else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="launch/predict.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="a trained model: runs/NAME/best")
    add("--input", required=True, nargs="+", metavar="WHAT", help="see above")
    add("--out", required=True, type=Path, metavar="DIR", help="folder for the results; keeps inner folders")
    add("--color", action="store_true", help="also write NAME_color.png: the classes in the colours of Labels.txt")
    add(
        "--overlay",
        action="store_true",
        help="also write NAME_overlay.png: the image under its classes' colours, with a legend",
    )
    add(
        "--probabilities",
        action="store_true",
        help="also write NAME_probabilities.tif: a page per class, named by its description, 255 where it is certain",
    )
    add("--overwrite", action="store_true", help="predict images again whose results are there")
    add("--every", type=int, default=1, metavar="N", help="of a video, each Nth frame (default: all)")
    add(
        "--batch-size",
        type=int,
        default=1,
        metavar="N",
        help="images of equal size per forward pass; no result depends on the others (default: %(default)s)",
    )
    add(
        "--num-workers",
        type=int,
        default=2,
        metavar="N",
        help="threads that read, and as many that write (default: %(default)s)",
    )
    add(
        "--image-range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="values that are black and white in images of more than 8 bits (default: as the model was trained)",
    )
    add_inference_options(parser)
    add(
        "--device",
        help="where to compute: cpu, cuda, cuda:1 (default: a GPU if there is one; under accelerate launch its choice)",
    )
    return parser.parse_args()


def _join(device: str | None) -> Any:
    """Collective. The accelerator of the processes that share the work; None where this one is alone."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return None
    if device is not None:
        raise ConfigError(f"--device ({device}) is for one process; accelerate launch chooses, leave it out.")
    return make_accelerator()


def _ascending(low: float, high: float) -> tuple[float, float]:
    if not low < high:
        raise ConfigError(f"--image-range ({low:g} {high:g}) must ascend; use for example 0 4095.")
    return low, high


def _device(name: str | None) -> torch.device:
    return find_device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


if __name__ == "__main__":
    run_script(main)
