import pickle

import numpy as np
import pytest

from tests.shared_data import camvid, isbi
from unetdist.data.labels import IGNORE_INDEX, Palette
from unetdist.errors import DataError


def test_indices_rise_with_ids_and_skip_ignored_labels(read):
    text = "id,name,r,g,b\n9,a,0,0,0\n2,b,1,1,1\n255,void,2,2,2\n-1,plate,3,3,3\n4,c,4,4,4"
    palette = read(text, ignore=("void", "plate"))
    assert [label.index for label in palette.labels] == [2, 0, None, None, 1]
    assert palette.num_classes == 3
    assert palette.class_names == ("b", "c", "a")
    assert palette.ids.tolist() == [2, 4, 9]
    assert palette.colors.tolist() == [[1, 1, 1], [4, 4, 4], [0, 0, 0]]
    assert palette.colors.dtype == np.uint8


def test_ignored_labels_may_share_colour_and_id(read):
    palette = read("id,name,r,g,b\n0,a,9,9,9\n255,void,0,0,0\n255,border,0,0,0", ignore=("void", "border"))
    assert palette.class_names == ("a",)


@pytest.mark.parametrize(
    ("text", "ignore", "message"),
    [
        ("", (), r"Labels.txt: no classes; write 'R G B name' with whole numbers 0..255"),
        ("#ff0000 Sky\n", (), r"no classes; .*lines that begin with # or // are comments"),
        ("\x89PNG\0\0", (), "Labels.txt: is not a text file; give --labels the path"),
        ("0 0 0 a\n1 1 b", (), r"line 2: '1 1 b' is not three colour values and a name; write 'R G B name'"),
        ("Classes of x\n0 0 0 a", (), r"line 1: 'Classes of x' has the form 'name', most.*put # before a comment"),
        ("1,2,3,Road, paved", (), "line 1: '1,2,3,Road, paved' is not three.*quote a name that has commas"),
        ("0.1 0.2 0.3 a", (), "line 1: '0.1 0.2 0.3 a' is not three colour values"),
        ("0 0 0 1\n1 1 1 2", (), "line 1: '0 0 0 1' has no name, only numbers; .*need a header such as"),
        ("0 0 0\n1 1 1", (), "line 1: '0 0 0' has no name"),
        (
            "0 0 0 a\n1 1 1 1 b\n2 2 2 c",
            (),
            r"line 2: '1 1 1 1 b' has the form 'id r g b name', most lines have 'r g b name'; write all",
        ),
        ("0 0 0 a\nb 1 1 1", (), "line 2: 'b 1 1 1' has the form 'name r g b', most lines have 'r g b name'"),
        ("0 0 0 Route 66\n1 1 1 Curb", (), "line 2: '1 1 1 Curb' has the form .*write all lines in one form"),
        (
            "7 128 64 128 road\n8 244 35 232 walk",
            (),
            r"line 1: its numbers can be read as 'id r g b name' and as 'r g b id name'; add the right one",
        ),
        ("Lane 1 0 0 0\nLane 2 1 1 1", (), "line 2: 'Lane' has the name 'Lane' of 'Lane'"),
        ("0 0 300 a\n", (), r"line 1: colour \(0, 0, 300\) of 'a' must be 0..255; correct the line"),
        ("0 0 -1 a\n", (), r"line 1: colour \(0, 0, -1\) of 'a' must be 0..255"),
        ("0 0 0 a\n0 0 0 b", (), r"line 2: 'b' has the colour \(0, 0, 0\) of 'a' \(line 1\); remove or change"),
        ("0 0 0 a\n\n1 0 0 a", (), r"line 3: 'a' has the name 'a' of 'a' \(line 1\)"),
        ("id,name,r,g,b\n4,a,0,0,0\n4,b,1,1,1", (), r"line 3: 'b' has the id 4 of 'a' \(line 2\)"),
        ("0 0 0 a\n0 0 0 b", ("a",), "line 2: 'b' has the colour"),
        ("id,name,r,g,b\n300,a,0,0,0", ("a",), "id 300 of 'a' must be 0..254"),
        ("id,name,r,g,b\n255,a,0,0,0", (), "line 2: id 255 of 'a' must be 0..254, .*add --ignore 'a' or change"),
        ("id,name,r,g,b\n-1,a,0,0,0", (), "line 2: id -1 of 'a' must be 0..254, because 255"),
        ("0 0 0 Void\n1 1 1 Sky", ("void",), r"Labels.txt: --ignore 'void' is no label; did you mean 'Void'\?"),
        ("0 0 0 Void\n1 1 1 Sky", ("zzz",), "--ignore 'zzz' is no label; known: Void, Sky"),
        ("0 0 0 a", ("a",), "every label is ignored; leave at least one class to train"),
        ("r,g,name\n0,0,a", (), "line 1: the header 'r,g,name' must have each of r, g, b, name once .*use 'id,name"),
        ("id,r,g,b,name,id\n0,0,0,0,a,0", (), "must have each of r, g, b, name once and id at most once"),
        ("name,r,g,b\na,0,0", (), "line 2: 'a,0,0' does not fit the header 'name r g b'; give each line"),
        ("name,r,g,b\na,0,0,x", (), "line 2: 'a,0,0,x' does not fit the header"),
        ("name,r,g,b\na,b,0,0,0", (), "line 2: 'a,b,0,0,0' does not fit the header"),
        ("# r g b name\n0 1 2 3 a", (), "line 2: '0 1 2 3 a' does not fit .*quote a name that begins or ends"),
    ],
)
def test_a_wrong_file_is_refused_with_line_and_remedy(read, text, ignore, message):
    with pytest.raises(DataError, match=message):
        read(text, ignore)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"Labels.txt: No such file or directory; give --labels the path"):
        Palette.read(tmp_path / "Labels.txt")


