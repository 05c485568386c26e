import importlib.metadata

import pytest

from tests.apps.doctor.cases import case_of, findings_of, level_of, only
from unetdist.apps.doctor import software


def test_versions_are_told_and_fit(tmp_path):
    found = findings_of(case_of(tmp_path), *software.CHECKS)
    assert "accelerate 1." in only(found, "versions").fact
    assert all(finding.level != "problem" for finding in found)


def test_what_is_too_old_or_missing_is_named(monkeypatch):
    needed = ["torch>=99", "nothing-of-that-name>=1", "numpy>=1", "onnx>=99; extra == 'export'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: needed)
    old, missing = software.unmet()
    assert old.startswith("torch>=99 (has: 2.")
    assert missing == "nothing-of-that-name>=1 (has: missing)"
    (fine, bad) = software.judge_versions(None, [{"text": "a", "unmet": [old]}])
    assert (fine.level, bad.level, bad.remedy) == ("ok", "problem", "pip install -e . in the checkout")


def test_a_program_that_is_not_installed_has_no_requirements(monkeypatch):
    def requires(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    assert software.unmet() == []


def test_ranks_with_other_versions_are_warned_of():
    (found,) = software.judge_versions(None, [{"text": "a", "unmet": []}, {"text": "b", "unmet": []}])
    assert (found.level, found.fact) == ("warning", "rank 0: a; rank 1: b")


@pytest.mark.parametrize(
    ("changed", "level"),
    [
        ({}, ["ok"]),
        ({"is_usable": False}, ["warning"]),
        ({"is_usable": False, "built_for": ""}, ["warning"]),
        ({"is_usable": False, "driver": ""}, []),
        ({"arch": "sm_30"}, ["problem"]),
    ],
)
def test_gpus_that_torch_cannot_use_are_told_of(changed, level):
    rank = {"is_usable": True, "driver": "580.1", "built_for": "13.0", "nccl": "2.28", "arch": "", **changed}
    assert level_of(software.judge_gpu_software, None, [rank]) == level
