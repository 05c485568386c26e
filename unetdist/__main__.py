"""The command `unetdist`: `unetdist train --config my_data.yaml`, or `python -m unetdist train ...`."""

import io
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from importlib import import_module

from unetdist import __version__
from unetdist.cli.command_line import suggestion
from unetdist.cli.commands import COMMANDS
from unetdist.cli.logs import run_script
from unetdist.errors import ConfigError


def main(command: str | None = None) -> None:
    """Run the command that the command line names, or `command` for a script of its own, and exit."""
    words = [*([command] if command else []), *sys.argv[1:]]
    run_script(lambda: run(words))


def run(words: Sequence[str]) -> int:
    """Run a command with its options; the exit code."""
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
        "  unetdist shard --images DIR --masks DIR --labels Labels.txt --val-fraction 0.2 --out shards\n"
        "  unetdist train --config my_data.yaml\n\n"
        "`unetdist completion` prints a script that completes options in bash and zsh, for ~/.bashrc or ~/.zshrc."
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
