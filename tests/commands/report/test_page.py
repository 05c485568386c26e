import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.commands.report.browser import opened
from tests.commands.report.runs import validation_set, write_run
from tests.predict.export.models import PALETTE
from unetdist.commands.report import page
from unetdist.commands.report.run import read_runs, score_run
from unetdist.data.labels import IGNORE_INDEX
from unetdist.errors import ConfigError

pytest.importorskip("plotly", reason="needs the extra `report`")


def report(folders, *, num_pictures=2, scores=True, notes=()):
    runs = read_runs(folders)
    if scores:
        runs = [replace(run, scored=score_run(run, num_workers=0)) for run in runs]
    return page.render(runs, num_pictures=num_pictures, notes=notes)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A report of two runs, the second with another learning rate."""
    tmp_path = tmp_path_factory.mktemp("report")
    val = validation_set(tmp_path)
    folders = [write_run(tmp_path / "x", val=val), write_run(tmp_path / "y", val=val, settings={"optim": {"lr": 0.01}})]
    file = tmp_path / "report.html"
    file.write_text(report(folders), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def browser(written, tmp_path_factory):
    with opened(written, tmp_path_factory.mktemp("browser") / "profile") as shown:
        yield shown


def test_the_page_asks_for_nothing_and_complains_of_nothing(browser, written):
    outside = [url for url in browser.requests if not url.startswith("data:")]
    assert outside == [written.resolve().as_uri()]
    assert browser.problems == []


def test_all_charts_are_drawn(browser):
    assert browser.evaluate("document.querySelectorAll('.chart .main-svg .lines .js-line').length") >= 2 * 3 + 3


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_its_window_in_light_and_dark(browser, width, dark):
    browser.look(width=width, dark=dark, touch=width < 500)
    paper = "rgb(21, 21, 23)" if dark else "rgb(251, 250, 247)"
    browser.wait_for(f"getComputedStyle(document.body).backgroundColor === '{paper}'")
    browser.wait_for(f"innerWidth === {width} && document.documentElement.scrollWidth <= {width}")
    line = "#6fb4ff" if dark else "#0a62b8"
    rgb = ", ".join(str(value) for value in bytes.fromhex(line[1:]))
    drawn = "document.querySelector('#chart-lr .js-line').style.stroke"
    browser.wait_for(f"{drawn} === 'rgb({rgb})'")
    assert len(browser.screenshot()) > 10_000
    assert browser.problems == []


def test_the_slider_of_a_picture_goes_by_keyboard_pointer_and_touch(browser):
    browser.look(width=1280)
    at = "document.querySelector('.stage').style.getPropertyValue('--at')"
    browser.evaluate("document.querySelector('.divider').focus()")
    browser.press("ArrowRight")
    browser.wait_for(f"{at} === '51%'")
    where = (
        "(() => { const stage = document.querySelector('.stage'); stage.scrollIntoView({behavior: 'instant',"
        " block: 'center'}); const box = stage.getBoundingClientRect();"
        " return [box.left + SHARE * box.width, box.top + box.height / 2] })()"
    )
    browser.wait_for(f"{at} === '25%'", again=lambda: browser.click(*browser.evaluate(where.replace("SHARE", "0.25"))))
    browser.look(width=390, touch=True)
    three_quarters = f"['74%', '75%', '76%'].includes({at})"
    browser.wait_for(three_quarters, again=lambda: browser.tap(*browser.evaluate(where.replace("SHARE", "0.75"))))
    browser.look(width=1280)


def test_either_side_of_a_picture_shows_what_is_chosen(browser):
    def choose(side, value):
        browser.evaluate(
            f"(() => {{ const select = document.querySelector('#{side}'); select.value = '{value}';"
            " select.dispatchEvent(new Event('input')) })()"
        )

    shown = "document.querySelector('.layer.{}').getAttribute('src')"
    stored = "document.querySelector('template[data-layer=\"{}\"]').content.textContent"
    for side, value in (("left", "truth"), ("right", "run-1"), ("right", "wrong-0")):
        choose(side, value)
        assert browser.evaluate(f"{shown.format(side)} === {stored.format(value)}")
    choose("left", "")
    assert browser.evaluate(shown.format("left")) is None
    assert browser.evaluate("[...document.images].filter(i => i.src).every(i => i.complete && i.naturalWidth)")


def test_counts_of_the_confusion_are_read_by_keyboard(browser):
    browser.evaluate("document.querySelector('.heat td[tabindex=\"0\"]').focus()")
    browser.press("ArrowDown")
    browser.press("ArrowRight")
    told = browser.evaluate("document.querySelector('.readout').textContent")
    assert told == browser.evaluate("document.activeElement.title")
    assert told.startswith("road taken for road: ")
    browser.evaluate("document.activeElement.blur()")


def test_another_run_is_shown_in_the_confusion_and_a_class_is_taken_from_its_chart(browser):
    browser.evaluate(
        "(() => { const select = document.querySelector('#confusion-run'); select.value = '1';"
        " select.dispatchEvent(new Event('change')) })()"
    )
    assert browser.evaluate("[...document.querySelectorAll('.confusion')].map(e => e.hidden)") == [True, False]
    lines = "document.querySelectorAll('#chart-classes .scatterlayer .trace').length"
    before = browser.evaluate(lines)
    browser.evaluate("document.querySelector('button[data-class=\"road\"]').click()")
    browser.wait_for(f"{lines} === {before - 1}")


def test_runs_are_told_apart_by_their_settings(written):
    html = written.read_text(encoding="utf-8")
    assert "<code>optim.lr</code>" in html
    assert "<code>0.01</code>" in html
    assert "<code>seed</code>" not in html
    assert html.count('<figure class="card">') == 4


def test_the_validation_sets_are_named(written, tmp_path):
    val = written.parent / "val"
    assert f"On <code>{val}</code>" in written.read_text(encoding="utf-8")
    other = validation_set(tmp_path, 3)
    html = report([written.parent / "x", write_run(tmp_path / "z", val=other)])
    told = " and ".join(sorted((str(val), str(other)))).replace(" and ", "</code>, <code>")
    assert f"Each on its own validation set: <code>{told}</code>" in html


def test_without_a_score_the_page_says_why_and_shows_the_rest(tmp_path):
    html = report([write_run(tmp_path / "x")], scores=False, notes=["No pictures: <reason>."])
    assert "No pictures: &lt;reason&gt;." in html
    assert 'id="pictures"' not in html
    assert 'id="confusion"' in html


def test_a_run_that_has_just_begun_has_a_page(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x/config.yaml").write_text("name: x\n")
    html = report([tmp_path / "x"], scores=False)
    assert 'id="curves"' not in html
    assert "How it went" in html


def test_names_cannot_break_out_of_the_page(tmp_path):
    html = report([write_run(tmp_path / "<script>alert(1)")], scores=False)
    assert "<script>alert" not in html


def test_a_score_that_differs_from_the_saved_one_is_noted(written):
    assert "x: the confusion matrix differs" in written.read_text("utf-8")


def test_the_extra_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "plotly", None)
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    with pytest.raises(ConfigError, match=r'plotly.* is not installed; type: pip install "unetdist\[report\]"'):
        report([write_run(tmp_path / "x")], scores=False)


def test_numbers_are_written_as_people_write_them():
    assert [page.percent(value) for value in (0.3456, 0.0, None)] == ["34.6", "0.0", page.NOTHING]
    assert [page.number(value) for value in (1330, 0, None, float("nan"))] == ["1,330", "0", *[page.NOTHING] * 2]
    assert [page.duration(value) for value in (7.4, 200, 7500, None)] == ["0:00:07", "0:03:20", "2:05:00", page.NOTHING]


def decoded(url):
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def test_a_layer_keeps_the_class_colours_and_shows_the_image_where_it_is_ignored():
    mask = np.array([[0, 1], [2, 255]], np.uint8)
    url = page.layer_url(mask, PALETTE.colors.tolist(), transparent=IGNORE_INDEX)
    pixels = np.asarray(decoded(url).convert("RGBA"))
    assert pixels[..., :3].reshape(-1, 3)[:3].tolist() == PALETTE.colors.tolist()
    assert pixels[..., 3].tolist() == [[255, 255], [255, 0]]


def test_mistakes_are_red_except_on_ignored_pixels():
    image, truth, pred = (
        np.zeros((1, 3, 3), np.uint8),
        np.array([[0, 1, 255]], np.uint8),
        np.array([[0, 2, 1]], np.uint8),
    )
    layers = page._layers([(image, truth, pred)], PALETTE)["layers"]
    pixels = np.asarray(decoded(layers["wrong-0"]).convert("RGBA"))
    assert pixels[0, :, 3].tolist() == [0, 255, 0]
    assert tuple(pixels[0, 1, :3]) == page.WRONG_COLOR


def test_cards_have_the_worst_and_the_best_with_all_layers(tmp_path):
    val = validation_set(tmp_path)
    runs = read_runs([write_run(tmp_path / name, val=val) for name in ("x", "y")])
    made = page.make_cards({run.name: score_run(run, num_workers=0) for run in runs}, 2)
    assert [card["kind"] for card in made] == ["worst", "worst", "best", "best"]
    assert len({card["key"] for card in made}) == 4
    assert set(made[0]["layers"]) == {"truth", "run-0", "wrong-0", "run-1", "wrong-1"}
    assert made[0]["mious"]["x"] <= made[-1]["mious"]["x"]
    assert decoded(made[0]["image"]).size == decoded(made[0]["layers"]["truth"]).size == (32, 24)


def test_large_pictures_are_shrunk(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MAX_PX", 16)
    (run,) = read_runs([write_run(tmp_path / "x", val=validation_set(tmp_path))])
    (card, *_) = page.make_cards({"x": score_run(run, num_workers=0)}, 1)
    assert (card["width"], card["height"]) == (16, 12)
    assert decoded(card["layers"]["wrong-0"]).size == (16, 12)
