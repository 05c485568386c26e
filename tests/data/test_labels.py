import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shared_data import camvid, isbi
from unetdist.data.labels import IGNORE_INDEX, Label, Palette
from unetdist.errors import DataError


@pytest.fixture
def read(tmp_path):
    def read(text, ignore=()):
        path = tmp_path / "Labels.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return Palette.read(path, ignore=ignore)

    return read


def rows(palette):
    return [(label.id, label.name, label.color) for label in palette.labels]


SKY, ROAD = "Sky", "wet road"
BY_LINE = [(0, SKY, (128, 127, 126)), (1, ROAD, (0, 9, 3))]
BY_ID = [(3, SKY, (128, 127, 126)), (5, ROAD, (0, 9, 3)), (8, "Car", (7, 7, 7))]


@pytest.mark.parametrize(
    "text",
    [
        "128 127 126 Sky\n0 9 3 wet road",
        "128,127,126,Sky\n0,9,3,wet road",
        "128, 127, 126, Sky\n0, 9, 3, wet road\n",
        "128;127;126;Sky\n0;9;3;wet road",
        "128\t127\t126\tSky\n0\t9\t3\twet road",
        "128 127 126\tSky\n0 9 3\t\twet road",
        "128,127,126 Sky\n0,9,3 wet road",
        "Sky 128 127 126\nwet road 0 9 3",
        "Sky,128,127,126\nwet road,0,9,3",
        "Sky: 128,127,126\nwet road: 0,9,3",
        "Sky (128, 127, 126)\nwet road (0, 9, 3)",
        '128 127 126 "Sky"\n0 9 3 "wet road"',
        "# label:color_rgb:parts:actions\nSky:128,127,126::\nwet road:0,9,3:lane,curb:drive",
        "name,r,g,b\nSky,128,127,126\nwet road,0,9,3",
        "b,name,g,r\n126,Sky,127,128\n3,wet road,9,0",
        "Name; Red; Green; Blue\nSky;128;127;126\nwet road;0;9;3",
        "name,r,g,b,class_11\nSky,128,127,126,1\nwet road,0,9,3,0",
        "R G B Name\n128 127 126 Sky\n0 9 3 wet road",
        "# r g b name\n128 127 126 Sky\n0 9 3 wet road",
        "\n# Labels\n\n// of a street\n128 127 126 Sky # blue\n   \n  0 9 3 wet road // dark  \n#end\n",
        "\ufeff128 127 126 Sky\r\n0 9 3 wet road\r\n",
        "128 127 126 Sky\r0 9 3 wet   road\r",
        "128 127 126 255 Sky\n0 9 3 255 wet road",
        "128 127 126 Sky\n0 9 3 wet road".encode("utf-16"),
    ],
)
def test_without_ids_classes_are_numbered_by_line(read, text):
    assert rows(read(text)) == BY_LINE


@pytest.mark.parametrize(
    "text",
    [
        "3 128 127 126 Sky\n5 0 9 3 wet road\n8 7 7 7 Car",
        "3. 128 127 126 Sky\n5. 0 9 3 wet road\n8. 7 7 7 Car",
        "3,128,127,126,Sky\n5,0,9,3,wet road\n8,7,7,7,Car",
        "128 127 126 3 Sky\n0 9 3 5 wet road\n7 7 7 8 Car",
        "128 127 126 Sky 3\n0 9 3 wet road 5\n7 7 7 Car 8",
        "128,127,126,Sky,3\n0,9,3,wet road,5\n7,7,7,Car,8",
        "3 Sky 128 127 126\n5 wet road 0 9 3\n8 Car 7 7 7",
        "3: Sky 128 127 126\n5: wet road 0 9 3\n8: Car 7 7 7",
        "Sky 3 128 127 126\nwet road 5 0 9 3\nCar 8 7 7 7",
        "Sky,128,127,126,3\nwet road,0,9,3,5\nCar,7,7,7,8",
        "3 Sky 128 127 126 0\n5 wet road 0 9 3 0\n8 Car 7 7 7 0",
        '3 128 127 126 1 1 1 "Sky"\n5 0 9 3 1 1 1 "wet road"\n8 7 7 7 1 1 1 "Car"',
        "id,name,r,g,b\n3,Sky,128,127,126\n5,wet road,0,9,3\n8,Car,7,7,7",
        "label,name,red,green,blue,alpha\n3,Sky,128,127,126,255\n5,wet road,0,9,3,255\n8,Car,7,7,7,9",
        "R;G;B;Class;Class ID\n128;127;126;Sky;3\n0;9;3;wet road;5\n7;7;7;Car;8",
        "# id r g b name\n3 128 127 126 Sky\n5 0 9 3 wet road\n8 7 7 7 Car",
    ],
)
def test_ids_of_the_file_are_kept(read, text):
    palette = read(text)
    assert rows(palette) == BY_ID
    assert [label.index for label in palette.labels] == [0, 1, 2]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
