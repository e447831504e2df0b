"""The report in a real browser: what people click, type and see, and what hostile text cannot do."""

import re
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import browser
import pytest
from batch_outcomes import done, failed, painted, queued
from browser import new_page, until
from playwright.sync_api import Page, expect

from flux2_async.batch import Download, Failure, Outcome, State
from flux2_async.batch.journal.start import CRASHED
from flux2_async.batch.report import write_report

SCRIPT = "<script>window.pwned=1</script>"
HOSTILE = [
    f"</script>{SCRIPT}",
    f"--></title></style></textarea>{SCRIPT}",
    "<!--<script>",
    '"><img src=x onerror="window.pwned=1">',
    "' autofocus onfocus='window.pwned=1",
    "<svg/onload=window.pwned=1>",
    '<img src="http://127.0.0.1:9/leak">',
    "<style>@import url(http://127.0.0.1:9/leak)</style>",
    "javascript:window.pwned=1",
    "data:text/html," + SCRIPT,
    "//127.0.0.1:9/leak",
    "{{ 7 * 7 }} {% raw %} {# gone #}",
    "&lt;b&gt; &amp; \\u003c \\ \u2028 \u2029 \x00 \x1b[31m",
    "\ud800 alone, \u202eturned round",
    "__proto__",
    "constructor",
]


class Watched(browser.Watched):
    """The one page of this module."""

    def open(self, report: Path) -> Page:
        """Load a report; cards are there when this is back."""
        self.page.goto(report.as_uri())
        expect(self.page.locator(".card").first).to_be_attached()
        return self.page

    def remote(self) -> list[str]:
        """What was asked of the network."""
        return self.asked_elsewhere("file:")


@pytest.fixture(scope="module")
def only_page() -> Iterator[Watched]:
    with new_page() as page:
        yield Watched(page)


