import base64
import io

import numpy as np
from PIL import Image

from tests.apps.report.runs import validation_set, write_run
from tests.predict.export.models import PALETTE
from unetdist.apps.report import cards
from unetdist.apps.report.run import read_runs, score_run


def decoded(url):
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def test_a_mask_keeps_its_colours_and_shows_the_image_where_it_is_ignored():
    mask = np.array([[0, 1], [2, 255]], np.uint8)
    pixels = np.asarray(decoded(cards.mask_url(mask, PALETTE)).convert("RGBA"))
    assert pixels[..., :3].reshape(-1, 3)[:3].tolist() == PALETTE.colors.tolist()
    assert pixels[..., 3].tolist() == [[255, 255], [255, 0]]


def test_mistakes_are_red_but_for_ignored_pixels():
    mask, pred = np.array([[0, 1, 255]], np.uint8), np.array([[0, 2, 1]], np.uint8)
    pixels = np.asarray(decoded(cards.mistakes_url(mask, pred)).convert("RGBA"))
    assert pixels[0, :, 3].tolist() == [0, 255, 0]
    assert tuple(pixels[0, 1, :3]) == cards.WRONG_COLOR


def test_the_worst_mistake_is_said_in_words():
    assert cards.worst_mistake(np.array([[50, 20], [5, 25]]), ("sky", "road")) == (
        "sky taken for road, 20 % of the pixels"
    )
    assert cards.worst_mistake(np.diag([3, 4]), ("sky", "road")) == ""


def test_cards_have_the_worst_and_the_best_with_all_layers(tmp_path):
    val = validation_set(tmp_path)
    runs = read_runs([write_run(tmp_path / name, val=val) for name in ("x", "y")])
    made = cards.make_cards({run.name: score_run(run, num_workers=0) for run in runs}, 2)
    assert [card["kind"] for card in made] == ["worst", "worst", "best", "best"]
    assert len({card["key"] for card in made}) == 4
    assert set(made[0]["layers"]) == {"truth", "run-0", "wrong-0", "run-1", "wrong-1"}
    assert {card["key"].removeprefix("pictures/") for card in made} == {card["title"] for card in made}
    assert made[0]["mious"]["x"] <= made[-1]["mious"]["x"]
    assert decoded(made[0]["image"]).size == decoded(made[0]["layers"]["truth"]).size == (32, 24)


def test_large_pictures_are_shrunk(tmp_path, monkeypatch):
    monkeypatch.setattr(cards, "MAX_PX", 16)
    (run,) = read_runs([write_run(tmp_path / "x", val=validation_set(tmp_path))])
    (card, *_) = cards.make_cards({"x": score_run(run, num_workers=0)}, 1)
    assert (card["width"], card["height"]) == (16, 12)
    assert decoded(card["layers"]["wrong-0"]).size == (16, 12)


def test_titles_are_keys_without_the_folders_of_all():
    assert cards.without_shared_folders(["a/b/x", "a/c/x"]) == ["b/x", "c/x"]
    assert cards.without_shared_folders(["a/b/x", "a/b/y"]) == ["x", "y"]
    assert cards.without_shared_folders(["x", "a/x"]) == ["x", "a/x"]
    assert cards.without_shared_folders(["a/x"]) == ["x"]
