"""Watching a run: in the terminal, in `metrics.jsonl`, in wandb."""

from unetdist.tracking.tracker import Tracker, TrackingConfig
from unetdist.tracking.wandb_run import Picture

__all__ = ["Picture", "Tracker", "TrackingConfig"]
