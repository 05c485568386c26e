"""launch/gpu_check.sh: without a GPU, and with a stand-in for the python of a machine that has one.

`REHEARSE=1 launch/gpu_check.sh` runs every step for real at a tiny size, also here: tests/long/test_gpu_check.py.
"""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "gpu_check.sh"

STAND_IN = f"""#!{sys.executable}
import json, os, sys, time
from pathlib import Path
words = sys.argv[1:]
if words[0] == "-c":
    if "get_device_name" in words[1]:
        print("NVIDIA Made-up")
        sys.exit()
    os.execv(sys.executable, [sys.executable, *words])
with open(os.environ["CALLS"], "a") as file:
    file.write(" ".join(words) + "\\n")
if "shard_dataset.py" in words[0]:
    print("found on", os.environ["PYTHONPATH"].split(":")[0])
if words[:3] == ["-m", "tests.benchmarks", "train"]:
    names = words[words.index("--against") + 1].split(",")
    case = words[words.index("--cases") + 1]
    rows = [
        dict(name=name, void=None, first_step_s=40.0, alone_images_per_s=3000.0)
        for name in ["ours", *names]
    ]
    if case.startswith("student"):
        rows[1] |= dict(images_per_s=dict(median=2000), ours_is_faster_by=dict(median=1.5), limit_images_per_s=8000)
        rows[2]["void"] = "not compiled: why"
    out = Path(words[words.index("--out") + 1])
    out.mkdir()
    (out / "train.json").write_text(json.dumps(dict(cases=[dict(case=case, rows=rows)])))
    if case.startswith("classic"):
        time.sleep(60)
if "pytest" in words and words[words.index("-k") + 1].startswith("not"):
    sys.exit(1)
"""


def check(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "TMPDIR": str(folder), **variables}
    command = ["bash", str(SCRIPT), str(folder / "out")]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=1500)


@pytest.fixture
def stand_in(tmp_path) -> Path:
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    return python


def test_without_a_gpu_it_says_so_in_one_line(tmp_path):
    done = check(tmp_path, PYTHON=sys.executable)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"gpu_check: {sys.executable} has no torch that sees a GPU; nothing was checked\n"
    assert list(tmp_path.iterdir()) == []


def test_what_is_cut_short_or_fails_has_shown_its_numbers_and_the_rest_goes_on(tmp_path, stand_in):
    calls, folder = tmp_path / "calls", tmp_path / "out"
    done = check(tmp_path, PYTHON=str(stand_in), CALLS=str(calls), LIMIT_S="12")
    assert done.returncode == 1, done.stderr
    summary = "\n".join(" ".join(line.split()) for line in (folder / "summary.txt").read_text().splitlines())
    assert done.stdout.count("measured alone") == 2 * summary.count("measured alone") > 0  # at once, and in the end
    for text in (
        "NVIDIA Made-up, commit ",
        "student:480x352:32 careful first step 40.0 s, 2000 images/s, ours 1.50 x, 0.25 of the limit",
        "student:480x352:32 accelerate void: not compiled: why",
        "classic:512x512:32 ours first step 40.0 s, 3000 images/s, measured alone",
        "cut short after 3 s",
        "FAILED (1), see logs.tar.gz",
    ):
        assert text in summary
    first = [line.split(" --precision")[0].split(" -k")[0] for line in calls.read_text().splitlines()]
    assert first[:4] == [
        "-m tests.benchmarks train --cases student:480x352:32",
        "-m tests.benchmarks train --cases classic:512x512:32",
        "-m pytest -m gpu tests/gpu",
        "launch/shard_dataset.py --shapes 400 --val-fraction 0.2 --out " + first[3].rpartition(" ")[2],
    ]
    assert json.loads((folder / "classic.json").read_text())["cases"][0]["rows"][0]["name"] == "ours"
    assert len(list(folder.iterdir())) <= 8
    with tarfile.open(folder / "logs.tar.gz") as logs:
        found_on = logs.extractfile("logs/shards.log").read().decode()
    assert found_on == f"found on {SCRIPT.parents[1]}\n"
    assert {path.name for path in tmp_path.iterdir()} == {"calls", "out", "python"}  # nothing left behind


def test_steps_without_time_are_named(tmp_path, stand_in):
    done = check(tmp_path, PYTHON=str(stand_in), CALLS=str(tmp_path / "calls"), LIMIT_S="0")
    assert done.returncode == 0
    assert "student: no time left" in done.stdout
