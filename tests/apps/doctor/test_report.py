from io import StringIO

from rich.console import Console

from unetdist.apps.doctor.case import Measured
from unetdist.apps.doctor.findings import Finding, ok, problem, warning
from unetdist.apps.doctor.report import Screen, to_mapping, verdict

FOUND = [
    Finding(what="torch", fact="2.13 [cpu]", group="software"),
    Finding(what="port", fact="taken", remedy="take another", level="warning", group="processes"),
    Finding(what="disk", fact="x" * 200, level="problem", group="processes"),
]


def shown(**options):
    lines = StringIO()
    screen = Screen(Console(file=lines, **options))
    with screen.working():
        for finding in FOUND:
            screen.at(finding.what)
            screen.show(finding)
    screen.end(FOUND)
    return lines.getvalue()


def test_where_there_is_no_terminal_each_finding_is_one_plain_line():
    assert shown(soft_wrap=True) == (
        "\nsoftware\n"
        "  ok       torch              2.13 [cpu]\n"
        "\nprocesses\n"
        "  warning  port               taken (take another)\n"
        f"  problem  disk               {'x' * 200}\n"
        "\n1 problem, 1 warning, 1 ok: mend the problems first\n"
    )


def test_a_terminal_has_colours_and_columns():
    text = shown(force_terminal=True, width=80, color_system="standard")
    assert "\x1b[32mok     \x1b[0m" in text
    assert "\x1b[1;31mproblem\x1b[0m" in text
    assert "disk ..." in text
    assert max(line.count("x") for line in text.splitlines()) <= 52


def test_the_verdict_counts():
    assert verdict([ok("a", "b")]) == "1 ok: the run can begin"
    assert verdict([warning("a", "b")] * 2) == "2 warnings, 0 ok: the run can begin"
    assert verdict([problem("a", "b")] * 2) == "2 problems, 0 ok: mend the problems first"


def test_programs_get_all_of_it():
    values = to_mapping(FOUND, Measured(step_s=1.0), run="x", world_size=2)
    assert (values["run"], values["processes"], values["problems"], values["warnings"]) == ("x", 2, 1, 1)
    assert values["findings"][1]["remedy"] == "take another"
    assert values["measured"]["step_s"] == 1.0
