"""The progress of a batch, drawn and in lines."""

import io
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import attrs
import pytest
from rich.console import Console

from flux2_async.batch import Batch, Download, Failure, Outcome, Progress, State
from flux2_async.cli.batch_board import BatchBoard
from flux2_async.cli.screen import Screen
from flux2_async.models import SessionStatistics
from flux2_async.session.session import Flux2Session

PROGRESS = Progress(
    total=300, queued=200, sending=2, running=18, done=77, failed=2, unknown=1, submitted=90, downloaded=76,
    not_downloaded=1, expired=0, spent=1078.0, reserved=252.0, away=None, stopped=None, last_failure=None,
)  # fmt: skip
STATISTICS = SessionStatistics(
    running=18, waiting=12, submitted=90, refused=0, ambiguous=1, polls=300, callbacks=0, repeated_settles=0,
    learned_limit=None, paused_until=None,
)  # fmt: skip


@attrs.define
class Shown:
    """What the board looks at: a batch and a session at some instant."""

    progress: Progress | None = PROGRESS
    figures: SessionStatistics = STATISTICS

    left: float | None = None

    def statistics(self) -> SessionStatistics:
        return self.figures

    def remaining(self) -> float | None:
        return self.left


def board(shown: Shown, width: int = 80) -> BatchBoard:
    screen = Screen()
    screen.err = Console(file=io.StringIO(), width=width)
    return BatchBoard(screen, cast("Batch", shown), cast("Flux2Session", shown))


def drawn(shown: BatchBoard, width: int = 80) -> list[str]:
    terminal = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, legacy_windows=False)
    with terminal.capture() as capture:
        terminal.print(shown)
    return [line.rstrip() for line in capture.get().splitlines()]


def outcome(**fields: Any) -> Outcome:
    return attrs.evolve(Outcome(id="a", state=State.DONE, prompt="a lake", line=17), **fields)


FAILED = outcome(
    state=State.FAILED, error=Failure(type="TaskFailedError", message="Task t failed: 500\nInternal Error")
)


def test_counts_money_and_what_went_wrong() -> None:
    """A bar, how many are where, what it cost, what holds it up, and the last errors; each a line of its own."""
    paused = attrs.evolve(
        STATISTICS, paused_until=datetime.now(UTC) + timedelta(seconds=7.4), refused=2, learned_limit=5
    )
    away = attrs.evolve(PROGRESS, away="455: maintenance. Try again later")
    shown = board(Shown(away, paused))
    shown.stopping = "nothing more is sent"
    for _ in range(5):
        shown.tell(FAILED)
    lines = drawn(shown)
    assert lines[1] == "77 of 300 done, 20 running, 12 waiting for the limit, 2 failed, 1 unknown"
    assert lines[2].startswith("1078 credits, ")
    assert lines[3] == "refused by 429: nothing is sent for 7 s more"
    assert lines[4] == "2 refusals by 429, the limit is taken to be 5 for now"
    assert lines[5] == "another program may use this account, share the limit by --coordination"
    assert lines[6] == "or give each its share by --rate-limit"
    assert lines[7] == "the service is away, trying again: 455: maintenance. Try again later"
    assert lines[8] == "nothing more is sent"
    assert lines[9:] == ["line 17 (a) failed: Task t failed: 500 Internal Error"] * 3


def test_a_pause_that_no_refusal_began() -> None:
    """After a kill a session waits for what the earlier one sent; no 429 is made up for it."""
    paused = attrs.evolve(STATISTICS, paused_until=datetime.now(UTC) + timedelta(seconds=7.4), refused=0)
    assert drawn(board(Shown(figures=paused)))[3] == "pausing: nothing is sent for 7 s more"


@pytest.mark.parametrize("width", [40, 60, 120])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    """On a narrow terminal figures go on in the next line, and none is cut off; errors are."""
    learned = attrs.evolve(STATISTICS, refused=12, learned_limit=5)
    shown = board(Shown(figures=learned), width)
    shown.tell(outcome(state=State.FAILED, error=Failure(type="X", message="words " * 60)))
    lines = drawn(shown, width)
    assert max(map(len, lines)) <= width
    assert lines[-1].endswith("…")
    text = ", ".join(lines)
    figures = ("77 of 300 done", "12 waiting for the limit", "1 unknown", "1078 credits", "for the 220 that are left")
    hindrance = ("12 refusals by 429", "another program may use this account", "share the limit by --coordination")
    for figure in (*figures, *hindrance):
        assert figure in text