def test_names_outside_ascii(read, encoding):
    assert read("0 0 0 Gebäude\n1 1 1 forêt".encode(encoding)).class_names == ("Gebäude", "forêt")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("0 0 0 Lane 1\n1 1 1 Lane 2\n2 2 2 Curb", ("Lane 1", "Lane 2", "Curb")),
        ("1 Lane 0 0 0\n2 Lane 1 1 1\nCurb 2 2 2", ("1 Lane", "2 Lane", "Curb")),
        ("2 lanes 0 0 0\n4 lanes 1 1 1", ("2 lanes", "4 lanes")),
        ("R G B Name\n0 0 0 Lane 1\n1 1 1 big 2 Curb", ("Lane 1", "big 2 Curb")),
        ('0,0,0,"Road, paved"\n1,1,1,Zone 51', ("Road, paved", "Zone 51")),
        ("name,r,g,b\n17,0,0,0\n18,1,1,1", ("17", "18")),
        ('name r g b\n"Zone 51" 0 0 0', ("Zone 51",)),
        ("0 0 0 C#\n1 1 1 a/b", ("C#", "a/b")),
    ],
)
def test_names_with_numbers_commas_and_marks(read, text, names):
    palette = read(text)
    assert palette.class_names == names
    assert palette.ids.tolist() == list(range(len(names)))


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("0 0 0 0 bg\n1 128 128 128 fg", [0, 1]),  # ids that count beat ids that only rise
        ("0 0 0 1 bg\n128 128 128 2 fg", [1, 2]),
        ("1 0 0 0 bg\n2 300 0 0 fg", None),  # 300 can be neither colour nor id
        ("0 0 0 0 bg\n1 0 0 7 fg\n2 0 7 0 x", [0, 1, 2]),  # the last column has 0 twice
        ("7 128 64 128 road\n8 244 35 232 walk\n11 70 70 70 house", [7, 8, 11]),  # 128, 232, 70 do not rise
        ("7 128 64 128 road\n8 244 35 232 walk", None),  # two lines prove nothing
        ("0 0 0 255 bg\n128 64 0 255 fg", [0, 1]),  # constant: alpha
    ],
)
def test_four_numbers_are_told_apart_by_the_whole_file(read, text, ids):
    if ids is None:
        with pytest.raises(DataError):
            read(text)
    else:
        assert read(text).ids.tolist() == ids


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
        ("Classes of x\n0 0 0 a", (), r"line 1: 'Classes of x' is not three.*put # before a comment"),
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
        (
            "0 0 0 a\n0 0 0 b",
            (),
            r"line 2: 'b' has the colour \(0, 0, 0\) of 'a' \(line 1\); remove or change",
        ),
        ("0 0 0 a\n\n1 0 0 a", (), r"line 3: 'a' has the name 'a' of 'a' \(line 1\)"),
        ("id,name,r,g,b\n4,a,0,0,0\n4,b,1,1,1", (), r"line 3: 'b' has the id 4 of 'a' \(line 2\)"),
        ("0 0 0 a\n0 0 0 b", ("a",), "line 2: 'b' has the colour"),
        (
            "id,name,r,g,b\n300,a,0,0,0",
            ("a",),
            "id 300 of 'a' must be 0..254; number the classes anew, or leave",
        ),
        (
            "id,name,r,g,b\n255,a,0,0,0",
            (),
            "line 2: id 255 of 'a' must be 0..254, .*add --ignore 'a' or change",
        ),
        (
            "id,name,r,g,b\n-1,a,0,0,0",
            (),
            "line 2: id -1 of 'a' must be 0..254, for 255 and negative ids mean",
        ),
        (
            "0 0 0 Void\n1 1 1 Sky",
            ("void",),
            r"Labels.txt: --ignore 'void' is no label; did you mean 'Void'\?",
        ),
        ("0 0 0 Void\n1 1 1 Sky", ("zzz",), "--ignore 'zzz' is no label; use one of Void, Sky"),
        ("0 0 0 a", ("a",), "every label is ignored; leave at least one class to train"),
        (
            "r,g,name\n0,0,a",
            (),
            "line 1: the header 'r,g,name' must have each of r, g, b, name once .*use 'id,name",
        ),
        ("id,r,g,b,name,id\n0,0,0,0,a,0", (), "must have each of r, g, b, name once and id at most once"),
        ("name,r,g,b\na,0,0", (), "line 2: 'a,0,0' does not fit the header 'name r g b'; give each line"),
        ("name,r,g,b\na,0,0,x", (), "line 2: 'a,0,0,x' does not fit the header"),
        ("name,r,g,b\na,b,0,0,0", (), "line 2: 'a,b,0,0,0' does not fit the header"),
        (
            "# r g b name\n0 1 2 3 a",
            (),
            "line 2: '0 1 2 3 a' does not fit .*quote a name that begins or ends",
        ),
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
        ([{"index": 0, "id": 0, "name": "a"}], r"damaged labels \(KeyError\('color'\)\); write the shards"),
        ([{"index": 0, "id": 0, "name": "a", "color": [1, 2]}], "damaged labels .*not enough values"),
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


