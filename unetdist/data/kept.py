"""All pictures of a data set, decoded once and kept: in the device's memory, or in this machine's."""

import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unetdist.data.access import DataConfig, fetch_ahead
from unetdist.data.batch import Sample
from unetdist.data.device_augment import Place
from unetdist.data.manifest import Manifest
from unetdist.data.reader import ShardReader
from unetdist.data.requests import ValBatches, part_of, shards_of
from unetdist.data.samples import KeptDataset, Samples
from unetdist.data.workers import items, work
from unetdist.distributed import all_reduce_sum, any_rank, broadcast_tensor
from unetdist.errors import DataError, UnetdistError
from unetdist.logs import logger, progress

Pixels = npt.NDArray[np.uint8]
Store = Literal["device", "host"]

_GROUP = 4
"""Pictures that a worker hands over at once."""


def resident_bytes(manifest: Manifest, channels: int) -> int:
    """What all images of so many channels and their masks take, decoded; bad samples take nothing."""
    return manifest.num_pixels * (channels + 1)


@dataclass(frozen=True)
class Kept:
    """The pixels of all pictures in one row; of a bad sample none."""

    images: Tensor
    """(P, C) uint8"""
    masks: Tensor
    """(P,) uint8 class indices, 255 = ignored."""
    places: list[Place]
    """By sample id."""
    counts: npt.NDArray[np.int64]
    """(samples, num_classes) pixels of each class."""

    def pixels(self, sample_ids: range) -> slice:
        """Those of neighbours."""
        if not sample_ids:
            return slice(0)
        first, (start, height, width) = self.places[sample_ids.start].first, self.places[sample_ids.stop - 1]
        return slice(first, start + height * width)

    def is_bad(self, sample_id: int) -> bool:
        """Whether the sample is to be left blank."""
        return self.places[sample_id].height == 0


def keep(
    cfg: DataConfig,
    manifest: Manifest,
    reader: ShardReader,
    *,
    channels: int,
    num_classes: int,
    rank: int,
    world_size: int,
    local_world_size: int,
    device: torch.device,
    store: Store,
    at: Callable[[str], None],
) -> Kept:
    """Collective. Each rank decodes its part of the samples, and gets those of the others from them.

    Raises:
        DataError: A sample cannot be used, here or on another rank.
    """
    start_s = time.monotonic()
    parts = [part_of(manifest.num_samples, rank=each, world_size=world_size) for each in range(world_size)]
    samples = Samples(reader, channels=channels, num_classes=num_classes)
    decoded: deque[Sample | None] = deque()
    problem: UnetdistError | None = None
    try:
        with progress("decoding pictures", len(parts[rank]), enabled=rank == 0) as bar:
            for sample in _decoded(cfg, samples, parts[rank], local_world_size):
                decoded.append(sample)
                bar.advance()
                at(f"decoding pictures: {len(decoded)} of {len(parts[rank])}")
    except UnetdistError as error:
        problem = error
    if any_rank(problem is not None, device):
        raise problem or DataError(
            "another process could not decode its part of the pictures, and tells why; this one ends with it.",
            source=reader.folder,
        )
    at("decoding pictures: exchanging them")
    kept = _laid_out(
        _facts(decoded, parts[rank], num_classes, manifest.num_samples, device), channels, device, store
    )
    _fill(kept, decoded, parts[rank])
    for src, part in enumerate(parts):
        pixels = kept.pixels(part)
        broadcast_tensor(kept.images[pixels], src, device)
        broadcast_tensor(kept.masks[pixels], src, device)
    logger.info(
        "%d pictures, %.2f GB, were decoded in %.0f s and stay in the memory of the %s",
        manifest.num_samples,
        (kept.images.numel() + kept.masks.numel()) / 1e9,
        time.monotonic() - start_s,
        store,
    )
    return kept


def _facts(
    decoded: Sequence[Sample | None], part: range, num_classes: int, num_samples: int, device: torch.device
) -> npt.NDArray[np.int64]:
    """Collective. Height, width, and pixels of each class of every sample, (samples, 2 + num_classes)."""
    facts = np.zeros((num_samples, 2 + num_classes), np.int64)
    for sample_id, sample in zip(part, decoded, strict=True):
        if sample is not None:
            facts[sample_id] = *sample.mask.shape, *sample.counts[:num_classes]
    return all_reduce_sum(torch.from_numpy(facts).to(device)).cpu().numpy()


def _laid_out(facts: npt.NDArray[np.int64], channels: int, device: torch.device, store: Store) -> Kept:
    """Room for all pictures, of which `facts` tell."""
    heights, widths = facts[:, 0], facts[:, 1]
    ends = np.cumsum(heights * widths)
    firsts = (ends - heights * widths).tolist()
    places = [Place(*each) for each in zip(firsts, heights.tolist(), widths.tolist(), strict=True)]
    room = max(int(ends[-1]), 1)
    return Kept(
        _room((room, channels), device, store), _room((room,), device, store), places, facts[:, 2:].copy()
    )


def _fill(kept: Kept, decoded: deque[Sample | None], part: range) -> None:
    """Move the samples of `part` to where they stay, one by one, so that they do not take their memory twice."""
    for sample_id in part:
        sample = decoded.popleft()
        if sample is not None:
            pixels = kept.pixels(range(sample_id, sample_id + 1))
            kept.images[pixels] = _tensor(sample.image).view(-1, kept.images.shape[1])
            kept.masks[pixels] = _tensor(sample.mask).view(-1)


def _decoded(
    cfg: DataConfig, samples: Samples, mine: range, local_world_size: int
) -> Iterator[Sample | None]:
    """The samples of `mine` in order; the processes that decode them end with it."""
    reader = samples.reader
    prefetcher = fetch_ahead(
        reader, lambda _: shards_of(reader.manifest.shard_sizes, mine), mine.start, local_world_size
    )
    progress = prefetcher.position if prefetcher else None
    with closing(prefetcher) if prefetcher else nullcontext():
        groups = work(
            KeptDataset(samples, on_bad_sample=cfg.on_bad_sample),
            ValBatches(mine, batch_size=_GROUP, progress=progress),
            num_workers=cfg.num_workers,
            prefetch=cfg.prefetch,
            pin_memory=False,
        )
        for group in items(groups):
            yield from group


def _tensor(pixels: Pixels) -> Tensor:
    # torch warns of arrays that cannot be written to, as decoders may return.
    return torch.from_numpy(np.require(pixels, requirements=["C", "W"]))


def _room(shape: tuple[int, ...], device: torch.device, store: Store) -> Tensor:
    """New uint8 memory; in that of the machine page-locked, so that a GPU copies from it without waiting."""
    if store == "device":
        return torch.empty(shape, dtype=torch.uint8, device=device)
    room = torch.empty(shape, dtype=torch.uint8)
    if device.type == "cuda":
        # Asked for as pinned memory, torch would take the next power of two.
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        torch.cuda.check_error(runtime.cudaHostRegister(room.data_ptr(), room.numel(), 0))
        weakref.finalize(room, runtime.cudaHostUnregister, room.data_ptr()).atexit = False
    return room
