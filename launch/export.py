"""Write a trained model for other programs: `python launch/export.py --model runs/x/best --format onnx --out x.onnx`.

The file takes images (batch, channels, height, width) of any size as bytes, RGB 0..255, and normalises them itself. It
gives logits, or with --argmax each pixel's class. Classes, ids, colours and the size trained at are in its metadata.
It is compared with the trained model on real pictures at three sizes; the exit code is 1 where they do not agree.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from unetdist.cli.logs import PlainConsole, logger, run_script, set_up_logging
from unetdist.errors import ConfigError
from unetdist.model.inference import Predict
from unetdist.model.saved_model import SavedModel, load_model
from unetdist.predict.export.agreement import compare, milliseconds
from unetdist.predict.export.onnx_file import OPSETS, open_onnx, quantize, write_onnx
from unetdist.predict.export.pictures import find_pictures
from unetdist.predict.export.report import render
from unetdist.predict.export.torch_file import open_torch, write_torch
from unetdist.predict.export.trace import metadata_of, trace

NUM_CALIBRATION = 64


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, write, compare."""
    args = make_parser().parse_args(argv)
    _check(args)
    set_up_logging()
    saved = load_model(args.model)
    exported = _write(saved, args)
    logger.info("%s written, %.1f MB; comparing", args.out, args.out.stat().st_size / 1e6)
    if saved.image_range is not None:
        low, high = saved.image_range
        logger.info(
            "it takes bytes: of images of more than 8 bits the values %g to %g must become 0 to 255, rounded "
            "(image_range in its metadata)",
            low,
            high,
        )
    of, pictures = find_pictures(saved, args.model, args.check, limit=args.num_images)
    agreements = compare(saved.model, exported, pictures)
    console = PlainConsole()
    console.print(render(agreements, precision=args.precision, of=of))
    trained_ms, exported_ms = milliseconds([saved.model, exported], pictures[0].image)
    height, width = pictures[0].image.shape[-2:]
    console.print(
        f"one {width}x{height} image on this CPU: trained {trained_ms:.1f} ms, exported {exported_ms:.1f} ms "
        f"({trained_ms / exported_ms:.2f} times as fast)",
        soft_wrap=True,
    )
    if all(row.holds(args.precision) for row in agreements):
        return 0
    logger.error("%s does not agree with %s: do not use it.", args.out, args.model)
    return 1


def _check(args: argparse.Namespace) -> None:
    """Refuse what cannot work before anything is read."""
    if args.format == "torch" and (args.precision == "int8" or args.opset is not None):
        option = "--opset" if args.opset is not None else "--precision int8"
        raise ConfigError(f"{option} is of ONNX alone; use --format onnx.")
    if (args.precision == "int8") != (args.calibrate is not None):
        raise ConfigError(
            "--precision int8 and --calibrate go together: the range of each layer is learned from pictures; give "
            "both, such as --precision int8 --calibrate shards/train."
        )
    if args.num_images < 1:
        raise ConfigError(f"--num-images ({args.num_images}) must be 1 or more; use 128.")


def _write(saved: SavedModel, args: argparse.Namespace) -> Predict:
    """The file, opened again."""
    facts = {"argmax": args.argmax, "precision": args.precision}
    metadata = metadata_of(saved, **facts)
    calibration = None
    if args.calibrate is not None:
        _, calibration = find_pictures(saved, args.model, args.calibrate, limit=NUM_CALIBRATION)
    program = trace(saved, **facts)
    try:
        if args.format == "torch":
            write_torch(program, args.out, metadata)
            return open_torch(args.out)
        write_onnx(program, args.out, metadata, opset=args.opset, argmax=args.argmax)
        if calibration is not None:
            quantize(args.out, [picture.image for picture in calibration])
    except OSError as error:
        raise ConfigError(f"--out ({args.out}) cannot be written ({error.strerror}); give another file.") from None
    return open_onnx(args.out)


def make_parser() -> argparse.ArgumentParser:
    """All that the command line understands."""
    parser = argparse.ArgumentParser(
        "launch/export.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, type=Path, metavar="DIR", help="a trained model: runs/NAME/best")
    add("--format", choices=("onnx", "torch"), default="onnx", help="onnx, or torch.export's .pt2 (default: onnx)")
    add("--out", required=True, type=Path, metavar="FILE", help="such as model.onnx or model.pt2")
    add("--argmax", action="store_true", help="give class indices, uint8 (batch, height, width), not logits")
    add(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        default="fp32",
        help="of weights and layers; fp16 halves the file, int8 quarters it (default: fp32)",
    )
    add("--opset", type=int, choices=OPSETS, metavar="N", help="version of ONNX's operators, 18 to 23 (default: 20)")
    add(
        "--check",
        metavar="PATH",
        help="shards, image or folder of images to compare on (default: the run's data.val, else drawn shapes)",
    )
    add("--num-images", type=int, default=128, metavar="N", help="compare on the first N (default: %(default)s)")
    add(
        "--calibrate",
        metavar="PATH",
        help=f"for int8: training shards or images; the first {NUM_CALIBRATION} show the range of each layer",
    )
    return parser


if __name__ == "__main__":
    run_script(main)
