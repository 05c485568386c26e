"""A sample's side never moves."""

import pytest

from unetdist.data.ingest.sources import Sample
from unetdist.data.ingest.split import split_by_hash, split_by_list
from unetdist.errors import ConfigError, DataError

SAMPLES = [Sample(key=f"day/{number}.x", image=f"day/{number}.x.jpg", mask="") for number in range(500)]


def test_a_fraction_goes_to_val_and_every_sample_to_one_side():
    train, val = split_by_hash(SAMPLES, 0.2)
    assert 70 < len(val) < 130
    assert sorted(sample.key for sample in train + val) == sorted(sample.key for sample in SAMPLES)


def test_a_sample_stays_on_its_side_when_others_come_or_the_fraction_grows():
    _, val = split_by_hash(SAMPLES, 0.2)
    _, of_fewer = split_by_hash(SAMPLES[::3], 0.2)
    assert of_fewer == [sample for sample in SAMPLES[::3] if sample in val]
    _, more = split_by_hash(SAMPLES, 0.3)
    assert {sample.key for sample in val} < {sample.key for sample in more}
    assert [sample.key for sample in val][:3] == ["day/0.x", "day/9.x", "day/10.x"]  # over versions, too


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 20])
def test_a_fraction_outside_0_to_1_is_refused(fraction):
    with pytest.raises(ConfigError, match=rf"val_fraction \({fraction}\) must be between 0 and 1; use for"):
        split_by_hash(SAMPLES, fraction)


@pytest.mark.parametrize(("fraction", "side"), [(1e-9, "validation"), (1 - 1e-9, "training")])
def test_a_side_without_samples_is_refused(fraction, side):
    with pytest.raises(
        DataError, match=rf"none of 9 samples falls to {side} with --val-fraction.*--val-list"
    ):
        split_by_hash(SAMPLES[:9], fraction)


def test_a_list_names_val_by_key_or_file(tmp_path):
    (tmp_path / "val.txt").write_text("# comment\nday/3.x\n\n day/5.x.jpg \nday/3.x.jpg\n")
    train, val = split_by_list(SAMPLES, tmp_path / "val.txt")
    assert [sample.key for sample in val] == ["day/3.x", "day/5.x"]
    assert len(train) == len(SAMPLES) - 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "day/3.x\nnight/1\n",
            r"val\.txt: 1 of 2 lines name no sample, the first is 'night/1'; .*such as day/0\.x",
        ),
        ("# none\n", "names 0 of 2 samples, which leaves none for validation"),
        ("day/3.x\nday/4.x\n", "names 2 of 2 samples, which leaves none for training"),
    ],
)
def test_a_list_that_cannot_be_right_is_refused(tmp_path, text, message):
    (tmp_path / "val.txt").write_text(text)
    samples = SAMPLES if "night" in text else SAMPLES[3:5]
    with pytest.raises(DataError, match=message):
        split_by_list(samples, tmp_path / "val.txt")


def test_a_copy_is_on_the_side_of_its_original():
    samples = [Sample(key=f"{number:02d}", image="", mask="") for number in range(40)]
    originals = {f"{number:02d}": f"{number - 1:02d}" for number in range(1, 40, 2)}
    train, val = split_by_hash(samples, 0.4, originals)
    keys = {sample.key for sample in train}
    assert len(train) + len(val) == 40
    assert all((copy in keys) == (original in keys) for copy, original in originals.items())
    alone = {sample.key for sample in split_by_hash(samples, 0.4)[0]}
    assert {key for key in keys if key not in originals} == {key for key in alone if key not in originals}
