import torch

from tests.apps.doctor.cases import case_of, findings_of, only
from tests.distributed.launcher import run_ranks
from unetdist.apps.doctor.board import Board
from unetdist.apps.doctor.case import Case
from unetdist.apps.doctor.examination import Check, Examination, describe
from unetdist.apps.doctor.findings import ok
from unetdist.cli.logs import logger
from unetdist.distributed.collectives import World, all_reduce_sum
from unetdist.distributed.rendezvous import open_store
from unetdist.errors import ConfigError


def good(_case, ranks):
    yield ok("good", f"{ranks}")


def check(what, measure=lambda _: 1, judge=good, **options):
    return Check(group="test", what=what, measure=measure, judge=judge, **options)


def broken(_):
    raise ZeroDivisionError("by nothing")


def test_a_check_that_crashes_is_a_problem_and_the_others_go_on(tmp_path):
    def misjudged(_case, _ranks):
        yield ok("half", "told before it fell")
        raise KeyError("x")

    checks = [check("crashed", broken), check("misjudged", judge=misjudged), check("good")]
    crashed, half, fell, fine = findings_of(case_of(tmp_path), *checks)
    assert (crashed.level, crashed.what) == ("problem", "crashed")
    assert "the check itself failed: ZeroDivisionError: by nothing, at " in crashed.fact
    assert "test_examination.py:" in crashed.fact
    assert (half.level, fell.level, fell.what) == ("ok", "problem", "misjudged")
    assert fine.fact == "[1]"


def test_what_is_left_out_says_why_or_nothing(tmp_path):
    found = findings_of(
        case_of(tmp_path),
        check("silent", broken, why_not=lambda _: ""),
        check("told", broken, why_not=lambda _: "mend that"),
    )
    assert [(each.what, each.level, each.fact) for each in found] == [
        ("told", "warning", "not tried: mend that")
    ]


def test_warnings_of_the_log_are_findings_and_nothing_else_of_it_is_seen(tmp_path, capsys):
    def talk(_):
        logger.warning("trains without %s", "the compiler")
        logger.error("trains without %s", "the compiler")
        logger.info("by the way")

    heard, _ = findings_of(case_of(tmp_path), check("talk", talk))
    assert (heard.level, heard.fact) == ("warning", "trains without the compiler")
    assert "compiler" not in capsys.readouterr().err
    assert not logger.filters


def test_what_a_check_has_to_put_back_is_put_back(tmp_path):
    done = []

    def measure(case):
        case.undo.callback(done.append, "undone")
        raise OSError(28, "No space left", "/x")

    found = findings_of(case_of(tmp_path), check("full", measure))
    assert only(found, "full").fact == "No space left: /x"
    assert done == ["undone"]


def test_errors_are_told_as_they_are_meant():
    assert describe(ConfigError("a (1)\n  must be 2; use 2.")) == "a (1) must be 2; use 2."
    assert "use a smaller trainer.micro_batch_size" in describe(torch.OutOfMemoryError("CUDA"))
    assert describe(RuntimeError("[/x/gloo/pair.cc] closed")).startswith("another process did not come along")
    assert describe(RuntimeError("odd")) == "the check itself failed: RuntimeError: odd"


def examine_two():
    import torch.distributed as dist

    world = World(rank=dist.get_rank(), world_size=dist.get_world_size())
    case = Case(config=None, world=world, board=Board(open_store("test"), world), scratch=None)
    examination = Examination(case)

    def local(case):
        if case.world.rank == 1:
            raise ConfigError("not here; go there.")

    def together(case):
        return float(all_reduce_sum(torch.ones(())))

    def parted(case):
        if case.world.rank == 1:
            raise ConfigError("left; stay.")

    is_well = examination.make(
        [
            check("local", local),
            check("together", together, is_collective=True),
            check("parted", parted, is_collective=True),
            check("after", together, is_collective=True),
            check("useless", together, is_collective=True, why_not=lambda _: ""),
            check("alone", lambda case: case.world.rank),
        ]
    )
    return is_well, [(each.what, each.level, each.fact) for each in examination.findings]


def test_ranks_that_fail_are_named_and_do_not_hold_up_the_others():
    (is_well, found), other = run_ranks(examine_two, 2)
    assert (is_well, other) == (False, (False, []))
    assert found == [
        ("local", "problem", "rank 1: not here; go there."),
        ("good", "ok", "[2.0, 2.0]"),
        ("parted", "problem", "rank 1: left; stay."),
        ("after", "warning", "not tried: the processes parted in parted"),
        ("good", "ok", "[0, 1]"),
    ]
