"""Training loops as people write them, all around the same network, and ours; each runs in a process of its own.

A loop never ends by itself. It calls `after_step(read_loss)` after each step, which ends it with `EndedError`.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from tests.benchmarks.child import STARTED, peak_mib, versions_of
from tests.benchmarks.data_contenders import LEAD_BATCHES, PREFETCH
from unetdist.model.config import UNetConfig
from unetdist.model.unet import UNet

AfterStep = Callable[[Callable[[], float]], None]
"""Is given a function that waits for the device and returns the loss of a step."""

Batch = tuple[Tensor, Tensor]
"""Images (B, 3, H, W), float32 normalised or uint8, and masks (B, H, W), int64 or uint8."""

# ImageNet's mean and standard deviation of the channels, 0..255, as in most training code.
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]

# So many steps that the compiler pays, and so many samples that no epoch ends.
ENDLESS = 10_000_000

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TrainJob:
    """The network and data that every loop trains."""

    pictures: str
    """Folder with images/NAME.jpg and masks/NAME.png (class indices)."""
    shards: str
    """The same pictures as our shards."""
    height: int
    width: int
    """Random crop, in pixels."""
    batch_size: int
    num_classes: int
    widths: list[int]
    precision: str = "fp32"
    num_workers: int = 0
    lr: float = 1e-3
    logs_loss: bool = False
    """Our loop logs the loss of every step, as others can read theirs."""
    seed: int = 0

    @property
    def device(self) -> torch.device:
        """The GPU, if there is one."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class EndedError(Exception):
    """Ends a loop that was measured."""


def run(name: str, job: dict[str, Any], after_step: AfterStep) -> None:
    """Train until `after_step` raises EndedError."""
    try:
        CONTENDERS[name](TrainJob(**job), after_step)
    except EndedError:
        return
    raise RuntimeError(f"the loop {name} ended by itself")


def check(name: str, job: dict[str, Any], steps: int, packages: list[str]) -> dict[str, Any]:
    """Seconds from the start of the process to the end of the first step, and mean loss of the last fifth of the steps.

    `alone_images_per_s` is the rate of the steps between, which a benchmark that is cut short still has; ours is slower
    in it than in the rounds, because it logs every step.
    """
    last = max(1, steps // 5)
    ended: dict[int, float] = {}
    losses: list[float] = []
    count = 0

    def after_step(read_loss: Callable[[], float]) -> None:
        nonlocal count
        count += 1
        if count in (1, steps - last):
            wait_for_device()
            ended[count] = time.time()
        if count > steps - last:
            losses.append(read_loss())
        if count == steps:
            raise EndedError

    run(name, {**job, "logs_loss": True}, after_step)
    found = {"first_step_s": ended[1] - STARTED, "loss": sum(losses) / last, "versions": versions_of(packages)}
    if steps - last > 1:
        images = (steps - last - 1) * job["batch_size"]
        found["alone_images_per_s"] = images / (ended[steps - last] - ended[1])
    return found


def measure(name: str, job: dict[str, Any], seconds: float) -> dict[str, float]:
    """Images and seconds of steps that take at least `seconds`, after those that the workers had prepared."""
    lead = LEAD_BATCHES + PREFETCH * job["num_workers"]
    count, began, elapsed = 0, 0.0, 0.0

    def after_step(read_loss: Callable[[], float]) -> None:
        nonlocal count, began, elapsed
        count += 1
        if count == lead:
            wait_for_device()
            began = time.perf_counter()
        elif count > lead and time.perf_counter() - began >= seconds:
            wait_for_device()
            elapsed = time.perf_counter() - began
            raise EndedError

    run(name, job, after_step)
    peak = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else peak_mib()
    return {"images": (count - lead) * job["batch_size"], "seconds": elapsed, "peak_mib": peak}


def wait_for_device() -> None:
    """Return when the GPU, if there is one, has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class NchwUNet(UNet):
    """Our network in the layout that most people use; ours converts its input to channels last by itself."""

    def _pad(self, x: Tensor) -> Tensor:
        return super()._pad(x).contiguous()


def build(job: TrainJob, *, best: bool, normalises: bool = False) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The network with the same weights for every loop, and AdamW.

    `best`: channels last and, on a GPU, the fused AdamW. `normalises`: the network takes pixels 0..255.
    """
    torch.manual_seed(job.seed)
    mean, std = (MEAN, STD) if normalises else ([0.0] * 3, [1.0] * 3)
    kind, layout = (UNet, torch.channels_last) if best else (NchwUNet, torch.contiguous_format)
    network = kind(UNetConfig(widths=tuple(job.widths)), job.num_classes, mean, std).to(job.device)
    network.to(memory_format=layout)
    fused = True if best and job.device.type == "cuda" else None
    return network.train(), torch.optim.AdamW(network.parameters(), lr=job.lr, fused=fused)


def compile_on_gpu(network: Any, job: TrainJob) -> Any:
    """`torch.compile` on a GPU; on a CPU it takes minutes, and nobody does it there."""
    return torch.compile(network) if job.device.type == "cuda" else network


class Files(Dataset[Batch]):
    """Random crops and flips of files: uint8 read with OpenCV (`as_bytes`), or normalised floats read with PIL."""

    def __init__(self, job: TrainJob, *, as_bytes: bool = False) -> None:
        self.job, self.as_bytes = job, as_bytes
        self.images = sorted(Path(job.pictures, "images").glob("*.jpg"))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Batch:
        image, mask = self.read(self.images[index])
        height, width = mask.shape
        top = int(torch.randint(height - self.job.height + 1, ()))
        left = int(torch.randint(width - self.job.width + 1, ()))
        cut = slice(top, top + self.job.height), slice(left, left + self.job.width)
        step = -1 if torch.rand(()) < 0.5 else 1
        image, mask = image[cut][:, ::step], torch.from_numpy(np.ascontiguousarray(mask[cut][:, ::step]))
        if self.as_bytes:
            return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1), mask
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float()
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        return (pixels - mean) / std, mask.long()

    def read(self, image: Path) -> tuple[Any, Any]:
        """Pixels and class indices."""
        mask = Path(self.job.pictures, "masks", f"{image.stem}.png")
        if self.as_bytes:
            import cv2

            cv2.setNumThreads(0)
            return cv2.imread(str(image), cv2.IMREAD_COLOR_RGB), cv2.imread(str(mask), cv2.IMREAD_UNCHANGED)
        from PIL import Image

        return np.asarray(Image.open(image).convert("RGB")), np.asarray(Image.open(mask))


