"""The emulator's page in a real browser: what people see, press and hear, and what hostile prompts cannot do."""

import json
import re
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from browser import Watched, new_page, until
from emulator_client import text_to_image
from playwright.sync_api import Page, Route, expect

from flux2_async.emulator import Fault, Limit, Plan, Script
from flux2_async.testing import RunningEmulator, running_emulator

HOSTILE = '<img src="http://127.0.0.1:9/leak" onerror="window.pwned=1"></p><script>window.pwned=1</script>'
ENDLESS = Script(plans=Plan(duration=float("inf")), limit=Limit(3, 600.0), render=False)


@pytest.fixture(scope="module")
def only_page() -> Iterator[Watched]:
    with new_page() as page:
        yield Watched(page)


@contextmanager
def shown(watched: Watched, script: Script) -> Iterator[tuple[Page, RunningEmulator]]:
    """The page of an emulator of its own; nothing is asked of another host, and nothing is complained of."""
    watched.asked.clear()
    watched.trouble.clear()
    watched.page.set_viewport_size({"width": 1280, "height": 800})
    with running_emulator(script) as emulator:
        watched.page.goto(emulator.base_url)
        expect(watched.page.locator("#link-text")).to_have_text("live")
        yield watched.page, emulator
        assert watched.page.evaluate("window.pwned") is None
        assert watched.asked_elsewhere(emulator.base_url) == []
        # Before the emulator ends, which the page would complain of.
        watched.page.goto("about:blank")
        assert watched.trouble == []


