"""Other samples do not move a sample to the other side."""

import hashlib
import os

import pytest

from tests.sharding.test_sources import touch
from unetdist.errors import ConfigError, DataError
from unetdist.sharding.sources import RawSample, SampleSource, from_folders
from unetdist.sharding.split import LayoutOptions, find_copies, log_copies, split_by_hash, split_by_list

SAMPLES = [RawSample(key=f"day/{number}.x", image=f"day/{number}.x.jpg", mask="") for number in range(500)]


def test_a_fraction_goes_to_val_and_every_sample_to_one_side():
    train, val = split_by_hash(SAMPLES, 0.2, {})
    assert 70 < len(val) < 130
    assert sorted(sample.key for sample in train + val) == sorted(sample.key for sample in SAMPLES)


def test_a_sample_stays_on_its_side_when_others_come_or_the_fraction_grows():
    _, val = split_by_hash(SAMPLES, 0.2, {})
    _, of_fewer = split_by_hash(SAMPLES[::3], 0.2, {})
    assert of_fewer == [sample for sample in SAMPLES[::3] if sample in val]
    _, more = split_by_hash(SAMPLES, 0.3, {})
    assert {sample.key for sample in val} < {sample.key for sample in more}
    assert [sample.key for sample in val][:3] == ["day/0.x", "day/9.x", "day/10.x"]  # over versions, too


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 20])
def test_a_fraction_outside_0_to_1_is_refused(fraction):
    with pytest.raises(ConfigError, match=rf"val_fraction \({fraction}\) must be between 0 and 1; use for"):
        split_by_hash(SAMPLES, fraction, {})


@pytest.mark.parametrize(("fraction", "side"), [(1e-9, "validation"), (1 - 1e-9, "training")])
def test_a_side_without_samples_is_refused(fraction, side):
    with pytest.raises(DataError, match=rf"none of 9 samples goes to {side} with --val-fraction.*--val-list"):
        split_by_hash(SAMPLES[:9], fraction, {})


def test_a_list_names_val_by_key_or_file(tmp_path):
    (tmp_path / "val.txt").write_text("# comment\nday/3.x\n\n day/5.x.jpg \nday/3.x.jpg\n")
    train, val = split_by_list(SAMPLES, tmp_path / "val.txt")
    assert [sample.key for sample in val] == ["day/3.x", "day/5.x"]
    assert len(train) == len(SAMPLES) - 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("day/3.x\nnight/1\n", r"val\.txt: 1 of 2 lines match no sample, the first is 'night/1'; .*such as day/0\.x"),
        ("# none\n", "lists 0 of 2 samples, which leaves none for validation"),
        ("day/3.x\nday/4.x\n", "lists 2 of 2 samples, which leaves none for training"),
    ],
)
def test_a_list_that_cannot_be_right_is_refused(tmp_path, text, message):
    (tmp_path / "val.txt").write_text(text)
    samples = SAMPLES if "night" in text else SAMPLES[3:5]
    with pytest.raises(DataError, match=message):
        split_by_list(samples, tmp_path / "val.txt")


def test_copies_are_on_one_side_and_more_of_them_move_nothing():
    keys = [f"{number:02d}" for number in range(40)]
    copies = {key: f"digest {int(key) // 2}" for key in keys[10:]}
    train, val = sides(keys, 0.4, copies)
    assert train | val == set(keys)
    assert all((key in train) == (keys[number ^ 1] in train) for number, key in enumerate(keys) if number > 9)
    assert train & set(keys[:10]) == sides(keys, 0.4, {})[0] & set(keys[:10])
    more = {f"0 before {key}": digest for key, digest in copies.items()}
    of_more = sides([*more, *keys], 0.4, copies | more)
    assert (of_more[0] & set(keys), of_more[1] & set(keys)) == (train, val)


def sides(keys, fraction, copies) -> tuple[set[str], set[str]]:
    samples = [RawSample(key=key, image="", mask="") for key in keys]
    train, val = split_by_hash(samples, fraction, copies)
    return {sample.key for sample in train}, {sample.key for sample in val}


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


def source_of(root, images):
    for name, data in images.items():
        touch(root, f"i/{name}.png", f"m/{name}.png")
        (root / f"i/{name}.png").write_bytes(data)
    return from_folders(root / "i", root / "m")


def test_all_copies_of_an_image_are_known_by_its_bytes(tmp_path):
    images = {"b": b"same beginning", "a": b"same beginning", "c": b"same beginnin!", "d": b"same", "e/f": b"same"}
    images |= {"empty": b"", "empty too": b""}
    source = source_of(tmp_path, images)
    beginning, same = (hashlib.sha256(data).hexdigest() for data in (b"same beginning", b"same"))
    assert find_copies(source) == {"a": beginning, "b": beginning, "d": same, "e/f": same}
    os.link(tmp_path / "i/a.png", tmp_path / "i/z.png")
    touch(tmp_path, "m/z.png")
    more = find_copies(from_folders(tmp_path / "i", tmp_path / "m"))
    assert more == {"a": beginning, "b": beginning, "z": beginning, "d": same, "e/f": same}


def test_sources_without_files_are_not_compared(tmp_path):
    assert find_copies(SampleSource(source_of(tmp_path, {"a": b"1"}).samples, (), reader=None)) == {}


def test_copies_and_leaks_are_told(tmp_path, caplog):
    samples = source_of(tmp_path, {name: bytes([number]) for number, name in enumerate("abcdef")}).samples
    log_copies({}, samples[3:])
    assert not caplog.records
    copies = {"d": "1", "a": "1", "e": "2", "b": "2", "f": "3", "c": "3"}
    log_copies(copies, samples[2:])
    assert "3 images have the same bytes as others (d is a, e is b, f is c)" in caplog.messages[0]
    assert "2 of 4 validation images are also in the training set, byte by byte (d, e)" in caplog.messages[1]
    caplog.clear()
    log_copies(copies)
    assert len(caplog.messages) == 1
