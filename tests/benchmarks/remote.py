"""Shards of other machines beside the same ones on the local disk: time to the first batch, speed once cached."""

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks.arguments import add_out, positive, positive_seconds
from tests.benchmarks.rounds import Measured, run_rounds
from unetdist.cli.logs import logger
from unetdist.data.augment import AugmentConfig
from unetdist.data.batch import Batch
from unetdist.data.loader import DataConfig, open_data, open_reader, train_loader
from unetdist.errors import DataError
from unetdist.storage.files import write_json

BATCH_SIZE = 16
LEAD_BATCHES = 3
FILL_S = 600.0
"""Longest wait until all shards are in the cache."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the subcommand `remote` understands."""
    add = parser.add_argument
    add("--local", type=Path, required=True, metavar="DIR", help="the shards on a local disk")
    add("--at", nargs="+", required=True, metavar="URL", help="where the same shards are too")
    add("--crop", type=positive, default=256, metavar="PX", help="(%(default)s)")
    add("--rounds", type=positive, default=15, metavar="N", help="that count (%(default)s)")
    add("--seconds", type=positive_seconds, default=1.0, help="of a round (%(default)s)")
    add_out(parser)


def run(args: argparse.Namespace, facts: Mapping[str, Any]) -> None:
    """The subcommand `remote`: measure and print; all numbers go to OUT/remote.json."""
    streamed = stream(args.local, args.at, crop=args.crop, num_rounds=args.rounds, seconds=args.seconds)
    write_json(args.out / "remote.json", {**facts, **to_mapping(streamed)})
    Console().print(table(streamed))
    logger.info("all numbers are in %s", args.out / "remote.json")


@dataclass(frozen=True)
class Streamed:
    """What was measured of all locations; the first is the local one."""

    locations: tuple[str, ...]
    first_batch_s: dict[str, float]
    """From nothing, and with an empty cache: manifest, indexes, first samples."""
    measured: Measured
    """Rounds once all shards were cached."""


class _Loader:
    """Training batches from one location, in this process."""

    def __init__(self, location: str, cache_dir: str, crop: int) -> None:
        began = time.perf_counter()
        cfg = DataConfig(train=location, num_workers=0, cache_dir=cache_dir)
        folder, manifest = open_data(cfg, location)
        self._reader = open_reader(cfg, folder, manifest)
        self._steps = train_loader(
            cfg,
            AugmentConfig(crop_size=(crop, crop), flip_horizontal=0.5),
            manifest,
            folder,
            seed=0,
            channels=3,
            num_classes=manifest.num_classes,
            global_batch_size=BATCH_SIZE,
            micro_batch_size=BATCH_SIZE,
        )
        self._batches: Iterator[Batch] = (step[0] for step in self._steps)
        next(self._batches)
        self.first_batch_s = time.perf_counter() - began

    def close(self) -> None:
        """End the prefetching process."""
        self._steps.close()

    def fill_cache(self) -> None:
        """Wait until the prefetching process has fetched every shard."""
        cache = self._reader.cache
        shards = [shard for shard in self._reader.manifest.shards if shard.num_samples]
        deadline = time.monotonic() + FILL_S
        while cache and not all(cache.find(shard) for shard in shards):
            if time.monotonic() > deadline:
                raise DataError(
                    f"not all shards were cached within {FILL_S:.0f} s; measure fewer of them.",
                    source=self._reader.folder,
                )
            time.sleep(0.1)

    def ask(self, do: str, *, seconds: float) -> dict[str, float]:
        """One round of `time`, as a contender's process gives it."""
        assert do == "time"
        for _ in range(LEAD_BATCHES):
            next(self._batches)
        began, cpu_began = time.perf_counter(), time.process_time()
        num_samples, elapsed = 0, 0.0
        while elapsed < seconds:
            num_samples += len(next(self._batches))
            elapsed = time.perf_counter() - began
        cpu_s = time.process_time() - cpu_began
        return {"samples": float(num_samples), "seconds": elapsed, "cpu_seconds": cpu_s}


def stream(local: Path, urls: Sequence[str], *, crop: int, num_rounds: int, seconds: float) -> Streamed:
    """Measure the same shards in a local folder and at each URL, with a cache of its own."""
    locations = (str(local), *urls)
    # The prefetching processes end before the cache goes.
    with TemporaryDirectory(prefix="unetdist-") as folder, ExitStack() as opened:
        loaders = {}
        for number, location in enumerate(locations):
            loaders[location] = opened.enter_context(closing(_Loader(location, f"{folder}/{number}", crop)))
            logger.info("%s: first batch after %.2f s", location, loaders[location].first_batch_s)
        for loader in loaders.values():
            loader.fill_cache()
        measured = run_rounds(loaders, num_rounds=num_rounds, seconds=seconds, label="measuring")
        first_batch_s = {location: loader.first_batch_s for location, loader in loaders.items()}
    return Streamed(locations, first_batch_s, measured)


def to_mapping(streamed: Streamed) -> dict[str, Any]:
    """As plain JSON types."""
    return {
        "locations": list(streamed.locations),
        "first_batch_s": streamed.first_batch_s,
        "rounds": streamed.measured.rounds,
    }


def table(streamed: Streamed) -> Table:
    """What a person reads."""
    table = Table(title="shards of other machines, in one process", title_justify="left")
    for column, justify in (
        ("", "left"),
        ("first batch", "right"),
        ("cached: samples/s", "right"),
        ("of the local disk's", "right"),
    ):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    local = streamed.locations[0]
    for location in streamed.locations:
        rates = sorted(streamed.measured.rates(location))
        ratio = streamed.measured.ratio(location, local)
        table.add_row(
            location,
            f"{streamed.first_batch_s[location]:.2f} s",
            f"{rates[len(rates) // 2]:.0f}",
            "" if location == local else f"{ratio.median:.2f} ({ratio.low:.2f} .. {ratio.high:.2f})",
        )
    return table
