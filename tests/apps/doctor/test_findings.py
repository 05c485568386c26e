import pytest

from unetdist.apps.doctor.findings import by_rank, duration, listed, ok, problem, size, warning


def test_a_finding_says_how_bad_it_is():
    assert [made("x", "y").level for made in (ok, warning, problem)] == ["ok", "warning", "problem"]
    assert warning("x", "y", "z").to_mapping() == {
        "what": "x",
        "fact": "y",
        "remedy": "z",
        "level": "warning",
        "group": "",
    }


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["a"], "a"),
        (["a", "a"], "a"),
        (["a", "b", "a"], "rank 0, 2: a; rank 1: b"),
        ([None, "b"], "rank 1: b"),
        ([None, None], ""),
    ],
)
def test_ranks_that_agree_speak_once(texts, said):
    assert by_rank(texts) == said


def test_long_lists_are_cut():
    assert listed([]) is None
    assert listed(["a", "b", "c"]) == "a; b; c"
    assert listed(["a", "b", "c", "d", "e"]) == "a; b; c; and 2 more"


def test_numbers_are_for_people():
    assert [size(n) for n in (7, 1500, 2.5e6, 24e9, 3e12)] == ["7 B", "1.5 KB", "2.5 MB", "24.0 GB", "3.0 TB"]
    assert [duration(s) for s in (0.002, 0.5, 12, 120, 7200, 259200)] == [
        "2.00 ms",
        "500 ms",
        "12.0 s",
        "2.0 min",
        "2.0 h",
        "3.0 days",
    ]
