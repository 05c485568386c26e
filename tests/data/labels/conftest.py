import pytest

from unetdist.data.labels import Palette


@pytest.fixture
def read(tmp_path):
    def read(text, ignore=()):
        path = tmp_path / "Labels.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return Palette.read(path, ignore=ignore)

    return read
