"""launch/train.py, started in its place by tests: also writes down what each rank is fed, before it is.

In the folder RECORD, the file `ATTEMPT.RANK` of each process has one line per step: [step, [[id, checksum of its
picture and mask], ...]]. In step SPOILED_STEP, if it is set, no loss is finite.
"""

import json
import math
import os
import runpy
import zlib
from pathlib import Path
from typing import Any

from unetdist.data.batch import Batch
from unetdist.train.trainer import Trainer

ROOT = Path(__file__).parents[2]


def samples_of(micro_batches: list[Batch]) -> list[list[int]]:
    return [
        [int(sample_id), zlib.crc32(mask.numpy().tobytes(), zlib.crc32(image.numpy().tobytes()))]
        for batch in micro_batches
        for sample_id, image, mask in zip(batch.ids, batch.image, batch.mask, strict=True)
    ]


def record_into(folder: Path) -> None:
    train_step = Trainer.train_step
    spoil = int(os.environ.get("SPOILED_STEP", 0))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{os.environ['ATTEMPT']}.{os.environ.get('RANK', '0')}"

    def record_and_step(self: Trainer, micro_batches: list[Batch]) -> Any:
        with open(path, "a") as file:  # one write, which a kill does not cut
            file.write(json.dumps([self.state.step + 1, samples_of(micro_batches)]) + "\n")
        loss = self.step.model_with_loss.loss
        spoiled = loss.register_forward_hook(lambda *args: args[2] * math.nan) if self.state.step + 1 == spoil else None
        try:
            return train_step(self, micro_batches)
        finally:
            if spoiled:
                spoiled.remove()

    Trainer.train_step = record_and_step


if __name__ == "__main__":
    record_into(Path(os.environ["RECORD"]))
    runpy.run_path(str(ROOT / "launch" / "train.py"), run_name="__main__")
