from pathlib import Path

import pytest

from unetdist.data.labels.label_file import cut_cells, delimiter_of, read_header
from unetdist.errors import DataError

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


@pytest.mark.parametrize(
    "text", ["", "0 0 0 sky", "name 0 0 0", "Labels of a street", "the name of each", "sky"]
)
def test_other_lines_are_no_header(text):
    assert read_header(text, FILE, 1, is_strict=True) is None


def test_half_a_header_is_refused_unless_it_is_a_comment():
    assert read_header("r g name", FILE, 4, is_strict=False) is None
    with pytest.raises(
        DataError, match="Labels.txt, line 4: the header 'r g name' must have each of r, g, b"
    ):
        read_header("r g name", FILE, 4, is_strict=True)


@pytest.mark.parametrize(
    ("text", "cells"),
    [
        ("1,2,3,sky", ["1", "2", "3", "sky"]),
        ("1,2,3,sky,,", ["1", "2", "3", "sky", "", ""]),
        ("1,2,3,sky,x", []),
        ('1, 2, 3, "sky, blue"', ["1", "2", "3", "sky, blue"]),
        ("1 2 3 dark  blue sky", ["1", "2", "3", "dark blue sky"]),
        ("1 2 3 lane 2", ["1", "2", "3", "lane 2"]),
        ("1 2 3 4 sky", []),
        ("1,2,3 sky", ["1", "2", "3", "sky"]),
    ],
)
def test_lines_are_cut_by_the_header(text, cells):
    assert cut_cells(text, ["r", "g", "b", "name"]) == cells


def test_the_first_of_tab_semicolon_and_comma_separates():
    assert [delimiter_of(text) for text in ("a b", "a,b", "a,b;c", "a,b;c\td")] == [None, ",", ";", "\t"]