@pytest.fixture
def watched(only_page: Watched) -> Iterator[Watched]:
    only_page.page.set_viewport_size({"width": 1280, "height": 800})
    only_page.asked.clear()
    yield only_page
    trouble, only_page.trouble = only_page.trouble, []
    assert trouble == []
    assert only_page.remote() == []


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of every state, with pictures, made once."""
    folder = tmp_path_factory.mktemp("gallery")
    for number in range(1, 7):
        painted(folder / f"images/{number}.jpg", (640, 480), "seagreen")
    cat = str(painted(folder / "in/cat.png", (300, 200), "orange"))
    cup = str(painted(folder / "in/cup.png", (200, 300), "brown"))
    outcomes = [
        done(1, files=("images/1.jpg",), images=(cat, cup), prompt="The cat on the cup", extra={"size": "0.5"}),
        done(2, files=("images/2.jpg", "images/3.jpg"), prompt="Красный чайник", credits=14.0, extra={"size": "10"}),
        failed(3),
        done(4, files=("images/4.jpg",), images=("https://example.com/shelf.jpg",), extra={"size": "0.25"}),
        Outcome(id="shot-5", state=State.UNKNOWN, prompt="a lost reply", error=CRASHED),
        Outcome(id="shot-6", state=State.QUEUED, prompt="a house, number 6"),
        done(7, download=Download.EXPIRED, urls=("https://files.example/7.png",), credits=0.5),
    ]
    return write_report(outcomes, folder, title="Winter")


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(queued(1000), tmp_path_factory.mktemp("thousand"))


def ids(page: Page) -> list[str]:
    """The ids on the page, in the order they are read aloud."""
    return page.locator(".card .id").all_inner_texts()


def expect_focus(page: Page, name: str) -> None:
    """Wait until the card of this id has the focus."""
    expect(page.locator(".card button:focus .id")).to_have_text(name)


def order_by(page: Page, column: str) -> list[str]:
    page.locator("#sort").select_option(label=column)
    return ids(page)


def test_the_gallery_shows_inputs_beside_outputs(watched: Watched, gallery: Path) -> None:
    """Every request has a card; its reference pictures stand left of its picture, and both are loaded."""
    page = watched.open(gallery)
    assert ids(page) == [f"shot-{number}" for number in range(1, 8)]
    card = page.locator(".card").first
    expect(card.locator("img")).to_have_count(3)
    until(page, "[...document.querySelectorAll('.card img')].every((image) => image.naturalWidth)")
    source, output = card.locator(".source img").first.bounding_box(), card.locator(".output img").bounding_box()
    assert source is not None
    assert output is not None
    assert source["x"] + source["width"] < output["x"]
    expect(page.locator("h1")).to_have_text("Winter")
    expect(page.locator("#summary")).to_have_text(
        re.compile(r"7\s+requests · 22\.5\s+credits · perhaps\s+more\s+\(1\s+unknown\) · ")
    )


def test_what_runs_says_when_it_is_expected(watched: Watched, tmp_path: Path) -> None:
    """By nine in ten of those that are done, or what is documented; with the time zone, and what to do when late."""
    now = datetime.now(UTC)
    timed = dict.fromkeys(("create_time", "complete_time"))

    def written(count: int) -> Page:
        ended = [done(n, submitted_at=now, finished_at=now + timedelta(seconds=600), **timed) for n in range(1, count)]
        runs = done(9, state=State.SUBMITTED, download=None, finished_at=None, **timed)
        return watched.open(
            write_report([*ended, attrs.evolve(runs, submitted_at=now - timedelta(seconds=300))], tmp_path)
        )

    clock = r"\d\d:\d\d:\d\d \S+"
    words = written(6).locator(".card .reason span").last
    expect(words).to_have_text(re.compile(rf"^The service has accepted it. 5 min \d+ s so far, expected by {clock}\.$"))
    words = written(5).locator(".card .reason span").last
    again = "the same command again goes on with it."
    expect(words).to_have_text(re.compile(rf"^The service has accepted it. It was expected by {clock}; {again}$"))
    watched.page.locator(".card button").last.click()
    expect(watched.page.locator("#facts")).to_have_text(re.compile(rf"Expected end{clock}"))


def test_a_request_without_a_picture_says_why(watched: Watched, gallery: Path) -> None:
    """In place of the picture stands what became of it; an address is a link and is not fetched."""
    page = watched.open(gallery)
    reasons = page.locator(".card .reason")
    assert reasons.all_inner_texts() == [
        "No picture\nrefused by the content filter",
        "Not known\nIt may have been accepted and paid for: flux2 unknown with this folder asks what became of it.",
        "Waiting\nIt was not sent yet.",
        "Expired\nThe service does not keep the picture any more.",
    ]
    page.locator(".card button").nth(3).click()
    expect(page.locator("#pictures a")).to_have_attribute("href", "https://example.com/shelf.jpg")
    page.keyboard.press("Escape")
    page.locator(".card button").nth(4).click()
    expect(page.locator("#error")).to_contain_text("or send it again with --retry-unknown, which may pay twice")


def test_filter_by_state(watched: Watched, gallery: Path) -> None:
    """Each state has a button with its number; several add up, and a second click takes one back."""
    page = watched.open(gallery)
    chips = page.locator("#states button:visible")
    assert [re.sub(r"\s+", " ", text) for text in chips.all_inner_texts()] == [
        "done 4",
        "failed 1",
        "unknown 1",
        "queued 1",
    ]
    chips.nth(1).click()
    assert ids(page) == ["shot-3"]
    expect(page.locator("#count")).to_have_text("1 of 7 requests")
    chips.nth(2).click()
    assert ids(page) == ["shot-3", "shot-5"]
    chips.nth(1).click()
    assert ids(page) == ["shot-5"]
    expect(chips.nth(2)).to_have_attribute("aria-pressed", "true")


def test_search_in_prompts_and_ids(watched: Watched, gallery: Path) -> None:
    """All words have to occur in prompt, id or task id, whatever their case."""
    page = watched.open(gallery)
    found = {
        "CAT cup": ["shot-1"],
        "shot-3": ["shot-3"],
        "task_4": ["shot-4"],
        "чайник": ["shot-2"],
        "house lost": [],
        "number": ["shot-3", "shot-4", "shot-6", "shot-7"],
    }
    assert {words: searched(page, words) for words in found} == found


def searched(page: Page, words: str) -> list[str]:
    page.locator("#search").fill(words)
    return ids(page)


def test_nothing_found_offers_the_way_back(watched: Watched, gallery: Path) -> None:
    """Where nothing matches, a button takes search and filters back."""
    page = watched.open(gallery)
    page.get_by_role("button", name="failed 1").click()
    page.locator("#search").fill("no such words")
    page.get_by_role("button", name="Show everything").click()
    assert len(ids(page)) == 7
    expect(page.locator("#search")).to_be_focused()


def test_sort_by_any_column(watched: Watched, gallery: Path) -> None:
    """Figures sort as figures, also those of the input's own columns; what has no value comes last either way."""
    page = watched.open(gallery)
    assert order_by(page, "Credits")[:4] == ["shot-7", "shot-1", "shot-4", "shot-2"]
    assert order_by(page, "size")[:4] == ["shot-4", "shot-1", "shot-2", "shot-3"]
    page.get_by_role("button", name="Descending").click()
    assert ids(page)[:4] == ["shot-2", "shot-1", "shot-4", "shot-3"]
    assert order_by(page, "Time taken")[:3] == ["shot-7", "shot-4", "shot-3"]
    assert order_by(page, "Prompt")[0] == "shot-2"


