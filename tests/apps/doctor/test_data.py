from dataclasses import replace

import pytest

from tests.apps.doctor.cases import case_of, findings_of, only, write_data
from tests.synthetic import write_shards
from unetdist.apps.doctor import data
from unetdist.data.manifest import Manifest


@pytest.fixture
def folder(tmp_path):
    write_data(tmp_path)
    return tmp_path


def found_in(folder, **sections):
    return findings_of(case_of(folder, **sections), *data.CHECKS)


def test_good_data_is_fine(folder):
    found = found_in(folder)
    assert {each.level for each in found} == {"ok"}
    assert only(found, "training set").fact.startswith("12 samples in 3 shards, ")
    assert only(found, "validation set").fact.startswith("4 samples in 1 shard, ")
    assert only(found, "train labels").fact.startswith("12 samples decoded, classes in range; ")
    assert only(found, "classes").fact == "all 3 in training and in validation"


def test_a_missing_data_set_is_a_problem_and_the_other_is_looked_at(folder):
    (folder / "train" / "manifest.json").unlink()
    found = found_in(folder)
    bad = only(found, "training set")
    assert (bad.level, "no manifest.json here" in bad.fact) == ("problem", True)
    assert only(found, "val shards").level == "ok"


def test_missing_cut_and_exchanged_files_are_named(folder):
    (folder / "train" / "000000.tar").unlink()
    cut = folder / "train" / "000001.tar"
    cut.write_bytes(cut.read_bytes()[:-512])
    (folder / "train" / "000002.tar.idx").write_bytes((folder / "train" / "000001.tar.idx").read_bytes())
    bad = only(found_in(folder), "train shards")
    assert bad.level == "problem"
    assert "000000.tar: cannot be opened (No such file or directory)" in bad.fact
    assert "000001.tar: has " in bad.fact
    assert "000002.tar" in bad.fact
    assert "is not the index that the manifest lists" in bad.fact
    assert bad.remedy.startswith("copy the data set again")


def test_ranks_that_see_other_data_are_told_of():
    ranks = [{"fingerprint": "a", "text": "1 sample"}, {"fingerprint": "b", "text": "2 samples"}]
    (bad,) = data.judge_open(None, ranks, "train")
    assert bad.level == "problem"
    assert bad.fact == "not the same on all ranks: rank 0: 1 sample; rank 1: 2 samples"


def test_what_there_was_no_time_for_is_told_of():
    ranks = [{"checked": 5, "of": 9, "wrong": []}]
    (found,) = data.judge_sizes(None, ranks, "train")
    assert (found.level, found.remedy) == ("warning", "--full looks at all")
    assert "of the 5 of 9 that there was time for" in found.fact


@pytest.mark.parametrize(
    ("split", "level", "fact"),
    [
        ("val", "warning", "in no validation picture: tree"),
        ("train", "warning", "in no training picture: tree; cannot be learnt"),
    ],
)
def test_absent_classes_are_named(folder, split, level, fact):
    manifest = Manifest.load(folder / split)
    replace(manifest, class_pixels=(*manifest.class_pixels[:2], 0)).save(folder / split)
    case = case_of(folder)
    found = [each for each in findings_of(case, *data.CHECKS) if each.what == "classes"]
    assert (found[0].level, found[0].fact) == (level, fact)
    if split == "train":
        assert found[0].remedy.startswith("add pictures of it")
        assert found[1].fact == "in validation pictures alone: tree; counts 0 in mIoU"


def test_a_class_whose_pixels_may_be_the_ignored_ones_gets_that_remedy(folder):
    """As of masks of 0 and 255 whose label has another colour, sharded by an earlier version."""
    manifest = Manifest.load(folder / "train")
    pixels = (*manifest.class_pixels[:2], 0)
    records = tuple(record for record in manifest.palette_records if record["index"] is not None)
    lost = replace(
        manifest, class_pixels=pixels, ignored_pixels=manifest.class_pixels[2], palette_records=records
    )
    lost.save(folder / "train")
    found = [each for each in findings_of(case_of(folder), *data.CHECKS) if each.what == "classes"]
    share = 100 * manifest.class_pixels[2] / manifest.num_pixels
    assert f"{share:.1f} % of all pixels are in no class" in found[0].fact
    assert "'255 255 255 NAME'" in found[0].remedy
    assert "--ignore" not in found[0].remedy


def test_other_classes_and_shards_in_both_sets_are_problems(folder):
    manifest = Manifest.load(folder / "val")
    records = ({**manifest.palette_records[0], "name": "other"}, *manifest.palette_records[1:])
    replace(manifest, palette_records=records).save(folder / "val")
    assert only(found_in(folder), "classes").fact == "training and validation have other classes"
    write_shards(folder / "val", 5)  # the first shard of the training set
    bad = only(found_in(folder), "split")
    assert (bad.level, bad.fact) == ("problem", "1 shard(s) are in both the training and the validation set")


def test_no_validation_is_warned_of(folder):
    found = only(found_in(folder, data={"val": None}), "validation set")
    assert (found.level, found.remedy) == ("warning", "--data.val SHARDS")
