"""What an ablation consists of: one recipe, the settings that each variant changes, and the seeds of each."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unetdist.cli import settings
from unetdist.errors import ConfigError
from unetdist.train.config import Config

KNOWN = ("name", "base", "settings", "seeds", "variants", "command")

LAID_BY_THE_PLAN = ("name", "runs_dir", "seed")
"""Settings that are of a run or of all runs, never of a variant."""


@dataclass(frozen=True)
class Run:
    """One variant trained with one seed."""

    variant: str
    config: Config

    @property
    def folder(self) -> Path:
        """Of the run: RUNS_DIR/ABLATION/VARIANT_SEED."""
        return Path(self.config.runs_dir) / self.config.name

    @property
    def per_image_file(self) -> Path:
        """Where the confusion matrix of every validation image lies, once they were counted."""
        return self.folder / "per_image.npz"


@dataclass(frozen=True)
class Plan:
    """All runs of an ablation."""

    name: str
    folder: Path
    """Holds the folders of all runs, and the results."""
    runs: tuple[Run, ...]
    """Seed after seed, so that the first table already shows every variant."""
    command: tuple[str, ...] | None
    """What trains, without its settings; None: one process of this Python."""

    @property
    def variants(self) -> tuple[str, ...]:
        """In the order of the file; the first is what the others are compared with."""
        return tuple(dict.fromkeys(run.variant for run in self.runs))


def read_plan(file: Path, words: Sequence[str] = ()) -> Plan:
    """Read an ablation and build the settings of every run, so that all that is wrong is found before any is trained.

    Args:
        file: YAML with `base` (a config file), `variants` (name: settings, nested or dotted, or nothing), and if
            wanted `settings` for all of them, `seeds` (0, 1, 2), `name` (that of the file) and `command` (a shell's
            words).
        words: `--section.field value` for all runs.

    Raises:
        ConfigError: what is wrong in the file, in a variant or in `words`; with where and a remedy.
    """
    values = settings.read_yaml(file)
    for key in values:
        if key not in KNOWN:
            raise ConfigError(f"{file}: unknown key '{key}'{settings.suggestion(str(key), KNOWN)}")
    if not isinstance(values.get("base"), str):
        raise ConfigError(f"{file}: base must be the path of a config file, such as configs/camvid.yaml")
    argv = ["--config", values["base"], *_for_all(values, file), *words]
    base = settings.parse(Config, argv, prog="launch/ablate.py", description="")
    if base.data.val is None:
        raise ConfigError(
            f"{file}: data.val is not set, and variants are compared by it; give --data.val SHARDS"
        )
    name = str(values.get("name", file.stem))
    base = replace(base, name=name)  # refuses what cannot be a folder
    folder = Path(base.runs_dir) / name
    changes = _changes(values, file, words)
    configs = {variant: _changed(base, variant, changed, file) for variant, changed in changes.items()}
    runs = [
        Run(variant, replace(config, runs_dir=str(folder), name=f"{variant}_{seed}", seed=seed))
        for seed in _seeds(values, file)
        for variant, config in configs.items()
    ]
    return Plan(name, folder, tuple(runs), _command(values, file))


def _changed(base: Config, variant: str, changed: Mapping[str, Any], file: Path) -> Config:
    laid = settings.laid_over(settings.to_mapping(base), changed)
    where = f"{file}: variant '{variant}'"
    try:
        return settings.from_mapping(Config, laid, where=where)
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(where) else f"{where}: {text}") from None


def _for_all(values: Mapping[str, Any], file: Path) -> list[str]:
    """What the file sets for all variants, as on a command line."""
    given = values.get("settings", {})
    if not isinstance(given, Mapping):
        raise ConfigError(f"{file}: settings must hold settings, not {given!r}; use `trainer.max_epochs: 20`")
    return [
        f"--{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in _leaves(_nested(given))
    ]


def _changes(values: Mapping[str, Any], file: Path, words: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What each variant changes, nested."""
    variants = values.get("variants")
    if not isinstance(variants, Mapping) or len(variants) < 2:
        raise ConfigError(
            f"{file}: variants must name two or more, each with the settings that it changes; the first is what the "
            "others are compared with, and may change nothing: `plain: {}`"
        )
    for_all = {word.split("=")[0].removeprefix("--") for word in words if word.startswith("--")}
    changes = {}
    for name, changed in variants.items():
        if not re.fullmatch(r"[\w-][\w.-]*", str(name)):
            raise ConfigError(
                f"{file}: variant '{name}' becomes a folder; use letters, digits, '-', '_' and '.' only"
            )
        if changed is not None and not isinstance(changed, Mapping):
            raise ConfigError(
                f"{file}: variant '{name}' must hold settings, not {changed!r}; use `model.norm: group`"
            )
        nested = _nested(changed or {})
        for key, _ in _leaves(nested):
            if key in LAID_BY_THE_PLAN:
                raise ConfigError(
                    f"{file}: variant '{name}' sets {key}, which the ablation itself sets; remove it"
                )
            if key in for_all:
                raise ConfigError(
                    f"--{key} is for all runs, but variant '{name}' of {file} changes it; give it in one place"
                )
        changes[str(name)] = nested
    return changes


def _seeds(values: Mapping[str, Any], file: Path) -> list[int]:
    seeds = values.get("seeds", [0, 1, 2])
    is_list = isinstance(seeds, list) and all(type(seed) is int for seed in seeds)
    if not is_list or not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"{file}: seeds ({seeds}) must be a list of different numbers; use [0, 1, 2]")
    return list(seeds)


def _command(values: Mapping[str, Any], file: Path) -> tuple[str, ...] | None:
    command = values.get("command")
    if command is None:
        return None
    if not isinstance(command, str) or not command.split():
        raise ConfigError(
            f"{file}: command ({command!r}) must be what trains, without settings; use "
            "`accelerate launch launch/train.py`, or leave it out for one process"
        )
    return tuple(command.split())


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`model.norm: group` as `model: {norm: group}`."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        for part in reversed(str(key).split(".")):
            value = {part: value}
        nested = settings.laid_over(nested, value)
    return nested


def _leaves(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All values by their dotted names."""
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
