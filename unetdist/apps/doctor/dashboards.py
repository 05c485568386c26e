"""Where the run can be watched: installed everywhere, and reached."""

import os
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from unetdist.apps.doctor.case import Case
from unetdist.apps.doctor.examination import GO, Check
from unetdist.apps.doctor.findings import Finding, by_rank, ok, problem, warning
from unetdist.errors import ConfigError
from unetdist.tracking.config import check_installed
from unetdist.tracking.wandb_run import wandb_mode

GROUP = "software"
ANSWER_S = 5.0
"""For a server to accept a connection."""


def dashboards(case: Case) -> dict[str, Any]:
    """What is missing; on rank 0, which alone talks to them, how each is written and which server is away."""
    cfg = case.settings.tracking
    try:
        check_installed(cfg)
    except ConfigError as error:
        return {"missing": str(error)}
    if not case.world.is_main:
        return {"missing": ""}
    texts, away = [], []
    for name in cfg.dashboards:
        how, server = _way_of(name, case)
        texts.append(f"{name} ({how})")
        if server and (reason := unreachable(server)):
            away.append(f"{name}'s server {server}: {reason}")
    return {"missing": "", "texts": texts, "away": away}


def _way_of(name: str, case: Case) -> tuple[str, str]:
    """How a dashboard will be written, and its server where it has one."""
    if name == "wandb":
        import wandb

        mode = wandb_mode(case.settings.tracking.mode)
        return (mode, wandb.setup().settings.base_url if mode == "online" else "")
    server = os.environ.get("MLFLOW_TRACKING_URI", "") if name == "mlflow" else ""
    has_server = server.startswith("http")
    return ("online" if has_server else "in files here", server if has_server else "")


def unreachable(server: str) -> str:
    """Why nobody answers at a URL; empty where somebody does."""
    parts = urlsplit(server)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=ANSWER_S).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def judge_dashboards(_: Case, ranks: list[dict[str, Any]]) -> Iterator[Finding]:
    """Whether each dashboard will be written."""
    if any(rank["missing"] for rank in ranks):
        yield problem("dashboards", by_rank([rank["missing"] or None for rank in ranks]))
        return
    if texts := ranks[0]["texts"]:
        yield ok("dashboards", ", ".join(texts))
    for text in ranks[0]["away"]:
        yield warning(
            "dashboards",
            text,
            "training goes on without it, and what it misses is sent when the run goes on; or choose another with "
            "--tracking.tracker",
        )


CHECKS = (
    Check(
        group=GROUP,
        what="dashboards",
        measure=dashboards,
        judge=judge_dashboards,
        why_not=lambda case: GO if case.config is not None else "",
    ),
)
