"""Files with random damage: each is read as it was written, or refused in words; never a traceback, never a hang.

FUZZ_EXAMPLES=200 in the environment tries so many of each format; a quick run tries few.
"""

import json
import os
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.model.test_saved_model import damaged, save, unet
from tests.sharding.test_foreign import pack
from tests.synthetic import settings_of, write_shards
from unetdist.cli import settings as settings_module
from unetdist.data.manifest import MANIFEST_NAME, Manifest
from unetdist.data.reader import ShardReader
from unetdist.data.shards import encode_index, index_path
from unetdist.data.tar_index import MemberNames, index_tar
from unetdist.errors import UnetdistError
from unetdist.model.saved_model import MODEL_FILE, load_model
from unetdist.train.config import Config

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 12))
fuzz = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
fuzz_slowly = settings(fuzz, max_examples=EXAMPLES if "FUZZ_EXAMPLES" in os.environ else 5)
SEEDS = st.integers(0, 2**32 - 1)

BAD_VALUES = ("7", 2**63, 10**400, 7.5, -1, None, True, "a\0b", [], {}, [[[]]], "x" * 1000, float("inf"))


def outcome(read: Callable[[], object]) -> object:
    """What was read, or None where it was refused; anything but an error in words fails, and so does a hang."""
    began = time.monotonic()
    try:
        return read()
    except UnetdistError:
        return None
    finally:
        assert time.monotonic() - began < 10


def places(value: object, way: tuple = ()) -> list[tuple]:
    """The way to every value inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [way, *(place for key, item in inner for place in places(item, (*way, key)))][0 if way else 1 :]


def with_bad_value(values: object, rng: np.random.Generator) -> object:
    """A copy in which one value, anywhere, is another."""
    copied = json.loads(json.dumps(values))
    ways = places(copied)
    *way, last = ways[int(rng.integers(len(ways)))]
    target = copied
    for key in way:
        target = target[key]
    target[last] = BAD_VALUES[int(rng.integers(len(BAD_VALUES)))]
    return copied


@pytest.fixture(scope="module")
def root():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder / "shards", 6)
        save(folder / "model", unet())
        pack(folder / "others.tar", ["a", "x/b", "y" * 150])
        yield folder


def test_manifests(root):
    path = root / "shards" / MANIFEST_NAME
    good, expected = path.read_bytes(), Manifest.load(root / "shards")

    @fuzz
    @given(SEEDS)
    def check(seed):
        rng = np.random.default_rng(seed)
        if seed % 2:
            path.write_bytes(damaged(good, rng, seed // 2 % 4))
        else:
            path.write_text(json.dumps(with_bad_value(json.loads(good), rng)))
        assert outcome(lambda: Manifest.load(root / "shards")) in (None, expected)

    check()
    path.write_bytes(good)


@pytest.mark.parametrize("is_hashed", [True, False])
def test_indexes(root, is_hashed):
    manifest = Manifest.load(root / "shards")
    reader = ShardReader(root / "shards", manifest)
    expected = [reader.read(number) for number in range(manifest.num_samples)]
    if not is_hashed:  # as the first versions wrote them
        shards = tuple(replace(shard, index_sha256="") for shard in manifest.shards)
        manifest = replace(manifest, shards=shards)
    path = index_path(root / "shards" / manifest.shards[0].name)
    good, rows = path.read_bytes(), np.load(path)

    @fuzz
    @given(SEEDS)
    def check(seed):
        rng = np.random.default_rng(seed)
        if seed % 2:
            path.write_bytes(damaged(good, rng, seed // 2 % 4))
        else:
            changed = rows.copy()
            changed[rng.integers(len(rows)), rng.integers(6)] = rng.choice([-1, -(2**63), 2**62, 0, 511])
            path.write_bytes(encode_index(changed))
        for number in range(manifest.shards[0].num_samples):
            fresh = ShardReader(root / "shards", manifest)
            assert outcome(lambda number=number, fresh=fresh: fresh.read(number)) in (None, expected[number])
            outcome(lambda number=number, fresh=fresh: fresh.key(number))

    check()
    path.write_bytes(good)


def test_tars(root):
    good = (root / "others.tar").read_bytes()
    names = MemberNames("{stem}.seg.png")
    path = root / "damaged.tar"

    def contents(index: np.ndarray) -> list:
        data = path.read_bytes()
        return [[data[o : o + s] for o, s in ((row[1], row[2]), (row[3], row[4]))] for row in index.tolist()]

    path.write_bytes(good)
    with tarfile.open(path) as tar:
        headers = [member.offset for member in tar.getmembers()]

    @fuzz
    @given(SEEDS)
    def check(seed):
        rng = np.random.default_rng(seed)
        changed = bytearray(damaged(good, rng, seed // 2 % 4) if seed % 2 else good)
        if not seed % 2:  # a header that was forged: another field, and a checksum that fits
            at = headers[int(rng.integers(len(headers)))]
            field = [(124, 136), (156, 157), (345, 500), (0, 100)][int(rng.integers(4))]
            changed[at + field[0] : at + field[1]] = rng.bytes(field[1] - field[0])
            changed[at + 148 : at + 156] = b" " * 8
            changed[at + 148 : at + 156] = b"%06o\0 " % sum(changed[at : at + 512])
        path.write_bytes(changed)
        index = outcome(lambda: index_tar(path, names))
        if index is not None:
            assert all(part for sample in contents(index) for part in sample)

    check()


def test_models(root):
    path = root / "model" / MODEL_FILE
    good = path.read_bytes()
    expected = load_model(root / "model")
    state = expected.model.state_dict()

    @fuzz
    @given(SEEDS)
    def check(seed):
        path.write_bytes(damaged(good, np.random.default_rng(seed), seed % 4))
        saved = outcome(lambda: load_model(root / "model"))
        if saved is not None:
            assert saved.config == expected.config
            assert all(value.equal(state[name]) for name, value in saved.model.state_dict().items())

    check()
    path.write_bytes(good)


def test_settings(root):
    values = settings_of(root / "shards", None, root / "runs")
    text = yaml.safe_dump(values).encode()

    @fuzz_slowly
    @given(SEEDS)
    def check(seed):
        rng = np.random.default_rng(seed)
        changed = (
            damaged(text, rng, seed // 2 % 4)
            if seed % 2
            else yaml.safe_dump(with_bad_value(values, rng), allow_unicode=True).encode("utf-8", "replace")
        )
        read = outcome(lambda: settings_module.parse_yaml(changed, where="x.yaml"))
        if read is not None:
            config = outcome(lambda: settings_module.from_mapping(Config, read, where="x.yaml"))
            if config is not None:
                again = settings_module.from_mapping(Config, settings_module.to_mapping(config))
                assert again == config

    check()
