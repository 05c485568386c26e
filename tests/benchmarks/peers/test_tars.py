import tarfile

from tests.benchmarks.peers.tars import SAMPLES_PER_TAR, write_tars


def test_pairs_become_ordinary_tars(tmp_path):
    image, mask = tmp_path / "a.jpg", tmp_path / "a.png"
    image.write_bytes(b"image")
    mask.write_bytes(b"mask")
    write_tars(str(tmp_path), [(str(image), str(mask))] * (SAMPLES_PER_TAR + 1))
    with tarfile.open(tmp_path / "00001.tar") as tar:
        assert tar.getnames() == ["a.jpg", "a.mask.png"]
        assert tar.extractfile("a.mask.png").read() == b"mask"
    with tarfile.open(tmp_path / "00000.tar") as tar:
        assert len(tar.getnames()) == 2 * SAMPLES_PER_TAR
