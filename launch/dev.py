"""Setup and everyday commands. They need only Python 3.11 or newer.

python3 launch/dev.py quickstart      shard, train, score and predict on a built-in data set, without an account
python3 launch/dev.py test [...]      all tests, or a part: `test tests/data`; the arguments go to pytest
python3 launch/dev.py lint            ruff and mypy
python3 launch/dev.py setup           only create the environment
python3 launch/dev.py timm            the same, with timm (networks of timm as encoder)

Each command first creates the Python environment, once; see install.py.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from install import MIN_PYTHON, ROOT, SetupError, make_environment, say

GROUPS = {"quickstart": [], "setup": ["test", "lint"], "test": ["test"], "lint": ["lint"], "timm": ["timm"]}

# Processes for all tests; each of them loads torch, and some start several processes of their own.
MAX_WORKERS = 4

# Images with shapes that the quickstart draws.
NUM_IMAGES = {"train": 480, "val": 96}


def run(*command: str) -> None:
    """Print a command and run it in the root of the checkout; raises `CalledProcessError` if it fails."""
    words = [word.replace(f"{ROOT}{os.sep}", "") for word in command]
    print(f"\n[dev] $ {shlex.join(words)}", flush=True)
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, check=False)
    say(f"took {time.monotonic() - began:.0f} s" + (f", exit code {done.returncode}" if done.returncode else ""))
    done.check_returncode()


def test(python: Path, arguments: list[str]) -> None:
    """Run the tests that the arguments for pytest name, or all of them."""
    if arguments:
        run(str(python), "-m", "pytest", *arguments)
        return
    # One thread each: workers that share cores would wait for each other in every operation of torch.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    workers = min(MAX_WORKERS, (os.cpu_count() or 1) + 1)  # one more, because tests of processes wait a lot
    # A file stays in one process, so that its fixtures are made once.
    run(str(python), "-m", "pytest", "-n", str(workers), "--dist", "loadfile")


def processes(python: Path) -> list[str]:
    """Options that use this machine: all of its GPUs without any, or two processes on its CPU."""
    count = "import torch; print(torch.cuda.device_count())"
    gpus = int(subprocess.check_output([str(python), "-c", count]))
    return [] if gpus else ["--processes", "2"]


def quickstart(python: Path) -> None:
    """Draw, shard, train, score and predict with the commands that users type for their own data."""
    began = time.monotonic()
    for folder in (Path("quickstart"), Path("runs/quickstart")):
        if (ROOT / folder).exists():
            say(f"removing {folder}/ of an earlier quickstart")
            shutil.rmtree(ROOT / folder)
    unetdist, several = str(python.with_name("unetdist")), processes(python)
    for seed, (split, count) in enumerate(NUM_IMAGES.items()):
        data = f"quickstart/{split}"
        draw = f"from unetdist.data.shapes import write_shapes; write_shapes('{data}', count={count}, seed={seed})"
        run(str(python), "-c", draw)
        shard = f"--images {data}/images --masks {data}/masks --labels {data}/Labels.txt"
        run(unetdist, "shard", *shard.split(), "--out", f"quickstart/shards/{split}")
    run(unetdist, "train", *several, "--config", "configs/shapes.yaml")
    score = "--model runs/quickstart/best --data quickstart/shards/val --json runs/quickstart/metrics_best.json"
    run(unetdist, "evaluate", *several, *score.split())
    predict = "--model runs/quickstart/best --input quickstart/val/images --out runs/quickstart/predictions --overlay"
    run(unetdist, "predict", *predict.split())

    miou = json.loads((ROOT / "runs/quickstart/metrics_best.json").read_text(encoding="utf-8"))["miou"]
    activate = "" if python == Path(sys.executable) else f"  source {python.with_name('activate').relative_to(ROOT)}\n"
    seconds = time.monotonic() - began
    print(SUMMARY.format(miou=miou, seconds=seconds, activate=activate))


SUMMARY = """
Done in {seconds:.0f} s: mIoU {miou:.3f} on the validation images.

  images and shards     quickstart/
  best weights          runs/quickstart/best
  curves                runs/quickstart/metrics.jsonl
  final numbers         runs/quickstart/metrics_best.json
  overlays to look at   runs/quickstart/predictions

Next, with your own data (images, colour-coded masks, and a Labels.txt that names the colours):

{activate}  unetdist init
  unetdist shard --images DIR --masks DIR --labels Labels.txt --val-fraction 0.2 --out shards
  unetdist train --config my_data.yaml
"""


def main() -> int:
    """Create the environment, run the command, return its exit code."""
    if sys.version_info < MIN_PYTHON:
        say(
            f"Python 3.11 or later is needed, this is {sys.version.split()[0]}. Get one, for example `sudo apt install "
            "python3.11 python3.11-venv`, `brew install python`, or from conda or uv, and start launch/dev.py with it."
        )
        return 1
    parser = argparse.ArgumentParser(
        prog="launch/dev.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=GROUPS)
    parser.add_argument("--unpinned", action="store_true", help="ignore launch/constraints.txt")
    args, rest = parser.parse_known_args()
    if rest and args.command != "test":
        parser.error(f"unknown: {' '.join(rest)}")
    try:
        python = make_environment(GROUPS[args.command], unpinned=args.unpinned)
        if args.command == "lint":
            for check in ("ruff check .", "ruff format --check .", "mypy"):
                run(str(python), "-m", *check.split())
        elif args.command == "test":
            test(python, rest)
        elif args.command == "quickstart":
            quickstart(python)
    except SetupError as error:
        say(f"error: {error}")
        return 1
    except subprocess.CalledProcessError as error:
        say(f"stopped: the command above ended with exit code {error.returncode}")
        return error.returncode
    except KeyboardInterrupt:
        say("interrupted; the same command continues")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
