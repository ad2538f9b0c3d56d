"""The page in a real browser. SLMREC_SCREENSHOTS names a folder that pictures of it are written to."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import Client, serving

pytestmark = pytest.mark.heavy

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
playwright.expect.set_options(timeout=60_000)  # of patience with a busy machine
WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(params=WIDTHS)
def page(request: pytest.FixtureRequest, browser: "playwright.Browser", client: Client) -> Iterator["playwright.Page"]:
    """The page, loaded; no request may leave the server, and no script may fail."""
    width, height = WIDTHS[request.param]
    opened = browser.new_page(viewport={"width": width, "height": height})
    faults: list[str] = []
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    opened.on("request", lambda sent: faults.append(sent.url) if f":{client.port}/" not in sent.url else None)
    opened.goto(f"http://127.0.0.1:{client.port}/")
    playwright.expect(opened.locator("#model-teacher li")).to_have_count(10)
    yield opened
    assert faults == []
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing is cut off
    if "SLMREC_SCREENSHOTS" in os.environ:
        opened.screenshot(path=Path(os.environ["SLMREC_SCREENSHOTS"]) / f"{request.param}.png", full_page=True)
    opened.close()


def test_a_history_is_typed_with_the_keyboard_alone(page: "playwright.Page", client: Client) -> None:
    search = page.get_by_role("combobox", name="Add an item")
    search.focus()
    page.keyboard.type("number 1 red")
    playwright.expect(page.locator("#results [role=option]")).to_have_count(8)
    playwright.expect(search).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    chosen = page.locator("#results [aria-selected=true]")
    playwright.expect(search).to_have_attribute("aria-activedescendant", str(chosen.get_attribute("id")))
    title = chosen.text_content()
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#history li .title")).to_have_text([str(title)])
    playwright.expect(page.get_by_role("status")).to_contain_text("up to date")
    page.keyboard.type("blue")
    playwright.expect(page.locator("#results [role=option]")).to_have_count(8)
    page.keyboard.press("Escape")
    playwright.expect(page.locator("#results [role=option]")).to_have_count(0)
    playwright.expect(search).to_have_attribute("aria-expanded", "false")
    item_id = f"i{int(str(title).split()[2]):02d}"
    for name in ("student", "teacher"):
        status, _, answer = client.ask(f"/recommend?model={name}", {"history": [item_id]})
        assert status == 200
        shown = page.get_by_role("region", name=name.title()).locator("li .title")
        titles = [item["title"] for item in answer["items"]]
        for place, wanted in enumerate(titles):
            playwright.expect(shown.nth(place)).to_contain_text(wanted)
        playwright.expect(page.locator(f"#model-{name} .time")).to_contain_text("ms")


def test_what_is_typed_while_an_answer_is_awaited_is_found(page: "playwright.Page") -> None:
    held: list[playwright.Route] = []
    page.route("**/items?*", lambda route: route.continue_() if held else held.append(route))
    page.get_by_role("combobox", name="Add an item").focus()
    with page.expect_request("**/items?*"):
        page.keyboard.type("1")
    page.keyboard.type("2")
    held[0].continue_()
    playwright.expect(page.locator("#results [role=option]")).to_have_text(["Thing number 12 in blue"])


def test_a_user_is_picked_and_items_come_and_go(page: "playwright.Page") -> None:
    playwright.expect(page.locator("#model-student .note")).to_have_text("The most popular items")
    page.get_by_label("Or choose an example user").select_option(label="ann (2 items)")
    playwright.expect(page.locator("#history li .title")).to_have_text(
        ["Thing number 1 in red", "Thing number 2 in blue"]
    )
    playwright.expect(page.locator("#model-student .note")).to_be_hidden()
    page.locator("#model-student button").first.click()
    playwright.expect(page.locator("#history li")).to_have_count(3)
    page.get_by_role("button", name="Remove Thing number 1 in red").click()
    playwright.expect(page.locator("#history li .title").first).to_have_text("Thing number 2 in blue")
    page.get_by_role("button", name="Clear").click()
    playwright.expect(page.locator("#history li")).to_have_count(0)
    playwright.expect(page.locator("#model-student .note")).to_have_text("The most popular items")


def test_everything_has_a_name(page: "playwright.Page") -> None:
    page.get_by_label("Or choose an example user").select_option(label="ann (2 items)")
    playwright.expect(page.locator("#history li")).to_have_count(2)
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, input, select')].filter(each => each.checkVisibility() && "
        "!(each.getAttribute('aria-label') || each.textContent.trim().length > 1 || each.labels?.length)).length"
    )
    assert unnamed == 0
    assert page.get_by_role("heading", level=1).count() == 1
    assert page.get_by_role("list", name="History, oldest first").count() == 1


def test_a_token_is_asked_for(student: Path, browser: "playwright.Browser") -> None:
    with serving(student, token="secret") as client:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{client.port}/")
        playwright.expect(page.get_by_role("alert")).to_contain_text("the token is missing or wrong")
        page.get_by_label("This server requires a token").fill("secret")
        page.get_by_role("button", name="Continue").click()
        playwright.expect(page.locator("#model-student li")).to_have_count(10)
        playwright.expect(page.get_by_role("alert")).to_have_text("")
        page.close()


def test_the_interface_is_shown(client: Client, browser: "playwright.Browser") -> None:
    page = browser.new_page()
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("request", lambda sent: faults.append(sent.url) if f":{client.port}/" not in sent.url else None)
    page.goto(f"http://127.0.0.1:{client.port}/docs")
    operation = page.locator("#operations-default-recommend")
    playwright.expect(operation).to_contain_text("/recommend")
    operation.locator("button").first.click()
    playwright.expect(operation).to_contain_text("Several users")
    playwright.expect(operation).to_contain_text(f"http://127.0.0.1:{client.port}/recommend")
    operation.get_by_role("button", name="Execute").click()
    playwright.expect(operation.locator(".live-responses-table")).to_contain_text('"rank": 1')
    playwright.expect(operation.locator(".curl-command, .request-snippets").first).to_contain_text("curl")
    assert faults == []
    page.close()


def test_the_history_stands_in_the_address(page: "playwright.Page", client: Client) -> None:
    page.get_by_label("Or choose an example user").select_option(label="ann (2 items)")
    playwright.expect(page).to_have_url(f"http://127.0.0.1:{client.port}/#history=i01,i02")
    page.reload()
    titles = ["Thing number 1 in red", "Thing number 2 in blue"]
    playwright.expect(page.locator("#history li .title")).to_have_text(titles)
    page.evaluate("location.hash = 'history=i02,nope'")
    playwright.expect(page.locator("#history li .title")).to_have_text(titles[1:])
    playwright.expect(page.get_by_role("alert")).to_have_text(
        "Items of the address that are not in the catalogue: nope"
    )
    page.get_by_role("button", name="Clear").click()
    playwright.expect(page).to_have_url(f"http://127.0.0.1:{client.port}/")


def test_a_typing_error_is_forgiven(page: "playwright.Page") -> None:
    page.get_by_role("combobox", name="Add an item").fill("thng 12")
    playwright.expect(page.locator("#results [role=option]")).to_have_text(["Thing number 12 in blue"])
    playwright.expect(page.locator("#search-help")).to_have_text("No item matches exactly; these are similar.")


def test_a_server_that_is_gone_is_told_and_found_again(student: Path, browser: "playwright.Browser") -> None:
    with serving(student) as client:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{client.port}/")
        playwright.expect(page.locator("#model-student li")).to_have_count(10)
        page.route("**/recommend*", lambda route: route.abort())
        page.get_by_label("Do not recommend items of the history").uncheck()
        playwright.expect(page.get_by_role("alert")).to_contain_text("The server does not answer.")
        playwright.expect(page.locator("#model-student.old li")).to_have_count(10)
        page.unroute("**/recommend*")
        playwright.expect(page.get_by_role("alert")).to_have_text("")
        playwright.expect(page.locator("#model-student.old")).to_have_count(0)
        page.close()
