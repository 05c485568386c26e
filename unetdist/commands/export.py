"""Write a trained model for other programs: `unetdist export --model runs/x/best --out x.onnx`.

The file takes images (batch, channels, height, width) of any size as bytes, RGB 0..255, and normalises them itself. It
gives logits, or with --argmax the class of each pixel. Its metadata has the classes, their ids and colours, and the
training size. It is compared with the trained model on images at three sizes; the exit code is 1 if they differ.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unetdist.cli.command_line import Options
from unetdist.cli.commands import typed
from unetdist.cli.logs import PlainConsole, logger, set_up_logging
from unetdist.errors import ConfigError, writable

if TYPE_CHECKING:
    from unetdist.model.saved_model import SavedModel

# Versions of ONNX's operators that the exporter writes and ONNX Runtime reads.
OPSETS = range(18, 24)

NUM_CALIBRATION = 64


def main(argv: Sequence[str]) -> int:
    """Write and compare."""
    args = parse(argv)
    from unetdist.model.saved_model import load_model
    from unetdist.predict.export.agreement import agreement_table, compare, find_check_images
    from unetdist.predict.export.graph import open_onnx

    set_up_logging()
    saved = load_model(args.model)
    # Before the file is written, because an image that cannot be read would leave it unchecked.
    origin, images = find_check_images(saved, args.check or args.calibrate, limit=args.num_images)
    _write(saved, args)
    logger.info("%s written, %.1f MB; comparing", args.out, args.out.stat().st_size / 1e6)
    if saved.image_range is not None:
        logger.info(
            "its input is 8-bit: values %g to %g of deeper images must become 0 to 255, rounded (image_range in its "
            "metadata)",
            *saved.image_range,
        )
    agreements = compare(saved.model, open_onnx(args.out), images)
    PlainConsole().print(agreement_table(agreements, precision=args.precision, origin=origin))
    if all(row.holds(args.precision) for row in agreements):
        return 0
    logger.error("%s does not agree with %s: do not use it.", args.out, args.model)
    return 1


def _write(saved: "SavedModel", args: argparse.Namespace) -> None:
    from unetdist.predict.export.agreement import find_check_images
    from unetdist.predict.export.graph import metadata_of, quantize, trace, write_onnx

    calibration = None
    if args.calibrate is not None:
        _, calibration = find_check_images(saved, args.calibrate, limit=NUM_CALIBRATION)
    program = trace(saved, argmax=args.argmax, precision=args.precision)
    metadata = metadata_of(saved, argmax=args.argmax, precision=args.precision)
    with writable("--out", args.out):
        write_onnx(program, args.out, metadata, opset=args.opset, argmax=args.argmax)
        if calibration:
            quantize(args.out, [each.image for each in calibration])


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = Options(typed("export"), table="export", description=__doc__)
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="trained model: runs/NAME, or OWNER/NAME of the Hugging Face Hub")
    add("--out", required=True, type=Path, metavar="FILE", help="file to write, such as model.onnx")
    add("--argmax", action="store_true", help="give class indices, uint8 (batch, height, width), instead of logits")
    kinds = "precision of the weights and layers; fp16 halves the file, int8 quarters it (default: fp32)"
    add("--precision", choices=("fp32", "fp16", "int8"), default="fp32", help=kinds)
    add("--opset", type=int, choices=OPSETS, metavar="N", help="version of ONNX's operators, 18 to 23 (default: 20)")
    images = "shards, image or folder of images for the comparison (default: those of --calibrate, or drawn shapes)"
    add("--check", metavar="PATH", help=images)
    add("--num-images", type=int, default=128, metavar="N", help="compare the first N images (default: %(default)s)")
    ranges = f"for int8: training shards or images; the first {NUM_CALIBRATION} give the range of each layer"
    add("--calibrate", metavar="PATH", help=ranges)
    args = parser.parse_args(argv)
    if (args.precision == "int8") != (args.calibrate is not None):
        raise ConfigError(
            "--precision int8 and --calibrate go together: the range of each layer is learned from images; give both, "
            "such as --precision int8 --calibrate shards/train."
        )
    if args.num_images < 1:
        raise ConfigError(f"--num-images ({args.num_images}) must be 1 or more; use 128.")
    return args
