"""Progress of one or many tasks: redrawn in place on a terminal, a line per change elsewhere."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Final, Self

import attrs
from rich.console import Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from flux2_async._shown.text import printable
from flux2_async.cli.screen import Screen, print_words

STYLES: Final = {
    "generating": "cyan",
    "sending": "cyan",
    "downloading": "cyan",
    "done": "green",
    "failed": "red",
    "moderated": "red",
    "refused by 429, waits": "yellow",
}
REFRESH: Final = 8.0
ROOMY: Final = 96
HALF: Final = 0.5


@attrs.define(eq=False)
class Row:
    """One task: what it is, how it was asked for, where it is, when the clock started and stopped.

    `left` gives the seconds that it is expected to take still, or None where that is not known; None: nobody knows.
    """

    title: str
    facts: str = ""
    state: str = "waiting for its turn"
    begun: float | None = None
    ended: float | None = None
    left: Callable[[], float | None] | None = None

    @property
    def seconds(self) -> float | None:
        """How long it has taken so far, or None before it began."""
        return None if self.begun is None else (self.ended or time.monotonic()) - self.begun


class LiveBoard(ABC):
    """Redraws itself on a terminal while it is entered; elsewhere nothing is drawn.

    It is drawn once when it is made, so that what it is drawn from has to be there before.
    """

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._begun = time.monotonic()
        self._live: Live | None = None
        if screen.live:
            self._live = Live(self, console=screen.err, refresh_per_second=REFRESH, transient=True)

    def __enter__(self) -> Self:
        if self._live:
            self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def log(self, text: str) -> None:
        """Tell something in a line of its own; only where nothing is redrawn."""
        if self._live is None:
            self.say(text)

    def say(self, text: str, style: str = "") -> None:
        """Tell something in a line of its own, above what is redrawn."""
        if self._live is None:
            self._screen.note(f"{time.monotonic() - self._begun:6.1f} s  {text}")
        else:
            print_words(self._live.console, Text(printable(text), style=style))

    @abstractmethod
    def __rich__(self) -> RenderableType: ...


class Board(LiveBoard):
    """Shows rows, and a line under them, while they change; one row alone is a single line. A context manager."""

    def __init__(self, screen: Screen, rows: Sequence[Row], footer: Callable[[], str] = str) -> None:
        self._rows = rows
        self._footer = footer
        self._spinner = Spinner("dots", style="cyan")
        super().__init__(screen)

    def change(self, row: Row, state: str, *, ended: bool = False) -> None:
        """Tell a row's new state; the same one again is not told."""
        now = time.monotonic()
        row.begun = now if row.begun is None else row.begun
        row.ended = now if ended else None
        if state != row.state:
            row.state = state
            self.log(f"{row.title}: {state}")

    def __rich__(self) -> RenderableType:
        if len(self._rows) == 1:
            row = self._rows[0]
            left = told_left(row.left and row.left())
            self._spinner.update(text=Text(printable(f"{_time(row)}  {row.title}: {row.state}{left}")))
            return self._spinner
        return Group(self._table(), Text(), Text(self._footer(), style="dim"))

    def _table(self) -> Table:
        # What is asked for matters less than where it is.
        roomy = self._screen.err.width >= ROOMY
        taken = 1 + 21 + 6 + (17 + 2 if roomy else 0) + 4 * 2
        table = Table(box=None, padding=(0, 1))
        table.add_column("", width=1)
        table.add_column("request", no_wrap=True, max_width=max(10, self._screen.err.width - taken))
        if roomy:
            table.add_column("as", no_wrap=True, style="dim", width=17)
        table.add_column("state", no_wrap=True, width=21)
        table.add_column("time", no_wrap=True, justify="right", width=6)
        for row in self._rows:
            state = Text(printable(row.state), STYLES.get(row.state, "dim"))
            table.add_row(self._sign(row), printable(row.title), *([row.facts] if roomy else []), state, _time(row))
        return table

    def _sign(self, row: Row) -> RenderableType:
        if row.begun is None:
            return ""
        if row.ended is None:
            return self._spinner.render(time.monotonic())
        return Text("✓", "green") if row.state == "done" else Text("✗", "red")


def told_left(seconds: float | None) -> str:
    """Give what is told of the time that is left, to be put behind something; nothing where it is not known."""
    return f", about {seconds:.0f} s left" if seconds and seconds >= HALF else ""


def _time(row: Row) -> str:
    return "" if row.seconds is None else f"{row.seconds:.1f} s"
