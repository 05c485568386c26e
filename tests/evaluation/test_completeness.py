import numpy as np
import pytest

from unetdist.errors import DataError
from unetdist.evaluation import completeness
from unetdist.evaluation.completeness import Expected, fingerprint, prove_complete

CONFUSION = np.array([[3, 1], [0, 2]])
REMEDY = "the score would be wrong, so it is refused; run launch/shard_dataset.py again on this folder"


def prove(ids=(2, 0, 1), pixels=(4, 2)):
    seen = [len(ids), fingerprint(np.array(ids))]
    prove_complete(CONFUSION, seen, Expected("shards/val", 3, np.array(pixels)), ("sky", "road"))


def test_a_whole_count_is_accepted():
    prove()


@pytest.mark.parametrize(
    ("counted", "message"),
    [
        ({"ids": (0, 1)}, "shards/val: 2 samples were scored, the manifest lists 3; "),
        ({"ids": (0, 1, 1)}, "3 samples were scored, but some of them twice and others never; "),
        ({"pixels": (4, 3)}, "2 pixels of class road were scored, the manifest lists 3; "),
    ],
)
def test_any_other_is_refused(counted, message):
    with pytest.raises(DataError, match=message + REMEDY):
        prove(**counted)


@pytest.mark.parametrize("num_samples", [1, 4, 5, 12])
def test_the_fingerprint_of_all_samples_comes_in_blocks(num_samples, monkeypatch):
    monkeypatch.setattr(completeness, "FINGERPRINT_BLOCK", 4)
    assert completeness._fingerprint_of_all(num_samples) == completeness.fingerprint(
        np.arange(num_samples)[::-1]
    )
    assert completeness._fingerprint_of_all(num_samples) != completeness.fingerprint(
        np.arange(1, num_samples + 1)
    )
