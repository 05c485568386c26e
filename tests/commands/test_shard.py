"""`unetdist shard` as a user types it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import shared_data
from tests.sharding.ingested import contents, samples_of
from tests.sharding.picture_folders import write_folders
from tests.sharding.test_foreign import pack
from unetdist.commands import shard as script
from unetdist.data.manifest import Manifest
from unetdist.errors import ConfigError, DataError
from unetdist.sharding.describe import next_command

SCRIPT = Path(__file__).parents[2] / "launch" / "shard_dataset.py"


def run(*arguments) -> int:
    return script.main([str(argument) for argument in arguments])


@pytest.fixture
def root(tmp_path) -> Path:
    return write_folders(tmp_path / "data")


def pairs(root: Path) -> list:
    folders = ["--images", root / "images", "--masks", root / "masks"]
    return [*folders, "--labels", root / "Labels.txt", "--ignore", "void", "--workers", 1]


def test_a_user_runs_it_and_reads_what_was_written(root, tmp_path):
    command = [sys.executable, SCRIPT, *pairs(root)[:-1], 2, "--out", tmp_path / "out"]
    command += ["--samples-per-shard", 5]
    for name in ("datasets", "pandas", "pyarrow"):  # 0.2 GB, for --dataset alone
        (tmp_path / f"{name}.py").write_text("raise ImportError('imported without need')")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, env=env)
    assert result.returncode == 0, result.stderr
    assert "20 samples in 4 shards" in result.stdout
    for name in ("ground", "tree", "sky", "ignored"):
        assert name in result.stdout
    assert "launch/train.py --data.train" in result.stdout.splitlines()[-1]
    assert Manifest.load(tmp_path / "out").num_samples == 20


def test_a_problem_ends_it_with_1_and_no_traceback(root, tmp_path):
    (root / "masks/day0/00.png").unlink()
    command = [sys.executable, SCRIPT, *pairs(root), "--out", tmp_path / "out"]
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: 1 problem in 19 samples") or "\nerror: 1 problem in 19" in result.stderr
    assert "day0/00.jpg" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_help_names_every_option(capsys):
    for arguments in (["--help"], ["write", "--help", "all"], ["index", "--help"]):
        with pytest.raises(SystemExit) as caught:
            run(*arguments)
        assert caught.value.code == 0
        text = capsys.readouterr().out
        assert ("--mask-ext" if "index" in arguments else "--val-fraction") in text


def test_a_fraction_and_a_list_make_two_folders(root, tmp_path):
    run(*pairs(root), "--out", tmp_path / "out", "--val-fraction", 0.3)
    sizes = [Manifest.load(tmp_path / "out" / part).num_samples for part in ("train", "val")]
    assert sum(sizes) == 20
    (tmp_path / "val.txt").write_text("day0/00\nday1/01.jpg\n")
    run("write", *pairs(root), "--out", tmp_path / "list", "--val-list", tmp_path / "val.txt")
    assert Manifest.load(tmp_path / "list" / "val").num_samples == 2


def test_a_list_of_pairs(root, tmp_path):
    (root / "list.txt").write_text("images/day0/00.jpg masks/day0/00.png\n")
    run("--list", root / "list.txt", *pairs(root)[4:], "--out", tmp_path / "out")
    assert Manifest.load(tmp_path / "out").num_samples == 1


def test_a_dataset(root, tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    cells = {
        name: [{"bytes": next((root / name).rglob(f"0{n}.*")).read_bytes(), "path": None} for n in range(3)]
        for name in ("images", "masks")
    }
    features = datasets.Features({name: datasets.Image() for name in cells})
    datasets.Dataset.from_dict(cells, features=features).save_to_disk(tmp_path / "saved")
    columns = ["--image-column", "images", "--mask-column", "masks"]
    run("--dataset", tmp_path / "saved", *columns, *pairs(root)[4:], "--out", tmp_path / "out")
    assert Manifest.load(tmp_path / "out").num_samples == 3


def test_the_built_in_shapes_need_nothing(tmp_path, capsys):
    run("--shapes", 20, "--seed", 3, "--out", tmp_path / "out", "--workers", 1)
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.num_samples == 20
    assert [record["name"] for record in manifest.palette_records] == ["background", "circle", "square", "triangle"]
    assert min(manifest.class_pixels) > 0
    assert "triangle" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"shapes \(0\) must be 1 or more; use 400"):
        run("--shapes", 0, "--out", tmp_path / "out")


def test_options_reach_the_shards(root, tmp_path):
    options = ["--resize", "8x6", "--image-format", "jpg", "--image-range", 0, 255, "--mask-format", "color"]
    run(*pairs(root), *options, "--keep-order", "--out", tmp_path / "out")
    manifest = Manifest.load(tmp_path / "out")
    assert (manifest.resize, manifest.min_size) == ((8, 6), (6, 8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "LABELS"], "no source; give --images DIR --masks DIR, --list FILE, --dataset NAME or --shapes N"),
        (["--images", "x", "--masks", "y"], r"--labels is missing; .*--labels Labels\.txt"),
        (["index", "x"], r"--labels is missing; .*--labels Labels\.txt"),
    ],
)
def test_a_command_that_lacks_something_is_told(root, tmp_path, arguments, message):
    arguments = [root / "Labels.txt" if word == "LABELS" else word for word in arguments]
    with pytest.raises(ConfigError, match=message):
        run(*arguments, "--out", tmp_path / "out")


def test_an_option_that_would_go_unheeded_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--shapes does not go with --images: samples come from one source"):
        run("--shapes", 3, "--images", "x", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_folders_are_roots_of_a_list(root, tmp_path):
    (root / "list.txt").write_text("day0/00.jpg day0/00.png\n")
    run("--list", root / "list.txt", *pairs(root), "--out", tmp_path / "out")
    assert Manifest.load(tmp_path / "out").num_samples == 1


@pytest.mark.parametrize("text", ["480", "x360", "4.5x3", "480x360x3"])
def test_a_size_that_is_none_is_refused(root, tmp_path, text):
    with pytest.raises(ConfigError, match=f"--resize: invalid WxH value: '{text}'; use 480x360"):
        run(*pairs(root), "--resize", text, "--out", tmp_path / "out")


def test_index_makes_a_data_set_of_foreign_tars(tmp_path, capsys):
    (tmp_path / "Labels.txt").write_text("0 0 0 ground\n9 0 9 tree\n")
    pack(tmp_path / "tars" / "a.tar", ["a", "b"])
    arguments = ["index", tmp_path / "tars", "--labels", tmp_path / "Labels.txt", "--workers", 1]
    with pytest.raises(DataError, match=r"no manifest is written\.\nbad tar \(1\)\n.*has no mask a\.mask\.png"):
        run(*arguments, "--mask-ext", "mask.png")
    run(*arguments)
    assert Manifest.load(tmp_path / "tars").num_samples == 2
    assert "2 samples in 1 shard," in capsys.readouterr().out


def test_the_command_after_an_index_looks_at_the_true_location_and_prints_none_of_its_secrets(
    root, monkeypatch, capsys
):
    looked = []
    monkeypatch.setattr(script, "index_tars", lambda *args, **options: "indexed")
    monkeypatch.setattr(script, "next_command", lambda locations: looked.extend(locations) or next_command(locations))
    folder = "https://user:secret@host.invalid/tars"
    run("index", f"{folder}/{{0..1}}.tar", "--mask-ext", "png", "--labels", root / "Labels.txt")
    assert [location.rstrip("/") for location in looked] == [folder]
    told = capsys.readouterr().out
    assert "--data.train https://***@host.invalid/tars" in told
    assert "secret" not in told


def test_ranks_write_both_folders_of_a_split_to_a_url(root, tmp_path, capsys):
    split = ["--val-fraction", 0.3, "--samples-per-shard", 4]
    run(*pairs(root), *split, "--out", tmp_path / "one")
    capsys.readouterr()
    for rank in (2, 0, 1):
        arguments = ["--out", f"file://{tmp_path}/three/", "--rank", rank, "--world-size", 3]
        assert run(*pairs(root), *split, *arguments) == 0
        assert ("next:" in capsys.readouterr().out) == (rank == 1)
    for part in ("train", "val"):
        assert contents(tmp_path / "three" / part) == contents(tmp_path / "one" / part)


def test_bytes_are_kept_where_asked(root, tmp_path):
    run(*pairs(root), "--out", tmp_path / "out", "--keep-bytes")
    image, _, record = samples_of(tmp_path / "out")["day0/00"]
    assert image == (root / "images" / record["image"]).read_bytes()
    with pytest.raises(DataError, match="seekable was False, is True"):
        run(*pairs(root), "--out", tmp_path / "out")


def test_a_picture_of_too_many_pixels_is_a_bad_sample(root, tmp_path):
    with pytest.raises(DataError, match="20 problems in 20 samples.*") as caught:
        run(*pairs(root), "--out", tmp_path / "out", "--max-pixels", 100)
    assert "day0/00.png: image is 16x12, which is more than --max-pixels 100; raise it" in str(caught.value)
    run(*pairs(root), "--out", tmp_path / "out", "--max-pixels", 192)


def test_index_takes_templates_and_refuses_two_ways_to_name_masks(tmp_path):
    (tmp_path / "Labels.txt").write_text("0 0 0 ground\n9 0 9 tree\n")
    pack(tmp_path / "tars" / "a.tar", ["a", "b"])
    arguments = ["index", tmp_path / "tars", "--labels", tmp_path / "Labels.txt", "--workers", 1]
    with pytest.raises(ConfigError, match="--mask-ext does not go with --mask-name: each of them alone tells"):
        run(*arguments, "--mask-ext", "seg.png", "--mask-name", "{stem}.seg.png")
    out = ["--out", tmp_path / "out"]
    run(*arguments, *out, "--mask-name", "{stem}.seg.png", "--image-name", "{stem}.jpeg")
    assert Manifest.load(tmp_path / "out").num_samples == 2


@pytest.mark.parametrize("name", ["verify", "stats"])
def test_a_data_set_is_looked_at(root, tmp_path, name, capsys):
    run(*pairs(root), "--out", tmp_path / "out")
    capsys.readouterr()
    workers = ["--workers", 1] if name == "verify" else []
    assert run(name, tmp_path / "out", *workers) == 0
    assert "20" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["verify", "stats", "show", "index", "write"])
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as caught:
        run(name, "--help")
    assert caught.value.code == 0
    assert "usage: unetdist shard" in capsys.readouterr().out


def test_isbi_goes_in_with_only_its_labels(tmp_path):
    isbi = shared_data.isbi()
    arguments = ["--images", isbi / "images", "--masks", isbi / "masks", "--labels", isbi / "Labels.txt"]
    run(*arguments, "--out", tmp_path / "out", "--val-fraction", 0.2, "--resize", "64x64")
    train = Manifest.load(tmp_path / "out" / "train")
    assert (train.channels, train.num_classes, train.ignored_pixels) == (1, 2, 0)
    assert min(train.class_pixels) > 0
