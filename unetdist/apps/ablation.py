"""Trains variants of a recipe, each with several seeds, and compares them: from one YAML file to a table.

Two tests answer two questions. Would other seeds agree? A paired t-test over the seeds (Student 1908, "The probable
error of a mean"); with two or three seeds it finds only large differences. Would other images agree? The randomization
test of `evaluation.comparison`, on the matrices of each image summed over the seeds. Neither is corrected for the
number of variants.
"""

import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from unetdist.cli import json_records, settings
from unetdist.cli.credentials import public
from unetdist.cli.logs import logger
from unetdist.distributed.signals import StopSignal
from unetdist.errors import ConfigError
from unetdist.evaluation.comparison import compare
from unetdist.model.saved_model import CONFIG_FILE
from unetdist.storage import files as storage
from unetdist.train.config import Config
from unetdist.train.run_folder import SETTINGS_FILE
from unetdist.train.run_status import STOPPED_EARLY, read_status

# Settings of a run that the ablation chooses, so that no variant may.
OWN_SETTINGS = ("name", "runs_dir", "seed")

POLL_S = 0.1

# Settings that a run is started with, in its folder; the run itself writes `config.yaml`.
GIVEN_FILE = "ablation.yaml"
# Output of a run's processes.
LOG_FILE = "ablation.log"


@dataclass(frozen=True, kw_only=True)
class AblationFile:
    """The YAML of an ablation; settings may be nested or dotted."""

    base: str
    """Config file, such as configs/camvid.yaml."""
    variants: dict[str, dict[str, Any] | None]
    """Settings of each variant; the others are compared with the first, which may change nothing."""
    settings: dict[str, Any] | None = None
    """Settings for all variants."""
    seeds: tuple[int, ...] = (0, 1, 2)
    name: str | None = None
    """Folder of the runs; None: the name of the file."""
    command: str | None = None
    """Command that trains, without settings, such as `accelerate launch launch/train.py`; None: one process."""


@dataclass(frozen=True)
class AblationRun:
    """One variant trained with one seed."""

    variant: str
    config: Config

    @property
    def folder(self) -> Path:
        """RUNS_DIR/ABLATION/VARIANT_SEED."""
        return Path(self.config.runs_dir) / self.config.name

    @property
    def per_image_file(self) -> Path:
        """Confusion matrices of all validation images, if they were counted."""
        return self.folder / "per_image.npz"

    @property
    def is_finished(self) -> bool:
        """Whether it was trained to the end with these settings.

        If the settings differ, the run is started all the same: it knows which ones may change, and refuses the rest.
        """
        status = read_status(self.folder)
        if status is None or status.state != "finished":
            return False
        file = self.folder / SETTINGS_FILE
        saved = settings.checked(settings.read_yaml(file), Config, where=str(file))
        known = settings.laid_over(settings.defaults(Config), saved)
        return not settings.differences(public(known), public(settings.to_mapping(self.config)))

    @property
    def miou(self) -> float:
        """Score of the last weights of a finished run, 0..1."""
        config = json_records.parse(storage.read_file(self.folder / "last" / CONFIG_FILE))
        return float(config["metric"]["value"])


@dataclass(frozen=True)
class Ablation:
    """All runs, seed after seed, so that the first table already shows every variant."""

    name: str
    folder: Path
    runs: tuple[AblationRun, ...]
    command: list[str]
    """Words of the command that trains, without settings; empty: one process of this Python."""


