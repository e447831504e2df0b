"""A real browser for tests of pages: everything that must not happen is noted."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import attrs
from playwright.sync_api import Page, expect, sync_playwright
from programs import program

__all__ = ["Watched", "at_one_moment", "new_page", "until"]

QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# A busy machine is no reason to fail.
expect.set_options(timeout=60_000)


@attrs.define
class Watched:
    """A page, with every request and every word of trouble noted."""

    page: Page
    asked: list[str] = attrs.field(factory=list)
    trouble: list[str] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.page.context.on("request", lambda request: self.asked.append(request.url))
        self.page.context.on("dialog", lambda dialog: self.trouble.append(dialog.message))
        self.page.context.on("console", lambda message: self.trouble.append(message.text))
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))

    def asked_elsewhere(self, own: str) -> list[str]:
        """What was asked of addresses that do not begin with `own`."""
        return [url for url in self.asked if not url.startswith(own)]


@contextmanager
def new_page() -> Iterator[Page]:
    """A page in a browser of its own; who has no browser is skipped."""
    chromium = program("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        try:
            yield browser.new_page()
        finally:
            browser.close()


@contextmanager
def at_one_moment(watched: Watched, now: datetime) -> Iterator[Watched]:
    """Another page of the same browser, for which it is now for ever."""
    browser = watched.page.context.browser
    assert browser is not None
    page = browser.new_page()
    page.clock.set_fixed_time(now)
    try:
        yield Watched(page)
    finally:
        page.close()


def until(page: Page, condition: str) -> None:
    """Wait as `wait_for_function` does, which the page's policy forbids: it evaluates from within."""
    for _ in range(3000):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(20)
    raise AssertionError(condition)
