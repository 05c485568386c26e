"""Restart training until it ends: `python launch/supervise.py -- accelerate launch ... launch/train.py ...`."""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from unetdist.cli.logs import run_script, set_up_logging
from unetdist.errors import ConfigError
from unetdist.train.supervisor import Supervisor, run_dir_of

DESCRIPTION = """Run a launcher of launch/train.py, one supervisor on each machine, and restart it when it dies or a
machine is lost. SIGTERM, SIGINT, SIGHUP and SIGUSR1 stop the run with a checkpoint; a second signal stops it at once.
Exit code 0: the run is finished; 75: it was stopped, and the same command continues; 1: it failed."""


def main() -> int:
    """Parse, supervise."""
    words = sys.argv[1:]
    if "--" not in words and not {"-h", "--help"} & set(words):
        raise ConfigError("no command to supervise; type it behind --, such as `-- accelerate launch ...`.")
    split = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        prog="launch/supervise.py",
        usage="%(prog)s [-h] [--max-restarts N] -- accelerate launch ... launch/train.py ...",
        description=DESCRIPTION,
        allow_abbrev=False,
    )
    parser.add_argument("--max-restarts", type=int, default=100, metavar="N", help="then give up (100)")
    args = parser.parse_args(words[:split])
    command = words[split + 1 :]
    set_up_logging()
    if find_spec("timm") is not None and "accelerate" in (Path(word).name for word in command):
        from unetdist.model.timm_encoder import import_timm  # imports torch, which takes seconds

        import_timm()  # as `accelerate` itself does: where that fails, no restart helps
    return Supervisor(command, run_dir_of(command), max_restarts=args.max_restarts).run()


if __name__ == "__main__":
    run_script(main)
