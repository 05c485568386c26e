"""Training without workers: all pictures are decoded once and kept, and each batch is made of them on the device."""

from collections.abc import Callable, Generator, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unetdist.data.access import DataConfig, open_reader
from unetdist.data.augment import Augmenter, Change
from unetdist.data.augment_config import AugmentConfig
from unetdist.data.batch import Batch
from unetdist.data.device_augment import DeviceAugmenter, Place
from unetdist.data.kept import Kept, Store, keep
from unetdist.data.loader import check_batch_sizes, steps_of, train_size
from unetdist.data.manifest import Manifest
from unetdist.data.order import Order
from unetdist.data.requests import MicroBatch, MicroBatches
from unetdist.folders import Folder

Pixels = npt.NDArray[np.uint8]


def resident_loader(
    cfg: DataConfig,
    augment_cfg: AugmentConfig,
    manifest: Manifest,
    folder: str | Path | Folder,
    *,
    seed: int,
    channels: int,
    num_classes: int,
    global_batch_size: int,
    micro_batch_size: int,
    device: torch.device | str,
    store: Store,
    rank: int = 0,
    world_size: int = 1,
    local_world_size: int = 1,
    from_sample: int = 0,
    native_from: int | None = None,
    compiler: str | None = None,
    at: Callable[[str], None] = lambda _: None,
) -> Generator[list[Batch], None, None]:
    """Collective. The steps of `train_loader`, whose batches lie on `device`, but for their ids.

    Args:
        cfg: As of `train_loader`, and what follows; workers are needed only until this returns.
        augment_cfg: Likewise.
        manifest: Likewise.
        folder: Likewise.
        seed: Likewise.
        channels: Likewise.
        num_classes: Likewise.
        global_batch_size: Likewise.
        micro_batch_size: Likewise.
        device: Where batches are made, and where the backend computes.
        store: Where all pictures are kept: on the `device`, or in the `host`'s memory, from which those of each batch
            are copied, with every process of a machine holding them all.
        rank: As of `train_loader`.
        world_size: Likewise.
        local_world_size: Likewise.
        from_sample: Likewise.
        native_from: Likewise.
        compiler: A backend of torch.compile for what is done on the device; None for none.
        at: Is told what this process is doing as it decodes the pictures.

    Raises:
        ConfigError: As of `train_loader`.
        DataError: Likewise, but at once: every sample is seen before the first step.
    """
    size = train_size(augment_cfg, manifest, folder)
    check_batch_sizes(global_batch_size, micro_batch_size, world_size)
    order = Order(manifest.shard_sizes, seed=seed, lanes=cfg.lanes, window=cfg.window)
    reader = open_reader(cfg, folder, manifest)
    reader.check(rank=rank, world_size=world_size)
    device = torch.device(device)
    kept = keep(
        cfg,
        manifest,
        reader,
        channels=channels,
        num_classes=num_classes,
        rank=rank,
        world_size=world_size,
        local_world_size=local_world_size,
        device=device,
        store=store,
        at=at,
    )
    augmenter = Augmenter(
        augment_cfg,
        seed=seed,
        class_pixels=manifest.class_pixels,
        mean=manifest.mean,
        native_from=native_from,
    )
    twin = DeviceAugmenter(
        augmenter, size=size, channels=channels, num_classes=num_classes, compiler=compiler
    )
    most = 2 * micro_batch_size if augmenter.mixer.is_on else micro_batch_size
    pick = _whole(kept) if store == "device" else _Copier(kept, most, device)
    requests = MicroBatches(
        order,
        global_batch_size=global_batch_size,
        micro_batch_size=micro_batch_size,
        rank=rank,
        world_size=world_size,
        from_sample=from_sample,
        has_partners=augmenter.mixer.is_on,
    )
    batches = _batches(requests, kept, twin, pick, device)
    accumulation = global_batch_size // (world_size * micro_batch_size)
    return _steps(batches, accumulation, cfg.max_bad_samples, reader.folder)


_Picked = tuple[Tensor, Tensor, Sequence[Place]]
"""Images and masks on the device, and where in them the pictures of a batch lie."""
_Pick = Callable[[Sequence[int], Sequence[Change | None]], _Picked]


