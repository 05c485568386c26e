import subprocess
import sys

import pytest

import unetdist


def test_every_public_name_can_be_imported_and_is_listed():
    assert set(unetdist.__all__) == set(unetdist._MODULES)
    for name in unetdist.__all__:
        assert getattr(unetdist, name).__name__ == name
        assert name in dir(unetdist)
    with pytest.raises(AttributeError, match="no attribute 'Unet'"):
        unetdist.Unet  # noqa: B018


def test_importing_the_package_does_not_load_torch():
    code = "import sys, unetdist; dir(unetdist); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