def read_ablation(file: Path, words: Sequence[str] = ()) -> Ablation:
    """Read an ablation and build the settings of every run, so that mistakes show before any run is trained.

    Args:
        file: YAML of an `AblationFile`.
        words: `--section.field value` for all runs.

    Raises:
        ConfigError: a mistake in the file, in a variant or in `words`.
    """
    given = settings.from_mapping(AblationFile, settings.read_yaml(file), where=str(file))
    if len(given.variants) < 2:
        raise ConfigError(f"{file}: variants must name two or more; the first may change nothing: `plain: {{}}`")
    if not given.seeds or len(set(given.seeds)) < len(given.seeds):
        raise ConfigError(f"{file}: seeds ({list(given.seeds)}) must be different numbers; use [0, 1, 2]")
    common = ["--config", given.base, *_options(given.settings or {}), *words]
    for_all = {word.split("=")[0] for word in words if word.startswith("--")}
    configs = {}
    for name, changed in given.variants.items():
        variant = str(name)  # YAML reads a plain 1 as a number, and nobody checks keys
        where, options = f"{file}: variant '{variant}'", _options(changed or {})
        if not re.fullmatch(r"[\w-][\w.-]*", variant):
            raise ConfigError(f"{where} becomes a folder; use letters, digits, '-', '_' and '.'")
        for option in (option.split("=")[0] for option in options):
            if option.removeprefix("--") in OWN_SETTINGS:
                raise ConfigError(f"{where} sets {option}, which the ablation itself sets; remove it")
            if option in for_all:
                raise ConfigError(f"{option} is for all runs, but {where} changes it; give it in one place")
        try:
            config = settings.parse(Config, [*common, *options], prog="launch/ablate.py", description="")
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        if config.data.val is None:
            raise ConfigError(f"{where}: data.val is needed to compare the variants; give --data.val SHARDS")
        configs[variant] = replace(config, name=given.name or file.stem)  # refuses names that cannot be a folder
    first = next(iter(configs.values()))
    folder = Path(first.runs_dir) / first.name
    runs = tuple(
        AblationRun(variant, replace(config, runs_dir=str(folder), name=f"{variant}_{seed}", seed=seed))
        for seed in given.seeds
        for variant, config in configs.items()
    )
    return Ablation(first.name, folder, runs, (given.command or "").split())


def _options(changed: Mapping[str, Any]) -> list[str]:
    """The settings, nested or dotted, as words of a command line."""
    flat = settings.flat(changed)
    return [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in flat.items()]


@dataclass(kw_only=True)
class Crew:
    """Trains the runs of an ablation in processes of their own, some at a time."""

    scripts: Path
    """The folder launch/."""
    command: Sequence[str] = ()
    parallel: int = 1
    per_image: bool = False
    """Whether to count the confusion matrix of every validation image of a finished run."""

    def train(self, runs: Sequence[AblationRun], after_each: Callable[[], object]) -> dict[Path, str] | None:
        """Do what the runs still need; returns the folders of those that failed, and why. None after a signal."""
        failed = {}
        with StopSignal() as watch, ThreadPoolExecutor(self.parallel) as pool:
            futures = {pool.submit(self._complete, run, watch): run for run in runs}
            for future in as_completed(futures):
                reason = future.result()
                if watch.requested:
                    continue
                if reason:
                    failed[futures[future].folder] = reason
                    logger.error("%s failed: %s", futures[future].folder, reason)
                after_each()
            return None if watch.requested else failed

    def next_command(self, run: AblationRun) -> list[str] | None:
        """The command that a run needs next; None if it is complete."""
        if not run.is_finished:
            command = self.command or [sys.executable, str(self.scripts / "train.py")]
            return [*command, "--config", str(run.folder / GIVEN_FILE)]
        if not self.per_image or run.per_image_file.exists():
            return None
        words = ["--model", str(run.folder / "last"), "--data", str(run.config.data.val)]
        words += ["--per-image", str(run.per_image_file), "--num-workers", str(run.config.data.num_workers)]
        words += ["--mixed-precision", run.config.trainer.mixed_precision]
        return [sys.executable, str(self.scripts / "evaluate.py"), *words]

    def _complete(self, run: AblationRun, watch: StopSignal) -> str:
        """Train a run, and score its images if asked to; returns why it failed, or an empty text."""
        done: list[str] | None = None
        while (command := self.next_command(run)) is not None and not watch.requested:
            if command == done:
                return "its command exited with 0, but the run is not finished"
            values = settings.to_mapping(run.config)
            is_secret = public(values) != values  # the run needs credentials that others must not read
            storage.write_text(run.folder / GIVEN_FILE, settings.to_yaml(values), private=is_secret)
            logger.info("%s; output: %s", run.folder, run.folder / LOG_FILE)
            if reason := self._run(run, command, watch):
                return reason
            done = command
        return ""

    def _run(self, run: AblationRun, command: list[str], watch: StopSignal) -> str:
        with open(run.folder / LOG_FILE, "ab+") as log:
            start = log.tell()
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,  # else Ctrl-C would reach it twice, and end it at once
            )  # fmt: skip
            while process.poll() is None and not watch.requested:
                time.sleep(POLL_S)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)  # it saves a checkpoint
                process.wait()
            log.seek(start)
            output = log.read().decode(errors="replace")
        if process.returncode == STOPPED_EARLY:
            return "it was stopped; the same command continues it"
        if process.returncode == 0:
            return ""
        lines = [line for line in output.splitlines() if line.strip()] or ["no output"]
        errors = [line.split("error: ", 1)[1] for line in lines if "error: " in line]
        return f"exit code {process.returncode}: {(errors or lines)[-1]}"


