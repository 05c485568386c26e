import itertools
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.small_shards import NUM_CLASSES, encode_png, numbered_sample, write_small_shards
from unetdist.data.config import AugmentConfig, DataConfig
from unetdist.data.loader import check_batch_sizes, fetch_ahead, open_data, open_reader, train_loader, val_loader
from unetdist.data.manifest import Manifest
from unetdist.data.shards import encode_mask
from unetdist.data.workers import part_of
from unetdist.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]
AUGMENT = AugmentConfig(
    crop_size=(8, 8), flip_horizontal=0.5, scale_min=0.7, scale_max=1.5, rare_class_crop=0.3, hue=0.1
)
MIXED = replace(AUGMENT, cutmix=0.4, classmix=0.4)
BAD = encode_png(numbered_sample(0)[0])[:200], encode_mask(numbered_sample(0)[1])


@pytest.fixture
def folder(tmp_path):
    write_small_shards(tmp_path, [4, 0, 5, 2])
    return tmp_path


def open_train(folder, *, data=None, augment=AUGMENT, **options):
    options = {"global_batch_size": 6, "micro_batch_size": 1, **options}
    cfg = DataConfig(train=str(folder), **{"num_workers": 0, "lanes": 3, "window": 4, **(data or {})})
    manifest = Manifest.load(folder)
    fixed = {"seed": 5, "channels": 3, "num_classes": NUM_CLASSES}
    return train_loader(cfg, augment, manifest, folder, **{**fixed, **options})


def open_val(folder, *, num_workers=0, batch_size=3, **options):
    cfg = DataConfig(train="-", num_workers=num_workers)
    manifest = Manifest.load(folder)
    return val_loader(cfg, manifest, folder, channels=3, num_classes=NUM_CLASSES, batch_size=batch_size, **options)


def take(loader, steps):
    return list(itertools.islice(loader, steps))


def content(steps):
    """Per step, what each sample is: id, pixels, counts; whichever micro-batch it lies in."""
    return [
        [
            (int(batch.ids[k]), batch.image[k].numpy().tobytes(), batch.mask[k].numpy().tobytes())
            for batch in step
            for k in range(len(batch))
        ]
        for step in steps
    ]


def test_eleven_steps_of_six_are_six_epochs_of_eleven(folder):
    ids = [batch.ids.tolist() for step in take(open_train(folder), 11) for batch in step]
    flat = list(itertools.chain.from_iterable(ids))
    assert np.bincount(flat, minlength=11).tolist() == [6] * 11


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_same_pixels_for_any_world_and_accumulation(folder, world_size, micro_batch_size):
    if 6 % (world_size * micro_batch_size):
        micro_batch_size = 6 // world_size
    ranks = [
        content(take(open_train(folder, rank=rank, world_size=world_size, micro_batch_size=micro_batch_size), 5))
        for rank in range(world_size)
    ]
    together = [list(itertools.chain(*parts)) for parts in zip(*ranks, strict=True)]
    assert together == content(take(open_train(folder, micro_batch_size=6), 5))


def test_same_pixels_for_any_world_and_accumulation_when_mixed(folder):
    """Of an odd number of samples some partners lie in the next epoch, of an odd batch some in the next step."""
    whole = content(take(open_train(folder, augment=MIXED, global_batch_size=9, micro_batch_size=9), 6))
    assert whole != content(take(open_train(folder, global_batch_size=9, micro_batch_size=9), 6))
    for world_size, micro_batch_size, num_workers in ((1, 3, 2), (3, 1, 0), (3, 3, 1), (9, 1, 0)):
        ranks = [
            content(
                take(
                    open_train(
                        folder,
                        augment=MIXED,
                        data={"num_workers": num_workers},
                        global_batch_size=9,
                        rank=rank,
                        world_size=world_size,
                        micro_batch_size=micro_batch_size,
                        from_sample=18,
                    ),
                    4,
                )
            )
            for rank in range(world_size)
        ]
        assert [list(itertools.chain(*parts)) for parts in zip(*ranks, strict=True)] == whole[2:]


