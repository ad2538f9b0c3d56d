"""The documentation site: it builds without a warning, loads nothing from other hosts, and its search works offline."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from slmrec.commands.main import _parse

if TYPE_CHECKING:
    import playwright.sync_api

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
PLACEHOLDERS = re.compile(r"[\[\]…|<>]|\.\.\.|^slmrec STAGE")


def commands(page: Path) -> list[str]:
    """Commands in indented blocks and fences of a page; those with placeholders are left out."""
    text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
    lines = [line.strip() for line in re.findall(r"^(?: {4})?(slmrec [a-z].*)$", text, re.MULTILINE)]
    plain = [re.split(r" #| > |;| \| ", line)[0] for line in lines if re.match(r"slmrec [a-z-]+( |$)", line)]
    return [line for line in plain if not PLACEHOLDERS.search(line)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_the_commands_of_the_pages_parse(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in commands(page):
        try:
            _parse(shlex.split(command)[1:])
        except SystemExit:
            pytest.fail(f"{command}: {capsys.readouterr().err.splitlines()[-1]}")


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r": ([\w/]+\.md)$", text, re.MULTILINE))
    assert named == {str(page.relative_to(ROOT / "docs")) for page in PAGES} | {"CHANGELOG.md"}
    assert yaml.safe_load(text)["theme"]["font"] is False


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    paths = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": paths}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.heavy
def test_the_site_loads_nothing_from_other_hosts(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)\b[^>]*\bsrc=\"?([^\" >]+)", text)
        loaded += re.findall(r"<link\b[^>]*\brel=\"?(?:stylesheet|preconnect|icon)[^>]*\bhref=\"?([^\" >]+)", text)
        assert loaded and not [address for address in loaded if re.match(r"(https?:)?//", address)], page


@pytest.mark.heavy
def test_the_reference_is_made_from_the_code(site: Path) -> None:
    settings = (site / "reference" / "settings.html").read_text(encoding="utf-8")
    assert "distill.kl_temperature" in settings and "pretrain.NAME.hidden_size" in settings
    assert "prepare.time_format" in settings and "finetune.train.learning_rate" in settings
    shown = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    assert 'id="slmrec-config-show"' in shown and "--time-budget" in shown
    python = (site / "reference" / "python.html").read_text(encoding="utf-8")
    assert 'id="slmrec.run.fit"' in python and "recommend" in python


@pytest.mark.heavy
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)], ids=["desktop", "phone"])
def test_the_search_works_on_pages_opened_from_disk(
    site: Path, browser: "playwright.sync_api.Browser", width: int, height: int
) -> None:
    opened = browser.new_page(viewport={"width": width, "height": height})
    sent: list[str] = []
    opened.on("request", lambda request: sent.append(request.url))
    opened.goto((site / "index.html").as_uri())
    if width < 600:
        opened.locator("label[for=__search]").first.click()
    opened.locator("input.md-search__input").click()
    opened.keyboard.type("co-occurrence")
    results = opened.locator(".md-search-result__item")
    results.first.wait_for(timeout=60_000)
    assert results.count() > 2
    assert not [address for address in sent if not address.startswith(("file:", "data:", "blob:"))]
    if "SLMREC_SCREENSHOTS" in os.environ:
        opened.screenshot(path=Path(os.environ["SLMREC_SCREENSHOTS"]) / f"site_{width}.png")
    opened.close()
