"""The page of `ddm explore` in a browser: what a user does, sees, and never sees."""

# ruff: noqa: F811
from __future__ import annotations

import re
import shutil

import pytest
from explored import run, shown, started, workdir  # noqa: F401
from tiny_run import finished  # noqa: F401

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright: python -m pip install '.[test]'"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
FLAGS += ["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"]
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser():
    sync_api.expect.set_options(timeout=20_000)  # another test may have the cores
    with sync_api.sync_playwright() as playwright:
        try:
            opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        except sync_api.Error as error:
            pytest.skip(f"{CHROMIUM} does not start: {str(error).splitlines()[0]}")
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def known(browser, shown):
    """Where the page is, and the cookie of whoever opened it first."""
    address = started(shown)
    context = browser.new_context()
    page = context.new_page()
    page.goto(address)
    page.locator(".group").first.wait_for()
    assert "token" not in page.url
    return address.partition("?")[0], context.storage_state()


@pytest.fixture
def opened(browser, known):
    """Make pages, and check at the end that none said or asked for what it should not."""
    contexts, said, asked = [], [], []

    def open_page(fragment="", **how):
        context = browser.new_context(
            viewport=how.pop("viewport", DESK), storage_state=known[1], **how
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(known[0] + fragment)
        page.locator(".group").first.wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    outside = [url for url in asked if not url.startswith((known[0], "data:", "blob:"))]
    assert outside == []


def answered(page):
    """Wait for the answer to what was asked last."""
    page.wait_for_timeout(200)
    page.locator(".busy").wait_for(state="detached")
    return page.locator("#change svg").get_attribute("aria-label")


def test_taking_a_group_away_changes_the_answer_and_can_be_undone(opened):
    page = opened()
    expect = sync_api.expect
    page.locator(".group button", has_text="Take away").first.click()
    one = answered(page)
    expect(page.locator("#taken h3")).to_contain_text("Taken away:")
    expect(page.locator(".group button[aria-pressed=true]")).to_have_count(1)
    page.locator(".group button", has_text="Take away").nth(1).click()
    assert answered(page) != one
    expect(page.locator("#taken .chips button")).to_have_count(2)
    page.get_by_role("button", name="Undo").click()
    assert answered(page) == one
    page.locator("#taken .chips button").first.click()  # put back
    expect(page.locator("#change")).to_contain_text("Take a group away")
    page.go_back()
    assert answered(page) == one
    page.locator(".group button", has_text="Count double").first.click()
    expect(page.locator("#taken .chips button")).to_contain_text("counted 2 times")
    page.get_by_role("button", name="Put all back").click()
    expect(page.locator("#taken")).to_be_empty()


def test_what_is_seen_can_be_sent(opened):
    first = opened()
    first.locator(".group button", has_text="Take away").nth(2).click()
    told = answered(first)
    second = opened("#" + first.url.partition("#")[2])
    assert answered(second) == told
    other = opened("#q=900&w=77:0")  # of another run
    sync_api.expect(other.locator("#taken")).to_be_empty()


def test_queries_are_searched_filtered_and_sorted(opened, shown):
    page, expect = opened(), sync_api.expect
    queries = shown.overview["queries"]
    wrong = [place for place, each in enumerate(queries["wrong"]) if each]
    page.locator("#filter").select_option("wrong")
    expect(page.locator("#found")).to_have_text(f"{len(wrong)} of 40")
    page.locator("#filter").select_option("")
    page.locator("#class").select_option("3")
    threes = [place for place, each in enumerate(queries["label"]) if each == "3"]
    expect(page.locator("#list li")).to_have_count(len(threes))
    page.locator("#class").select_option("")
    page.locator("#search").fill("17")
    expect(page.locator("#list button").first).to_contain_text("17")
    page.locator("#search").fill("")
    page.locator("#sort").select_option("low")
    lowest = min(range(40), key=lambda place: float(queries["output"][place]))
    expect(page.locator("#list button").first).to_have_attribute("data-place", str(lowest))


def test_a_group_is_found_and_a_class_taken_away(opened, shown):
    page, expect = opened(), sync_api.expect
    page.locator("#find").fill("group 7")
    expect(page.locator(".group")).to_have_count(1)
    page.locator("#find").fill("")
    kinds = shown.overview["groups"]["kind"]
    page.locator("#kind").select_option(kinds[0])
    expect(page.locator("#taken .chips button")).to_have_count(kinds.count(kinds[0]))


def test_retraining_stands_beside_the_estimate(opened):
    page = opened()
    for place in range(2):
        page.locator(".group button", has_text="Take away").nth(place).click()
        answered(page)
    page.get_by_role("button", name=re.compile("Retrain to be sure")).click()
    page.locator("svg .exact").first.wait_for(timeout=60_000)
    sync_api.expect(page.locator("svg .exact")).to_have_count(2)  # one a seed
    sync_api.expect(page.locator("#jobs")).to_contain_text("done")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as CSV").click()
    lines = download.value.path().read_text().splitlines()
    assert lines[0].startswith("query,before,without,half_width,sum_of_single_effects,retrained_0")
    assert len(lines) == 41


def test_bad_points_are_dropped_and_networks_trained_on_the_rest(opened):
    page, expect = opened(), sync_api.expect
    page.locator("#quality summary").click()
    page.locator(".card").first.wait_for(timeout=60_000)
    expect(page.get_by_role("button", name="Retrain on the cleaned data")).to_be_disabled()
    page.locator(".card select").first.select_option("drop")
    page.locator(".card select").nth(1).select_option(index=3)
    expect(page.locator("#said-so")).to_have_text("1 dropped, 1 given another class.")
    page.get_by_role("button", name="Retrain on the cleaned data").click()
    expect(page.locator("#cleaned")).to_contain_text("on the cleaned data", timeout=60_000)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the changes").click()
    lines = download.value.path().read_text().splitlines()
    assert lines[0] == "point,row_of_the_source,label,what,new_label"
    assert [line.split(",")[3] for line in lines[1:]] == ['"drop"', '"relabel"']


def test_the_keyboard_does_it_all(opened):
    page, expect = opened(), sync_api.expect
    page.locator("#list button").first.focus()
    page.keyboard.press("ArrowDown")
    expect(page.locator("#list button").nth(1)).to_be_focused()
    expect(page.locator("#list button").nth(1)).to_have_attribute("aria-current", "true")
    place = page.locator("#list button").nth(1).get_attribute("data-place")
    page.locator(f'#sides[data-query="{place}"]').wait_for()
    button = page.locator(".group button", has_text="Take away").first
    button.focus()
    page.keyboard.press("Enter")
    one = answered(page)
    expect(button).to_be_focused()  # though all groups were drawn again
    expect(button).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#taken .chips button")).to_contain_text("counted 2 times")
    assert answered(page) != one
    page.get_by_role("button", name="Put all back").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#answer")).to_be_focused()  # where the button was


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESK, PHONE])
def test_it_is_accessible_and_fits(opened, scheme, viewport):
    from axe_playwright_python.sync_playwright import Axe

    page = opened("#q=3&w=1:0,2:2", color_scheme=scheme, viewport=viewport, bypass_csp=True)
    answered(page)
    page.locator("#trust summary").click()
    page.locator("#quality summary").click()
    page.locator(".card").first.wait_for(timeout=60_000)
    found = Axe().run(page)
    assert found.response["violations"] == [], found.generate_report()
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= viewport["width"]


def test_a_server_that_is_gone_is_told(browser, shown):
    context = browser.new_context()
    page = context.new_page()
    page.goto(started(shown))
    page.locator(".group").first.wait_for()
    page.route("**/api/what-if", lambda route: route.abort())
    page.locator(".group button", has_text="Take away").first.click()
    sync_api.expect(page.locator("#change .error")).to_contain_text("Start `ddm explore` again")
    context.close()
