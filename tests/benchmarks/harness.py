"""Shared by all programs: fresh processes, interleaved rounds, statistics, machine facts, tables, JSON and charts."""

import argparse
import datetime
import json
import os
import platform
import random
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from unetdist.cli.logs import logger, progress
from unetdist.distributed.hardware import cpu_model, num_cores
from unetdist.errors import ConfigError
from unetdist.storage.files import write_atomic, write_json

ROOT = Path(__file__).parents[2]
OURS = "ours"

# Characters of a table in a log file, where no terminal says how wide it is.
LOG_WIDTH = 150

# One core is one core only if no library starts threads of its own.
ONE_THREAD = dict.fromkeys(
    [
        *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"),
        *("OPENCV_FOR_THREADS_NUM", "ARROW_NUM_THREADS", "RAYON_NUM_THREADS"),
    ],
    "1",
)


class VoidError(Exception):
    """A contender cannot be measured; the message says why."""


@dataclass(frozen=True)
class Contender:
    """One row of the table; it needs `packages` in the environment of --peers-python, ours needs none."""

    name: str
    title: str
    packages: tuple[str, ...] = ()


def choose(names: str, known: Sequence[Contender]) -> list[Contender]:
    """The contenders of --against: all, or names separated by commas."""
    by_name = {contender.name: contender for contender in known}
    chosen = list(by_name) if names == "all" else [name.strip() for name in names.split(",")]
    if unknown := [name for name in chosen if name not in by_name]:
        raise ConfigError(f"--against ({names}): unknown {unknown[0]!r}; use all or some of {', '.join(by_name)}.")
    return [by_name[name] for name in chosen]


