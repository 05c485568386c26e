import cv2
import numpy as np
import pytest

from unetdist.errors import ConfigError, DataError
from unetdist.predict.video import Video


@pytest.fixture
def drive(tmp_path):
    """12 frames that grow brighter by 20."""
    writer = cv2.VideoWriter(str(tmp_path / "drive.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 16))
    for frame in range(12):
        writer.write(np.full((16, 32, 3), 20 * frame, np.uint8))
    writer.release()
    return str(tmp_path / "drive.avi")


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_each_nth_frame_by_its_number(tmp_path, drive, channels):
    video = Video(drive, tmp_path / "out", every=5)
    items = list(video.items(lambda number, target: True))
    assert video.total == len(items) == 3
    assert [item.target.name for item in items] == ["drive_000000", "drive_000005", "drive_000010"]
    for item, level in zip(items, (0, 100, 200), strict=True):
        pixels = item.load(channels).pixels
        assert pixels.shape == (16, 32, channels)
        assert abs(pixels[..., 0].mean() - level) < 4


def test_frames_that_are_not_wanted_keep_their_place(tmp_path, drive):
    items = list(Video(drive, tmp_path).items(lambda number, target: number == 7))
    assert [number for number, item in enumerate(items) if item] == [7]
    assert len(items) == 12


def test_what_is_no_video(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"a.mp4: cannot be read as a video; convert it to MP4 .* of its frames"):
        Video(str(tmp_path / "a.mp4"), tmp_path)


def test_every_frame_at_most(tmp_path, drive):
    with pytest.raises(ConfigError, match=r"--every \(0\) must be 1 or more; use 10 for each tenth frame"):
        Video(drive, tmp_path, every=0)
