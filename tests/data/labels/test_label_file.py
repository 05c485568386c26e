"""Each form is read through `Palette.read`, which settles which of several readings holds."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetdist.data.labels import Label, Palette
from unetdist.data.labels.label_file import FORMS, read_header, readings
from unetdist.errors import DataError


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
        ("sign (front) 0 0 0\nsign (side) 1 1 1", ("sign (front)", "sign (side)")),
        ("sky\n1st", ("sky", "1st")),
        ("2nd floor\n3rd floor", ("2nd floor", "3rd floor")),
        ("0\t2nd floor\n1\tsky", ("2nd floor", "sky")),
        ("name,id\nLane 1,0\n2 lanes,1,", ("Lane 1", "2 lanes")),
        ("name;id\nLane 1;0", ("Lane 1",)),
        ("name\tid\nLane 1\t0", ("Lane 1",)),
        ("id name\n0 sky, blue", ("sky, blue",)),
        ("0 0 0 sign (front)\n1 1 1 sign (side)", ("sign (front)", "sign (side)")),
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


def test_every_way_to_read_a_file_is_offered(tmp_path):
    path = tmp_path / "Labels.txt"
    path.write_text("0 0 0 255 bg\n1 1 1 255 fg")
    found = readings(path)
    assert [reading.form for reading in found] == ["id r g b name", "r g b id name", "r g b a name"]
    assert [row.id for row in found[0].rows] == [0, 1]
    assert [row.line for row in found[0].rows] == [1, 2]
    assert {reading.form for reading in found} <= set(FORMS)


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


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("0 background\n2 wet road\n1 car", [0, 2, 1]),
        ("0: background\n2: wet road\n1: car", [0, 2, 1]),
        ("0,background\n2,wet road\n1,car\n", [0, 2, 1]),
        ("id,name\n0,background\n2,wet road\n1,car\n", [0, 2, 1]),
        ("background 0\nwet road 2\ncar 1", [0, 2, 1]),
        ("background\nwet road\ncar", [0, 1, 2]),
        ("# names\nbackground\n\nwet road\ncar\n", [0, 1, 2]),
    ],
)
def test_a_file_without_colours_gives_ids_and_names(read, text, ids):
    palette = read(text)
    assert [label.name for label in palette.labels] == ["background", "wet road", "car"]
    assert [label.id for label in palette.labels] == ids
    assert not palette.has_colors
    assert len({label.color for label in palette.labels}) == 3


def test_numbers_of_names_are_no_ids(read):
    assert read("Lane 1\nLane 2\nCurb").class_names == ("Lane 1", "Lane 2", "Curb")
    assert read("Lane 1\nLane 2").class_names == ("Lane 1", "Lane 2")


@pytest.mark.parametrize(
    "text",
    [
        "images/a.png masks/a.png\nimages/b.png masks/b.png",
        "This file describes the data set, and how it was made.",
        "Road #ff0000\nCar #00ff00",
        '{\n"Road": 1\n}',
        "0 0 road\n1 1 car",
    ],
)
def test_a_file_of_something_else_is_refused(read, text):
    with pytest.raises(DataError, match="line 1"):
        read(text)
    with pytest.raises(DataError, match="line 2: 'car' has the form 'name', most lines have 'id name'"):
        read("0 road\ncar")


FILE = Path("Labels.txt")


@pytest.mark.parametrize(
    ("text", "roles"),
    [
        ("name,r,g,b", "name r g b"),
        ("ID; Class name; Red; Green; Blue", "id name r g b"),
        ("R G B Name", "r g b name"),
        ("R G B\tLabel", "r g b name"),
        ("label,name,r,g,b", "id name r g b"),
        ("class,label,r,g,b", "name id r g b"),
        ("label_id,label,r,g,b", "id name r g b"),
        ("name,r,g,b,a,supercategory", "name r g b a _"),
    ],
)
def test_headers_name_the_columns(text, roles):
    assert read_header(text, FILE, 1, is_strict=True) == roles.split()


@pytest.mark.parametrize("text", ["", "0 0 0 sky", "name 0 0 0", "Labels of a street", "the name of each", "sky"])
def test_other_lines_are_no_header(text):
    assert read_header(text, FILE, 1, is_strict=True) is None


def test_half_a_header_is_refused_unless_it_is_a_comment():
    assert read_header("r g name", FILE, 4, is_strict=False) is None
    with pytest.raises(DataError, match="Labels.txt, line 4: the header 'r g name' must have each of r, g, b"):
        read_header("r g name", FILE, 4, is_strict=True)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("1,2,3,sky", "sky"),
        ("1,2,3,sky,,", "sky"),
        ("1,2,3,sky,x", None),
        ('1, 2, 3, "sky, blue"', "sky, blue"),
        ("1 2 3 dark  blue sky", "dark blue sky"),
        ("1 2 3 lane 2", "lane 2"),
        ("1 2 3 4 sky", None),
        ("1,2,3 sky", "sky"),
    ],
)
def test_lines_are_cut_by_the_header(read, text, name):
    if name is None:
        with pytest.raises(DataError, match="line 2: .* does not fit the header 'r g b name'"):
            read(f"r g b name\n{text}")
    else:
        assert rows(read(f"r g b name\n{text}")) == [(0, name, (1, 2, 3))]