def test_before_the_first_request() -> None:
    """While the input is read there is nothing to count."""
    assert drawn(board(Shown(None))) == ["reading the requests"]


def test_the_first_line_comes_at_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is redrawn: the counts as soon as they are known, then every ten seconds what has changed."""
    now = 100.0
    monkeypatch.setattr("flux2_async.cli.batch_board.time.monotonic", lambda: now)
    session = Shown(None)
    with BatchBoard(Screen(), cast("Batch", session), cast("Flux2Session", session)) as told:
        for progress in (None, PROGRESS, attrs.evolve(PROGRESS, done=78)):
            session.progress = progress
            now += 1.0
            told.tick()
    [line] = capsys.readouterr().err.splitlines()
    assert line == "   2.0 s  77 of 300 done, 20 running, 12 waiting for the limit, 2 failed, 1 unknown, 1078 credits"


def test_speed_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """The speed is that of the last two minutes, and where the session knows nothing the time left goes by it."""
    now = 100.0
    monkeypatch.setattr("flux2_async.cli.batch_board.time.monotonic", lambda: now)
    shown = board(Shown())
    for _ in range(30):
        now += 1.0
        shown.tell(outcome())
    # 220 are left.
    assert drawn(shown)[2] == "1078 credits, 60 requests a minute, about 4 min for the 220 that are left"
    now += 110.0
    shown.tell(outcome())
    # Of the thirty, nineteen are more than two minutes old.
    assert drawn(shown)[2] == "1078 credits, 6 requests a minute, about 37 min for the 220 that are left"
    now += 119.5
    assert drawn(shown)[2] == "1078 credits, 0 requests a minute, about 7.3 h for the 220 that are left"


def test_time_left_by_what_the_session_expects(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked once a second, and counts down in between."""
    now = 100.0
    monkeypatch.setattr("flux2_async.cli.batch_board.time.monotonic", lambda: now)
    session = Shown(left=421.0)
    shown = board(session)
    now += 10.0
    shown.tell(outcome())
    assert drawn(shown)[2] == "1078 credits, 6 requests a minute, about 7 min for the 220 that are left"
    session.left = 50.0
    now += 0.9
    assert drawn(shown)[2].endswith("about 7 min for the 220 that are left")
    now += 0.1
    assert drawn(shown)[2].endswith("about 50 s for the 220 that are left")
    now += 0.5
    assert drawn(shown)[2].endswith("about 50 s for the 220 that are left")


def test_elsewhere_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe gets a line at once, and every ten seconds where something has changed; each error once, not for ever."""
    now = 100.0
    monkeypatch.setattr("flux2_async.cli.batch_board.time.monotonic", lambda: now)
    shown = Shown()
    with BatchBoard(Screen(), cast("Batch", shown), cast("Flux2Session", shown)) as told:
        for second in range(40):
            now = 100.0 + second
            told.tick()
            if second == 15:
                shown.progress = attrs.evolve(PROGRESS, done=78)
            if second >= 16:
                told.tell(FAILED)
        told.log(told.stopping)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    counts = [line for line in lines if "of 300 done" in line]
    assert (
        counts[0] == "   0.0 s  77 of 300 done, 20 running, 12 waiting for the limit, 2 failed, 1 unknown, 1078 credits"
    )
    assert [line[:17] for line in counts] == ["   0.0 s  77 of 3", "  20.0 s  78 of 3"]
    errors = [line for line in lines if "line 17" in line]
    assert len(errors) == 20
    assert errors[-1].endswith("; further ones are in results.jsonl")


def test_a_picture_that_was_not_downloaded() -> None:
    """Who is done without a file is told as that."""
    shown = board(Shown())
    shown.tell(outcome(download=Download.EXPIRED, error=Failure(type="NotFoundError", message="gone")))
    assert drawn(shown)[-1] == "line 17 (a) not downloaded: gone"
