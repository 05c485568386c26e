"""The strongest that a careful user would write.

Channels last, network and loss compiled, bytes to the device ahead of time on a stream of their own and normalised
there, fused AdamW, nothing that waits for the device.
"""

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function

from tests.benchmarks.loops.files import Batch, on_device, open_files
from tests.benchmarks.loops.network import build_adamw, build_network, compile_on_gpu
from tests.benchmarks.loops.protocol import AfterStep, TrainJob, serve, waited


class WithLoss(nn.Module):
    """The network with its loss, to be compiled together."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Mean cross entropy over the pixels that count: ()."""
        return F.cross_entropy(self.network(image), mask.long(), ignore_index=255)


def train(job: TrainJob, after_step: AfterStep) -> None:
    """Without an end."""
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = True
    network = build_network(job, channels_last=True, normalises=True)
    optimizer = build_adamw(network, job, fused=True)
    model = compile_on_gpu(WithLoss(network), job)
    scaler = torch.amp.GradScaler(job.device.type, enabled=job.precision == "fp16")
    model.train()
    loader = open_files(job, reader="opencv", as_bytes=True)
    for image, mask in on_device(loader, job) if job.on_device else ahead(loader, job.device):
        image = image.contiguous(memory_format=torch.channels_last)
        with (
            record_function("step: forward"),
            torch.autocast(job.device.type, job.autocast_dtype, enabled=job.precision != "fp32"),
        ):
            loss = model(image, mask)
        with record_function("step: backward"):
            scaler.scale(loss).backward()
        with record_function("step: optimizer"):
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
        after_step(loss.detach().item)


def ahead(loader: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches on the device; the next one is copied while one is used."""
    if device.type != "cuda":
        yield from waited(loader)
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    upcoming: Batch | None = None
    for image, mask in waited(loader):
        current = upcoming
        if current is not None:
            torch.cuda.current_stream(device).wait_stream(stream)
            for tensor in current:
                tensor.record_stream(torch.cuda.current_stream(device))
        with record_function("step: copy"), torch.cuda.stream(stream):
            upcoming = image.to(device, non_blocking=True), mask.to(device, non_blocking=True)
        if current is not None:
            yield current


if __name__ == "__main__":
    serve(train, "torch", "opencv-python-headless")
