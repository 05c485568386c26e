"""Trains variants of a recipe, each with several seeds, and compares them: from one YAML file to a table.

Two tests answer two questions. Would other seeds agree? A paired t-test over the seeds (Student 1908, "The probable
error of a mean"); with two or three seeds it finds only large differences. Would other images agree? The randomization
test of `evaluation.comparison`, on the matrices of each image summed over the seeds. Neither is corrected for the
number of variants.
"""

import math
import os
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

from unetdist.cli import json_records, settings
from unetdist.cli.credentials import public
from unetdist.cli.logs import logger
from unetdist.distributed.signals import StopSignal
from unetdist.errors import ConfigError
from unetdist.storage import files as storage
from unetdist.train.config import SETTINGS_FILE, Config
from unetdist.train.run_status import STOPPED_EARLY, read_status

# Settings of a run that the ablation chooses, so that no variant may.
OWN_SETTINGS = ("--name", "--runs_dir", "--seed")

POLL_S = 0.1

PROGRAM = (sys.executable, "-m", "unetdist")
ALONE = ("--processes", "1")

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
    """Command that trains, without settings, such as `unetdist train --processes 2`; None: one process."""


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
        # Not by `from_mapping`: several threads ask at a time, and the parser behind it is not made for that.
        saved = settings.checked(settings.read_yaml(file), Config, where=str(file))
        known = settings.laid_over(settings.defaults(Config), saved)
        own = settings.to_mapping(self.config)
        if self.config.trainer.mixed_precision is None:  # that of the launcher, which the run has saved
            own["trainer"]["mixed_precision"] = known["trainer"]["mixed_precision"]
        return not settings.differences(public(known), public(own))

    @property
    def miou(self) -> float:
        """Score of the last weights of a finished run, 0..1."""
        from unetdist.model.saved_model import CONFIG_FILE  # loads torch, which takes seconds

        config = json_records.parse(storage.read_file(self.folder / "last" / CONFIG_FILE))
        return float(config["metric"]["value"])


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """All runs, seed after seed, so that the first table already shows every variant."""

    folder: Path
    """RUNS_DIR/ABLATION."""
    runs: tuple[AblationRun, ...]
    train: Sequence[str]
    """Words of the command that trains, without settings."""
    evaluate: Sequence[str]
    """Words of the command that counts the matrices of all validation images; empty: they are not counted."""

    def is_complete(self, run: AblationRun) -> bool:
        """Whether nothing is left to do for a run."""
        return run.is_finished and (run.per_image_file.exists() or not self.evaluate)

    def complete(self, parallel: int, after_each: Callable[[], object]) -> int:
        """Do what is left, some runs at a time; returns the exit code: 0, 1 if a run failed, 75 after a signal."""
        to_do = [run for run in self.runs if not self.is_complete(run)]
        logger.info("%s: %d runs, %d of them to do", self.folder, len(self.runs), len(to_do))
        if not to_do:
            after_each()
        has_failed = False
        with StopSignal() as watch, ThreadPoolExecutor(parallel) as pool:
            futures = {pool.submit(self._complete, run, watch): run for run in to_do}
            for future in as_completed(futures):
                reason = future.result()
                if watch.requested:
                    continue
                if reason:
                    has_failed = True
                    logger.error("%s failed: %s", futures[future].folder, reason)
                after_each()
            if watch.requested:
                logger.info("stopped; the same command continues")
                return STOPPED_EARLY
        return int(has_failed)

    def _complete(self, run: AblationRun, watch: StopSignal) -> str:
        """Train a run, and score its images if asked to; returns why it failed, or an empty text."""
        if watch.requested:
            return ""
        if not run.is_finished:
            given = run.folder / GIVEN_FILE
            # Readable for its owner alone, because URLs may hold passwords.
            storage.write_text(given, settings.to_yaml(settings.to_mapping(run.config)), private=True)
            if reason := _call(run, [*self.train, "--config", str(given)], watch):
                return reason
        if watch.requested or self.is_complete(run):
            return ""
        if not run.is_finished:
            return "its command exited with 0, but the run is not finished"
        words = ["--model", str(run.folder / "last"), "--data", str(run.config.data.val)]
        words += ["--per-image", str(run.per_image_file), "--num-workers", str(run.config.data.num_workers)]
        if run.config.trainer.mixed_precision is not None:
            words += ["--mixed-precision", run.config.trainer.mixed_precision]
        return _call(run, [*self.evaluate, *words], watch)


