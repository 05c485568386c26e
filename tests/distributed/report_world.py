"""Started by `accelerate launch` in tests: prints one JSON line per process, or the launch error."""

import json

import torch

from unetdist.cli.logs import run_script
from unetdist.distributed.collectives import all_reduce_sum, make_accelerator, world_of


def main() -> None:
    accelerator = make_accelerator(timeout_s=60)
    world = world_of(accelerator)
    total = all_reduce_sum(torch.ones((), dtype=torch.int64, device=world.device))
    print(json.dumps({"rank": world.rank, "world_size": world.world_size, "total": int(total)}), flush=True)
    accelerator.end_training()


run_script(main)
