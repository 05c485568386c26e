"""`unetdist doctor` as a user types it."""

import json

import pytest

from unetdist.commands.doctor import command as script
from unetdist.errors import ConfigError


def test_refused_settings_end_it_as_they_would_end_the_run():
    with pytest.raises(ConfigError, match=r"did you mean 'trainer\.max_steps'\?"):
        script.main(["--data.train", "train", "--trainer.max_stepz", "9"])


def test_findings_are_printed_and_saved(tmp_path, capsys):
    file = tmp_path / "found.json"
    words = ["--data.train", str(tmp_path / "none"), "--runs_dir", str(tmp_path / "runs"), "--json", str(file)]
    assert script.main(words) == 1
    seen = capsys.readouterr()
    assert "  ok       devices  " in seen.out
    assert seen.err == ""
    found = json.loads(file.read_text())
    assert [each["what"] for each in found["findings"] if each["level"] == "problem"] == ["training set"]
