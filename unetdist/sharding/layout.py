"""Which samples a shard holds."""

from collections.abc import Sequence
from dataclasses import dataclass

from unetdist.errors import ConfigError
from unetdist.sharding.sources import Sample
from unetdist.sharding.split import hash_key

MIN_SHARDS = 16
"""Of a small data set, as long as each keeps `MIN_SAMPLES`: shards are what ranks and caches divide."""
MIN_SAMPLES = 8


@dataclass(frozen=True, kw_only=True)
class LayoutOptions:
    """How samples are laid out in shards."""

    samples_per_shard: int | None = None
    """At most so many; None: by size."""
    shard_size_mb: float = 256.0
    """Megabytes of source files that a shard is to hold, if `samples_per_shard` is None."""
    keep_order: bool = False
    """Samples in the order of their keys; else shuffled, by a hash of the key, so that neighbours part."""

    def __post_init__(self) -> None:
        if self.samples_per_shard is not None and self.samples_per_shard < 1:
            raise ConfigError(f"samples_per_shard ({self.samples_per_shard}) must be 1 or more; use 1000.")
        if self.shard_size_mb <= 0:
            raise ConfigError(f"shard_size_mb ({self.shard_size_mb:g}) must be over 0; use 256.")

    def divide(self, samples: Sequence[Sample]) -> list[tuple[Sample, ...]]:
        """The samples of each shard, in order; all hold the same number, or one more."""
        ordered = sorted(samples, key=lambda sample: sample.key)
        if not self.keep_order:
            ordered.sort(key=lambda sample: hash_key(sample.key))
        if self.samples_per_shard:
            count = max(1, -(-len(ordered) // self.samples_per_shard))
        else:
            by_size = round(sum(sample.num_bytes for sample in ordered) / (self.shard_size_mb * 1e6))
            count = max(1, by_size, min(MIN_SHARDS, len(ordered) // MIN_SAMPLES))
        bounds = [len(ordered) * number // count for number in range(count + 1)]
        return [tuple(ordered[bounds[number] : bounds[number + 1]]) for number in range(count)]