def test_the_keyboard_is_enough(watched: Watched, gallery: Path) -> None:
    """`/` searches, arrows move by card and row, Enter opens, arrows go on, Space compares, Escape comes back."""
    page = watched.open(gallery)
    keys = page.keyboard
    keys.press("/")
    expect(page.locator("#search")).to_be_focused()
    assert page.locator("#search").input_value() == ""
    keys.press("Enter")
    expect_focus(page, "shot-1")
    columns = int(page.evaluate("columns"))
    assert columns > 1
    keys.press("ArrowRight")
    expect_focus(page, "shot-2")
    keys.press("ArrowDown")
    expect_focus(page, f"shot-{2 + columns}")
    keys.press("End")
    expect_focus(page, "shot-7")
    keys.press("Home")
    keys.press("Enter")
    viewer = page.locator("#viewer")
    expect(viewer).to_be_visible()
    large = page.locator("#stage img")
    expect(large).to_have_attribute("src", "./images/1.jpg")
    keys.press("Space")
    expect(large).to_have_attribute("src", "./in/cat.png")
    keys.press("ArrowRight")
    expect(page.locator("#viewer-title")).to_have_text("shot-2")
    keys.press("Escape")
    expect(viewer).to_be_hidden()
    expect_focus(page, "shot-2")


def test_the_focus_can_be_seen_and_leaves_the_grid(watched: Watched, gallery: Path) -> None:
    """One card takes part in the tab order, and the one with the focus has an outline."""
    page = watched.open(gallery)
    assert page.locator(".card button[tabindex='0']").count() == 1
    page.locator("#direction").focus()
    page.keyboard.press("Tab")
    expect_focus(page, "shot-1")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Shift+Tab")
    expect(page.locator("#direction")).to_be_focused()


def test_everything_has_a_name(watched: Watched, gallery: Path) -> None:
    """What can be operated has a name for those who do not see it, in the grid and in the large view."""
    page = watched.open(gallery)
    nameless = """[...document.querySelectorAll('button, input, select, a[href], dialog[open] img')].filter((element) =>
        element.checkVisibility() && !element.closest("[aria-label]:is(button)")
        && !(element.ariaLabel || element.textContent.trim() || element.alt || element.labels?.length)
    ).map((element) => element.outerHTML)"""
    assert page.evaluate(nameless) == []
    page.locator(".card button").first.click()
    assert page.evaluate(nameless) == []
    expect(page.get_by_role("dialog", name="shot-1")).to_be_visible()
    expect(page.get_by_role("img", name="Result: The cat on the cup")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="a house, number 3, shot-3, failed: refused by the")).to_be_visible()