def test_the_last_epochs_are_native_wherever_the_run_is_resumed(folder):
    """Step 11 of two is the end of the second epoch of eleven; a sample's partner may be of the epoch before."""
    plain = replace(AUGMENT, scale_min=1, scale_max=1)
    options = {"global_batch_size": 2, "micro_batch_size": 2}
    whole = content(take(open_train(folder, augment=MIXED, native_from=2, **options), 22))
    assert whole[:11] == content(take(open_train(folder, augment=MIXED, **options), 11))
    assert whole[11:] == content(take(open_train(folder, augment=plain, from_sample=22, **options), 11))
    assert whole[15:] == content(take(open_train(folder, augment=MIXED, native_from=2, from_sample=30, **options), 7))


def test_the_classes_are_counted_after_mixing(folder):
    for step in take(open_train(folder, augment=MIXED, micro_batch_size=3), 4):
        for batch in step:
            counts = [(batch.mask == index).sum(dim=(1, 2)) for index in range(NUM_CLASSES)]
            assert torch.equal(batch.class_pixels, torch.stack(counts, dim=1))


def test_a_bad_partner_leaves_the_sample_alone(tmp_path):
    write_small_shards(tmp_path, [2], encoded={1: BAD})
    options = {"data": {"on_bad_sample": "blank"}, "global_batch_size": 2, "micro_batch_size": 2}
    mixed = take(open_train(tmp_path, augment=MIXED, **options), 10)
    assert content(mixed) == content(take(open_train(tmp_path, **options), 10))
    assert [batch.num_bad for step in mixed for batch in step] == [1] * 10


def test_steps_are_lists_of_equal_micro_batches(folder):
    for step in take(open_train(folder, world_size=3, global_batch_size=12, micro_batch_size=2), 3):
        assert [len(batch) for batch in step] == [2, 2]
        for batch in step:
            assert batch.image.shape == (2, 3, 8, 8)
            assert batch.image.is_contiguous(memory_format=torch.channels_last)
            valid = (batch.mask != 255).sum(dim=(1, 2))
            assert batch.class_pixels.sum(dim=1).tolist() == valid.tolist()


def test_resuming_is_continuing(folder):
    whole = content(take(open_train(folder), 6))
    assert content(take(open_train(folder, from_sample=3 * 6), 3)) == whole[3:]


def test_workers_change_nothing_and_the_global_generator_is_left_alone(folder):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with_workers = content(take(open_train(folder, data={"num_workers": 2}), 4))
    assert with_workers == content(take(open_train(folder), 4))
    assert torch.equal(torch.get_rng_state(), state)


def test_an_error_in_a_worker_arrives_as_itself(tmp_path):
    write_small_shards(tmp_path, [3], encoded={1: BAD})
    with pytest.raises(DataError, match=r"^\S+000000.tar/scene.0/frame 1: image cannot be read") as caught:
        take(open_train(tmp_path, data={"num_workers": 1}), 1)
    assert "Traceback" not in str(caught.value)
    assert str(caught.value.source).endswith("frame 1")


def test_signals_do_not_reach_the_workers(folder):
    """SLURM and a terminal signal every process; the trainer alone decides when to stop."""
    others = set(multiprocessing.active_children())  # of an earlier test, not collected yet
    loader = open_train(folder, data={"num_workers": 1, "prefetch": 1})
    next(loader)
    (worker,) = set(multiprocessing.active_children()) - others
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        os.kill(worker.pid, number)
    assert len(take(loader, 20)) == 20
    loader.close()
    del loader
    worker.join(10)
    assert not worker.is_alive()


