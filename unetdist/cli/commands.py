"""The commands of `unetdist`, and how messages name them."""

import sys
from pathlib import Path

# Name -> module with a function `main(argv) -> exit code`, and what the command is for. The modules read the command
# line before they load torch, so that help and mistakes are answered at once.
COMMANDS = {
    "init": ("unetdist.commands.init", "write a first YAML of settings, and files for clusters"),
    "shard": ("unetdist.commands.shard", "pack images and masks into shards, and check them"),
    "doctor": ("unetdist.commands.doctor.command", "check everything that a long run needs"),
    "train": ("unetdist.commands.train", "train, or continue a run"),
    "evaluate": ("unetdist.commands.evaluate", "score a trained model, or compare two"),
    "predict": ("unetdist.commands.predict", "write masks for images, folders, shards or a video"),
    "report": ("unetdist.commands.report.command", "show one or several runs in one HTML file"),
    "export": ("unetdist.commands.export", "write a trained model as ONNX, for other programs"),
    "equivalence": ("unetdist.commands.equivalence.command", "compare training on 1, 2, 4 processes bit by bit"),
    "ablate": ("unetdist.commands.ablate.command", "train variants of a recipe with several seeds, and compare them"),
}

# Those whose processes `accelerate launch` starts where a script of launch/ is used.
LAUNCHED = ("doctor", "train", "evaluate")

SCRIPTS = {"shard": "shard_dataset"}


def typed(command: str) -> str:
    """A command as the user would type it: `unetdist train`, or by its script if a script of launch/ is running."""
    running = script()
    if running is None:
        return f"unetdist {command}"
    program = "accelerate launch" if command in LAUNCHED else "python"
    return f"{program} {running.with_name(SCRIPTS.get(command, command))}.py"


def extra(name: str) -> str:
    """The line that installs the packages of an extra."""
    return f'pip install "unetdist[{name}]"'


def script() -> Path | None:
    """The script of launch/ that is running; None if the command was typed as `unetdist`."""
    running = Path(sys.argv[0])
    return running if running.parent.name == "launch" and running.suffix == ".py" else None
