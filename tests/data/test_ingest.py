"""The same bytes whatever happens on the way: workers, kills, full disks; and one account of all problems."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.data.picture_folders import (
    COLORS,
    color_mask,
    encoded,
    image_array,
    mask_array,
    palette,
    write_folders,
)
from unetdist.data import convert, ingest, plan, shards
from unetdist.data.convert import ConvertOptions
from unetdist.data.dataset_writer import write_dataset
from unetdist.data.decode import decode_image, decode_mask
from unetdist.data.ingest import LayoutOptions
from unetdist.data.ingest_report import next_command
from unetdist.data.manifest import MANIFEST_NAME, Manifest
from unetdist.data.sources import Sample, Source, from_folders
from unetdist.errors import ConfigError, DataError

FIVE = LayoutOptions(samples_per_shard=5)


@pytest.fixture
def root(tmp_path) -> Path:
    return write_folders(tmp_path / "data")


def write(root: Path, out: Path, source: Source | None = None, **options) -> str:
    layout = options.pop("layout", FIVE)
    run = {name: options.pop(name) for name in ("workers", "overwrite") if name in options}
    source = source or from_folders(root / "images", root / "masks")
    parts = {out: source.samples}
    return write_dataset(
        source, parts, palette(root), convert=ConvertOptions(**options), layout=layout, **run
    )


def contents(folder: Path) -> dict[str, str]:
    """Name -> hash of all that a user sees in the folder."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.is_file()
    }


def samples_of(folder: Path) -> dict[str, tuple[bytes, bytes, dict]]:
    """Key -> image, mask, record; in the order of the shards."""
    found = {}
    for shard in Manifest.load(folder).shards:
        with tarfile.open(folder / shard.name) as tar:
            files = [tar.extractfile(member).read() for member in tar]
        for image, mask, record in zip(files[0::3], files[1::3], files[2::3], strict=True):
            found[json.loads(record)["key"]] = image, mask, json.loads(record)
    return found


def test_a_data_set_holds_the_images_bytes_and_the_masks_indices(root, tmp_path):
    account = write(root, tmp_path / "out")
    found = samples_of(tmp_path / "out")
    assert len(found) == 20
    for number in range(20):
        key = f"day{number % 2}/{number:02d}"
        image, mask, record = found[key]
        assert image == (root / "images" / f"{key}.jpg").read_bytes()
        assert np.array_equal(decode_mask(mask), np.array([0, 1, 2, 255], np.uint8)[mask_array(number)])
        names = {"image": f"{key}.jpg", "mask": f"{key}.png"}
        assert record == {"key": key, "height": 12, "width": 16, **names}
    assert f"{tmp_path / 'out'}: 20 samples in 4 shards" in account
    assert "16x12, RGB; bytes as they came" in account


def test_the_manifest_says_what_the_shards_hold(root, tmp_path):
    write(root, tmp_path / "out")
    manifest = Manifest.load(tmp_path / "out")
    masks = [decode_mask(mask) for _, mask, _ in samples_of(tmp_path / "out").values()]
    assert manifest.class_pixels == tuple(sum((mask == index).sum() for mask in masks) for index in range(3))
    assert manifest.ignored_pixels == sum((mask == 255).sum() for mask in masks)
    assert manifest.palette_records == tuple(palette(root).to_records())
    for shard in manifest.shards:
        data = (tmp_path / "out" / shard.name).read_bytes()
        assert (shard.bytes, shard.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_the_bytes_do_not_depend_on_workers_or_place(root, tmp_path):
    write(root, tmp_path / "one")
    write(root, tmp_path / "two", workers=2)
    root.rename(tmp_path / "moved")
    write(tmp_path / "moved", tmp_path / "three")
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "three")


