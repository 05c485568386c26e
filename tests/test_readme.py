"""The README is a promise: its map shows what is there. Its commands are run by tests/launch/test_wheel.py."""

import re
from pathlib import Path

import pytest

from tests.test_architecture import ROOMS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_map_names_every_room_in_order():
    text = re.search(r"# The map\n.*?```\n(.*?)```", (ROOT / "unetdist" / "README.md").read_text(), re.S)[1]
    assert tuple(re.findall(r"(?m)^(\w+)(?:\.py|/) ", text)) == ROOMS


def test_the_readme_is_short_and_begins_with_a_command():
    lines = README.splitlines()
    assert len(lines) <= 150
    assert lines.index("```bash") < 25


READMES = [ROOT / "README.md", *sorted(ROOT.glob("[!.]*/**/README.md"))]


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.parent.name)
def test_every_path_that_is_named_exists(path):
    text = path.read_text(encoding="utf-8")
    named = {ROOT / name for name in re.findall(r"`((?:launch|configs|tests|unetdist)/[\w./]+)`", text)}
    linked = {path.parent / link for link in re.findall(r"\]\((?!\w+:)([^)#]+)\)", text)}
    assert [str(one) for one in named | linked if not one.exists()] == []


def test_every_test_that_a_workflow_names_exists():
    named = [re.findall(r"\btests/[\w./]+", path.read_text()) for path in (ROOT / ".github/workflows").glob("*.yml")]
    assert named
    assert [name for names in named for name in names if not (ROOT / name).exists()] == []
