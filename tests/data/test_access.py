import itertools
import pickle

import numpy as np
import pytest

from tests.data.small_shards import NUM_CLASSES, numbered_sample, write_small_shards
from unetdist.data.access import DataConfig, fetch_ahead, open_data, open_reader
from unetdist.data.augment_config import AugmentConfig
from unetdist.data.loader import train_loader, val_loader
from unetdist.errors import ConfigError, DataError


def config(location, tmp_path, **options):
    return DataConfig(train=str(location), cache_dir=str(tmp_path / "cache"), **{"num_workers": 0, **options})


@pytest.fixture
def url(tmp_path):
    """Shards that count as those of another machine."""
    write_small_shards(tmp_path / "data", [4, 0, 5, 2])
    return f"file://{tmp_path / 'data'}"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"num_workers": -1}, r"data.num_workers \(-1\) must be 0 or more; use 2\."),
        ({"cache_gb": -0.5}, r"data.cache_gb \(-0.5\) must be 0 or more; use 100\."),
        ({"retry_s": -1.0}, r"data.retry_s \(-1.0\) must be 0 or more; use 300\."),
        ({"max_bad_samples": -1}, r"data.max_bad_samples \(-1\) must be 0 or more; use 100\."),
    ],
)
def test_settings_that_cannot_be(option, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(train="-", **option)


def test_local_shards_need_neither_cache_nor_prefetch(tmp_path):
    write_small_shards(tmp_path / "data", [3])
    cfg = config(tmp_path / "data", tmp_path)
    folder, manifest = open_data(cfg, cfg.train)
    reader = open_reader(cfg, folder, manifest)
    assert reader.cache is None
    assert fetch_ahead(reader, lambda _: iter([]), 0, 1) is None
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("cache_gb", [0, 1])
def test_a_run_over_shards_of_another_machine_sees_what_a_local_one_sees(
    url, tmp_path, num_workers, cache_gb
):
    def steps(location):
        cfg = config(location, tmp_path, num_workers=num_workers, cache_gb=cache_gb, lanes=3, window=4)
        folder, manifest = open_data(cfg, cfg.train)
        loader = train_loader(
            cfg,
            AugmentConfig(crop_size=(8, 8), flip_horizontal=0.5, cutmix=0.5),
            manifest,
            folder,
            seed=1,
            channels=3,
            num_classes=NUM_CLASSES,
            global_batch_size=4,
            micro_batch_size=2,
        )
        taken = [
            (batch.ids.tolist(), batch.image.numpy().tobytes(), batch.mask.numpy().tobytes())
            for step in itertools.islice(loader, 8)
            for batch in step
        ]
        loader.close()
        return taken

    assert steps(url) == steps(tmp_path / "data")


def test_validation_over_shards_of_another_machine(url, tmp_path):
    cfg = config(url, tmp_path, num_workers=1)
    folder, manifest = open_data(cfg, url)
    loader = val_loader(cfg, manifest, folder, channels=3, num_classes=NUM_CLASSES, batch_size=3)
    for _ in range(2):
        ids = []
        for batch in loader:
            ids += batch.ids.tolist()
            for number, sample_id in enumerate(batch.ids.tolist()):
                np.testing.assert_array_equal(batch.mask[number], numbered_sample(sample_id)[1])
        assert ids == list(range(11))


def test_a_reader_with_a_cache_goes_to_other_processes(url, tmp_path):
    cfg = config(url, tmp_path)
    reader = open_reader(cfg, *open_data(cfg, url))
    copy = pickle.loads(pickle.dumps(reader))
    assert copy.read(3) == reader.read(3)
    assert copy.cache == reader.cache


def test_no_manifest_there(tmp_path):
    (tmp_path / "empty").mkdir()
    cfg = config(f"file://{tmp_path}/empty", tmp_path)
    with pytest.raises(DataError, match=r"no manifest\.json here, so this is no \(finished\) data set"):
        open_data(cfg, cfg.train)
