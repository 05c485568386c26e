"""All set-up and the everyday commands; needs nothing but Python 3.11 or later.

python3 launch/dev.py quickstart    the main job on a built-in data set, start to end, without an account
python3 launch/dev.py test [...]    the tests; what follows is passed to pytest
python3 launch/dev.py lint          ruff and mypy
python3 launch/dev.py setup         only make the environment
python3 launch/dev.py timm          the same with timm, for networks of timm as encoder

Each makes the Python environment first, once: see install.py beside this file.
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

from install import MIN_PYTHON, ROOT, SetupError, make_environment, newer_python, say, timm_fault

GROUPS = {"quickstart": [], "setup": ["test", "lint"], "test": ["test"], "lint": ["lint"], "timm": ["timm"]}

PICTURES = {"train": 480, "val": 96}
"""How many pictures of shapes the quickstart draws."""


class CommandError(Exception):
    """A command that was run ended with an exit code other than 0."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit code {code}")
        self.code = code


def run(*command: str) -> None:
    """Print a command, run it in the root of the checkout, stop if it fails."""
    words = [word.replace(f"{ROOT}{os.sep}", "") for word in command]
    print(f"\n[dev] $ {shlex.join(words)}", flush=True)
    began = time.monotonic()
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    say(f"took {time.monotonic() - began:.0f} s" + (f", exit code {code}" if code else ""))
    if code:
        raise CommandError(code)


def lint(python: Path) -> None:
    """Ruff's rules and format, and mypy's types."""
    run(str(python), "-m", "ruff", "check", ".")
    run(str(python), "-m", "ruff", "format", "--check", ".")
    run(str(python), "-m", "mypy")


def test(python: Path, arguments: list[str]) -> None:
    """The test suite."""
    run(str(python), "-m", "pytest", *arguments)


def launch_arguments(python: Path) -> list[str]:
    """What `accelerate launch` needs to know of this machine."""
    count = "import torch; print(torch.cuda.device_count())"
    output = subprocess.run([str(python), "-c", count], capture_output=True, text=True, check=True).stdout
    gpus = int(output)
    if gpus > 1:
        return ["--config_file", "configs/accelerate/one_node.yaml", "--num_processes", str(gpus)]
    if gpus == 1:
        return ["--config_file", "configs/accelerate/one_gpu.yaml"]
    return ["--config_file", "configs/accelerate/cpu.yaml", "--num_processes", "2"]


def quickstart(python: Path) -> None:
    """Draw, shard, train, score and predict: the commands that a user types for a data set of their own."""
    began = time.monotonic()
    if fault := timm_fault(python):
        raise SetupError(
            f"`accelerate` cannot start because it imports timm, which fails: {fault}. `python3 launch/dev.py timm` "
            f"installs the torchvision that fits; without networks of timm: {python} -m pip uninstall timm torchvision"
        )
    data, results = Path("quickstart"), Path("runs/quickstart")
    for folder in (data, results):
        if (ROOT / folder).exists():
            say(f"removing {folder}/ of an earlier quickstart")
            shutil.rmtree(ROOT / folder)
    accelerate = [str(python.with_name("accelerate")), "launch", *launch_arguments(python)]

    for seed, (split, count) in enumerate(PICTURES.items()):
        folder = data / split
        draw = f"from unetdist.data.shapes import write_shapes; write_shapes('{folder}', count={count}, seed={seed})"
        run(str(python), "-c", draw)
        folders = ["--images", f"{folder}/images", "--masks", f"{folder}/masks"]
        labels = ["--labels", f"{folder}/Labels.txt", "--out", f"{data}/shards/{split}"]
        run(str(python), "launch/shard_dataset.py", *folders, *labels)
    run(*accelerate, "launch/train.py", "--config", "configs/shapes.yaml")
    metrics, model = results / "metrics_best.json", str(results / "best")
    run(
        *accelerate,
        "launch/evaluate.py",
        "--model",
        model,
        "--data",
        f"{data}/shards/val",
        "--json",
        str(metrics),
    )
    pictures, overlays = f"{data}/val/images", str(results / "predictions")
    run(
        str(python),
        "launch/predict.py",
        "--model",
        model,
        "--input",
        pictures,
        "--out",
        overlays,
        "--overlay",
    )

    miou = json.loads((ROOT / metrics).read_text(encoding="utf-8"))["miou"]
    launch = shlex.join(launch_arguments(python))
    activate = (
        ""
        if python == Path(sys.executable)
        else f"  source {python.with_name('activate').relative_to(ROOT)}\n"
    )
    print(SUMMARY.format(miou=miou, seconds=time.monotonic() - began, launch=launch, activate=activate))


SUMMARY = """
Done in {seconds:.0f} s: mIoU {miou:.3f} on the validation pictures.

  pictures and masks    quickstart/train, quickstart/val
  shards                quickstart/shards
  best weights          runs/quickstart/best
  curves                runs/quickstart/metrics.jsonl
  final numbers         runs/quickstart/metrics_best.json
  overlays to look at   runs/quickstart/predictions

Next, with pictures of your own (images, masks in colours, and a Labels.txt that names the colours):

{activate}  python launch/shard_dataset.py --images DIR --masks DIR --labels Labels.txt --out shards --val-fraction 0.2
  cp configs/shapes.yaml configs/mine.yaml      # then set name, data.train: shards/train, data.val: shards/val
  accelerate launch {launch} launch/train.py --config configs/mine.yaml
"""


def parse() -> tuple[argparse.Namespace, list[str]]:
    """Our options, and what is left for pytest."""
    parser = argparse.ArgumentParser(
        prog="launch/dev.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=GROUPS)
    parser.add_argument("--ci", action="store_true", help="test: check style and types first")
    parser.add_argument("--torch-index", metavar="URL", help="an index where pip looks for torch too")
    parser.add_argument("--unpinned", action="store_true", help="ignore launch/constraints.txt")
    args, rest = parser.parse_known_args()
    if rest and args.command != "test":
        parser.error(f"unknown: {' '.join(rest)}")
    return args, rest


def main() -> int:
    """Make the environment, run the command, return its exit code."""
    if sys.version_info < MIN_PYTHON:
        other = newer_python()
        if other is None:
            say(
                f"Python 3.11 or later is needed, this is {sys.version.split()[0]} and PATH has no other. Get one, for "
                "example `sudo apt install python3.11 python3.11-venv`, `brew install python`, or from conda or uv, "
                "and run `THAT_PYTHON launch/dev.py ...`."
            )
            return 1
        os.execv(other, [other, *sys.argv])
    args, rest = parse()
    groups = GROUPS[args.command] + (["lint"] if args.ci else [])
    try:
        python = make_environment(groups, torch_index=args.torch_index, unpinned=args.unpinned)
        if args.ci or args.command == "lint":
            lint(python)
        if args.command == "test":
            test(python, rest)
        elif args.command == "quickstart":
            quickstart(python)
    except SetupError as error:
        say(f"error: {error}")
        return 1
    except CommandError as error:
        say(f"stopped: the command above ended with exit code {error.code}")
        return error.code
    except KeyboardInterrupt:
        say("interrupted; the same command continues")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
