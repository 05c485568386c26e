"""The command `unetdist`: `unetdist train --config my_data.yaml`, or `python -m unetdist train ...`."""

import io
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from importlib import import_module
from types import FrameType

from unetdist import __version__
from unetdist.cli.commands import COMMANDS

# Ctrl-C within this time of the first is the same one: it comes from the terminal and from a launcher.
SECOND_INTERRUPT_AFTER_S = 1.0


def main(command: str | None = None) -> None:
    """Run the command that the command line names, or `command` for a script of its own, and exit."""
    leave_on_interrupt()  # before the imports that take long

    from unetdist.cli.logs import run_script

    words = [*([command] if command else []), *sys.argv[1:]]
    run_script(lambda: run(words))


def leave_on_interrupt() -> None:
    """Let Ctrl-C raise KeyboardInterrupt, or end the program at once: while modules load, and the second time."""
    own, since = os.getpid(), 0.0

    def leave(number: int, frame: FrameType | None) -> None:
        nonlocal since
        now = time.monotonic()
        # An import that is interrupted fails in many ways, some of which are not passed on.
        while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
            frame = frame.f_back
        if os.getpid() != own:  # forked a moment ago; the parent speaks
            os._exit(128 + number)
        elif frame is not None or (since and now - since > SECOND_INTERRUPT_AFTER_S):
            if os.environ.get("RANK", "0") == "0":
                os.write(2, b"\x1b[?25hinterrupted\n" if os.isatty(2) else b"interrupted\n")  # shows the cursor
            os._exit(128 + number)
        elif not since:
            since = now
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, leave)


def run(words: Sequence[str]) -> int:
    """Run a command with its options; the exit code."""
    from unetdist.cli.command_line import suggestion
    from unetdist.errors import ConfigError

    name, options = (words[0], words[1:]) if words else ("--help", [])
    if name in ("-h", "--help", "help"):
        print(overview())
        return 0
    if name in ("-V", "--version"):
        print(f"unetdist {__version__}")
        return 0
    if name == "completion":
        print(completion())
        return 0
    if name not in COMMANDS:
        raise ConfigError(f"unknown command '{name}'{suggestion(name, list(COMMANDS))}")
    module, _ = COMMANDS[name]
    return int(import_module(module).main(options) or 0)


def overview() -> str:
    """The commands, a line for each."""
    lines = "\n".join(f"  {name:12} {purpose}" for name, (_, purpose) in COMMANDS.items())
    return (
        "Train U-Nets for semantic segmentation.\n\n"
        f"usage: unetdist COMMAND ...\n\n{lines}\n\n"
        "`unetdist COMMAND --help` explains a command. For your own images:\n\n"
        "  unetdist init\n"
        "  unetdist shard --images DIR --masks DIR --labels Labels.txt \\\n"
        "    --val-fraction 0.2 --out shards\n"
        "  unetdist train --config my_data.yaml\n\n"
        "`unetdist completion` prints what completes options in bash and zsh."
    )


def completion() -> str:
    """A script for bash and zsh that completes commands and the options that `--help all` shows."""
    cases = ""
    for command in COMMANDS:
        with redirect_stdout(io.StringIO()) as shown, suppress(SystemExit):
            run([command, "--help", "all"])
        options = re.findall(r"^ +(--[\w.-]+)", shown.getvalue(), re.MULTILINE)
        cases += f'    {command}) words="{" ".join(dict.fromkeys(options))} --help" ;;\n'
    return f"""\
_unetdist() {{
  local words=
  [[ $COMP_CWORD == 1 ]] && words="{" ".join(COMMANDS)}"
  [[ $COMP_CWORD != 1 && $2 == -* ]] && case "${{COMP_WORDS[1]}}" in
{cases}  esac
  COMPREPLY=($(compgen -W "$words" -- "$2"))
}}
[[ -n $ZSH_VERSION ]] && autoload -U +X bashcompinit && bashcompinit
complete -o default -F _unetdist unetdist"""


if __name__ == "__main__":
    main()
