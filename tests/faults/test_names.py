"""Names with escape sequences, line feeds, markup or emoji codes are shown as they are, and do no harm."""

import io
import logging

import pytest
from rich.markup import escape
from rich.table import Table

from tests.sharding.picture_folders import write_folders
from tests.tracking.samples import PALETTE
from unetdist.__main__ import run
from unetdist.cli import logs
from unetdist.commands.doctor.examination import Finding
from unetdist.errors import DataError
from unetdist.model.saved_model import MODEL_FORMAT
from unetdist.predict.hub import card_of
from unetdist.storage.files import write_json

EVIL = "[red]x[/red]:smile:\x1b]0;owned\x07\nerror: all is lost\x9b2J\u202e"
SHOWN = r"[red]x[/red]:smile:\x1b]0;owned\x07\nerror: all is lost\x9b2J\u202e"


def screen(monkeypatch) -> io.StringIO:
    """What a terminal would get from the log and from progress bars."""
    console, text = logs.PlainConsole(stderr=True, soft_wrap=True), io.StringIO()
    console.file = text
    console._force_terminal = True
    console.width = 400
    monkeypatch.setattr(logs, "console", console)
    return text


def assert_harmless(text: str) -> None:
    assert "\x1b]0" not in text
    assert not set(text) & {"\x07", "\x9b", "\u202e"}
    assert "\nerror: all is lost" not in text
    assert "\U0001f604" not in text


def test_log_lines_show_names_as_they_are(monkeypatch, capsys):
    for is_terminal in (False, True):
        text = screen(monkeypatch) if is_terminal else None
        if not is_terminal:
            monkeypatch.setattr(logs, "console", logs.PlainConsole(stderr=True))
        logs.set_up_logging()
        logs.logger.warning("%s is left out, %d times (%s)", EVIL, 3, DataError("bad", source=EVIL))
        written = text.getvalue() if text else capsys.readouterr().err
        assert_harmless(written)
        assert "smile:" in written
        assert text or f"{SHOWN} is left out, 3 times ({SHOWN}: bad)" in written


def test_progress_bars_and_tables_show_names_as_they_are(monkeypatch):
    text = screen(monkeypatch)
    with logs.progress(f"reading {EVIL}", 2) as bar:
        bar.advance(2, note=EVIL)
    table = Table("class", title="scores")
    table.add_row(escape(EVIL.replace("\n", "")))
    logs.console.print(table)
    assert_harmless(text.getvalue())
    assert "[red]x[/red]:smile:" in text.getvalue()


def test_errors_are_printed_harmlessly(monkeypatch, capsys):
    def fail() -> int:
        raise DataError("cannot be read", source=EVIL)

    with pytest.raises(SystemExit):
        logs.run_script(fail)
    written = capsys.readouterr().err
    assert_harmless(written)
    assert written == f"error: {SHOWN}: cannot be read\n"


def test_problems_of_sharding_are_one_line_each(tmp_path):
    root = write_folders(tmp_path / "data")
    image = root / "images" / (EVIL.replace("/", "|") + ".jpg")
    image.write_bytes(next((root / "images").rglob("*.jpg")).read_bytes())
    words = ["--images", root / "images", "--masks", root / "masks", "--labels", root / "Labels.txt"]
    words += ["--ignore", "void", "--workers", 1, "--out", tmp_path / "out"]
    with pytest.raises(DataError) as caught:
        run(["shard", *map(str, words)])
    assert_harmless(str(caught.value))
    assert SHOWN.replace("/", "|") in str(caught.value)
    assert len(str(caught.value).splitlines()) == 4


def test_the_doctor_shows_names_as_they_are():
    for is_terminal in (False, True):
        console = logs.PlainConsole(soft_wrap=True)
        console.file = text = io.StringIO()
        console._force_terminal, console.width = is_terminal, 400
        console.print(Finding(what="folder", fact=f"{EVIL} is missing", remedy=f"make {EVIL}").to_text())
        assert_harmless(text.getvalue())
        assert "smile:" in text.getvalue()


def test_the_model_card_shows_names_as_they_are(tmp_path):
    records = [{**record, "name": f"<b>{i}|*x*`\n## y"} for i, record in enumerate(PALETTE.to_records())]
    config = {"format": MODEL_FORMAT, "unetdist_version": "1", "mean": [1.0] * 3, "std": [1.0] * 3}
    config |= {"model": {}, "classes": records, "resize": None, "run": "<script>\n# [a](b)"}
    write_json(tmp_path / "config.json", config)
    card = card_of(tmp_path)
    assert r"# &lt;script&gt;\\n\# \[a\](b)" in card
    assert r"| &lt;b&gt;0\|\*x\*\`\\n\#\# y |" in card
    assert "<b>" not in card


def test_levels_are_untouched(caplog):
    with caplog.at_level(logging.INFO, "unetdist"):
        logs.logger.info("%d %s %.1f", 3, "a", 2.5)
    assert caplog.messages == ["3 a 2.5"]