def test_more_classes_than_a_byte_holds_are_refused(read):
    lines = [f"{i % 256} {i // 256} 0 c_{i:03d}x" for i in range(256)]
    assert read("\n".join(lines[:255])).num_classes == 255
    with pytest.raises(DataError, match="line 256: id 255 of 'c_255x' must be 0..254"):
        read("\n".join(lines))


def test_records_are_json_and_read_back(read):
    palette = read("0 0 0 Void\n1 2 3 Sky", ignore=("Void",))
    records = palette.to_records()
    assert records[1] == {"index": 0, "id": 1, "name": "Sky", "color": [1, 2, 3]}
    assert Palette.from_records(records) == palette
    assert pickle.loads(pickle.dumps(palette)) == palette


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"index": 0, "id": 0, "name": "a"}], r"damaged labels \(lacks color\); write the shards"),
        ([{"index": 0, "id": 0, "name": "a", "color": [1, 2]}], "damaged labels .*a list of 2.* must be a list of 3"),
        ([{"index": 1, "id": 0, "name": "a", "color": [1, 2, 3]}], r"damaged labels \(indices have gaps\)"),
    ],
)
def test_damaged_records_are_refused(records, message):
    with pytest.raises(DataError, match=message):
        Palette.from_records(records)


def test_masks_of_indices_become_ids_and_colours(read):
    palette = read("id,name,r,g,b\n7,a,1,1,1\n3,b,2,2,2\n255,void,9,9,9", ignore=("void",))
    mask = np.array([[0, 1], [IGNORE_INDEX, 0]], np.uint8)
    assert palette.to_ids(mask).tolist() == [[3, 7], [255, 3]]
    assert palette.to_ids(mask.astype(np.int64)).dtype == np.uint8
    assert palette.colorize(mask)[:, :, 0].tolist() == [[2, 1], [9, 2]]
    assert read("1 1 1 a").colorize(mask[1:, :1]).tolist() == [[[0, 0, 0]]]


def test_camvid_and_isbi():
    street = Palette.read(camvid() / "Labels.txt", ignore=["Void"])
    assert street.num_classes == 11
    assert street.class_names[:2] == ("Sky", "Building")
    assert Palette.read(isbi() / "Labels.txt").class_names == ("Membrane", "Cell")
