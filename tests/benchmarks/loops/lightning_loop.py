"""A LightningModule under `Trainer.fit`.

`default`: the Trainer as it is, but for loggers and checkpoints, which nobody else writes here. `best`: channels last,
compiled, fused AdamW, cuDNN's autotuning, no progress bar (which reads the loss).
"""

import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function

from tests.benchmarks.loops.files import Batch, on_device, open_files
from tests.benchmarks.loops.network import build_adamw, build_network, compile_on_gpu
from tests.benchmarks.loops.protocol import AfterStep, TrainJob, serve, waited

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


class Waited:
    """A loader whose waits are ranges of the profile."""

    def __init__(self, job: TrainJob) -> None:
        self.job, self.loader = job, open_files(job)

    def __iter__(self) -> Any:
        return on_device(self.loader, self.job) if self.job.on_device else waited(self.loader)


def train(job: TrainJob, after_step: AfterStep) -> None:
    """Without an end."""
    import lightning

    best = "best" in sys.argv

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            network = build_network(job, channels_last=best)
            self.network = compile_on_gpu(network, job) if best else network

        def training_step(self, batch: Batch, number: int) -> Tensor:
            image, mask = batch
            if best:
                image = image.contiguous(memory_format=torch.channels_last)
            with record_function("step: forward"):
                return F.cross_entropy(self.network(image), mask, ignore_index=255)

        def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
            with record_function("step: backward"):
                super().backward(loss, *args, **kwargs)

        def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            with record_function("step: optimizer"):  # Holds forward and backward, which are taken off.
                super().optimizer_step(*args, **kwargs)

        def transfer_batch_to_device(self, *args: Any, **kwargs: Any) -> Any:
            with record_function("step: copy"):
                return super().transfer_batch_to_device(*args, **kwargs)

        def on_train_batch_end(self, outputs: Any, batch: Batch, number: int) -> None:
            after_step(outputs["loss"].item)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return build_adamw(self, job, fused=best)

    trainer = lightning.Trainer(
        accelerator="gpu" if job.device.type == "cuda" else "cpu",
        devices=1,
        precision=PRECISIONS[job.precision],
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        default_root_dir=job.work,
        **({"benchmark": True, "enable_progress_bar": False} if best else {}),
    )
    trainer.fit(Module(), Waited(job))


if __name__ == "__main__":
    serve(train, "torch", "lightning")
