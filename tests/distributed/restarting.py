"""Started by `accelerate launch --max_restarts` in tests: counts by collectives, however often it dies.

    restarting.py FOLDER SEED HOW

In each attempt but the last a random rank dies (HOW is SIGKILL) at a random moment of meeting or training, or hangs in
a step (sleep, SIGSTOP). Continues from the step in FOLDER. The last attempt ends.
"""

import itertools
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import torch

from unetdist.cli.logs import run_script, set_up_logging
from unetdist.distributed.collectives import all_reduce_sum, broadcast, log_ranks, make_accelerator, world_of
from unetdist.distributed.rendezvous import open_store
from unetdist.distributed.signals import StopSignal
from unetdist.distributed.watchdog import Watchdog
from unetdist.storage.files import write_text
from unetdist.train.run_folder import name_of_run

NUM_STEPS = 60
LIMIT_S = 3.0


def main() -> None:
    folder, seed, how = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    attempt, last = (int(os.environ[f"TORCHELASTIC_{name}"]) for name in ("RESTART_COUNT", "MAX_RESTARTS"))
    assert os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "True"
    chance = random.Random(1000 * seed + attempt)
    is_victim = attempt < last and int(os.environ["RANK"]) == chance.randrange(int(os.environ["WORLD_SIZE"]))
    if is_victim and how == "SIGKILL":
        moment = threading.Timer(chance.uniform(0, 1.5), os.kill, (os.getpid(), signal.SIGKILL))
        moment.daemon = True
        moment.start()
    accelerator = make_accelerator(timeout_s=300)
    world = world_of(accelerator)
    set_up_logging(rank=world.rank, world_size=world.world_size)
    log_ranks(world)
    write_text(folder / f"name_{attempt}_{world.rank}", name_of_run("auto", world))
    stop = StopSignal()
    stacks = folder / f"attempt_{attempt}"
    stacks.mkdir(exist_ok=True)
    watchdog = Watchdog(open_store("watchdog"), world, limit_s=LIMIT_S, folder=stacks, stop=stop)
    state = folder / "state"
    first = broadcast(int(state.read_text()) if state.exists() else 0)
    hangs_at = first + chance.randrange(NUM_STEPS)
    for step in itertools.count(first) if attempt < last else range(first, first + NUM_STEPS):
        watchdog.at(f"step {step}: waiting for data")
        if is_victim and how != "SIGKILL" and step == hangs_at:
            (folder / f"hung_{attempt}").write_text(f"{world.rank} {step}")
            if how == "SIGSTOP":
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(600)
        watchdog.at(f"step {step}: training")
        assert all_reduce_sum(torch.ones(())) == world.world_size
        if world.is_main:
            write_text(state, str(step + 1))
        time.sleep(0.02)
    watchdog.close()
    stop.close()
    (folder / f"end_{world.rank}").write_text(f"{attempt} {first}")
    accelerator.end_training()


run_script(main)
