"""The network that all loops train, and its optimizer."""

import torch
from torch import Tensor, nn

from tests.benchmarks.loops.files import MEAN, STD
from tests.benchmarks.loops.protocol import TrainJob
from unetdist.model.unet import UNet, UNetConfig


class NchwUNet(UNet):
    """Our network as it is in most people's layout: ours brings its input to channels last by itself."""

    def _pad(self, x: Tensor) -> Tensor:
        factor = 2**self.config.depth
        fits = x.shape[-2] % factor == 0 and x.shape[-1] % factor == 0
        return x.contiguous() if fits else super()._pad(x).contiguous()


def build_network(job: TrainJob, *, channels_last: bool, normalises: bool = False) -> nn.Module:
    """Our U-Net on the job's device, with the same weights for everybody.

    `normalises`: it is given pixels 0..255 and brings them to mean 0 and spread 1 itself; else its workers do.
    """
    torch.manual_seed(job.seed)
    mean, std = (MEAN, STD) if normalises else ([0.0] * 3, [1.0] * 3)
    kind = UNet if channels_last else NchwUNet
    network = kind(UNetConfig(widths=tuple(job.widths)), num_classes=job.num_classes, mean=mean, std=std)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return network.to(job.device).to(memory_format=layout)  # type: ignore[call-overload, no-any-return]


def build_adamw(network: nn.Module, job: TrainJob, *, fused: bool = False) -> torch.optim.Optimizer:
    """AdamW; `fused`: on a GPU in one kernel, which is not its default."""
    use_fused = True if fused and job.device.type == "cuda" else None
    return torch.optim.AdamW(network.parameters(), lr=job.lr, fused=use_fused)


def compile_on_gpu(network: nn.Module, job: TrainJob) -> nn.Module:
    """`torch.compile` on a GPU; on a CPU it takes minutes, and nobody does it there."""
    if job.device.type != "cuda":
        return network
    module: nn.Module = torch.compile(network)  # type: ignore[assignment]
    return module
