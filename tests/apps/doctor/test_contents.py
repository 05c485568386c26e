import pytest

from tests.apps.doctor.cases import case_of, findings_of, forget_last_class, only, write_data
from tests.synthetic import write_shards
from unetdist.apps.doctor import contents, data


@pytest.fixture
def folder(tmp_path):
    write_data(tmp_path)
    return tmp_path


def test_labels_out_of_range_are_named(folder):
    forget_last_class(folder / "train")
    bad = only(findings_of(case_of(folder), *data.CHECKS), "train labels")
    assert bad.level == "problem"
    assert "mask holds class index 2, but there are 2 classes (0..1, 255 is ignored)" in bad.fact
    assert "; and 1 more" in bad.fact
    assert f"launch/shard_dataset.py verify {folder / 'train'}" in bad.remedy


def test_labels_that_may_be_left_blank_are_warned_of(folder):
    forget_last_class(folder / "train")
    case = case_of(folder, data={"on_bad_sample": "blank"})
    assert only(findings_of(case, *data.CHECKS), "train labels").level == "warning"


def test_lost_shards_are_told_of_once(folder):
    for path in (folder / "train").glob("*.tar"):
        path.unlink()
    found = findings_of(case_of(folder), *data.CHECKS)
    assert [each.what for each in found if each.level == "problem"] == ["train shards"]
    assert not {"train labels", "reading"} & {each.what for each in found}


def test_damage_inside_a_shard_is_found_when_all_is_read(folder):
    case = case_of(folder)
    case.full = True
    fine = only(findings_of(case, *data.CHECKS), "all of train")
    assert (fine.level, fine.fact.split(":")[0]) == ("ok", "all 12 samples read, decoded and counted")
    path = folder / "train" / "000001.tar"
    changed = bytearray(path.read_bytes())
    changed[700] ^= 255
    path.write_bytes(changed)
    bad = only(findings_of(case, *data.CHECKS), "all of train")
    assert bad.level == "problem"
    assert "000001.tar: shard that is not the manifest's (has sha256 " in bad.fact


def test_mostly_ignored_masks_are_warned_of(folder):
    case = case_of(folder)
    data.open_split(case, "train")
    manifest = case.data["train"][1]
    object.__setattr__(manifest, "ignored_pixels", manifest.num_pixels * 3 // 4)
    (found,) = contents.judge_decoded(case, [{"checked": 9, "wrong": []}], "train")
    assert (found.level, "75.0 % ignored" in found.fact) == ("warning", True)


def test_reading_is_measured_from_the_disk(tmp_path):
    write_shards(tmp_path / "train", 12)
    case = case_of(tmp_path, data={"val": None})
    found = only(findings_of(case, *data.CHECKS), "reading")
    assert found.level == "ok"
    assert case.measured.read_bytes_s > 0


def test_validation_samples_that_are_trained_on_are_named(folder):
    assert only(findings_of(case_of(folder), *data.CHECKS), "train and val").fact == "no sample is in both"
    for path in (folder / "val").iterdir():
        if path.is_file():
            path.unlink()
    for path in (folder / "train").iterdir():
        if path.is_file():
            (folder / "val" / path.name).write_bytes(path.read_bytes())
    found = only(findings_of(case_of(folder), *data.CHECKS), "train and val")
    assert found.level == "warning"
    assert "12 of 12 validation samples are in the training set too" in found.fact
    assert "val/000000.tar" in found.fact
