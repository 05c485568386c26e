"""A loop as in the U-Nets that are shared most (such as milesial/Pytorch-UNet): autocast, GradScaler, loss.item().

`default`: NCHW, not compiled. `best`: channels last, compiled, fused AdamW.
"""

import sys

import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import record_function

from tests.benchmarks.loops.files import fed, open_files
from tests.benchmarks.loops.network import build_adamw, build_network, compile_on_gpu
from tests.benchmarks.loops.protocol import AfterStep, TrainJob, serve

CLIP_NORM = 1.0


def train(job: TrainJob, after_step: AfterStep) -> None:
    """Without an end."""
    best = "best" in sys.argv
    torch.backends.cudnn.benchmark = best
    network = build_network(job, channels_last=best)
    optimizer = build_adamw(network, job, fused=best)
    model = compile_on_gpu(network, job) if best else network
    scaler = torch.amp.GradScaler(job.device.type, enabled=job.precision == "fp16")
    model.train()
    total = 0.0
    for image, mask in fed(open_files(job), job):
        if best:
            image = image.contiguous(memory_format=torch.channels_last)
        with (
            record_function("step: forward"),
            torch.autocast(job.device.type, job.autocast_dtype, enabled=job.precision != "fp32"),
        ):
            loss = F.cross_entropy(model(image), mask, ignore_index=255)
        with record_function("step: backward"):
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        with record_function("step: optimizer"):
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            scaler.step(optimizer)
            scaler.update()
        total += loss.item()
        after_step(loss.item)


if __name__ == "__main__":
    serve(train, "torch", "pillow")