def open_files(job: TrainJob, *, as_bytes: bool = False) -> "DataLoader[Batch]":
    """Endless batches; every loop has as many workers."""
    dataset = Files(job, as_bytes=as_bytes)
    return DataLoader(
        dataset,
        batch_size=job.batch_size,
        sampler=RandomSampler(dataset, replacement=True, num_samples=ENDLESS * job.batch_size),
        num_workers=job.num_workers,
        pin_memory=job.device.type == "cuda",
        drop_last=True,
    )


def accelerate(job: TrainJob, after_step: AfterStep) -> None:
    """A loop with Accelerate's defaults, as in its quick tour: `prepare`, `backward`, `step`."""
    from accelerate import Accelerator

    precision = "no" if job.precision == "fp32" else job.precision
    accelerator = Accelerator(cpu=job.device.type == "cpu", mixed_precision=precision)
    network, optimizer, loader = accelerator.prepare(*build(job, best=False), open_files(job))
    for image, mask in loader:
        loss = F.cross_entropy(network(image), mask, ignore_index=255)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        after_step(loss.detach().item)


def lightning(job: TrainJob, after_step: AfterStep) -> None:
    """A LightningModule with the best flags: channels last, compiled, fused AdamW, autotuning, no progress bar."""
    import lightning as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            network, self.built_optimizer = build(job, best=True)
            self.network = compile_on_gpu(network, job)

        def training_step(self, batch: Batch, number: int) -> Tensor:
            image = batch[0].contiguous(memory_format=torch.channels_last)
            return F.cross_entropy(self.network(image), batch[1], ignore_index=255)

        def on_train_batch_end(self, outputs: Any, batch: Batch, number: int) -> None:
            after_step(outputs["loss"].item)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return self.built_optimizer

    precisions = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
    with TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="gpu" if job.device.type == "cuda" else "cpu",
            devices=1,
            precision=precisions[job.precision],
            max_epochs=-1,
            logger=False,
            enable_checkpointing=False,
            default_root_dir=folder,
            benchmark=True,
            enable_progress_bar=False,
        )
        trainer.fit(Module(), open_files(job))


def milesial(job: TrainJob, after_step: AfterStep) -> None:
    """A loop as in the U-Nets that are copied most (milesial/Pytorch-UNet): NCHW, GradScaler, clipping, loss.item()."""
    network, optimizer = build(job, best=False)
    scaler = torch.amp.GradScaler(job.device.type, enabled=job.precision == "fp16")
    total = 0.0
    for image, mask in open_files(job):
        image, mask = image.to(job.device), mask.to(job.device)
        with torch.autocast(job.device.type, DTYPES[job.precision], enabled=job.precision != "fp32"):
            loss = F.cross_entropy(network(image), mask, ignore_index=255)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        total += loss.item()
        after_step(loss.item)


