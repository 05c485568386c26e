"""The browser of the other tests notes the addresses that a page asks for, and its errors."""

from tests.commands.report.browser import opened


def test_a_failing_page_is_noticed(tmp_path):
    file = tmp_path / "x.html"
    file.write_text(
        "<!doctype html><script>document.documentElement.dataset.ready = 'true';"
        "fetch('https://example.invalid/x').catch(() => 0); console.error('bad'); nothing.there</script>"
    )
    with opened(file, tmp_path / "profile") as page:
        page.wait_for("true")
        assert len(page.problems) >= 2
        assert "https://example.invalid/x" in page.requests
