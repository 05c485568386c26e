"""Watching a run: in the terminal, in `metrics.jsonl`, in dashboards that mirror it."""

from unetdist.evaluation.examples import Picture
from unetdist.tracking.config import TrackingConfig
from unetdist.tracking.tracker import Tracker

__all__ = ["Picture", "Tracker", "TrackingConfig"]