def _call(run: AblationRun, command: Sequence[str], watch: StopSignal) -> str:
    """Run a command until it ends or a signal comes; returns why it failed, or an empty text."""
    log_file = run.folder / LOG_FILE
    logger.info("%s; output: %s", run.folder, log_file)
    with open(log_file, "ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,  # else Ctrl-C would reach it twice, and end it at once
        )  # fmt: skip
        while process.poll() is None and not watch.requested:
            time.sleep(POLL_S)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)  # it saves a checkpoint
    if process.wait() == STOPPED_EARLY:
        return "it was stopped; the same command continues it"
    return f"exit code {process.returncode}; {log_file} says why" if process.returncode else ""


def read_ablation(file: Path, words: Sequence[str] = (), *, per_image: bool = False) -> Ablation:
    """Read an ablation and build the settings of every run, so that mistakes show before any run is trained.

    `words` (`--section.field value`) are for all runs.

    Raises:
        ConfigError: a mistake in the file, in a variant or in `words`.
    """
    given = settings.from_mapping(AblationFile, settings.read_yaml(file), where=str(file))
    if len(given.variants) < 2:
        raise ConfigError(f"{file}: variants must name two or more; the first may change nothing: `plain: {{}}`")
    if not given.seeds or len(set(given.seeds)) < len(given.seeds):
        raise ConfigError(f"{file}: seeds ({list(given.seeds)}) must be different numbers; use [0, 1, 2]")
    common = ["--config", given.base, *settings.as_words(given.settings or {}), *words]
    taken = {*OWN_SETTINGS, *(word.split("=")[0] for word in words)}
    configs = {}
    for variant, changed in given.variants.items():
        where, options = f"{file}: variant '{variant}'", settings.as_words(changed or {})
        for option in (option.split("=")[0] for option in options):
            if option in taken:
                raise ConfigError(f"{where} changes {option}, which is set for all runs; remove it in one place")
        try:
            config = settings.parse(Config, [*common, *options], prog="unetdist ablate", description="")
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        if config.data.val is None:
            raise ConfigError(f"{where}: data.val is needed to compare the variants; give --data.val SHARDS")
        configs[str(variant)] = replace(config, name=given.name or file.stem)  # YAML reads a plain 1 as a number
    first = next(iter(configs.values()))
    folder = Path(first.runs_dir) / first.name
    runs = tuple(
        AblationRun(variant, replace(config, runs_dir=str(folder), name=f"{variant}_{seed}", seed=seed))
        for seed in given.seeds
        for variant, config in configs.items()
    )
    return Ablation(
        folder=folder,
        runs=runs,
        train=given.command.split() if given.command else [*PROGRAM, "train", *ALONE],
        evaluate=[*PROGRAM, "evaluate", *ALONE] if per_image else [],
    )


def summarise(ablation: Ablation) -> list[dict[str, Any]]:
    """The results of all variants so far, as JSON types; mIoU are ratios 0..1 of the last weights."""
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
                "changes": {key: after for key, (_, after) in changes.items() if f"--{key}" not in OWN_SETTINGS},
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
    from unetdist.evaluation.comparison import compare

    a, b = (sum(np.load(pair[side].per_image_file)["confusion"] for pair in pairs) for side in (0, 1))
    return compare(a, b).to_mapping()


def table_of(summaries: Sequence[Mapping[str, Any]]) -> str:
    """One line per variant; mIoU are ratios 0..1."""
    rows = [["variant", "seeds", "mIoU", "deviation", "differs", "p seeds", "p images"]]
    for each in summaries:
        numbers = [each[name] for name in ("mean", "standard_deviation", "difference", "p_over_seeds")]
        numbers.append(each["over_images"] and each["over_images"]["p_value"])
        cells = ["-" if number is None else f"{number:.4f}" for number in numbers]
        rows.append([each["variant"], f"{len(each['miou'])}/{each['seeds']}", *cells])
    width = max(len(row[0]) for row in rows)
    return "\n".join(f"{row[0]:{width}}" + "".join(f"{cell:>11}" for cell in row[1:]) for row in rows)
