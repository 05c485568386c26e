from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.faulty_server import serve
from tests.synthetic import write_shards
from unetdist.data.decode import PICTURE_SUFFIXES
from unetdist.errors import ConfigError, DataError
from unetdist.predict.sources import Shards, Video, open_source


def always(number, target):
    return True


def picture(path, level=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 12), level, np.uint8)).save(path)
    return path


def targets(source, out):
    return [str(item.target.relative_to(out)) for item in source.items(always)]


def test_missing_input(tmp_path):
    with pytest.raises(DataError, match=r"nothing: does not exist; give --input"):
        open_source(tmp_path / "nothing", tmp_path / "out")


@pytest.mark.parametrize("suffix", PICTURE_SUFFIXES)
def test_every_kind_of_picture_that_can_be_sharded_is_found(tmp_path, suffix):
    (tmp_path / f"a{suffix.upper()}").touch()
    assert open_source(tmp_path, tmp_path / "out").total == 1


def test_no_images(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/notes.txt").write_text("")
    with pytest.raises(DataError, match=r"in: no images in it .*\.jpg, .*\.webp"):
        open_source(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize("out", [".", "in"])
def test_input_inside_output(tmp_path, out):
    picture(tmp_path / "in/a.png")
    with pytest.raises(DataError, match="in: is inside the output folder .*; give --out another folder"):
        open_source(tmp_path / "in", tmp_path / out)


def test_two_images_of_one_name(tmp_path):
    picture(tmp_path / "in/a.jpg")
    picture(tmp_path / "in/a.png")
    with pytest.raises(DataError, match=r"a.png: this and .*a.jpg would both write .*a_ids.png; rename one"):
        open_source(tmp_path / "in", tmp_path / "out")


def test_a_pattern_keeps_the_folders_in_which_its_files_differ(tmp_path):
    for name in ("x/a.png", "x/deep/b.png", "y/a.png", "x/notes.txt", "x/c.jpg"):
        picture(tmp_path / "in" / name) if name.endswith("g") else (tmp_path / "in" / name).touch()
    found = open_source(str(tmp_path / "in/**/*.png"), tmp_path / "out")
    assert targets(found, tmp_path / "out") == ["x/a", "x/deep/b", "y/a"]


def test_a_pattern_that_names_no_image(tmp_path):
    with pytest.raises(DataError, match=r"\*.png: no images in it .* give --input another folder or pattern"):
        open_source(str(tmp_path / "*.png"), tmp_path / "out")


def test_a_list_of_paths_and_urls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "mine/a.png", 10)
    picture(tmp_path / "theirs/b c.png", 20)
    with serve(tmp_path / "theirs") as server:
        url = f"{server.url}/b%20c.png?signature=secret"
        (tmp_path / "all.txt").write_text(f"\ufeff# two\n\nmine/a.png\n{url}\n./mine/a.png\n", encoding="utf-8")
        first, second = open_source(tmp_path / "all.txt", tmp_path / "out").items(always)
        assert [item.load(3).pixels[0, 0, 0] for item in (first, second)] == [10, 20]
    assert first.target.name == "a"
    assert second.target.name == "b c"
    assert "secret" not in second.name


def test_a_list_of_one_folder_needs_no_inner_folders(tmp_path):
    (tmp_path / "all.lst").write_text("https://a.org/x/1.jpg\nhttps://a.org/x/2.jpg\n")
    assert targets(open_source(tmp_path / "all.lst", tmp_path), tmp_path) == ["1", "2"]


def test_lists_that_cannot_be_used(tmp_path):
    (tmp_path / "a.txt").write_text("# nothing\n")
    with pytest.raises(DataError, match="a.txt: lists no images; write one path or URL per line"):
        open_source(tmp_path / "a.txt", tmp_path)
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DataError, match="b.txt: cannot be read as a list .*; write one path or URL per line"):
        open_source(tmp_path / "b.txt", tmp_path)
    picture(tmp_path / "a.png")
    (tmp_path / "c.txt").write_text(f"{tmp_path}/a.png\nb/c.png\nhttps://a.org/1.jpg\nd.png\n")
    with pytest.raises(DataError, match="c.txt: 2 of its 4 images are not files, the first is b/c.png; relative"):
        open_source(tmp_path / "c.txt", tmp_path)


def test_several_images_as_a_shell_names_them(tmp_path):
    for name in ("x/a.png", "y/a.png"):
        picture(tmp_path / name)
    words = [str(tmp_path / name) for name in ("x/a.png", "y/a.png")]
    assert targets(open_source(words, tmp_path / "out"), tmp_path / "out") == ["x/a", "y/a"]
    assert targets(open_source(words[:1], tmp_path / "out"), tmp_path / "out") == ["a"]
    with pytest.raises(DataError, match="--input: 1 of its 2 images are not files, the first is .*x; relative paths"):
        open_source([str(tmp_path / "x"), words[1]], tmp_path / "out")


def test_a_remote_image_and_folder(tmp_path):
    picture(tmp_path / "served/a.png", 30)
    (tmp_path / "served/notes").write_text("")
    with serve(tmp_path / "served") as server:
        for location in (server.url, f"{server.url}/a.png"):
            (item,) = open_source(location, tmp_path).items(always)
            assert (item.target.name, item.load(1).pixels[0, 0, 0]) == ("a", 30)


def test_a_remote_folder_without_images(tmp_path):
    (tmp_path / "served").mkdir()
    with serve(tmp_path / "served") as server, pytest.raises(DataError, match="no images .* a list of paths and URLs"):
        open_source(server.url, tmp_path)


def test_shards_by_the_keys_of_their_samples(tmp_path):
    write_shards(tmp_path / "shards", 5, per_shard=3)
    source = open_source(tmp_path / "shards", tmp_path / "out")
    assert isinstance(source, Shards)
    items = list(source.items(lambda number, target: number != 1))
    assert [number for number, item in enumerate(items) if item is None] == [1]
    assert source.total == len(items) == 5
    assert len({item.target for item in items if item}) == 4
    assert items[0].load(3).pixels.ndim == 3


def test_a_key_that_leads_elsewhere(tmp_path, monkeypatch):
    write_shards(tmp_path / "shards", 1)
    source = open_source(tmp_path / "shards", tmp_path / "out")
    monkeypatch.setattr(source._reader, "key", lambda number: "../../a")
    with pytest.raises(DataError, match="its key leads out of the output folder; write the shards again"):
        list(source.items(always))


def test_a_video_is_known_by_its_name(tmp_path, drive):
    assert isinstance(open_source(drive, tmp_path / "out", every=3), Video)


def test_processes_that_see_other_files_can_tell(tmp_path):
    picture(tmp_path / "in/a.png")
    before = open_source(tmp_path / "in", tmp_path / "out").fingerprint
    assert before == open_source(tmp_path / "in", tmp_path / "out").fingerprint
    picture(tmp_path / "in/b.png")
    assert before != open_source(tmp_path / "in", tmp_path / "out").fingerprint


def test_a_list_may_be_written_on_another_system(tmp_path, monkeypatch):
    picture(tmp_path / "in/\u00e4.png")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("in\\\u00e4.png\n", encoding="utf-8")
    (item,) = open_source(tmp_path / "list.txt", tmp_path / "out").items(always)
    assert Path(item.name).name == "\u00e4.png"


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
    with pytest.raises(ConfigError, match=r"--every \(0\) must be 1 or more; use 10 for every tenth frame"):
        Video(drive, tmp_path, every=0)
