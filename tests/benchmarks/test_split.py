import time

import pytest

from tests.benchmarks.split import FOLDER, PARTS, STAGES, shares_of, split_time, stage_of


def test_files_belong_to_parts():
    assert stage_of(str(FOLDER / "decode.py")) == "decode"
    assert stage_of(str(FOLDER / "reader.py")) == "read"
    assert stage_of(str(FOLDER / "order.py")) == "other"
    assert stage_of("/usr/lib/python3/json/__init__.py") is None
    assert stage_of("~") is None


@pytest.mark.parametrize("stage", STAGES)
def test_each_part_has_a_file(stage):
    assert any((FOLDER / f"{stem}.py").is_file() for stem in STAGES[stage])


def test_foreign_functions_count_for_their_callers():
    decode, augment = (str(FOLDER / "decode.py"), 1, "decode"), (str(FOLDER / "augment.py"), 1, "flip")
    wrapper, copy = ("/numpy/core.py", 1, "wrapper"), ("~", 0, "copy")
    stats = {
        decode: (1, 1, 1.0, 4.0, {}),
        augment: (1, 1, 1.0, 4.0, {}),
        wrapper: (1, 1, 1.0, 3.0, {augment: (1, 1, 1.0, 3.0)}),
        # Three of its five seconds were spent for `decode`, two for the wrapper that `augment` called.
        copy: (2, 2, 5.0, 5.0, {decode: (1, 1, 3.0, 3.0), wrapper: (1, 1, 2.0, 2.0)}),
    }
    shares = shares_of(stats)
    assert shares["decode"] == pytest.approx(4 / 8)
    assert shares["augment"] == pytest.approx(4 / 8)
    assert shares["read"] == shares["collate"] == shares["other"] == 0


def test_functions_that_call_each_other_do_not_go_round():
    a, b = ("~", 0, "a"), ("~", 0, "b")
    stats = {a: (1, 1, 1.0, 2.0, {b: (1, 1, 1.0, 2.0)}), b: (1, 1, 1.0, 2.0, {a: (1, 1, 1.0, 2.0)})}
    assert shares_of(stats)["other"] == 1


def test_parts_add_up_to_the_time_of_a_sample():
    parts = split_time(lambda: time.sleep(0.002), num_batches=3, batch_size=2)
    assert tuple(parts) == PARTS
    assert sum(parts.values()) >= 1000