def create(emulator: RunningEmulator, **changes: Any) -> str | None:
    """Send one createTask as a program does; None when it was refused."""
    request = urllib.request.Request(  # noqa: S310  an address of ours
        emulator.base_url + "/api/v1/jobs/createTask",
        json.dumps(text_to_image(**changes)).encode(),
        {"Authorization": f"Bearer {emulator.api_key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:  # noqa: S310  likewise
        data = json.load(answer)["data"]
    return data and str(data["taskId"])


def test_a_task_arrives_and_finish_ends_it(only_page: Watched) -> None:
    """Without a reload: its card with its prompt and stage, then its picture; the button says what became of it."""
    with shown(only_page, ENDLESS) as (page, emulator):
        expect(page.locator("#nothing")).to_contain_text(f"APIKLEY_API_KEY={emulator.api_key}")
        expect(page.locator("#nothing")).to_contain_text(f"APIKLEY_BASE_URL={emulator.base_url}")
        task_id = create(emulator, prompt="A lighthouse at dawn")
        card = page.locator(".task")
        expect(card.locator(".prompt")).to_have_text("A lighthouse at dawn")
        expect(card.locator("[aria-current=step]")).to_have_text("waiting")
        expect(page.locator("#nothing")).to_be_hidden()
        expect(page.locator("#accepted")).to_have_text("1")

        page.get_by_role("button", name="Finish task 1: A lighthouse at dawn").click()
        expect(card.locator(".state")).to_have_text("success")
        expect(card.get_by_role("img", name="Result: A lighthouse at dawn")).to_be_visible()
        expect(page.get_by_role("status")).to_have_text("Task 1 was finished")
        expect(card.get_by_role("button")).to_have_count(0)
        assert emulator.task(task_id or "").state == "success"


def test_a_picture_is_shown_when_it_is_whole(only_page: Watched) -> None:
    """Not as much of it as has come: until then its place says that it is being drawn."""
    held: list[Route] = []
    with shown(only_page, ENDLESS) as (page, emulator):
        page.route(re.compile(r"/0\.\w+$"), lambda route: held.append(route))  # noqa: PLW0108  Playwright marks the function
        create(emulator, prompt="A lighthouse at dawn")
        page.get_by_role("button", name="Finish task 1").click()
        picture = page.locator(".well img")
        expect(picture).to_have_css("visibility", "hidden")
        until(page, "getComputedStyle(document.querySelector('.well'), '::after').content === '\"Being drawn\"'")
        [route] = held
        route.continue_()
        expect(picture).to_have_css("visibility", "visible")
        until(page, "getComputedStyle(document.querySelector('.well'), '::after').content === 'none'")
        page.unroute_all()


def test_the_limit_and_the_ledger_are_told(only_page: Watched) -> None:
    """The bar fills; what is refused is counted with its reason, and the bar tells it to screen readers."""
    with shown(only_page, ENDLESS) as (page, emulator):
        expect(page.get_by_role("meter", name="Limit")).to_have_attribute("aria-valuetext", "0 of 3")
        assert [bool(create(emulator)) for _ in range(5)] == [True, True, True, False, False]
        expect(page.get_by_role("meter", name="Limit")).to_have_attribute("aria-valuetext", "3 of 3")
        expect(page.locator(".bar .used")).to_have_count(3)
        expect(page.locator("#limit-text")).to_contain_text("Full: 429 for")
        expect(page.locator("#refused")).to_have_text("2")
        expect(page.locator("#reasons")).to_have_text("2 \u00d7 429")
        expect(page.locator("#charged")).to_have_text("15")


def test_the_next_call_is_cut(only_page: Watched) -> None:
    """By keyboard alone: the call, how, and the button."""
    with shown(only_page, ENDLESS) as (page, emulator):
        page.get_by_role("combobox", name="Call").select_option("createTask")
        page.get_by_role("combobox", name="How it is cut").select_option("done, then cut")
        page.get_by_role("button", name="Cut the next call").focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("status")).to_have_text("The next createTask: done, then cut")
        with pytest.raises(OSError, match=r"Remote end closed|reset"):
            create(emulator)
        expect(page.locator("#accepted")).to_have_text("1")


def test_a_callback_has_no_reply_to_cut(only_page: Watched) -> None:
    """The choice that makes no sense cannot be made."""
    with shown(only_page, ENDLESS) as (page, _):
        page.get_by_role("combobox", name="How it is cut").select_option("cut_body")
        page.get_by_role("combobox", name="Call").select_option("callback")
        expect(page.locator("#fault-kind")).to_have_value("cut_after")
        expect(page.locator("#fault-kind [value=cut_body]")).to_be_disabled()


def test_an_open_connection_is_cut(only_page: Watched) -> None:
    """The button beside it, named after it."""
    script = Script(faults=[Fault("credit", "hang")], render=False)
    with shown(only_page, script) as (page, emulator):
        place = emulator.base_url.removeprefix("http://").split(":")
        with socket.create_connection((place[0], int(place[1]))) as client:
            client.sendall(b"GET /api/v1/chat/credit HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer emulator-key\r\n\r\n")
            expect(page.locator("#connections")).to_contain_text("credit · answering")
            page.get_by_role("button", name=re.compile("Cut the connection of 127.0.0.1")).focus()
            page.keyboard.press("Enter")
            client.settimeout(20)
            with pytest.raises(ConnectionResetError):
                if client.recv(1) == b"":
                    raise ConnectionResetError
        expect(page.locator("#no-connections")).to_be_visible()
        # The button is gone; the keyboard stays where it was.
        expect(page.get_by_role("combobox", name="Call")).to_be_focused()


def test_hostile_words_are_words(only_page: Watched) -> None:
    """A prompt, and what a script lets a failed task say, are shown as they are and do nothing."""
    script = Script(plans=Plan(duration=0.0, outcome="fail", fail_message=HOSTILE), render=False)
    with shown(only_page, script) as (page, emulator):
        create(emulator, prompt=HOSTILE)
        expect(page.locator(".prompt")).to_have_text(HOSTILE)
        expect(page.locator(".reason")).to_have_text(f"500: {HOSTILE}")
        assert page.locator(".task script, .task img").count() == 0


def test_everything_is_reached_by_keyboard(only_page: Watched) -> None:
    """Tab goes through link, choices, buttons and cards in the order of the page; what has the focus shows it."""
    with shown(only_page, ENDLESS) as (page, emulator):
        create(emulator, prompt="the first")
        create(emulator, prompt="the second")
        expect(page.locator(".task")).to_have_count(2)
        names = []
        for _ in range(6):
            page.keyboard.press("Tab")
            names.append(page.evaluate("document.activeElement.ariaLabel ?? document.activeElement.textContent"))
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        assert names == [
            "Ledger as JSON",
            "Call",
            "How it is cut",
            "Cut the next call",
            "Finish task 2: the second",
            "Finish task 1: the first",
        ]
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Enter")
        # The button is gone with its task; the keyboard goes on where there is one.
        expect(page.get_by_role("button", name="Finish task 1: the first")).to_be_focused()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(only_page: Watched, width: int, scheme: Any) -> None:
    """No sideways scrolling on a telephone, every button is large enough to hit, and no text is lost in its ground."""
    with shown(only_page, ENDLESS) as (page, emulator):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 800})
        create(emulator, prompt="A very-long-word-" * 12)
        expect(page.locator(".task")).to_have_count(1)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        for button in page.get_by_role("button").all():
            box = button.bounding_box()
            assert box is not None
            assert box["height"] >= 28
        assert page.evaluate(CONTRAST) >= 4.5
        page.emulate_media(color_scheme="light")


def test_a_lost_emulator_is_told_and_found_again(only_page: Watched) -> None:
    """The page says since when it hears nothing, and goes on by itself when the emulator is back."""
    page = only_page.page
    with running_emulator(ENDLESS) as emulator:
        page.goto(emulator.base_url)
        create(emulator)
        expect(page.locator(".task")).to_have_count(1)
        emulator.stop()
        expect(page.locator("#link-text")).to_contain_text("no connection since")
        emulator.start()
        create(emulator)
        expect(page.locator(".task")).to_have_count(2)
        expect(page.locator("#link-text")).to_have_text("live")
        page.goto("about:blank")


# The worst contrast of any text that is shown, as the guidelines for accessible pages reckon it.
CONTRAST = """() => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = (color) => color.slice(0, 3).map((v) => linear(v / 255))
    .reduce((sum, v, index) => sum + v * [0.2126, 0.7152, 0.0722][index], 0);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const shown = [...document.querySelectorAll("body *")].filter((element) => element.checkVisibility()
    && [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
  return Math.min(...shown.map((element) => {
    const [one, other] = [light(parse(getComputedStyle(element).color)), light(ground(element))].sort((a, b) => b - a);
    return (one + 0.05) / (other + 0.05);
  }));
}"""