def test_a_thousand_rows_draw_only_what_is_seen(watched: Watched, thousand: Path) -> None:
    """The page is as high as all its rows and holds a few dozen cards wherever it is scrolled to."""
    page = watched.open(thousand)
    assert page.locator(".card").count() < 60
    for tenth in range(1, 11):
        page.evaluate("(part) => scrollTo(0, document.body.scrollHeight * part)", tenth / 10)
        page.evaluate("new Promise(requestAnimationFrame)")
    expect(page.get_by_text("shot-1000", exact=True)).to_be_in_viewport()
    assert page.locator(".card").count() < 60
    assert ids(page) == sorted(ids(page), key=lambda name: int(name[5:]))
    last = page.locator(".card").last
    assert (last.get_attribute("aria-posinset"), last.get_attribute("aria-setsize")) == ("1000", "1000")
    page.evaluate("scrollTo(0, 0)")
    page.locator("#search").press("Enter")
    page.keyboard.press("End")
    expect_focus(page, "shot-1000")
    page.get_by_role("button", name="Descending").click()
    expect(page.get_by_text("shot-1000", exact=True)).to_be_in_viewport()
    page.locator("#search").fill("number 777")
    assert ids(page) == ["shot-777"]
    expect(page.get_by_text("shot-777", exact=True)).to_be_in_viewport()


