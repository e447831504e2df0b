"""Progress of a batch: a board redrawn in place on a terminal, a line now and then elsewhere."""

import math
import time
from collections import deque
from datetime import UTC, datetime
from typing import Final

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from flux2_async._shown.text import printable
from flux2_async.batch import Batch, Outcome, Progress, State
from flux2_async.cli.board import LiveBoard
from flux2_async.cli.screen import Screen, counted, one_line, with_options
from flux2_async.session.session import Flux2Session

# Seconds between two lines where nothing is redrawn.
EVERY: Final = 10.0
# The speed is that of the last minutes: a batch has slow and fast hours.
WINDOW: Final = 120.0
# Seconds between two questions how long it still takes: the answer costs some milliseconds.
ASKED_EVERY: Final = 1.0
ERRORS: Final = 3
ERROR_LINES: Final = 20
WIDE: Final = 100


class BatchBoard(LiveBoard):
    """Shows how far a batch is; use it as a context manager. `stopping` is what is said of a stop under way."""

    def __init__(self, screen: Screen, batch: Batch, flux: Flux2Session) -> None:
        self.stopping = ""
        self._batch = batch
        self._flux = flux
        self._told_at = time.monotonic()
        self._told: list[str] = []
        self._ended: deque[float] = deque()
        self._errors: deque[str] = deque(maxlen=ERRORS)
        self._error_count = 0
        self._pricing: set[str] = set()
        self._asked_at = -math.inf
        self._expected: float | None = None
        super().__init__(screen)

    def tell(self, outcome: Outcome) -> None:
        """A request has come to its end."""
        self._ended.append(time.monotonic())
        if outcome.error is not None:
            state = "not downloaded" if outcome.state is State.DONE else outcome.state
            text = f"line {outcome.line} ({outcome.id}) {state}: {with_options(one_line(outcome.error.message))}"
            self._errors.append(text)
            self._error_count += 1
            if self._error_count <= ERROR_LINES:
                self.log(text + "; further ones are in results.jsonl" * (self._error_count == ERROR_LINES))
        self.tick()

    def tick(self) -> None:
        """Time has passed."""
        kind = self._batch.progress and self._batch.progress.pricing
        if kind and kind not in self._pricing:
            self._pricing.add(kind)
            self.say(f"finding out the price of {kind}: one picture goes ahead, the others wait for what it costs")
        progress = self._batch.progress
        # The first counts are told at once.
        every = EVERY if self._told or progress is None else 0.0
        if self._live is None and time.monotonic() - self._told_at >= every:
            self._told_at = time.monotonic()
            counts = ["reading the requests"] if progress is None else self._counts(progress)
            hindrances = [] if progress is None else [", ".join(words) for words in self._hindrances(progress)]
            if counts != self._told:
                self._told = counts
                self.say(", ".join(counts if progress is None else [*counts, *self._pace(progress)]))
                for text in hindrances:
                    self.say(text)

    def _counts(self, progress: Progress) -> list[str]:
        waiting = self._flux.statistics().waiting
        parts = [f"{progress.done} of {progress.total} done", f"{progress.running + progress.sending} running"]
        parts += [f"{waiting} waiting for the limit"] if waiting else []
        return [*parts, f"{progress.failed} failed", f"{progress.unknown} unknown"]

    def _pace(self, progress: Progress) -> list[str]:
        parts = [f"{progress.spent:g} credits"]
        now = time.monotonic()
        while self._ended and self._ended[0] < now - WINDOW:
            self._ended.popleft()
        passed = min(now - self._begun, WINDOW)
        if self._ended and passed > 0:
            speed = len(self._ended) / passed
            left = progress.queued + progress.sending + progress.running
            parts.append(f"{speed * 60:.0f} requests a minute")
            if left and not self.stopping:
                if now >= self._asked_at + ASKED_EVERY:
                    self._asked_at, self._expected = now, self._batch.remaining()
                seconds = left / speed
                if self._expected is not None:
                    seconds = max(self._expected - (now - self._asked_at), 0.0)
                span = _span(seconds)
                parts.append(f"about {span} for the {left} that are left")
        return parts

    def __rich__(self) -> RenderableType:
        progress = self._batch.progress
        if progress is None:
            return Text("reading the requests")
        width = self._screen.err.width
        ended = progress.done + progress.failed + progress.unknown
        wide = min(width, WIDE)
        full = int(ended / max(progress.total, 1) * wide)
        lines: list[RenderableType] = [Text.assemble(("━" * full, "green"), ("━" * (wide - full), "dim"))]
        lines += map(_line, [*_packed(self._counts(progress), width), *_packed(self._pace(progress), width)])
        # What keeps it from going on is worth more than one line.
        lines += [_line(text, "yellow") for words in self._hindrances(progress) for text in _packed(words, width)]
        lines += [_line(text, "red") for text in self._errors]
        return Group(*lines)

    def _hindrances(self, progress: Progress) -> list[list[str]]:
        found = []
        figures = self._flux.statistics()
        if figures.paused_until is not None:
            left = (figures.paused_until - datetime.now(UTC)).total_seconds()
            # An earlier run, or another process of the account, may be why.
            cause = "refused by 429" if figures.refused else "pausing"
            found.append([f"{cause}: nothing is sent for {max(left, 0):.0f} s more"])
        if figures.learned_limit is not None:
            refusals = f"{counted(figures.refused, 'refusal')} by 429"
            taken = f"the limit is taken to be {figures.learned_limit} for now"
            others = ["another program may use this account", "share the limit by --coordination"]
            found.append([refusals, taken, *others, "or give each its share by --rate-limit"])
        if progress.pricing is not None:
            found.append([f"waiting for the price of {progress.pricing}"])
        if progress.away is not None:
            found.append([f"the service is away, trying again: {one_line(progress.away)}"])
        if self.stopping:
            found.append(self.stopping.split("; "))
        return found


def _packed(parts: list[str], width: int) -> list[str]:
    """Put parts into as few lines as are wide enough for them."""
    lines = [parts[0]]
    for part in parts[1:]:
        longer = f"{lines[-1]}, {part}"
        if cell_len(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(part)
    return lines


def _line(text: str, style: str = "") -> Text:
    # What is longer than the terminal is wide would be drawn over and over.
    return Text(printable(text), style, no_wrap=True, overflow="ellipsis")


def _span(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"  # noqa: PLR2004  "99 min" is still read at a glance
