"""What the settings promise of runs on other numbers of processes, and which of them takes the promise back."""

from collections.abc import Sequence

from unetdist.data.loader import check_batch_sizes, open_data
from unetdist.model.config import check_norm
from unetdist.train.config import Config
from unetdist.train.schedule import Schedule


def check_worlds(config: Config, worlds: Sequence[int], *, device_type: str) -> int:
    """Refuse, before anything is started, what one of the runs would refuse; returns the steps of the whole training.

    Raises:
        ConfigError: the global batch does not fall into equal parts, or sync_batch has no GPU.
        DataError: there are no training shards.
    """
    _, manifest = open_data(config.data, config.data.train)
    for world_size in worlds:
        check_batch_sizes(
            config.trainer.global_batch_size, samples_per_forward(config, world_size), world_size
        )
        check_norm(config.model, device_type=device_type, world_size=world_size)
    return Schedule.of(config.trainer, num_samples=manifest.num_samples, save_every=None).max_steps


def broken_by(config: Config, worlds: Sequence[int]) -> list[str]:
    """Why weights may differ between these numbers of processes: a setting and its reason each; empty: they may not."""
    if len(set(worlds)) == 1:
        return []
    reasons = []
    normalised_together = {size * samples_per_forward(config, size) for size in worlds}
    match config.model.norm:
        case "batch":
            reasons.append(
                "model.norm (batch) takes its statistics of each process's own part of the batch; group and instance "
                "take them of each image, sync_batch (GPUs) of all processes"
            )
        case "sync_batch" if len(normalised_together) > 1:
            reasons.append(
                f"model.norm (sync_batch) takes its statistics of trainer.micro_batch_size "
                f"({config.trainer.micro_batch_size}) samples of each process; leave micro_batch_size out"
            )
    if config.model.encoder is not None:
        reasons.append(
            f"model.encoder ({config.model.encoder}) has norms of its own, of most networks batch norm, whatever "
            "model.norm says; null is the way down of model.widths"
        )
    if config.model.dropout:
        reasons.append(
            f"model.dropout ({config.model.dropout}) drops other channels on each process; 0 drops none"
        )
    if config.model.drop_path:
        reasons.append(
            f"model.drop_path ({config.model.drop_path}) leaves out other blocks on each process; 0 leaves out none"
        )
    if config.trainer.mixed_precision != "no":
        reasons.append(
            f"trainer.mixed_precision ({config.trainer.mixed_precision}) rounds the gradient of each process to few "
            "digits; use no, or --float64"
        )
    return reasons


def samples_per_forward(config: Config, world_size: int) -> int:
    """Samples that a process takes through the network at once."""
    share = max(1, config.trainer.global_batch_size // world_size)
    return config.trainer.micro_batch_size or share
