import pytest

from unetdist.cli.logs import logger


@pytest.fixture
def said(monkeypatch):
    """What was logged, as it was written."""
    lines = []
    for level in ("info", "warning"):
        monkeypatch.setattr(logger, level, lambda text, *args: lines.append(text % args))
    return lines
