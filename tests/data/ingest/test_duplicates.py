import os

from tests.data.ingest.test_sources import touch
from unetdist.data.ingest import duplicates
from unetdist.data.ingest.duplicates import find_originals, tell_copies, tell_leaks
from unetdist.data.ingest.sources import Source, from_folders


def source_of(root, images):
    for name, data in images.items():
        touch(root, f"i/{name}.png", f"m/{name}.png")
        (root / f"i/{name}.png").write_bytes(data)
    return from_folders(root / "i", root / "m")


def test_copies_have_the_first_as_their_original(tmp_path, monkeypatch):
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
    assert find_originals(source) == {"b": "a", "e/f": "d"}
    os.link(tmp_path / "i/a.png", tmp_path / "i/z.png")
    touch(tmp_path, "m/z.png")
    assert find_originals(from_folders(tmp_path / "i", tmp_path / "m")) == {"b": "a", "z": "a", "e/f": "d"}


def test_sources_without_files_are_not_compared(tmp_path):
    assert find_originals(Source(source_of(tmp_path, {"a": b"1"}).samples, (), reader=None)) == {}


def test_copies_and_leaks_are_told(tmp_path, caplog):
    samples = source_of(tmp_path, {name: bytes([number]) for number, name in enumerate("abcdef")}).samples
    tell_copies({})
    tell_leaks(samples[:3], samples[3:], {})
    assert not caplog.records
    originals = {"d": "a", "e": "b", "f": "c"}
    tell_copies(originals)
    tell_leaks(samples[:2], samples[2:], originals)
    assert "3 images have the same bytes as others (d is a, e is b, f is c)" in caplog.messages[0]
    assert "2 of 4 validation images are in the training set too, byte by byte (d, e)" in caplog.messages[1]
