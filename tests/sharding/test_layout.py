"""How samples are divided into shards."""

import pytest

from unetdist.errors import ConfigError
from unetdist.sharding.sources import RawSample
from unetdist.sharding.split import LayoutOptions


@pytest.mark.parametrize(
    ("count", "num_bytes", "options", "expected"),
    [
        (1, 10, {}, [1]),
        (30, 10, {}, [10, 10, 10]),
        (367, 10, {}, [22, 23] * 8),
        (100, 10_000_000, {}, [8, 9] * 6),
        (1000, 1_024_000, {}, [62, 63] * 8),
        (10, 10, {"samples_per_shard": 4}, [3, 3, 4]),
        (40, 1_000_000, {"shard_size_mb": 4.0}, [4] * 10),
        (0, 0, {}, [0]),
        (0, 0, {"samples_per_shard": 4}, [0]),
    ],
)
def test_shards_are_of_one_size_and_several_even_if_samples_are_few(count, num_bytes, options, expected):
    samples = [RawSample(key=str(number), image="", mask="", num_bytes=num_bytes) for number in range(count)]
    sizes = [len(part) for part in LayoutOptions(**options).divide(samples)]
    assert sum(sizes) == count
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == len(expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LayoutOptions(samples_per_shard=0), r"samples_per_shard \(0\) must be 1 or more"),
        (lambda: LayoutOptions(shard_size_mb=0), r"shard_size_mb \(0\) must be over 0"),
    ],
)
def test_layouts_that_cannot_work_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