def summarise(ablation: Ablation) -> list[dict[str, Any]]:
    """The results of all variants so far, as JSON types; mIoU are ratios 0..1 of the last weights.

    Raises:
        ConfigError: the matrices of two runs are of different images.
    """
    runs: dict[str, list[AblationRun]] = {}
    for run in ablation.runs:
        runs.setdefault(run.variant, []).append(run)
    first = next(iter(runs.values()))
    of_first: dict[int, float] = {}
    summaries = []
    for variant, own in runs.items():
        mious = {run.config.seed: run.miou for run in own if run.is_finished}
        differences = [mious[seed] - of_first[seed] for seed in mious if seed in of_first]
        of_first = mious if own is first else of_first
        values = (settings.to_mapping(run.config) for run in (first[0], own[0]))
        changes = settings.differences(*map(public, values))
        summaries.append(
            {
                "variant": variant,
                "changes": {key: after for key, (_, after) in changes.items() if key not in OWN_SETTINGS},
                "seeds": len(own),
                "miou": {str(seed): miou for seed, miou in mious.items()},
                "mean": statistics.fmean(mious.values()) if mious else None,
                "standard_deviation": statistics.stdev(mious.values()) if len(mious) > 1 else None,
                "difference": statistics.fmean(differences) if differences else None,
                "p_over_seeds": paired_t_test(differences),
                "over_images": None if own is first else compare_images(first, own),
            }
        )
    return summaries


def paired_t_test(differences: Sequence[float]) -> float | None:
    """Two-sided p-value for a mean of 0; None for fewer than two differences."""
    if len(differences) < 2:
        return None
    mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
    if deviation == 0:
        return float(mean == 0)
    freedom = len(differences) - 1
    t = abs(mean) / deviation * math.sqrt(len(differences))
    # With t = sqrt(freedom) * tan(angle), Student's density is proportional to cos(angle) ** (freedom - 1).
    angles = (np.arange(1_000_000) + 0.5) / 1_000_000 * math.pi / 2
    density = np.cos(angles) ** (freedom - 1)
    return float(density[angles > math.atan(t / math.sqrt(freedom))].sum() / density.sum())


def compare_images(first: Sequence[AblationRun], own: Sequence[AblationRun]) -> dict[str, Any] | None:
    """The first variant (A) and another one (B) over the same images; None without matrices of the same seeds."""
    pairs = [
        pair
        for pair in zip(first, own, strict=True)
        if all(run.is_finished and run.per_image_file.exists() for run in pair)
    ]
    if not pairs:
        return None
    a, b = (sum(np.load(pair[side].per_image_file)["confusion"] for pair in pairs) for side in (0, 1))
    return compare(a, b).to_mapping()


def table_of(summaries: Sequence[Mapping[str, Any]], *, title: str) -> Table:
    """One row per variant; mIoU in percent, differences in percentage points."""
    caption = (
        "mIoU of the last weights: mean and standard deviation over seeds. Differences to the first variant: mean over "
        "seeds with p of a paired t-test, and over images, where frames of one film make interval and p too confident."
    )
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.title_justify = table.caption_justify = "left"
    table.add_column("variant", no_wrap=True)
    has_images = any(summary["over_images"] for summary in summaries)
    images = ["95% images", "p images"] if has_images else []
    for heading in ("seeds", "mIoU %", "differs", "p seeds", *images):
        table.add_column(heading, justify="right", no_wrap=True)
    for summary in summaries:
        deviation = summary["standard_deviation"]
        cells = [
            f"{len(summary['miou'])}/{summary['seeds']}",
            _cell(summary["mean"], ".2f", 100) + ("" if deviation is None else f" ± {100 * deviation:.2f}"),
            _cell(summary["difference"], "+.2f", 100),
            _cell(summary["p_over_seeds"], ".3f"),
        ]
        if has_images:
            found = summary["over_images"] or {"difference_interval_95": None, "p_value": None}
            ends = [_cell(end, "+.1f", 100) for end in found["difference_interval_95"] or ()]
            cells += ["..".join(ends) or "-", _cell(found["p_value"], ".4f")]
        table.add_row(escape(summary["variant"]), *cells)
    return table


def _cell(value: float | None, form: str, factor: float = 1) -> str:
    return "-" if value is None else format(factor * value, form)