def _steps(
    batches: Iterator[Batch], accumulation: int, max_bad_samples: int, folder: Folder
) -> Generator[list[Batch], None, None]:
    yield from steps_of(batches, accumulation, max_bad_samples, folder)


def _batches(
    requests: MicroBatches, kept: Kept, twin: DeviceAugmenter, pick: _Pick, device: torch.device
) -> Iterator[Batch]:
    """Each made as it is asked for; nothing waits for the device."""
    mask_of = _masks(kept, is_seen=twin.augmenter.config.rare_class_crop > 0)
    for request in requests:
        yield _batch(request, kept, twin, pick, mask_of, device)


def _batch(
    request: MicroBatch,
    kept: Kept,
    twin: DeviceAugmenter,
    pick: _Pick,
    mask_of: Callable[[Place], Pixels],
    device: torch.device,
) -> Batch:
    augmenter = twin.augmenter
    mixes = augmenter.mixer(request.keys, request.partners)
    keys = [*request.keys, *request.partners]
    is_used = [True] * len(mixes) + [mix is not None for mix in mixes[: len(request.partners)]]
    changes = [
        augmenter.change(mask_of(kept.places[sample_id]), draws, kept.counts[sample_id], epoch=epoch)
        if used and not kept.is_bad(sample_id)
        else None
        for (epoch, sample_id), draws, used in zip(keys, augmenter.draws(keys), is_used, strict=True)
    ]
    images, masks, places = pick([sample_id for _, sample_id in keys], changes)
    packed = torch.from_numpy(twin.pack(changes, places, mixes))
    if device.type == "cuda":
        packed = packed.pin_memory()
    with torch.profiler.record_function("step: augment"):
        image, mask, class_pixels = twin(images, masks, packed.to(device, non_blocking=True))
    ids = torch.tensor([sample_id for _, sample_id in request.keys])
    return Batch(image, mask, ids, class_pixels, changes[: len(ids)].count(None))


def _masks(kept: Kept, *, is_seen: bool) -> Callable[[Place], Pixels]:
    """The mask at a place, for who decides on a crop; where nobody looks at it, only its size is right."""
    if not is_seen:
        unseen = lru_cache(lambda size: np.broadcast_to(np.uint8(0), size))
        return lambda place: unseen((place.height, place.width))
    masks = kept.masks.cpu().numpy()

    def mask_of(place: Place) -> Pixels:
        pixels = masks[place.first : place.first + place.height * place.width]
        return pixels.reshape(place.height, place.width)

    return mask_of


def _whole(kept: Kept) -> _Pick:
    """All pictures are on the device."""
    return lambda ids, _: (kept.images, kept.masks, [kept.places[sample_id] for sample_id in ids])


class _Copier:
    """Copies to the device the rows that a batch needs, while the device still computes what was asked before."""

    def __init__(self, kept: Kept, batch_size: int, device: torch.device) -> None:
        self._kept = kept
        # Always the same size, for which alone the function on the device is compiled.
        self._pixels = max(batch_size * max(place.height * place.width for place in kept.places), 1)
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, ids: Sequence[int], changes: Sequence[Change | None]) -> _Picked:
        with torch.profiler.record_function("step: copy"), torch.cuda.stream(self._stream):
            images, masks, places = self._copied(ids, changes)
        if self._stream is not None:
            computing = torch.cuda.current_stream(self._device)
            computing.wait_stream(self._stream)
            images.record_stream(computing)
            masks.record_stream(computing)
        return images, masks, places

    def _copied(self, ids: Sequence[int], changes: Sequence[Change | None]) -> _Picked:
        kept = self._kept
        images = torch.empty((self._pixels, kept.images.shape[1]), dtype=torch.uint8, device=self._device)
        masks = torch.empty((self._pixels,), dtype=torch.uint8, device=self._device)
        places = []
        end = 0
        for sample_id, change in zip(ids, changes, strict=True):
            place = kept.places[sample_id]
            if change is not None:
                box = change.window.box((place.height, place.width))
                above = box.top * place.width
                first, pixels = place.first + above, (box.bottom - box.top) * place.width
                for there, here in ((images, kept.images), (masks, kept.masks)):
                    there[end : end + pixels].copy_(here[first : first + pixels], non_blocking=True)
                place = place._replace(first=end - above)
                end += pixels
            places.append(place)
        return images, masks, places