names = st.from_regex(r"[A-Za-z][A-Za-z_\-]{0,6}( [A-Za-z]{1,5})?", fullmatch=True)
colors = st.tuples(*[st.integers(0, 255)] * 3)


@given(
    st.lists(st.tuples(names, colors), min_size=1, max_size=20, unique_by=(lambda x: x[0], lambda x: x[1])),
    st.sampled_from(["{r} {g} {b} {n}", "{n},{r},{g},{b}", "{n}\t{r}\t{g}\t{b}", "{n}: {r} {g} {b}"]),
)
def test_any_palette_survives_its_file(tmp_path_factory, labels, form):
    path = tmp_path_factory.mktemp("labels") / "Labels.txt"
    path.write_text("\n".join(form.format(n=n, r=r, g=g, b=b) for n, (r, g, b) in labels))
    expected = tuple(Label(i, " ".join(n.split()), color, i) for i, (n, color) in enumerate(labels))
    assert Palette.read(path).labels == expected


@given(st.data())
def test_a_file_with_ids_is_read_rightly_or_refused(tmp_path_factory, data):
    """The heart of the rule for four numbers: never a wrong guess where ids count up in the file."""
    color_list = data.draw(st.lists(colors, min_size=3, max_size=12, unique=True))
    start, form = data.draw(st.integers(0, 1)), data.draw(st.sampled_from(["{i} {c} x{i}", "{c} {i} x{i}"]))
    path = tmp_path_factory.mktemp("labels") / "Labels.txt"
    lines = [form.format(i=i + start, c=" ".join(map(str, c))) for i, c in enumerate(color_list)]
    path.write_text("\n".join(line.replace(" x", " name_") + "_" for line in lines))
    try:
        palette = Palette.read(path)
    except DataError as error:
        assert "can be read as" in str(error)  # noqa: PT017
        return
    assert palette.colors.tolist() == [list(color) for color in color_list]
    assert palette.ids.tolist() == list(range(start, start + len(color_list)))


def test_camvid_and_isbi():
    street = Palette.read(camvid() / "Labels.txt", ignore=["Void"])
    assert street.num_classes == 11
    assert street.class_names[:2] == ("Sky", "Building")
    assert Palette.read(isbi() / "Labels.txt").class_names == ("Membrane", "Cell")