class WithLoss(nn.Module):
    """The network with its loss, to be compiled together."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Mean cross entropy over the pixels that count: ()."""
        return F.cross_entropy(self.network(image), mask.long(), ignore_index=255)


def careful(job: TrainJob, after_step: AfterStep) -> None:
    """The fastest loop that a careful user would write.

    Channels last, network and loss compiled, bytes copied ahead of time on a stream of their own and normalised on the
    device, fused AdamW, nothing that waits for the device.
    """
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = True
    network, optimizer = build(job, best=True, normalises=True)
    model = compile_on_gpu(WithLoss(network), job)
    scaler = torch.amp.GradScaler(job.device.type, enabled=job.precision == "fp16")
    for image, mask in copied_ahead(open_files(job, as_bytes=True), job.device):
        image = image.contiguous(memory_format=torch.channels_last)
        with torch.autocast(job.device.type, DTYPES[job.precision], enabled=job.precision != "fp32"):
            loss = model(image, mask)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        after_step(loss.detach().item)


def copied_ahead(loader: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches on the device; the next one is copied while one is used."""
    if device.type != "cuda":
        yield from loader
        return
    stream = torch.cuda.Stream(device)
    upcoming: Batch | None = None
    for image, mask in loader:
        current = upcoming
        if current is not None:
            torch.cuda.current_stream(device).wait_stream(stream)
            for tensor in current:
                tensor.record_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            upcoming = image.to(device, non_blocking=True), mask.to(device, non_blocking=True)
        if current is not None:
            yield current


def ours(job: TrainJob, after_step: AfterStep, *, performance: str = "auto", graphs: bool | None = None) -> None:
    """The loop of launch/train.py, without validation and checkpoints, which the others do not have here.

    `graphs`: compile with CUDA graphs or without, whatever the facts of the run say.
    """
    from unetdist.cli import settings
    from unetdist.train import build
    from unetdist.train.config import Config
    from unetdist.train.performance import COMPILER, FastPath

    if graphs is not None:  # this process trains nothing else
        reason = f"compiled, CUDA graphs: {'yes' if graphs else 'no'}, as the benchmark asks"
        path = FastPath(autotunes=True, compiler=COMPILER, cuda_graphs=graphs, reason=reason)
        build.choose = lambda *_, **__: path

    with TemporaryDirectory() as folder:
        sections = {
            "data": {"train": job.shards, "num_workers": job.num_workers},
            "augment": {"crop_size": [job.height, job.width], "flip_horizontal": 0.5},
            "model": {"widths": job.widths},
            "optim": {"kind": "adamw", "lr": job.lr, "weight_decay": 0.01, "schedule": "constant", "warmup_steps": 0},
            "trainer": {
                "global_batch_size": job.batch_size,
                "max_steps": ENDLESS,
                "log_every": 1 if job.logs_loss else ENDLESS,
                "mixed_precision": "no" if job.precision == "fp32" else job.precision,
            },
            "checkpoint": {"save_every": ENDLESS},
            "tracking": {"tracker": "none"},
        }
        values = {"name": "run", "runs_dir": folder, "seed": job.seed, "performance": performance, **sections}

        def last_loss() -> float:
            # The step that is ending is not logged yet; the one before will do.
            lines = Path(folder, "run", "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            return float(json.loads(lines[-1])["train/loss"])

        with build.build_trainer(settings.from_mapping(Config, values)) as trainer:

            def after_optimizer(*_: Any) -> None:
                network = trainer.step.model_with_loss
                if network.problem is not None or (graphs and not network.has_cuda_graphs):
                    raise RuntimeError(f"not compiled as asked: {network.problem or 'no CUDA graphs'}")
                after_step(last_loss)

            optimizer = getattr(trainer.step.optimizer, "optimizer", trainer.step.optimizer)
            optimizer.register_step_post_hook(after_optimizer)
            trainer.fit()


CONTENDERS: dict[str, Callable[[TrainJob, AfterStep], None]] = {
    "ours": ours,
    "ours-off": lambda job, after_step: ours(job, after_step, performance="off"),
    "ours-graphs": lambda job, after_step: ours(job, after_step, graphs=True),
    "ours-no-graphs": lambda job, after_step: ours(job, after_step, graphs=False),
    "accelerate": accelerate,
    "lightning": lightning,
    "milesial": milesial,
    "careful": careful,
}
