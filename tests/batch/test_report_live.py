"""The served report in a real browser: rows arrive while somebody looks, and what is looked at stays."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
from anyio.from_thread import start_blocking_portal
from batch_outcomes import Told, done, failed, painted
from browser import Watched, at_one_moment, new_page
from playwright.sync_api import Page, expect

from flux2_async.batch import Outcome, State
from flux2_async.batch.report import serve_report
from flux2_async.batch.results import CHANGES
from flux2_async.emulator import Plan, Script
from flux2_async.testing import running_emulator

HOSTILE = '</script><img src="http://127.0.0.1:9/leak" onerror="window.pwned=1"><script>window.pwned=1</script>'


@pytest.fixture(scope="module")
def only_page() -> Iterator[Watched]:
    with new_page() as page:
        yield Watched(page)


@contextmanager
def served(watched: Watched, folder: Path) -> Iterator[Page]:
    """The page of a folder, with nothing asked of another host and nothing complained of."""
    watched.asked.clear()
    watched.trouble.clear()
    watched.page.set_viewport_size({"width": 1280, "height": 800})
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(serve_report(folder)) as address:
        watched.page.goto(address)
        expect(watched.page.locator("#link-text")).not_to_have_text("connecting")
        yield watched.page
        assert watched.page.evaluate("window.pwned") is None
        assert watched.asked_elsewhere(address) == []
        watched.page.goto("about:blank")
        assert watched.trouble == []


@pytest.fixture
def changes(tmp_path: Path) -> Iterator[Told]:
    """What a batch of 40 tells, which is under way in this folder."""
    changes = Told(tmp_path, 40)
    yield changes
    changes.end(remove=True)


def submitted(number: int) -> Outcome:
    return done(number, state=State.SUBMITTED, download=None, credits=None, finished_at=None)


def ids(page: Page) -> list[str]:
    return page.locator(".card .id").all_inner_texts()


def test_rows_arrive_and_change(only_page: Watched, changes: Told) -> None:
    """From nothing at all: accepted, then with a picture; in the order of the input, with the figures above."""
    with served(only_page, changes.directory) as page:
        expect(page.locator("#waiting")).to_be_visible()
        expect(page.locator("#tools")).to_be_hidden()
        expect(page.locator("#link-text")).to_have_text("not running · no request yet")
        changes.tell(submitted(3))
        changes.tell(submitted(1))
        expect(page.locator(".card")).to_have_count(2)
        assert ids(page) == ["shot-1", "shot-3"]
        expect(page.locator("#waiting")).to_be_hidden()
        expect(page.locator("#link-text")).to_contain_text("running · last change")

        painted(changes.directory / "images/3.jpg", (640, 480), "seagreen")
        changes.tell(done(3, files=("images/3.jpg",)))
        changes.tell(failed(2, HOSTILE))
        expect(page.locator(".card")).to_have_count(3)
        expect(page.locator(".card").nth(2).locator(".output img")).to_be_visible()
        expect(page.locator("#summary")).to_have_text("1\u00a0of\u00a040\u00a0requests\u00a0done · 4\u00a0credits")
        assert ids(page) == ["shot-1", "shot-2", "shot-3"]
        assert page.locator("#states button:visible").all_text_contents() == ["done1", "failed1", "submitted1"]
        expect(page.get_by_role("status").last).to_contain_text("of 40 requests done")


def test_before_the_server_has_told(only_page: Watched, changes: Told) -> None:
    """No figure is shown that nobody knows yet, and nothing to sort."""
    changes.tell(submitted(1))
    with served(only_page, changes.directory) as page:
        expect(page.locator("#tools")).to_be_visible()
        page.route("**/events", lambda _: None)
        page.reload()
        expect(page.locator("#link-text")).to_have_text("connecting")
        expect(page.locator("#tools")).to_be_hidden()
        expect(page.locator("#summary")).to_have_text("")
        page.unroute("**/events")


def test_a_task_is_late_when_its_end_would_have_been_heard_of(only_page: Watched, changes: Told) -> None:
    """Those that are done took 8 s by the service's clock; one of 12 s may have ended unheard, one of 30 s has not."""
    now = datetime.now(UTC)
    for number in range(1, 7):
        changes.tell(done(number, create_time=now - timedelta(seconds=8), complete_time=now))
    changes.tell(attrs.evolve(submitted(7), submitted_at=now - timedelta(seconds=12)))
    changes.tell(attrs.evolve(submitted(8), submitted_at=now - timedelta(seconds=30)))
    with at_one_moment(only_page, now) as watched, served(watched, changes.directory) as page:
        words = page.locator(".card .reason span")
        expect(words.last).to_have_text("30 s so far, longer than most")
        expect(words.nth(6)).to_have_text("12 s so far")


def test_focus_filter_and_viewer_stay(only_page: Watched, changes: Told) -> None:
    """Who has the focus keeps it, a filter holds for what arrives, and an open request is told its end."""
    for number in range(11, 15):
        changes.tell(submitted(number))
    with served(only_page, changes.directory) as page:
        expect(page.locator(".card")).to_have_count(4)
        page.locator(".card button").nth(2).focus()
        for number in (1, 2, 20):
            changes.tell(submitted(number))
        expect(page.locator(".card")).to_have_count(7)
        expect(page.locator(".card button:focus .id")).to_have_text("shot-13")
        assert page.locator(".card [tabindex='0']").count() == 1
        # Drawn anew, since it says something else now.
        changes.tell(done(13, state=State.UNKNOWN, download=None))
        expect(page.locator(".card button:focus .state")).to_have_text("unknown")

        page.keyboard.press("Enter")
        expect(page.locator("#viewer-title")).to_have_text("shot-13")
        changes.tell(failed(13, "no"))
        changes.tell(submitted(3))
        expect(page.locator("#error")).to_have_text("ContentModeratedError: no")
        expect(page.locator("#viewer-title")).to_have_text("shot-13")
        page.keyboard.press("ArrowRight")
        expect(page.locator("#viewer-title")).to_have_text("shot-14")
        page.keyboard.press("Escape")
        expect(page.locator(".card button:focus .id")).to_have_text("shot-14")

        page.get_by_role("button", name="failed 1").click()
        expect(page.locator(".card")).to_have_count(1)
        changes.tell(failed(14, "no"))
        changes.tell(submitted(30))
        expect(page.locator(".card")).to_have_count(2)
        expect(page.get_by_role("button", name="failed 2")).to_be_focused()


