"""Segment images with a trained model: `unetdist predict --model runs/x/best --input DIR --out DIR`.

For each image NAME.* it writes NAME_ids.png: the class ids of Labels.txt, one byte per pixel, at the image's own size
and turned upright; for a GeoTIFF it writes NAME_ids.tif with the same georeference. Several processes share the images.
Images that have results are skipped, so the same command continues after an interruption; --overwrite predicts them
again. Files that cannot be read are listed at the end, and the exit code is then 1.

--input is one of
  an image, or several
  a folder, which is searched with its inner folders
  a pattern in quotes: "photos/**/*.jpg"
  a text file (.txt, .lst, .list) with a path or URL (https, s3, gs, hf) per
    line; paths begin in the current folder
  a folder of shards, local or remote; results are named by the samples' keys
  a video: frame 123 of NAME.mp4 becomes NAME_000123
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from unetdist.cli.command_line import Options
from unetdist.cli.commands import typed
from unetdist.cli.logs import set_up_logging
from unetdist.distributed.hardware import keep_all_freed
from unetdist.distributed.launcher import add_processes_option, start_processes
from unetdist.errors import ConfigError
from unetdist.model.config import InferenceConfig, add_inference_options, inference_of

if TYPE_CHECKING:
    import torch


def main(argv: Sequence[str]) -> int:
    """Parse, start the processes if it takes several, and predict."""
    args = parse(argv)
    inference = inference_of(args)
    if args.image_range is not None and not args.image_range[0] < args.image_range[1]:
        low, high = args.image_range
        raise ConfigError(f"--image-range ({low:g} {high:g}) must ascend; use for example 0 4095.")
    several = args.processes or int(os.environ.get("WORLD_SIZE", 1))
    if args.device and several > 1:
        raise ConfigError(f"--device ({args.device}) is for one process, and {several} choose their own; leave it out.")
    code = None if args.device else start_processes("predict", argv, args.processes)
    return predict(args, inference) if code is None else code


def predict(args: argparse.Namespace, inference: InferenceConfig) -> int:
    """Collective. Load the model and predict; the exit code."""
    import torch

    from unetdist.distributed.collectives import World, make_accelerator, world_of
    from unetdist.model.saved_model import load_model
    from unetdist.predict import Outputs, predict_files

    set_up_logging()
    accelerator = make_accelerator() if int(os.environ.get("WORLD_SIZE", 1)) > 1 else None
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    world = World(device=_device(device)) if accelerator is None else world_of(accelerator)
    set_up_logging(rank=world.rank, world_size=world.world_size)
    keep_all_freed()
    saved = load_model(args.model, device=world.device)
    if args.image_range is not None:
        saved = replace(saved, image_range=tuple(args.image_range))
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
        accelerator.end_training()  # otherwise the connections end as if the processes had died
    return 1 if failures else 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = Options(typed("predict"), table="predict", description=__doc__)
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="trained model: runs/NAME, or OWNER/NAME of the Hugging Face Hub")
    add("--input", required=True, nargs="+", metavar="WHAT", help="see above")
    add("--out", required=True, type=Path, metavar="DIR", help="folder for the results; inner folders are kept")
    add("--color", action="store_true", help="also write NAME_color.png: the classes in the colours of Labels.txt")
    add("--overlay", action="store_true", help="also write NAME_overlay.png: the image under its classes and a legend")
    pages = "also write NAME_probabilities.tif: one page per class, with its name as description; 255 means certain"
    add("--probabilities", action="store_true", help=pages)
    add("--overwrite", action="store_true", help="predict images again whose results exist")
    add("--every", type=int, default=1, metavar="N", help="predict every N-th frame of a video (default: all)")
    add("--batch-size", type=int, default=1, metavar="N", help="images of equal size per forward pass (default: 1)")
    add("--num-workers", type=int, default=2, metavar="N", help="threads to read, and as many to write (default: 2)")
    values = "values of black and white in images of more than 8 bits (default: those of the training images)"
    add("--image-range", type=float, nargs=2, metavar=("LOW", "HIGH"), help=values)
    add_inference_options(parser)
    add("--device", help="device of a single process: cpu, cuda, cuda:1 (default: a GPU if there is one)")
    add_processes_option(parser)
    return parser.parse_args(argv)


def _device(name: str) -> "torch.device":
    import torch

    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        if reason.startswith("Expected one of"):  # all that torch has ever run on
            reason = "devices are called cpu, cuda, cuda:1"
        raise ConfigError(f"--device ({name}) cannot be used here: {reason}; use --device cpu.") from None