def test_samples_are_shuffled_unless_their_order_is_to_be_kept(root, tmp_path):
    write(root, tmp_path / "shuffled")
    write(root, tmp_path / "kept", layout=LayoutOptions(keep_order=True))
    kept, shuffled = list(samples_of(tmp_path / "kept")), list(samples_of(tmp_path / "shuffled"))
    assert kept == sorted(kept)
    assert shuffled != kept
    assert sorted(shuffled) == kept


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
    ],
)
def test_shards_are_of_one_size_and_several_even_if_samples_are_few(count, num_bytes, options, expected):
    samples = [Sample(key=str(number), image="", mask="", num_bytes=num_bytes) for number in range(count)]
    sizes = [len(part) for part in LayoutOptions(**options).divide(samples)]
    assert sum(sizes) == count
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == len(expected)


def test_masks_and_images_are_resized_together(root, tmp_path):
    write(root, tmp_path / "out", resize=(8, 6))
    assert Manifest.load(tmp_path / "out").resize == (8, 6)
    image, mask, record = samples_of(tmp_path / "out")["day0/00"]
    assert (record["height"], record["width"]) == decode_mask(mask).shape == (6, 8)
    source = decode_image((root / "images/day0/00.jpg").read_bytes(), 3)
    assert np.array_equal(decode_image(image, 3), cv2.resize(source, (8, 6), interpolation=cv2.INTER_AREA))
    assert np.array_equal(decode_mask(mask), np.array([0, 1, 2, 255], np.uint8)[mask_array(0)][1::2, 1::2])


# What a run does when it is stopped


def test_a_second_run_keeps_every_shard(root, tmp_path, monkeypatch):
    write(root, tmp_path / "out")
    before = contents(tmp_path / "out")
    monkeypatch.setattr(convert, "_write", lambda job: pytest.fail("written again"))
    assert "4 shards, 4 of them kept from before" in write(root, tmp_path / "out")
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("harm", ["tar", "index", "no tar", "no index", "record"])
def test_what_was_damaged_is_written_again(root, tmp_path, harm):
    out = tmp_path / "out"
    write(root, out)
    before = contents(out)
    path = {
        "tar": out / "000001.tar",
        "index": out / "000001.tar.idx",
        "record": out / ".ingest/000001.json",
    }[harm.split()[-1]]
    path.unlink() if harm.startswith("no") else path.write_bytes(path.read_bytes()[:-100])
    write(root, out)
    assert contents(out) == before


KILLED_RUN = """
import os, signal, sys
from pathlib import Path
from tests.data import test_ingest
from unetdist.data import convert
keep, wait = convert._write, int(sys.argv[3])
def kill_at(job):
    if job.number == wait:
        with convert.open_shard(job.path) as writer:  # in the middle of a shard
            writer._file.write(b"half")
            writer._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    return keep(job)
convert._write = kill_at
test_ingest.write(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_killed_run_goes_on_to_the_same_bytes(root, tmp_path):
    write(root, tmp_path / "whole")
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED_RUN, str(root), str(out), "2"]
    killed = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(list(out.glob("*.tar"))) == 2
    assert list(out.glob(".*.partial"))
    with pytest.raises(DataError, match=r"no manifest\.json here"):
        Manifest.load(out)
    assert "2 of them kept" in write(root, out)
    assert contents(out) == contents(tmp_path / "whole")
    assert not list(out.glob(".*.partial"))


ORPHANS = """
import sys, time
from tests.data.test_ingest import nap
from unetdist.data.pool import run_jobs
if __name__ == "__main__":
    run_jobs(nap, [sys.argv[1]] * 2, workers=2, done=print)