def test_how_long_it_still_takes(only_page: Watched, changes: Told) -> None:
    """All of it as the batch expects, and each task by those that are done; both go down, and end with the batch."""
    # Before ten in the morning, when an hour has one digit.
    now = datetime.now(UTC).replace(hour=3)
    begun = now - timedelta(seconds=60)
    for number in range(1, 6):
        ended = begun + timedelta(seconds=1000 + number)
        changes.tell(done(number, submitted_at=begun, finished_at=ended, create_time=None, complete_time=None))
    changes.ends_at = now.timestamp() + 430
    changes.tell(attrs.evolve(submitted(6), submitted_at=now - timedelta(seconds=400)))
    with at_one_moment(only_page, now) as watched, served(watched, changes.directory) as page:
        expect(page.locator("#summary")).to_contain_text("about\u00a07\u00a0min\u00a0left,\u00a0until\u00a0")
        # With the time zone.
        until = re.compile(r"^6 min 40 s so far, about 10 min left, until \d\d:\d\d:\d\d \S+$")
        expect(page.locator(".card").nth(5).locator(".reason span")).to_have_text(until)
        changes.tell(attrs.evolve(submitted(8), state=State.QUEUED, submitted_at=None))
        expect(page.locator(".card").nth(6)).to_contain_text("All are expected to have ended by ")
        changes.ends_at = None
        changes.tell(submitted(7))
        expect(page.locator(".card")).to_have_count(8)
        expect(page.locator("#summary")).not_to_contain_text("left")
        changes.end(remove=False)
        expect(page.locator("#link-text")).to_contain_text("not running")
        expect(page.locator(".card").nth(5)).to_contain_text("The service has accepted it. 6 min 40 s")
        assert page.locator(".card").nth(6).inner_text().count("expected") == 1


def test_a_picture_that_cannot_be_shown_small_says_so(only_page: Watched, changes: Told) -> None:
    """The thumbnail is made when it is asked for, and a file that is none is words instead of a broken image."""
    (changes.directory / "images").mkdir()
    (changes.directory / "images/1.jpg").write_bytes(b"no picture")
    changes.tell(done(1, files=("images/1.jpg",)))
    with served(only_page, changes.directory) as page:
        expect(page.locator(".card .reason b")).to_have_text("No preview")
        # The browser itself tells of the address that gave nothing.
        only_page.trouble[:] = [text for text in only_page.trouble if "404" not in text]


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits(only_page: Watched, changes: Told, width: int, scheme: Any) -> None:
    """No sideways scrolling, on a telephone and in the dark, with rows that arrive."""
    with served(only_page, changes.directory) as page:
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 800})
        changes.tell(done(1, prompt="A very-long-word-" * 30))
        changes.tell(submitted(2))
        expect(page.locator(".card")).to_have_count(2)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.emulate_media(color_scheme="light")


@contextmanager
def program(*words: str, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    """A command of its own, which does not outlive the test."""
    command, pipe = [sys.executable, "-m", "flux2_async.cli", *words], subprocess.PIPE
    started = subprocess.Popen(command, env=os.environ | environment, stdout=pipe, stderr=pipe, encoding="utf-8")  # noqa: S603  ours
    with started as process:
        try:
            yield process
        finally:
            process.kill()


def test_the_report_of_a_batch_in_another_process(only_page: Watched, tmp_path: Path) -> None:
    """`flux2 report --serve` beside `flux2 batch`: rows and pictures arrive, the end is told, Ctrl-C ends it with 0."""
    jobs, results = tmp_path / "jobs.csv", tmp_path / "results"
    jobs.write_text("prompt\n" + "".join(f"a house {number}\n" for number in range(6)))
    results.mkdir()
    with (
        running_emulator(Script(plans=Plan(duration=float("inf")))) as emulator,
        program("report", str(results), "--serve", "--port", "0") as server,
    ):
        assert server.stdout is not None
        page = only_page.page
        page.set_viewport_size({"width": 1280, "height": 800})
        page.goto(server.stdout.readline().strip())
        account = {"APIKLEY_API_KEY": emulator.api_key, "APIKLEY_BASE_URL": emulator.base_url}
        with program("batch", str(jobs), "--out", str(results), "--no-report", **account) as batch:
            expect(page.locator(".card")).to_have_count(6)
            expect(page.locator("#link-text")).to_contain_text("running · last change")
            for task_id in emulator.ledger.accepted:
                emulator.finish(task_id)
            _, told = batch.communicate(timeout=120)
            assert batch.returncode == 0, told
        expect(page.locator("#summary")).to_contain_text("6\u00a0of\u00a06\u00a0requests\u00a0done")
        expect(page.locator("#link-text")).to_contain_text("not running")
        expect(page.locator(".card .output img").first).to_be_visible()
        page.goto("about:blank")
        server.send_signal(signal.SIGINT)
        _, told = server.communicate(timeout=120)
        assert server.returncode == 0
        assert told.endswith("stopped\n")
    assert not (results / CHANGES).exists()
    only_page.trouble.clear()
