"""`unetdist report` as a user types it."""

import pytest

from tests.commands.report.runs import validation_set, write_run
from unetdist.commands.report import command as script
from unetdist.errors import ConfigError

pytest.importorskip("plotly", reason="needs the extra `report`")


def test_the_report_lies_in_the_first_run_unless_told_otherwise(tmp_path):
    val = validation_set(tmp_path)
    folders = [str(write_run(tmp_path / name, val=val)) for name in ("x", "y")]
    script.main([*folders, "--num-workers", "0", "--pictures", "1"])
    html = (tmp_path / "x/report.html").read_text(encoding="utf-8")
    assert html.count('<figure class="card">') == 2
    script.main([*folders, "--pictures", "0", "--out", str(tmp_path / "new/z.html")])
    html = (tmp_path / "new/z.html").read_text(encoding="utf-8")
    assert "because of --pictures 0" in html
    assert '<figure class="card">' not in html


def test_a_validation_set_that_is_gone_costs_the_pictures_alone(tmp_path):
    script.main([str(write_run(tmp_path / "x", val=tmp_path / "gone"))])
    html = (tmp_path / "x/report.html").read_text(encoding="utf-8")
    assert "No pictures and no class intervals for x: " in html
    assert 'id="confusion"' in html


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x", "--pictures", "-1"], r"--pictures \(-1\) must be 0 or more; use 4"),
        ([str(number) for number in range(9)], r"^9 runs .* 8"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_read(words, message):
    with pytest.raises(ConfigError, match=message):
        script.main(words)


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "taken").write_text("a file where the folder should be")
    folder = write_run(tmp_path / "x")
    with pytest.raises(ConfigError, match=r"--out \(.+z.html\) cannot be written \(.+\); give another file"):
        script.main([str(folder), "--pictures", "0", "--out", str(tmp_path / "taken/z.html")])
