"""The report in a real browser. SLMREC_SCREENSHOTS names a folder that pictures of it are written to."""

import os
from pathlib import Path

import pytest
from reports import write_run

pytestmark = pytest.mark.heavy

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
PATIENCE = 240_000
"""Milliseconds, with a busy machine."""
WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}
BAD_TITLE = "<script>document.title='stolen'</script><img src=http://thief.invalid/x>"
OVERLAPS = """[...document.querySelectorAll('svg')].flatMap(svg => {
  const boxes = [...svg.querySelectorAll('text')].map(each => [each.textContent, each.getBoundingClientRect()]);
  return boxes.flatMap(([name, a], place) => boxes.slice(place + 1)
    .filter(([_, b]) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
      && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3).map(([other]) => `${name} on ${other}`)); })"""
CUT_OFF = """[...document.querySelectorAll('svg')].flatMap(svg => { const frame = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter(each => { const box = each.getBoundingClientRect();
    return box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1
      || box.bottom > frame.bottom + 1; }).map(each => each.textContent); })"""
SMALL = """[...document.querySelectorAll('svg text')].filter(each => { const at = each.getScreenCTM();
  const size = parseFloat(getComputedStyle(each).fontSize) * Math.hypot(at.a, at.b);
  return each.getBoundingClientRect().width && size < 7.5; }).map(each => each.textContent)"""


@pytest.fixture(scope="module")
def report(tiny_recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run with a depth study, whose items have titles that want to be more than text."""
    folder = tmp_path_factory.mktemp("page")
    items = folder / "items.csv"
    items.write_text(
        "item_id,title\n" + "".join(f"i{item:02d},{BAD_TITLE} {item}\n" for item in range(40)), encoding="utf-8"
    )
    return write_run(folder, tiny_recipe, items) / "report.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_is_whole(report: Path, browser: "playwright.Browser", width: str, scheme: str) -> None:
    size = dict(zip(("width", "height"), WIDTHS[width], strict=True))
    page = browser.new_page(viewport=size, color_scheme=scheme)
    page.set_default_timeout(PATIENCE)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text))
    page.on("request", lambda sent: faults.append(sent.url) if not sent.url.startswith(("file:", "data:")) else None)
    page.goto(report.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("[...document.querySelectorAll('.card')].every(each => each.scrollWidth <= each.clientWidth)")
    assert page.title() == "run: slmrec report"
    assert page.locator("script, img, link[rel=stylesheet], iframe").count() == 0
    assert page.locator(".example").first.get_by_text(BAD_TITLE[:40]).count() > 0
    assert page.locator("svg").count() == 13
    assert [page.evaluate(faulty) for faulty in (OVERLAPS, CUT_OFF, SMALL)] == [[], [], []]
    ink, card = page.evaluate(
        "[getComputedStyle(document.querySelector('svg text')).fill, "
        "getComputedStyle(document.querySelector('.card')).backgroundColor]"
    )
    assert (sum(map(int, ink[4:-1].split(","))) > 3 * 128) == (scheme == "dark")
    assert (sum(map(int, card[4:-1].split(","))) < 3 * 128) == (scheme == "dark")
    assert (
        page.evaluate("new Set([...document.querySelectorAll('[id]')].map(each => each.id)).size")
        == page.locator("[id]").count()
    )
    if "SLMREC_SCREENSHOTS" in os.environ:
        page.screenshot(path=Path(os.environ["SLMREC_SCREENSHOTS"]) / f"report-{width}-{scheme}.png", full_page=True)
    assert faults == []
    page.close()
