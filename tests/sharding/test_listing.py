import unicodedata

import pytest

from unetdist.sharding.sources import files_below, spelled


def names(root):
    return sorted(files_below(root))


@pytest.fixture
def root(tmp_path):
    for name in ("i/a.png", "i/x/b.png", "other/c.png", "i/.hidden/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path / "i"


@pytest.mark.parametrize("target", [".", "..", "x/.."])
def test_a_link_to_a_folder_above_is_left_out(root, target, caplog):
    (root / "x/loop").symlink_to((root / "x" / target).resolve())
    (root / "all").symlink_to(root.parent)
    assert names(root) == ["a.png", "x/b.png"]
    assert "searched once" in caplog.text


def test_a_folder_has_its_own_name_and_not_that_of_a_link(root):
    (root / "a_link").symlink_to(root / "x")
    assert names(root) == ["a.png", "x/b.png"]


def test_a_folder_elsewhere_is_searched_once(root):
    (root / "one").symlink_to(root.parent / "other")
    (root / "two").symlink_to(root.parent / "other")
    (root.parent / "other/back").symlink_to(root)
    assert names(root) == ["a.png", "one/c.png", "x/b.png"]


def test_the_root_may_be_a_link(root, tmp_path):
    (tmp_path / "link").symlink_to(root)
    assert names(tmp_path / "link") == ["a.png", "x/b.png"]


@pytest.mark.parametrize(
    "name", ["\u00e4/\u00fc.png", unicodedata.normalize("NFD", "\u00e4/\u00fc.png"), "\u00e4\\\u00fc.png"]
)
def test_a_name_is_found_in_any_spelling(tmp_path, name):
    there = unicodedata.normalize("NFD", "\u00e4/\u00fc.png")
    (tmp_path / there).parent.mkdir()
    (tmp_path / there).touch()
    assert spelled(tmp_path, name) == there
    assert spelled(tmp_path, "absent.png") is None
