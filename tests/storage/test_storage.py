import json
import os

import pytest

from unetdist.storage import files as storage


def test_a_file_appears_whole(tmp_path):
    target = tmp_path / "new" / "folder" / "a.bin"
    with storage.write_atomic(target) as file:
        file.write(b"abc")
        assert not target.exists()
    assert target.read_bytes() == b"abc"
    assert [path.name for path in target.parent.iterdir()] == ["a.bin"]


def test_a_failed_write_leaves_the_former_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    storage.write_text(target, "old")
    with pytest.raises(OSError, match="disk full"), storage.write_atomic(target) as file:
        file.write(b"half")
        raise OSError("disk full")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_json_is_readable_and_holds_no_nan(tmp_path):
    storage.write_json(tmp_path / "a.json", {"name": "Gebäude", "values": [1, None]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"name": "Gebäude", "values": [1, None]}
    assert "Gebäude" in (tmp_path / "a.json").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.write_json(tmp_path / "a.json", {"value": float("nan")})
    assert "Gebäude" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_json_holds_file_names_that_are_not_utf8(tmp_path):
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    storage.write_json(tmp_path / "a.json", {"file": name})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"file": name}


def test_a_private_file_is_for_its_owner_alone(tmp_path):
    file = tmp_path / "a.json"
    storage.write_json(file, 1)
    open_to_others = file.stat().st_mode & 0o077
    storage.write_json(file, 2, private=True)
    assert (open_to_others != 0, file.stat().st_mode & 0o777, file.read_text()) == (True, 0o600, "2\n")


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"abc")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero"):
        with pytest.raises(OSError, match="regular file|directory"):
            storage.read_file(path)
    assert storage.read_file(tmp_path / "file") == b"abc"
