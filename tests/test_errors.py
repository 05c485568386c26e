import pickle

import pytest

from unetdist import errors


def test_a_data_error_opens_with_its_source_and_survives_pickling():
    error = errors.DataError("mask is missing; export it", source="a/b.jpg")
    assert str(error) == "a/b.jpg: mask is missing; export it"
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert str(errors.DataError("no source")) == "no source"
    assert str(errors.DataError("one\ntwo", source="a\nb")) == "a\\nb: one\ntwo"


@pytest.mark.parametrize("kind", [errors.ConfigError, errors.DataError])
def test_bad_values_are_value_errors_too(kind):
    assert issubclass(kind, ValueError)
    assert issubclass(kind, errors.UnetdistError)
