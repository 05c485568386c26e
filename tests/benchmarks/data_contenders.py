"""Data paths from JPEG and mask files to uint8 batches with a random crop and flip: other people's, and ours.

Each is written as the program's own documentation recommends. All run in an environment that may lack unetdist's
packages, so only the standard library and numpy are imported at the top.
"""

import io
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.child import versions_of

Batches = Iterator[tuple[Any, Any]]
"""Endless images (B, H, W, 3) or (B, 3, H, W) and masks (B, H, W), tensors or arrays."""

# Batches before the clock starts, and batches that a worker prepares at most while nobody takes them: what was prepared
# before the clock started is not the contender's speed.
LEAD_BATCHES = 3
PREFETCH = 5

SAMPLES_PER_FILE = 256

# Folder of the same masks as PNGs whose rows have no filter, as our own shards hold them: faster to decode.
UNFILTERED_MASKS = "masks_unfiltered"

# The test card: side of a cell, its two brightnesses, and the tint of red and blue at the left and right edge.
CELL_PX, DARK, BRIGHT, TINT = 8, 60, 190, 40

# JPEG blurs the cells' edges, but a mask that is one pixel off loses a twentieth of its pixels.
LEAST_EQUAL = 0.995


@dataclass(frozen=True)
class Job:
    """The batches that every contender loads."""

    pictures: str
    """Folder with images/NAME.jpg, masks/NAME.png (class indices) and Labels.txt."""
    formats: str
    """Folder for the contenders' own formats of these pictures, kept for the next process."""
    crop: int
    """Side of the square crop in pixels."""
    batch_size: int
    num_workers: int = 0
    seed: int = 0

    def pairs(self, masks: str = "masks") -> list[tuple[str, str]]:
        """Paths of each image and its mask."""
        images = sorted(Path(self.pictures, "images").glob("*.jpg"))
        return [(str(image), str(Path(self.pictures, masks, f"{image.stem}.png"))) for image in images]

    def written(self, name: str, write: Callable[[str], object]) -> str:
        """Folder of a contender's format; `write` fills it, unless an earlier process did."""
        folder = Path(self.formats, name)
        if not (folder / ".complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write(str(folder))
            (folder / ".complete").touch()
        return str(folder)

    def loading(self) -> dict[str, Any]:
        """Arguments of a DataLoader."""
        return {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "drop_last": True,
            "persistent_workers": self.num_workers > 0,
        }


def measure(name: str, job: dict[str, Any], seconds: float) -> dict[str, float]:
    """Images, seconds and CPU seconds of this process, for at least `seconds`."""
    found = Job(**job)
    batches = CONTENDERS[name](found)
    for _ in islice(batches, LEAD_BATCHES + PREFETCH * found.num_workers):
        pass
    began, cpu_began, count = time.perf_counter(), time.process_time(), 0
    while count == 0 or time.perf_counter() - began < seconds:
        next(batches)
        count += 1
    elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    return {"images": count * found.batch_size, "seconds": elapsed, "cpu_seconds": cpu}


def check(
    name: str, card: dict[str, Any], job: dict[str, Any], num_classes: int, packages: list[str]
) -> dict[str, Any]:
    """Load four batches of the test card and of the pictures; raises ValueError if they are not what was asked for."""
    for given, classes, is_card in ((card, 2, True), (job, num_classes, False)):
        found = replace(Job(**given), num_workers=0)
        pairs = [[np.asarray(part).copy() for part in batch] for batch in islice(CONTENDERS[name](found), 4)]
        images, masks = (np.stack(parts) for parts in zip(*pairs, strict=True))
        problem = shape_problem(images, masks, found, classes) or (pairing_problem(images, masks) if is_card else None)
        if problem:
            raise ValueError(problem)
    return {"versions": versions_of(packages)}


def shape_problem(images: np.ndarray, masks: np.ndarray, job: Job, num_classes: int) -> str | None:
    """Why stacked batches (N, B, ...) are not what was asked for, or None."""
    if images.dtype != np.uint8 or masks.dtype not in (np.uint8, np.int64):
        return f"images are {images.dtype} and masks {masks.dtype}, not uint8 (masks: or int64)"
    shapes = [(job.batch_size, job.crop, job.crop, 3), (job.batch_size, 3, job.crop, job.crop)]
    if images.shape[1:] not in shapes or masks.size != images.size // 3:
        return f"batches are {images.shape[1:]} and {masks.shape[1:]}, not {shapes[0]} with as many mask pixels"
    unknown = np.unique(masks[(masks >= num_classes) & (masks != 255)])
    return f"masks hold {unknown.tolist()}, which are no classes" if len(unknown) else None


def pairing_problem(images: np.ndarray, masks: np.ndarray) -> str | None:
    """Why batches (N, B, ...) of the test card show a wrong data path, or None."""
    crop = images.shape[-2]
    pixels = images if images.shape[-1] == 3 else np.moveaxis(images, 2, -1)
    pixels = pixels.reshape(-1, crop, crop, 3).astype(np.float32)
    targets = masks.reshape(-1, crop, crop)
    luma = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    equal = ((luma > (DARK + BRIGHT) / 2) == targets).mean((1, 2))
    if equal.min() < LEAST_EQUAL:
        bad = int((equal < LEAST_EQUAL).sum())
        return f"{bad} of {len(equal)} masks do not belong to their images ({100 * equal.min():.0f} % equal)"
    tint = (pixels[..., 0] - pixels[..., 2]).mean(1)
    slope = tint[:, crop // 2 :].mean(1) - tint[:, : crop // 2].mean(1)
    if not 0.2 < (slope < 0).mean() < 0.8:
        return f"{int((slope < 0).sum())} of {len(slope)} samples are flipped, not about half"
    if len(np.unique(tint.mean(1).round())) < 4:
        return "all crops begin at the same column"
    boards = {target[::CELL_PX, ::CELL_PX].tobytes() for target in targets}
    return None if len(boards) > 1 else "all samples are the same picture"


def window(height: int, width: int, crop: int, rng: np.random.Generator) -> tuple[int, int, bool]:
    """Top, left and flip of a random crop."""
    return int(rng.integers(height - crop + 1)), int(rng.integers(width - crop + 1)), bool(rng.random() < 0.5)


def crop_pil(image: Any, mask: Any, crop: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """The same random crop and flip of two PIL pictures, as uint8 tensors (H, W, 3) and (H, W).

    As in torchvision's reference for segmentation (references/segmentation/transforms.py), without its copies to NCHW
    and int64.
    """
    import torch
    from PIL import Image

    top, left, flip = window(image.height, image.width, crop, rng)
    box = (left, top, left + crop, top + crop)
    image, mask = image.crop(box), mask.crop(box)
    if flip:
        image, mask = (part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for part in (image, mask))
    return torch.from_numpy(np.array(image)), torch.from_numpy(np.array(mask))


def forever(loader: Any) -> Batches:
    """Epoch after epoch."""
    while True:
        yield from loader


def ours(job: Job) -> Batches:
    """Our training loader with its default settings."""
    return _train_loader(job, write_our_shards(job))


def write_our_shards(job: Job) -> str:
    """Shards written as the README says; returns their folder."""
    pictures = Path(job.pictures)
    words = ("--images", pictures / "images", "--masks", pictures / "masks", "--mask-format", "ids")
    words = (*words, "--labels", pictures / "Labels.txt", "--samples-per-shard", SAMPLES_PER_FILE)
    return job.written("shards", lambda folder: shard_dataset(*words, "--out", folder))


def foreign(job: Job) -> Batches:
    """Our training loader from plain tars that are only indexed; no byte of the pictures is changed."""

    def write(folder: str) -> None:
        write_tars(folder, job)
        shard_dataset("index", folder, "--labels", Path(job.pictures, "Labels.txt"), "--mask-format", "ids")

    return _train_loader(job, job.written("indexed_tars", write))


def shard_dataset(*words: Any) -> None:
    """Run launch/shard_dataset.py; raises RuntimeError with its last line if it fails."""
    script = Path(__file__).parents[2] / "launch" / "shard_dataset.py"
    done = subprocess.run([sys.executable, str(script), *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])


def _train_loader(job: Job, folder: str) -> Batches:
    from unetdist.data.config import AugmentConfig, DataConfig
    from unetdist.data.loader import train_loader
    from unetdist.data.manifest import Manifest
    from unetdist.distributed.hardware import keep_all_freed

    keep_all_freed()  # launch/train.py does so too.
    manifest = Manifest.load(folder)
    steps = train_loader(
        DataConfig(train=folder, num_workers=job.num_workers),
        AugmentConfig(crop_size=(job.crop, job.crop), flip_horizontal=0.5),
        manifest,
        folder,
        seed=job.seed,
        channels=3,
        num_classes=manifest.num_classes,
        global_batch_size=job.batch_size,
        micro_batch_size=job.batch_size,
    )
    return ((step[0].image, step[0].mask) for step in steps)


def write_tars(folder: str, job: Job) -> None:
    """WebDataset tars as most people pack them: JPEGs and PNG masks, no index."""
    pairs = job.pairs()
    # At least four tars: webdataset gives whole tars to its workers.
    per_tar = min(SAMPLES_PER_FILE, -(-len(pairs) // 4))
    for number, at in enumerate(range(0, len(pairs), per_tar)):
        with tarfile.open(Path(folder, f"{number:05d}.tar"), "w") as tar:
            for image, mask in pairs[at : at + per_tar]:
                tar.add(image, f"{Path(image).stem}.jpg")
                tar.add(mask, f"{Path(image).stem}.mask.png")


def webdataset(job: Job) -> Batches:
    """The fluid interface with decode("pil"), as in https://github.com/webdataset/webdataset."""
    import torch
    import webdataset as wds

    folder = job.written("tars", lambda folder: write_tars(folder, job))
    rng = np.random.default_rng(job.seed)

    def transform(sample: tuple[Any, Any]) -> tuple[Any, Any]:
        # decode("pil") turns grey masks into RGB; each channel holds the class.
        image, mask = crop_pil(*sample, job.crop, rng)
        return image, mask[..., 0]

    dataset = (
        wds.WebDataset(sorted(map(str, Path(folder).glob("*.tar"))), shardshuffle=100, seed=job.seed)
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg", "mask.png")
        .map(transform)
        .batched(job.batch_size, collation_fn=torch.utils.data.default_collate, partial=False)
        .repeat()
    )
    return iter(wds.WebLoader(dataset, batch_size=None, num_workers=job.num_workers))


def streaming(job: Job) -> Batches:
    """MDS shards with `jpeg` and `png` columns.

    As in https://docs.mosaicml.com/projects/streaming/en/stable/getting_started/quick_start.html, and as its data set
    for ADE20K does.
    """
    from PIL import Image
    from streaming import MDSWriter, StreamingDataset
    from torch.utils.data import DataLoader

    def write(folder: str) -> None:
        with MDSWriter(out=folder, columns={"x": "jpeg", "y": "png"}, exist_ok=True) as writer:
            for image, mask in job.pairs():
                writer.write({"x": Image.open(image), "y": Image.open(mask)})

    rng = np.random.default_rng(job.seed)

    class Segmentation(StreamingDataset):
        def get_item(self, *args: Any, **kwargs: Any) -> Any:
            sample = super().get_item(*args, **kwargs)
            return crop_pil(sample["x"].convert("RGB"), sample["y"], job.crop, rng)

    dataset = Segmentation(local=job.written("mds", write), shuffle=True, batch_size=job.batch_size)
    return forever(DataLoader(dataset, **job.loading()))


def read_pair(pair: tuple[str, str]) -> dict[str, bytes]:
    """One sample for LitData's `optimize`, which runs this in a process of its own."""
    return {name: Path(path).read_bytes() for name, path in zip(("image", "mask"), pair, strict=True)}


def litdata(job: Job) -> Batches:
    """Chunks written by `optimize`, decoded with PIL, as in https://lightning.ai/docs/litdata/quick-start.

    The columns are bytes rather than its `Image`, which makes RGB of masks and needs torchvision.
    """
    import litdata as ld
    from PIL import Image

    def write(folder: str) -> None:
        ld.optimize(fn=read_pair, inputs=job.pairs(), output_dir=folder, num_workers=1, chunk_bytes="64MB")

    rng = np.random.default_rng(job.seed)

    class Segmentation(ld.StreamingDataset):
        def __getitem__(self, index: Any) -> Any:
            sample = super().__getitem__(index)
            image, mask = (Image.open(io.BytesIO(sample[name])) for name in ("image", "mask"))
            return crop_pil(image.convert("RGB"), mask, job.crop, rng)

    dataset = Segmentation(job.written("litdata", write), shuffle=True, drop_last=True)
    return forever(ld.StreamingDataLoader(dataset, **job.loading()))


def write_parquet(folder: str, job: Job) -> None:
    """Parquet files with Hugging Face `Image` columns, as `push_to_hub` would store them."""
    from datasets import Dataset, Features, Image

    pairs = job.pairs()
    per_file = min(SAMPLES_PER_FILE, -(-len(pairs) // 4))
    for number, at in enumerate(range(0, len(pairs), per_file)):
        columns: dict[str, list[Any]] = {"image": [], "mask": []}
        for pair in pairs[at : at + per_file]:
            for name, data in read_pair(pair).items():
                columns[name].append({"bytes": data, "path": None})
        features = Features({"image": Image(), "mask": Image()})
        Dataset.from_dict(columns, features=features).to_parquet(f"{folder}/{number:05d}.parquet")


def datasets_map(job: Job) -> Batches:
    """An Arrow table with `set_transform`, as in https://huggingface.co/docs/datasets/semantic_segmentation."""
    from datasets import load_dataset
    from torch.utils.data import DataLoader, default_collate

    rng = np.random.default_rng(job.seed)

    def transforms(examples: dict[str, Any]) -> dict[str, Any]:
        pairs = zip(examples["image"], examples["mask"], strict=True)
        return {"pair": [crop_pil(image.convert("RGB"), mask, job.crop, rng) for image, mask in pairs]}

    folder = job.written("parquet", lambda folder: write_parquet(folder, job))
    files, cache = f"{folder}/*.parquet", f"{job.formats}/arrow"
    dataset: Any = load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
    dataset.set_transform(transforms)
    collate = lambda examples: default_collate([example["pair"] for example in examples])  # noqa: E731
    return forever(DataLoader(dataset, shuffle=True, collate_fn=collate, **job.loading()))


def datasets_streaming(job: Job) -> Batches:
    """Parquet files read through a shuffle buffer, as in https://huggingface.co/docs/datasets/stream."""
    from datasets import config, load_dataset
    from torch.utils.data import DataLoader, default_collate

    # It sleeps for five seconds at the end of an epoch, which is nothing in a long one and must not count in ours.
    config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0
    rng = np.random.default_rng(job.seed)

    def transform(example: dict[str, Any]) -> dict[str, Any]:
        return {"pair": crop_pil(example["image"].convert("RGB"), example["mask"], job.crop, rng)}

    folder = job.written("parquet", lambda folder: write_parquet(folder, job))
    dataset: Any = load_dataset("parquet", data_files=f"{folder}/*.parquet", split="train", streaming=True)
    dataset = dataset.shuffle(seed=job.seed, buffer_size=1000).map(transform, remove_columns=["image", "mask"])
    collate = lambda examples: default_collate([example["pair"] for example in examples])  # noqa: E731
    epoch = 0
    while True:
        dataset.set_epoch(epoch)
        yield from DataLoader(dataset, collate_fn=collate, **job.loading())
        epoch += 1


def _files(job: Job, read: Callable[[str, str, np.random.Generator], tuple[Any, Any]]) -> Batches:
    """A torch Dataset over plain files."""
    from torch.utils.data import DataLoader, Dataset

    class Files(Dataset[Any]):
        pairs, rng = job.pairs(), np.random.default_rng(job.seed)

        def __len__(self) -> int:
            return len(self.pairs)

        def __getitem__(self, index: int) -> Any:
            return read(*self.pairs[index], self.rng)

    return forever(DataLoader(Files(), shuffle=True, **job.loading()))


def files_pil(job: Job) -> Batches:
    """Plain files read with PIL, as in torchvision.datasets.VOCSegmentation."""
    from PIL import Image

    def read(image: str, mask: str, rng: np.random.Generator) -> tuple[Any, Any]:
        return crop_pil(Image.open(image).convert("RGB"), Image.open(mask), job.crop, rng)

    return _files(job, read)


def files_opencv(job: Job) -> Batches:
    """Plain files read with OpenCV, as in https://albumentations.ai/docs/3-basic-usage/semantic-segmentation/.

    IMREAD_COLOR_RGB saves the conversion from BGR.
    """
    import cv2
    import torch

    cv2.setNumThreads(0)

    def read(image: str, mask: str, rng: np.random.Generator) -> tuple[Any, Any]:
        parts: Any = cv2.imread(image, cv2.IMREAD_COLOR_RGB), cv2.imread(mask, cv2.IMREAD_UNCHANGED)
        top, left, flip = window(*parts[1].shape, job.crop, rng)
        parts = [part[top : top + job.crop, left : left + job.crop] for part in parts]
        parts = [cv2.flip(part, 1) if flip else part for part in parts]
        return torch.from_numpy(np.ascontiguousarray(parts[0])), torch.from_numpy(np.ascontiguousarray(parts[1]))

    return _files(job, read)


def dali(job: Job, masks: str = "masks") -> Batches:
    """NVIDIA DALI on the CPU, with as many threads as workers, decoding only the window.

    Two file readers with one seed give pairs: https://github.com/NVIDIA/DALI/issues/3192
    One random anchor goes to both decoders:
    https://docs.nvidia.com/deeplearning/dali/user-guide/docs/operations/nvidia.dali.fn.decoders.image_slice.html
    """
    from nvidia.dali import fn, math, pipeline_def, types

    image_files, mask_files = map(list, zip(*job.pairs(masks), strict=True))

    @pipeline_def
    def pipeline() -> Any:
        reading = {"random_shuffle": True, "seed": job.seed + 1}
        encoded, _ = fn.readers.file(files=image_files, name="images", **reading)
        encoded_mask, _ = fn.readers.file(files=mask_files, name="masks", **reading)
        height, width = (fn.peek_image_shape(encoded)[axis] for axis in (0, 1))
        top = fn.random.uniform(range=[0.0, 1.0]) * (height - job.crop + 1)
        left = fn.random.uniform(range=[0.0, 1.0]) * (width - job.crop + 1)
        start = fn.cast(math.floor(fn.stack(top, left)), dtype=types.INT32)
        cut = {"start": start, "shape": [job.crop, job.crop], "axes": [0, 1]}
        image = fn.decoders.image_slice(encoded, device="cpu", output_type=types.RGB, **cut)
        mask = fn.decoders.image_slice(encoded_mask, device="cpu", output_type=types.GRAY, **cut)
        flip = fn.random.coin_flip()
        return fn.flip(image, horizontal=flip), fn.flip(mask, horizontal=flip)

    threads = max(1, job.num_workers)
    running = pipeline(batch_size=job.batch_size, num_threads=threads, device_id=None, seed=job.seed + 1)
    running.build()
    while True:
        image, mask = running.run()
        yield image.as_array(), mask.as_array()


CONTENDERS: dict[str, Callable[[Job], Batches]] = {
    "ours": ours,
    "foreign": foreign,
    "webdataset": webdataset,
    "streaming": streaming,
    "litdata": litdata,
    "datasets": datasets_map,
    "datasets-streaming": datasets_streaming,
    "files-pil": files_pil,
    "files-opencv": files_opencv,
    "dali": dali,
    "dali-unfiltered": lambda job: dali(job, UNFILTERED_MASKS),
}