"""


def nap(folder: str) -> None:
    Path(folder, str(os.getpid())).touch()
    time.sleep(60)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_workers_die_with_a_killed_parent(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(ORPHANS)
    pids = tmp_path / "pids"
    pids.mkdir()
    parent = subprocess.Popen(
        [sys.executable, str(script), str(pids)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    deadline = time.monotonic() + 60
    while len(list(pids.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = [int(path.name) for path in pids.iterdir()]
    parent.kill()
    parent.wait()
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(workers) == 2
    assert not any(map(is_running, workers))


def test_an_interruption_says_what_stays_and_how_to_go_on(root, tmp_path, monkeypatch, caplog):
    def interrupted(job):
        if job.number == 2:
            raise KeyboardInterrupt
        return convert.finish_shard(job)

    monkeypatch.setattr(ingest.logger, "propagate", True)
    with monkeypatch.context() as patch:
        patch.setattr(ingest, "finish_shard", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write(root, tmp_path / "out")
    assert (
        f"stopped: 2 of 4 shards are complete in {tmp_path / 'out'}; run the same command again"
        in caplog.text
    )
    assert "2 of them kept" in write(root, tmp_path / "out")


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (
            errno.ENOSPC,
            r"the disk is full: 2 of 4 shards are complete; free some space and run the same command again",
        ),
        (errno.EACCES, r"cannot be written \(.*denied\): 2 of 4 shards are complete; mend that and run"),
    ],
)
def test_a_disk_that_does_not_take_more_keeps_what_is_complete(root, tmp_path, monkeypatch, number, message):
    def full(self, data):
        if self._name == "000002.tar":
            raise OSError(number, os.strerror(number))
        self._file.write(data)
        self._sha256.update(data)
        self._offset += len(data)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(shards.ShardWriter, "_write", full)
        with pytest.raises(DataError, match=message):
            write(root, out)
    assert sorted(path.name for path in out.glob("*.tar*")) == [
        f"00000{n}.tar{e}" for n in (0, 1) for e in ("", ".idx")
    ]
    assert not list(out.glob(".*.partial"))
    assert "2 of them kept" in write(root, out)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_disk_that_is_really_full(root, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount")
    try:
        with pytest.raises(DataError, match="the disk is full: [123] of 4 shards are complete"):
            write(root, small / "out")
        subprocess.run(["mount", "-o", "remount,size=10m", str(small)], check=True)
        assert "of them kept" in write(root, small / "out")
        write(root, tmp_path / "whole")
        assert contents(small / "out") == contents(tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(small)], check=True)


def die(job):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_told_of(root, tmp_path, monkeypatch):
    monkeypatch.setattr(ingest, "finish_shard", die)
    with pytest.raises(DataError, match="worker process was killed.* memory .*with fewer than 2 --workers"):
        write(root, tmp_path / "out", workers=2)


# What a folder was made from


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": (8, 6)}, r"resize was None, is \[8, 6\]"),
        ({"layout": LayoutOptions(samples_per_shard=4)}, "samples_per_shard was 5, is 4"),
        ({"unknown_colors": "ignore"}, "unknown_colors was error, is ignore"),
    ],
)
def test_other_options_are_refused_unless_overwriting(root, tmp_path, options, message):
    write(root, tmp_path / "out")
    with pytest.raises(DataError, match=message + ".*--overwrite to write it anew, another --out"):
        write(root, tmp_path / "out", **options)
    write(root, tmp_path / "out", overwrite=True, **options)
    write(root, tmp_path / "fresh", **options)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


@pytest.mark.parametrize("change", ["labels", "fewer", "renamed", "contents"])
def test_another_source_is_refused_unless_overwriting(root, tmp_path, change):
    write(root, tmp_path / "out")
    message = {
        "labels": r"\(labels changed\)",
        "fewer": "num_samples was 20, is 19",
        "renamed": r"\(samples changed",
        "contents": r"\(contents of the source files changed\)",
    }[change]
    if change == "labels":
        (root / "Labels.txt").write_text((root / "Labels.txt").read_text().replace("tree", "bush"))
    elif change == "contents":
        (root / "masks/day0/00.png").write_bytes(color_mask(mask_array(77)))
    else:
        for name in ("images/day0/00.jpg", "masks/day0/00.png"):
            path = root / name
            path.unlink() if change == "fewer" else path.rename(path.with_stem("99"))
    with pytest.raises(DataError, match=message):
        write(root, tmp_path / "out")
    write(root, tmp_path / "out", overwrite=True)
    write(root, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_folder_with_shards_of_others_is_refused(root, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "train-0.tar").write_bytes(b"precious")
    for overwrite in (False, True):
        with pytest.raises(
            DataError, match=r"out: holds train-0\.tar, which this command did not write; choose"
        ):
            write(root, out, overwrite=overwrite)
    assert (out / "train-0.tar").read_bytes() == b"precious"


def test_two_runs_cannot_write_to_one_folder(root, tmp_path):
    with (
        plan.hold(tmp_path / "out"),
        pytest.raises(DataError, match="another process is writing to this folder; wait"),
    ):
        write(root, tmp_path / "out")


# What is wrong with the data


def test_all_problems_are_told_together_and_no_data_set_is_left(root, tmp_path):
    (root / "images/day0/00.jpg").write_bytes(b"no image")
    (root / "masks/day1/01.png").write_bytes((root / "masks/day1/01.png").read_bytes()[:-30])
    (root / "masks/day0/02.png").write_bytes(color_mask(mask_array(2, (9, 9))))
    pixels = COLORS[mask_array(3)]
    pixels[4, 5] = (1, 2, 3)
    (root / "masks/day1/03.png").write_bytes(encoded(pixels))
    with pytest.raises(DataError) as caught:
        write(root, tmp_path / "out", workers=2)
    text = str(caught.value)
    assert "4 problems in 20 samples, the data set is not finished." in text
    assert "day0/00.jpg, day0/00.png: image cannot be read" in text
    assert "day1/01.jpg, day1/01.png: the mask is damaged" in text
    assert "image is 16x12, mask is 9x9 (width x height); export both at one size" in text
    assert "1 2 3" in text
    assert "x 5, y 4 in day1/03.png" in text
    assert (
        "run the same command again (finished shards are kept), or leave bad samples out with --skip-bad"
        in text
    )
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()
    write_folders(root)
    write(root, tmp_path / "out")
    write(root, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_after_problems_the_good_shards_are_kept(root, tmp_path):
    (root / "images/day0/00.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match="1 problem in 20 samples"):
        write(root, tmp_path / "out")
    assert "2 of them kept" not in write(root, tmp_path / "out", skip_bad=True)
    assert Manifest.load(tmp_path / "out").num_samples == 19


def test_a_missing_twin_is_told_with_all_the_rest_before_anything_is_written(root, tmp_path):
    (root / "masks/day0/04.png").unlink()
    (root / "images/day0/00.jpg").write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        write(root, tmp_path / "out")
    text = str(caught.value)
    assert "2 problems in 19 samples" in text
    assert f"image without mask (1)\n  {root}/images/day0/04.jpg: no day0/04.* in {root}/masks" in text
    assert "bad sample (1)" in text
    assert "finished shards" not in text
    assert not (tmp_path / "out").exists()


def test_bad_samples_are_left_out_when_asked(root, tmp_path):
    (root / "masks/day0/04.png").unlink()
    (root / "images/day0/00.jpg").write_bytes(b"no image")
    (root / "masks/day0/02.png").write_bytes(encoded(np.full((12, 16, 3), 7, np.uint8)))
    account = write(root, tmp_path / "out", skip_bad=True)
    assert "left out, because of --skip-bad" in account
    assert "17 samples in 4 shards" in account
    assert sorted(samples_of(tmp_path / "out"))[0] == "day0/06"
    assert write(root, tmp_path / "out", skip_bad=True).count("kept from before") == 1


def test_a_run_that_finishes_nothing_leaves_nothing(root, tmp_path):
    for path in (root / "images").rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="20 problems in 20 samples"):
        write(root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_left_is_an_error(root, tmp_path):
    for path in (root / "images").rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of 20 samples is left, all are bad; run it without --skip-bad"):
        write(root, tmp_path / "out", skip_bad=True)


def test_a_long_list_of_problems_is_cut_and_whole_in_a_file(root, tmp_path):
    write_folders(root, 60)
    for path in (root / "images").rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        write(root, tmp_path / "out")
    assert "  ... and 40 more\n" in str(caught.value)
    assert f"All of them are listed in {tmp_path / 'out' / 'problems.txt'}" in str(caught.value)
    assert (tmp_path / "out" / "problems.txt").read_text().count("\n") == 61
    write_folders(root, 60)
    write(root, tmp_path / "out")
    assert not (tmp_path / "out" / "problems.txt").exists()


@pytest.mark.parametrize(("policy", "expected"), [("ignore", 255), ("nearest", 1)])
def test_unknown_colours_are_told_even_if_they_are_accepted(root, tmp_path, policy, expected):
    pixels = COLORS[mask_array(3)]
    pixels[4, 5] = (250, 2, 3)
    (root / "masks/day1/03.png").write_bytes(encoded(pixels))
    account = write(root, tmp_path / "out", unknown_colors=policy)
    assert "250 2 3" in account
    assert decode_mask(samples_of(tmp_path / "out")["day1/03"][1])[4, 5] == expected
    assert write(root, tmp_path / "out", unknown_colors=policy).startswith(account.split("\n")[0])


def test_a_file_that_may_not_be_read_is_a_bad_sample(root, tmp_path):
    source = from_folders(root / "images", root / "masks")
    (root / "images/day0/00.jpg").unlink()
    with pytest.raises(DataError, match=r"day0/00\.jpg, day0/00\.png: cannot be read: .*No such file"):
        write(root, tmp_path / "out", source)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvertOptions(resize=(0, 5)), r"resize \(0x5\) must be at least 1x1"),
        (lambda: ConvertOptions(image_range=(5, 5)), r"image_range \(5 5\) must ascend"),
        (lambda: LayoutOptions(samples_per_shard=0), r"samples_per_shard \(0\) must be 1 or more"),
        (lambda: LayoutOptions(shard_size_mb=0), r"shard_size_mb \(0\) must be over 0"),
    ],
)
def test_options_that_cannot_work_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_the_next_command_names_both_folders_where_both_are_written(root, tmp_path):
    train, val = tmp_path / "train", tmp_path / "val"
    assert next_command([train]).endswith(f"--data.train {train} --data.val VALIDATION_SHARDS")
    assert next_command([val]).endswith(f"--data.train TRAINING_SHARDS --data.val {val}")
    write(root, train)
    write(root, val)
    for folders in ([train], [val], [train, val]):
        assert next_command(folders).endswith(f"--data.train {train} --data.val {val}")


def test_grey_images_make_a_grey_data_set(root, tmp_path):
    for number, path in enumerate(sorted((root / "images").rglob("*.jpg"))):
        pixels = np.asarray(Image.fromarray(image_array(number)).convert("L"))
        path.write_bytes(encoded(pixels, "JPEG"))
    account = write(root, tmp_path / "out")
    assert Manifest.load(tmp_path / "out").channels == 1
    assert "16x12, grey; bytes as they came" in account


def test_a_record_of_a_job_changes_with_all_that_decides_its_bytes(root, tmp_path):
    samples = from_folders(root / "images", root / "masks").samples
    job = convert.Job(tmp_path, 0, samples, None, palette(root), ConvertOptions())
    others = [
        replace(job, samples=samples[1:]),
        replace(job, samples=(replace(samples[0], stamp="x"), *samples[1:])),
        replace(job, options=ConvertOptions(image_format="png")),
    ]
    assert len({item.fingerprint for item in [job, *others]}) == 4
    assert replace(job, options=ConvertOptions(skip_bad=True)).fingerprint == job.fingerprint