@pytest.mark.parametrize("size", [(390, 844), (320, 568), (844, 390)], ids=["phone", "small phone", "turned"])
def test_a_phone(watched: Watched, gallery: Path, size: tuple[int, int]) -> None:
    """Nothing is wider than the screen, and a picture opens large and closes."""
    watched.page.set_viewport_size({"width": size[0], "height": size[1]})
    page = watched.open(gallery)
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    card = page.locator(".card").first.bounding_box()
    assert card is not None
    assert card["x"] + card["width"] <= size[0]
    page.locator(".card button").first.click()
    expect(page.locator("#stage img")).to_be_in_viewport()
    assert page.evaluate("document.getElementById('viewer').scrollWidth") <= size[0]
    page.get_by_role("button", name="Next request").click()
    expect(page.locator("#viewer-title")).to_have_text("shot-2")
    page.get_by_role("button", name="Close").click()
    expect(page.locator("#viewer")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_can_be_read(watched: Watched, gallery: Path, scheme: Any) -> None:
    """Small text has at least the contrast of WCAG AA on its background in both."""
    watched.page.emulate_media(color_scheme=scheme)
    page = watched.open(gallery)
    pairs = page.evaluate("""() => {
        const visible = (element) => {
            for (; element; element = element.parentElement) {
                const colour = getComputedStyle(element).backgroundColor;
                if (colour !== "rgba(0, 0, 0, 0)") return colour;
            }
        };
        return [...document.querySelectorAll(".state, .id, .reason b, .reason span, .text, #summary, #states button")]
            .map((element) => [getComputedStyle(element).color, visible(element)]);
    }""")
    assert len(pairs) > 30
    assert min(contrast(*pair) for pair in pairs) >= 4.5


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2, from 1 to 21, of two `rgb(r, g, b)`."""
    lights = sorted(luminance([int(part) / 255 for part in re.findall(r"\d+", colour)]) for colour in (one, other))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def luminance(channels: list[float]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def hostile_outcomes(folder: Path) -> Iterator[Outcome]:
    """The same hostile text wherever a text can stand."""
    for number, text in enumerate(HOSTILE):
        yield Outcome(
            id=text,
            state=State.FAILED if number % 2 else State.DONE,
            prompt=text,
            images=(text, str(folder / text)),
            aspect_ratio=text,
            resolution=text,
            tier=text,
            model=text,
            task_id=text,
            files=(text,),
            urls=(text,),
            error=Failure(type=text, message=text, code=text),
            extra={text: text, "nested": {text: [text]}},
        )


def test_hostile_text_stays_text(watched: Watched, tmp_path: Path) -> None:
    """Whatever stands in prompts, ids, errors, names and columns: it is shown, runs nothing and asks for nothing."""
    report = write_report(hostile_outcomes(tmp_path), tmp_path, title=HOSTILE[0])
    page = watched.open(report)
    expect(page.locator("h1")).to_have_text(HOSTILE[0])
    shown = page.evaluate("rows.map((row) => [row.prompt, row.id, row.error, row.extra.get(row.prompt)])")
    assert [[whole(text) for text in row] for row in shown] == [[whole(text)] * 4 for text in HOSTILE]
    for key in ("/", "Enter", "Enter"):
        page.keyboard.press(key)
    for text in HOSTILE:
        assert whole(page.locator("#viewer-title").text_content()) == whole(text)
        addresses = page.locator("#viewer a[href]").evaluate_all("(links) => links.map((link) => link.href)")
        assert [url for url in addresses if url and not url.startswith("file:")] == []
        page.keyboard.press("Space")
        page.keyboard.press("ArrowRight")
    assert page.evaluate("typeof window.pwned") == "undefined"
    assert page.evaluate("document.querySelectorAll('script, style, svg[onload], iframe').length") == 3


def whole(text: str | None) -> str:
    """Without the half of a character, which the way out of the browser may replace."""
    return (text or "").replace("\ud800", "\ufffd")


def test_any_file_name_is_shown_and_linked(watched: Watched, tmp_path: Path) -> None:
    """However a picture is called, the page finds it."""
    names = ["<b>&'.jpg", "a#b?c%41 d.jpg", "javascript:1.jpg", "кот.jpg", "-.jpg", "\\x.jpg"]
    files = [painted(tmp_path / "images" / name, (64 + number, 48)) for number, name in enumerate(names)]
    outcomes = [done(number, files=(f"images/{path.name}",)) for number, path in enumerate(files)]
    page = watched.open(write_report(outcomes, tmp_path))
    page.locator(".card button").first.click()
    for number in range(len(names)):
        until(page, f"document.querySelector('#stage img').naturalWidth === {64 + number}")
        assert page.locator("#stage img").get_attribute("src") == page.locator("#file").get_attribute("href")
        page.keyboard.press("ArrowRight")


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


def test_the_policy_holds_whatever_the_page_does(watched: Watched, gallery: Path, listener: socket.socket) -> None:
    """Markup, foreign scripts and the network are out of reach for the page itself, not only avoided by it."""
    page = watched.open(gallery)
    page.evaluate(
        """(address) => {
        window.stopped = [];
        document.addEventListener("securitypolicyviolation", (event) => stopped.push(event.effectiveDirective));
        document.body.append(Object.assign(new Image(), { src: address }));
        document.body.append(Object.assign(document.createElement("style"), { textContent: "* { color: red }" }));
        fetch(address).catch(() => 0);
        try { document.body.innerHTML = "<b>x</b>" } catch (error) { stopped.push(error.name) }
        try { document.head.append(Object.assign(document.createElement("script"), { text: "window.pwned = 1" })) }
        catch (error) { stopped.push(error.name) }
    }""",
        f"http://127.0.0.1:{listener.getsockname()[1]}/leak",
    )
    stopped = {"TypeError", "connect-src", "img-src", "require-trusted-types-for", "style-src-elem"}
    until(page, f"new Set(stopped).size >= {len(stopped)}")
    assert set(page.evaluate("stopped")) == stopped
    assert page.evaluate("typeof window.pwned") == "undefined"
    with pytest.raises(BlockingIOError):
        listener.accept()
    # What was stopped is told as a request as well, and on the console.
    assert watched.trouble
    watched.trouble.clear()
    watched.asked.clear()


def test_a_picture_moved_away_leaves_its_thumbnail(watched: Watched, tmp_path: Path) -> None:
    """Where the file is gone since, the large view shows what is left of it."""
    picture = painted(tmp_path / "images/1.jpg", (1200, 800))
    report = write_report([done(1, files=("images/1.jpg",))], tmp_path)
    picture.unlink()
    page = watched.open(report)
    page.locator(".card button").click()
    until(page, "document.querySelector('#stage img').naturalWidth === 512")
    # The browser's own word about the missing file.
    assert [text for text in watched.trouble if "ERR_FILE_NOT_FOUND" not in text] == []
    watched.trouble.clear()
