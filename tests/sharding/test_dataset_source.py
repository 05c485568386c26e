"""Hugging Face datasets that lie on the disk: parquet, imagefolder, saved to disk."""

import gc
import sys

import pytest

from tests.sharding.picture_folders import color_mask, encoded, image_array, mask_array
from unetdist.errors import DataError
from unetdist.sharding.dataset_source import from_dataset
from unetdist.sharding.sources import RawSample

datasets = pytest.importorskip("datasets")

# datasets leaves metadata files for the garbage collector to close.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

IMAGES = [encoded(image_array(n), "JPEG") for n in range(3)]
MASKS = [color_mask(mask_array(n)) for n in range(3)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    # Here, where its warnings are expected, and not in the middle of any later test.
    gc.collect()


def make_rows(feature="image", **more):
    cell = (lambda data: {"bytes": data, "path": None}) if feature == "image" else (lambda data: data)
    kind = datasets.Image() if feature == "image" else datasets.Value("binary")
    columns = {"image": [cell(d) for d in IMAGES], "mask": [cell(d) for d in MASKS], **more}
    features = {name: kind if name in ("image", "mask") else datasets.Value("string") for name in columns}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


@pytest.mark.parametrize("feature", ["image", "binary"])
def test_rows_of_a_parquet_file_keep_their_bytes(tmp_path, feature):
    make_rows(feature).to_parquet(tmp_path / "rows.parquet")
    source = from_dataset(str(tmp_path / "rows.parquet"))
    assert [sample.key for sample in source.samples] == ["00000000", "00000001", "00000002"]
    assert [source.reader.read(sample) for sample in source.samples] == list(zip(IMAGES, MASKS, strict=True))
    assert source.samples[0].image == f"{tmp_path / 'rows.parquet'}:train:0:image"
    again = from_dataset(str(tmp_path / "rows.parquet"))
    assert [sample.stamp for sample in again.samples] == [sample.stamp for sample in source.samples]


def test_an_imagefolder_is_read_by_its_metadata(tmp_path):
    folder = tmp_path / "folder" / "train"
    folder.mkdir(parents=True)
    lines = ["file_name,mask_file_name"]
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(IMAGES[number])
        (folder / f"{number}_mask.png").write_bytes(MASKS[number])
        lines.append(f"{number}.jpg,{number}_mask.png")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    source = from_dataset(str(tmp_path / "folder"))
    assert [source.reader.read(sample) for sample in source.samples] == list(zip(IMAGES, MASKS, strict=True))


def test_a_saved_dataset_gives_the_split_and_keys_that_are_asked_for(tmp_path):
    saved = datasets.DatasetDict({"train": make_rows(), "test": make_rows(name=["b", "a", "b"])})
    saved.save_to_disk(tmp_path / "saved")
    source = from_dataset(str(tmp_path / "saved"), split="test", key_column="name")
    assert [(sample.key, sample.row) for sample in source.samples] == [("a", 1), ("b", 0)]
    assert source.problems[0].detail == "row 0 is also b"


def test_columns_that_do_not_fit_are_refused(tmp_path):
    make_rows(name=["a", "b", "c"]).to_parquet(tmp_path / "rows.parquet")
    path = str(tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"no column 'label'; it has image, mask, name: choose with --mask-column"):
        from_dataset(path, mask_column="label")
    with pytest.raises(DataError, match=r"column 'name' holds .* instead of images; choose another with --mask-column"):
        from_dataset(path, mask_column="name")
    with pytest.raises(DataError, match=r"cannot be loaded: .*--split \(nothing\)"):
        from_dataset(path, split="nothing")


def test_an_empty_cell_is_refused_when_it_is_read():
    rows = make_rows()
    from unetdist.sharding.dataset_source import DatasetReader

    reader = DatasetReader([{"image": None, "mask": rows[0]["mask"]}], "image", "mask")
    with pytest.raises(DataError, match=r"empty cell; .*--skip-bad"):
        reader.read(RawSample(key="a", image="", mask=""))


def test_without_the_package_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="--dataset needs the package datasets .*pip install datasets"):
        from_dataset("anything")
