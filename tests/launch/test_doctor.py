"""launch/doctor.py as a user types it."""

import importlib.util
import json
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "launch" / "doctor.py"

spec = importlib.util.spec_from_file_location("launch_doctor", SCRIPT)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


def test_refused_settings_are_one_finding_among_others(tmp_path, capsys):
    file = tmp_path / "found.json"
    assert script.main(["--data.train", "train", "--trainer.max_stepz", "9", "--json", str(file)]) == 1
    seen = capsys.readouterr()
    assert "did you mean 'trainer.max_steps'?" in seen.out
    assert "  ok       memory  " in seen.out
    assert seen.err == ""
    found = json.loads(file.read_text())
    assert [each["what"] for each in found["findings"] if each["level"] == "problem"] == ["settings"]


def test_help_reads_as_documentation():
    assert "accelerate launch launch/doctor.py --config" in script.__doc__