def test_a_script_that_ends_in_the_middle_does_not_wait_for_its_workers(folder):
    """At exit multiprocessing sends its children SIGTERM and waits for them."""
    script = f"""
from tests.data.test_loader import open_train
loader = open_train({str(folder)!r}, data={{"num_workers": 1}})
next(loader)
import sys
sys.kept = loader
"""
    done = subprocess.run([sys.executable, "-c", script], timeout=60, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_bad_samples_left_blank_until_there_are_too_many(tmp_path):
    write_small_shards(tmp_path, [3], encoded={1: BAD})
    loader = open_train(tmp_path, data={"on_bad_sample": "blank", "max_bad_samples": 3})
    steps = []
    with pytest.raises(
        DataError, match=r"4 samples could not be used, more than data.max_bad_samples \(3\); the log names"
    ):
        steps.extend(loader)
    # Six samples a step of an epoch of three: two bad ones in each.
    assert [sum(batch.num_bad for batch in step) for step in steps] == [2]
    blank = next(batch for batch in steps[0] if batch.num_bad)
    assert blank.ids.tolist() == [1]
    assert blank.image.shape == (1, 3, 8, 8)
    assert (blank.mask == 255).all()


def test_a_blank_sample_without_crop_has_the_size_of_the_others(tmp_path):
    write_small_shards(tmp_path, [3], encoded={1: BAD})
    loader = open_train(tmp_path, augment=AugmentConfig(), data={"on_bad_sample": "blank"}, micro_batch_size=6)
    assert next(loader)[0].image.shape == (6, 3, 12, 16)


def test_mixed_sizes_need_a_crop(tmp_path):
    write_small_shards(tmp_path, [3], sizes=[(12, 16), (9, 20)])
    assert len(take(open_train(tmp_path), 2)) == 2
    message = (
        r"augment.crop_size \(None\) must be set, because the images in .+ differ in size \(9..12 high, "
        r"16..20 wide\); use \[256, 256\], or write the shards with --resize"
    )
    with pytest.raises(ConfigError, match=message):
        open_train(tmp_path, augment=AugmentConfig())


def test_a_lost_shard_is_found_before_the_first_step(folder):
    (folder / "000002.tar").unlink()
    with pytest.raises(DataError, match=r"000002.tar: cannot be opened"):
        open_train(folder)
    with pytest.raises(DataError, match=r"000002.tar: cannot be opened"):
        open_val(folder)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            (30, 1, 4),
            r"global_batch_size \(30\) must be divisible by the processes \(4\) times trainer.micro_batch_size \(1\)",
        ),
        ((30, 2, 4), r"micro_batch_size \(2\); use 24 or 32\."),
        ((3, 2, 4), r"micro_batch_size \(2\); use 8\."),
        ((8, 0, 1), r"global_batch_size \(8\) and micro_batch_size \(0\) must be 1 or more; use 32 and 8\."),
        ((0, 1, 1), r"global_batch_size \(0\) and micro_batch_size \(1\) must be 1 or more"),
    ],
)
def test_batch_sizes_that_do_not_fit(sizes, message, folder):
    with pytest.raises(ConfigError, match=message):
        check_batch_sizes(*sizes)
    with pytest.raises(ConfigError, match=message):
        open_train(folder, global_batch_size=sizes[0], micro_batch_size=sizes[1], world_size=sizes[2])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_workers": -1}, r"data.num_workers \(-1\) must be 0 or more; use 2"),
        ({"cache_gb": -0.5}, r"data.cache_gb \(-0.5\) must be 0 or more; use 100"),
        ({"retry_s": -1.0}, r"data.retry_s \(-1.0\) must be 0 or more; use 300"),
        ({"prefetch": 0}, r"data.prefetch \(0\) must be 1 or more; use 4"),
        ({"lanes": 0}, r"data.lanes \(0\) must be 1 or more; use 64"),
        ({"window": 0}, r"data.window \(0\) must be 1 or more; use 4096"),
        ({"max_bad_samples": -1}, r"data.max_bad_samples \(-1\) must be 0 or more; use 100"),
    ],
)
def test_settings_that_cannot_work(setting, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(train="shards", **setting)


@pytest.mark.parametrize("world_size", [1, 2, 3, 16])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_validation_sees_each_sample_once_and_unchanged(folder, world_size, batch_size):
    seen = []
    for rank in range(world_size):
        loader = open_val(folder, rank=rank, world_size=world_size, batch_size=batch_size)
        ids = []
        for batch in loader:
            assert len(batch) <= batch_size
            ids += batch.ids.tolist()
            for number, sample_id in enumerate(batch.ids.tolist()):
                image, mask = numbered_sample(sample_id)
                np.testing.assert_array_equal(batch.image[number].permute(1, 2, 0), image)
                np.testing.assert_array_equal(batch.mask[number], mask)
        assert ids == list(part_of(11, rank=rank, world_size=world_size))
        seen += ids
    assert sorted(seen) == list(range(11))


def test_validation_can_be_repeated_with_the_same_workers(folder):
    loader = open_val(folder, num_workers=1)
    first = [batch.ids.tolist() for batch in loader]
    workers = multiprocessing.active_children()
    assert [batch.ids.tolist() for batch in loader] == first == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10]]
    assert multiprocessing.active_children() == workers


