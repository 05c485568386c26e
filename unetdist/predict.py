"""Class ids, and overlays for the eye, of image files."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image

from unetdist import pictures, storage
from unetdist.data.decode import PICTURE_SUFFIXES, decode_image
from unetdist.data.orientation import orientation_of, upright
from unetdist.errors import ConfigError, DataError
from unetdist.inference import WHOLE_IMAGE, InferenceConfig, predict_rows
from unetdist.logs import logger, progress
from unetdist.saved_model import SavedModel


@dataclass(frozen=True)
class Job:
    """An image file and where its results go: `<target>_ids.png`, `<target>_overlay.png`."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Failure:
    """An image file that gave no result, and why."""

    source: Path
    reason: str


def find_jobs(source: Path, out: Path) -> list[Job]:
    """The images of `source`, a file or a folder with folders in it, by name.

    Folders below `source` are kept below `out`. Hidden files are skipped, and so is `out` inside `source`.

    Raises:
        DataError: nothing there, no images, `source` lies in `out`, or two files would have one result.
    """
    if source.is_file():
        return [Job(source, out / source.stem)]
    if not source.is_dir():
        raise DataError("does not exist; give --input an image or a folder of images.", source=source)
    if source.resolve().is_relative_to(out.resolve()):
        raise DataError(
            f"lies in the output folder {out}, and results would mix with images; give --out another folder.",
            source=source,
        )
    jobs: dict[Path, Job] = {}
    for path in sorted(source.rglob("*")):
        inner = path.relative_to(source)
        if path.suffix.lower() not in PICTURE_SUFFIXES or any(part.startswith(".") for part in inner.parts):
            continue
        if not path.is_file() or path.resolve().is_relative_to(out.resolve()):
            continue
        job = Job(path, out / inner.with_suffix(""))
        if (other := jobs.setdefault(job.target, job)) is not job:
            raise DataError(
                f"this and {other.source} would both write {job.target}_ids.png; rename one of them.",
                source=path,
            )
    if not jobs:
        raise DataError(f"no images in it; looked for {', '.join(PICTURE_SUFFIXES)}.", source=source)
    return list(jobs.values())


def predict_files(
    saved: SavedModel,
    source: Path,
    out: Path,
    *,
    overlay: bool = False,
    inference: InferenceConfig = WHOLE_IMAGE,
    device: torch.device | str = "cpu",
) -> list[Failure]:
    """Write the class ids of every image of `source` below `out`; the files that cannot be read are returned.

    Results have the size and the orientation in which a viewer shows the image.

    Args:
        saved: the model, on `device`.
        source: an image or a folder.
        out: folder; files of earlier runs are replaced.
        overlay: also write the image under its classes' colours, with a legend.
        inference: windows, flips, scales.
        device: where to compute.

    Raises:
        DataError: see `find_jobs` and `write_png`.
    """
    jobs = find_jobs(source, out)
    failures = []
    with progress("predicting", len(jobs)) as bar:
        for job in jobs:
            try:
                image = read_upright(job.source, saved.model.config.in_channels)
            except DataError as error:
                failures.append(Failure(job.source, str(error)))
            else:
                pred = predict_image(saved, image, inference=inference, device=device)
                write_png(Path(f"{job.target}_ids.png"), saved.palette.to_ids(pred))
                if overlay:
                    picture = pictures.overlay(image, pred, saved.palette.colors, saved.palette.class_names)
                    write_png(Path(f"{job.target}_overlay.png"), picture)
            bar.advance(1, job.source.name)
    logger.info("%d of %d images predicted, results in %s", len(jobs) - len(failures), len(jobs), out)
    for failure in failures:
        logger.error("%s: %s", failure.source, failure.reason)
    return failures


def predict_image(
    saved: SavedModel,
    image: np.ndarray,
    *,
    inference: InferenceConfig = WHOLE_IMAGE,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """Class indices (H, W) uint8 of an image (H, W, C) uint8 with the channels of the model.

    With a window the memory that this takes does not grow with the image, but for its pixels and classes.
    """
    # One image per forward pass: its result must not depend on the files beside it.
    batch = rearrange(torch.from_numpy(np.ascontiguousarray(image)), "h w c -> 1 c h w").to(device)
    portions = predict_rows(saved.model, batch, resize=saved.resize, inference=inference)
    return np.concatenate([logits.argmax(0).to(torch.uint8).cpu().numpy() for logits in portions])


def read_upright(path: Path, channels: int) -> np.ndarray:
    """Pixels (H, W, channels) uint8 of an image file, turned as its EXIF orientation asks.

    Raises:
        DataError: not an image that can be read.
    """
    try:
        data = path.read_bytes()
        image = decode_image(data, channels)
        with Image.open(io.BytesIO(data)) as opened:
            orientation = orientation_of(opened)
    except (OSError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot be read ({error}); replace the file, or cut it into parts.") from None
    return upright(image, orientation)


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 pixels, (H, W) grey or (H, W, 3) RGB; the file is there whole or not at all.

    Raises:
        DataError: the disk is full, or the folder cannot be written to.
    """
    try:
        with storage.write_atomic(path) as file:
            Image.fromarray(pixels).save(file, format="PNG")
    except OSError as error:
        raise DataError(
            f"cannot be written ({error}); make room or give --out another folder.", source=path
        ) from None


def find_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ConfigError: this machine, or this build of torch, has none.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device ({name}) cannot be used here: {reason}; use --device cpu.") from None
