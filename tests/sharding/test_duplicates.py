import hashlib
import os

from tests.sharding.test_sources import touch
from unetdist.sharding import split as duplicates
from unetdist.sharding.sources import SampleSource, from_folders
from unetdist.sharding.split import find_copies, log_copies, log_leaks


def source_of(root, images):
    for name, data in images.items():
        touch(root, f"i/{name}.png", f"m/{name}.png")
        (root / f"i/{name}.png").write_bytes(data)
    return from_folders(root / "i", root / "m")


def test_all_copies_of_an_image_are_known_by_its_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "_HEAD", 4)
    images = {
        "b": b"same beginning",
        "a": b"same beginning",
        "c": b"same beginnin!",
        "d": b"same",
        "e/f": b"same",
    }
    images |= {"empty1": b"", "empty2": b""}
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
    log_copies({})
    log_leaks(samples[:3], samples[3:], {})
    assert not caplog.records
    copies = {"d": "1", "a": "1", "e": "2", "b": "2", "f": "3", "c": "3"}
    log_copies(copies)
    log_leaks(samples[:2], samples[2:], copies)
    assert "3 images have the same bytes as others (d is a, e is b, f is c)" in caplog.messages[0]
    assert "2 of 4 validation images are also in the training set, byte by byte (d, e)" in caplog.messages[1]
