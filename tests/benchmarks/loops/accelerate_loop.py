"""A plain loop with Accelerate: `prepare`, `backward`, `step`.

`default`: as its quick tour shows it. `best`: channels last, compiled, fused AdamW, copies that do not wait.
"""

import sys

import torch
import torch.nn.functional as F
from torch.profiler import record_function

from tests.benchmarks.loops.files import on_device, open_files
from tests.benchmarks.loops.network import build_adamw, build_network, compile_on_gpu
from tests.benchmarks.loops.protocol import AfterStep, TrainJob, serve, waited


def train(job: TrainJob, after_step: AfterStep) -> None:
    """Without an end."""
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    best = "best" in sys.argv
    torch.backends.cudnn.benchmark = best
    accelerator = Accelerator(
        cpu=job.device.type == "cpu",
        mixed_precision="no" if job.precision == "fp32" else job.precision,
        dataloader_config=DataLoaderConfiguration(non_blocking=best),
    )
    network = build_network(job, channels_last=best)
    optimizer = build_adamw(network, job, fused=best)
    loader = open_files(job)
    network, optimizer, prepared = accelerator.prepare(network, optimizer, loader)
    if best:
        network = compile_on_gpu(network, job)
    network.train()
    # Its loader copies to the device before it gives a batch, so that the wait holds the copy.
    for image, mask in on_device(loader, job) if job.on_device else waited(prepared):
        if best:
            image = image.contiguous(memory_format=torch.channels_last)
        with record_function("step: forward"):
            loss = F.cross_entropy(network(image), mask, ignore_index=255)
        with record_function("step: backward"):
            accelerator.backward(loss)
        with record_function("step: optimizer"):
            optimizer.step()
            optimizer.zero_grad()
        after_step(loss.detach().item)


if __name__ == "__main__":
    serve(train, "torch", "accelerate")
