"""--window, --overlap, --tta and --scales: how launch/predict.py and launch/evaluate.py are told of inference."""

import argparse

from unetdist.model.inference import InferenceConfig

TTA_SCALES = (0.75, 1.0, 1.25)


def add_inference_options(parser: argparse.ArgumentParser) -> None:
    """The options that `inference_of` reads."""
    default = InferenceConfig()
    parser.add_argument(
        "--window",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="predict in overlapping windows of so many pixels, in memory that does not grow with the image",
    )
    parser.add_argument(
        "--overlap",
        type=float,
        default=default.overlap,
        metavar="SHARE",
        help="of a window that its neighbour sees too (default: %(default)s)",
    )
    parser.add_argument(
        "--tta",
        action="store_true",
        help=f"average over the mirror image and the scales {', '.join(map(str, TTA_SCALES))}, which only a model "
        "gains by that was trained at several scales (else add --scales 1); takes 7 times as long",
    )
    parser.add_argument(
        "--scales", nargs="+", type=float, metavar="SCALE", help="average over these sizes of the image"
    )


def inference_of(args: argparse.Namespace) -> InferenceConfig:
    """What the options say; `ConfigError` where that cannot work."""
    scales = args.scales or (TTA_SCALES if args.tta else (1.0,))
    window = None if args.window is None else tuple(args.window)
    return InferenceConfig(window=window, overlap=args.overlap, flips=args.tta, scales=tuple(scales))