def test_validation_of_mixed_sizes(tmp_path):
    write_small_shards(tmp_path, [7], sizes=[(12, 16), (12, 16), (9, 20)])
    batches = [(batch.ids.tolist(), tuple(batch.mask.shape[1:])) for batch in open_val(tmp_path, batch_size=4)]
    assert batches == [
        ([0, 1], (12, 16)),
        ([2], (9, 20)),
        ([3], (12, 16)),
        ([4], (12, 16)),
        ([5], (9, 20)),
        ([6], (12, 16)),
    ]


def test_validation_raises_on_a_bad_sample(tmp_path):
    write_small_shards(tmp_path, [3], encoded={1: BAD})
    for num_workers in (0, 1):
        with pytest.raises(DataError, match=r"frame 1: image cannot be read"):
            list(open_val(tmp_path, num_workers=num_workers))


def test_validation_batch_size(folder):
    with pytest.raises(ConfigError, match=r"batch_size \(0\) must be 1 or more; use 8"):
        open_val(folder, batch_size=0)


def remote_config(location, tmp_path, **options):
    return DataConfig(train=str(location), cache_dir=str(tmp_path / "cache"), **{"num_workers": 0, **options})


@pytest.fixture
def url(tmp_path):
    """Shards that count as those of another machine."""
    write_small_shards(tmp_path / "data", [4, 0, 5, 2])
    return f"file://{tmp_path / 'data'}"


def test_local_shards_need_neither_cache_nor_prefetch(tmp_path):
    write_small_shards(tmp_path / "data", [3])
    cfg = remote_config(tmp_path / "data", tmp_path)
    folder, manifest = open_data(cfg, cfg.train)
    reader = open_reader(cfg, folder, manifest)
    assert reader.cache is None
    assert fetch_ahead(reader, lambda _: iter([]), 0, 1) is None
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("cache_gb", [0, 1])
def test_a_run_over_shards_of_another_machine_sees_what_a_local_one_sees(url, tmp_path, num_workers, cache_gb):
    def steps(location):
        cfg = remote_config(location, tmp_path, num_workers=num_workers, cache_gb=cache_gb, lanes=3, window=4)
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
    cfg = remote_config(url, tmp_path, num_workers=1)
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
    cfg = remote_config(url, tmp_path)
    reader = open_reader(cfg, *open_data(cfg, url))
    copy = pickle.loads(pickle.dumps(reader))
    assert copy.read(3) == reader.read(3)
    assert copy.cache == reader.cache


def test_no_manifest_there(tmp_path):
    (tmp_path / "empty").mkdir()
    cfg = remote_config(f"file://{tmp_path}/empty", tmp_path)
    with pytest.raises(DataError, match=r"no manifest\.json here, so this is no \(finished\) data set"):
        open_data(cfg, cfg.train)
