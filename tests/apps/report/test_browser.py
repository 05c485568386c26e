"""What the other tests lean on: the browser notes what a page asks for and what goes wrong in it."""

from tests.apps.report.browser import opened


def test_a_page_that_fails_is_seen_to_fail(tmp_path):
    file = tmp_path / "x.html"
    file.write_text(
        "<!doctype html><script>document.documentElement.dataset.ready = 'true';"
        "fetch('https://example.invalid/x').catch(() => 0); console.error('bad'); nothing.there</script>"
    )
    with opened(file, tmp_path / "profile") as page:
        page.wait_for("true")
        assert len(page.problems) >= 2
        assert "https://example.invalid/x" in page.requests