def run_child(
    function: str,
    arguments: Mapping[str, Any],
    *,
    python: str,
    log: Path,
    cores: Iterable[int] = (),
    variables: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Call `function` (MODULE:NAME) in a fresh process and return its result.

    `cores` are the only cores that the process may use (default: all). Raises VoidError if the function fails.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with TemporaryDirectory(prefix="benchmark-") as folder:
        result = Path(folder, "result.json")
        words = [
            "-W",
            "ignore",
            "-m",
            "tests.benchmarks.child",
            function,
            json.dumps(arguments),
            str(result),
            *map(str, cores),
        ]
        try:
            with open(log, "wb") as file:
                subprocess.run(
                    [python, *words],
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    cwd=ROOT,
                    env={**os.environ, **(variables or {}), "PYTHONPATH": path},
                    check=False,
                )
        except OSError as error:
            raise ConfigError(
                f"--peers-python ({python}) does not run ({error.strerror}); give the python of the environment "
                "that has the other programs' packages."
            ) from None
        if not result.exists():
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise VoidError(f"its process ended: {lines[-1] if lines else 'no message'} (log: {log})")
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    if found.get("missing"):
        raise VoidError(f"{python} has no module {found['missing']}")
    if "error" in found:
        raise VoidError(f"{found['error'][:300]} (log: {log})")
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    if len(values) == 1:
        return dict.fromkeys(("median", "low", "high"), values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


@dataclass
class Results:
    """Checks and rounds of the contenders of one case; a contender that fails once is void."""

    title: str
    contenders: Sequence[Contender]
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Results of the check, by contender."""
    rounds: list[dict[str, dict[str, Any]]] = field(default_factory=list)
    """Images and seconds by contender."""
    void: dict[str, str] = field(default_factory=dict)
    """Reasons by contender."""

    def check(self, run: Callable[[Contender], dict[str, Any]]) -> None:
        """Let each contender show that it does the work, before anything is measured."""
        for contender in self.contenders:
            try:
                self.facts[contender.name] = run(contender)
            except VoidError as error:
                self.reject(contender.name, str(error))

    def measure(
        self, run: Callable[[Contender], dict[str, Any]], num_rounds: int, keep: Callable[[], object] = lambda: None
    ) -> None:
        """Run every contender once per round, in a random order; `keep` is called after each run.

        All take part in each round, so that a slow minute of the machine is slow for all, and the order is random, so
        that nobody always finds the caches that the same neighbour left.
        """
        order = random.Random(self.title)
        with progress(f"measuring {self.title}", num_rounds * len(self.contenders)) as bar:
            for _ in range(num_rounds):
                self.rounds.append({})
                for contender in order.sample(list(self.contenders), len(self.contenders)):
                    if contender.name not in self.void:
                        try:
                            self.rounds[-1][contender.name] = run(contender)
                        except VoidError as error:
                            self.reject(contender.name, str(error))
                        keep()
                    bar.advance(1, contender.name)

    def reject(self, name: str, reason: str) -> None:
        """Make a contender void."""
        self.void[name] = reason
        logger.warning("%s is void: %s", name, reason)

    def rates(self, name: str) -> list[float]:
        """Images per second of the rounds that it took part in."""
        return [each[name]["images"] / each[name]["seconds"] for each in self.rounds if name in each]

    def rows(self) -> list[dict[str, Any]]:
        """A row per contender, as JSON types; ratios are taken within a round, then their median."""
        rows = []
        for contender in self.contenders:
            name = contender.name
            row = {"name": name, "title": contender.title, "void": self.void.get(name), **self.facts.get(name, {})}
            if name not in self.void and (rates := self.rates(name)):
                row["images_per_s"] = spread(rates)
                both = [each for each in self.rounds if name in each and OURS in each]
                if both and OURS not in self.void:
                    row["ours_is_faster_by"] = spread(
                        [
                            each[OURS]["images"] / each[OURS]["seconds"] * each[name]["seconds"] / each[name]["images"]
                            for each in both
                        ]
                    )
                if peaks := [each[name]["peak_mib"] for each in self.rounds if "peak_mib" in each.get(name, {})]:
                    row["peak_mib"] = statistics.median(peaks)
            rows.append(row)
        return rows

    def to_mapping(self) -> dict[str, Any]:
        """Everything that was measured, as JSON types."""
        return {"case": self.title, "rows": self.rows(), "rounds": self.rounds}


def print_table(results: Results, columns: Mapping[str, Callable[[dict[str, Any]], str]]) -> None:
    """Print rates, ratios and further columns, then why contenders are void."""
    table = Table("", title=f"{results.title}: images/s", title_justify="left")
    for heading in ("images/s", "quartiles", "ours / theirs", "quartiles", *columns):
        table.add_column(heading, justify="right")
    for row in results.rows():
        if "images_per_s" not in row:
            table.add_row(escape(row["title"]), "void", style="dim")
            continue
        cells = [""] * 4
        for at, key, form in ((0, "images_per_s", ".4g"), (2, "ours_is_faster_by", ".2f")):
            if key in row and (at == 0 or row["name"] != OURS):
                found = row[key]
                cells[at : at + 2] = (f"{found['median']:{form}}", f"{found['low']:{form}} .. {found['high']:{form}}")
        table.add_row(escape(row["title"]), *cells, *(cell(row) for cell in columns.values()))
    console = Console(width=None if sys.stdout.isatty() else LOG_WIDTH)
    console.print(table)
    for name, reason in results.void.items():
        console.print(f"  {escape(name)} is void: {escape(reason)}")


def write_results(out: Path, name: str, facts: Mapping[str, Any], cases: Sequence[Results], **more: Any) -> None:
    """Write OUT/NAME.json and, if anything was measured, the chart OUT/NAME.png."""
    write_json(out / f"{name}.json", {**facts, **more, "cases": [case.to_mapping() for case in cases]})
    if any(case.rounds for case in cases):
        caption = f"{facts['cpu']}, {facts['cores']} cores, {facts['date'][:10]}, commit {facts['commit']}"
        with write_atomic(out / f"{name}.png") as file:
            draw_chart(cases, caption).save(file, "PNG")


def draw_chart(cases: Sequence[Results], caption: str) -> Image.Image:
    """One bar per contender, as long as its median rate, with a whisker from quartile to quartile."""
    ink, faint, blue, grey = (25, 25, 25), (140, 140, 140), (31, 119, 180), (176, 190, 205)
    font, left, length, height = ImageFont.load_default(14), 300, 460, 30
    num_lines = sum(2 + len(case.contenders) for case in cases)
    canvas = Image.new("RGB", (left + length + 220, height * (num_lines + 1)), (255, 255, 255))
    pen, y = ImageDraw.Draw(canvas), height
    for case in cases:
        pen.text((16, y), f"{case.title}: images/s", ink, ImageFont.load_default(17), anchor="lm")
        rows = case.rows()
        longest = max((row["images_per_s"]["high"] for row in rows if "images_per_s" in row), default=1.0)
        for row in rows:
            y += height
            pen.text((left - 8, y), row["title"], ink, font, anchor="rm")
            if "images_per_s" not in row:
                pen.text((left, y), "void", faint, font, anchor="lm")
                continue
            low, end, high = (left + length * row["images_per_s"][key] / longest for key in ("low", "median", "high"))
            pen.rectangle((left, y - 9, end, y + 9), blue if row["name"] == OURS else grey)
            pen.line((low, y, high, y), ink, 2)
            ratio = row.get("ours_is_faster_by", {}).get("median")
            note = "" if ratio is None or row["name"] == OURS else f", ours is {ratio:.2f} x"
            pen.text((high + 8, y), f"{row['images_per_s']['median']:.4g}{note}", ink, font, anchor="lm")
        y += 2 * height
    pen.text((16, y - height // 2), caption, faint, font, anchor="lm")
    return canvas


def machine_facts(command: Sequence[str]) -> dict[str, Any]:
    """Date, commit, processor, load and command line."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": cpu_model(),
        "cores": num_cores(),
        "load_before": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "command": shlex.join(["python", "-m", "tests.benchmarks", *command]),
    }


def _commit() -> str | None:
    """Hash of the checkout, with a plus sign if the code was changed since; None outside a checkout."""
    questions = (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--", "unetdist", "launch", "tests"])
    try:
        commit, changes = (
            subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for words in questions
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}+" if changes else commit


def positive(text: str) -> int:
    """A whole number above 0, from the command line."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"invalid count: {text!r}; use a whole number above 0")
    return int(text)


def add_peers_python(parser: argparse.ArgumentParser) -> None:
    """Options of the programs that run other people's packages."""
    add = parser.add_argument
    add("--against", default="all", metavar="NAMES", help="all, or names separated by commas (all)")
    add("--peers-python", default=sys.executable, metavar="PATH", help="python that has the other programs' packages")


def add_measuring(parser: argparse.ArgumentParser, *, rounds: int, samples: int) -> None:
    """Options that say how long to measure."""
    add = parser.add_argument
    add("--samples", type=positive, default=samples, metavar="N", help="number of pictures (%(default)s)")
    add("--rounds", type=positive, default=rounds, metavar="N", help="rounds per contender (%(default)s)")
    add(
        "--work",
        type=Path,
        default=Path("runs/benchmark/work"),
        metavar="DIR",
        help="folder for data, kept (%(default)s)",
    )
