import subprocess
import sys

import pytest

import unetdist


def test_every_public_name_can_be_imported_and_is_listed():
    assert set(unetdist.__all__) == {*unetdist._MODULES, "train"}
    for name in unetdist._MODULES:
        assert getattr(unetdist, name).__name__ == name
        assert name in dir(unetdist)
    with pytest.raises(AttributeError, match="no attribute 'Unet'"):
        unetdist.Unet  # noqa: B018


def test_the_function_to_train_is_the_package_of_that_name_whatever_is_imported_first():
    code = "{first}; import unetdist, inspect; print(inspect.signature(unetdist.train), callable(unetdist.train))"
    for first in ("import unetdist.train.config", "from unetdist import train", "pass"):
        done = subprocess.run([sys.executable, "-c", code.format(first=first)], capture_output=True, text=True)
        assert "processes: int | None = None" in done.stdout
        assert done.stdout.endswith("True\n")


def test_importing_the_package_does_not_load_torch():
    code = "import sys, unetdist; dir(unetdist); unetdist.train; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
