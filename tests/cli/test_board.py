"""The progress of many tasks, drawn and in lines."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from flux2_async.cli.board import Board, Row
from flux2_async.cli.demo import Show, _tell
from flux2_async.cli.screen import Screen
from flux2_async.cli.script import WISHES


def rows() -> list[Row]:
    """Four tasks with long titles, at various places."""
    return [Row(f"{n} {'a long request ' * 6}", "edit flex auto 1K") for n in range(4)]


def drawn(board: Board, width: int) -> list[str]:
    """What a terminal of this width shows."""
    terminal = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, legacy_windows=False)
    with terminal.capture() as capture:
        terminal.print(board)
    return capture.get().splitlines()


@pytest.mark.parametrize(("width", "facts"), [(60, False), (80, False), (120, True)])
def test_every_row_is_one_line_with_state_and_time(width: int, facts: bool) -> None:
    """However narrow the terminal is, the title gives way, and state and time stay readable."""
    screen, tasks = Screen(), rows()
    screen.err = Console(file=io.StringIO(), width=width)
    board = Board(screen, tasks, lambda: "the footer")
    board.change(tasks[0], "refused by 429, waits")
    board.change(tasks[1], "done", ended=True)
    board.change(tasks[2], "moderated", ended=True)
    lines = drawn(board, width)
    assert len(lines) == 1 + 4 + 2
    assert max(map(len, lines)) <= width
    assert "refused by 429, waits" in lines[1]
    assert re.search(r" \d+\.\d s$", lines[1].rstrip())
    assert lines[2].split()[0] == "✓"
    assert lines[3].split()[0] == "✗"
    assert lines[4].rstrip().endswith("waiting for its turn")
    assert lines[-1].strip() == "the footer"
    assert ("edit flex auto 1K" in lines[1]) is facts


def test_elsewhere_each_change_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A pipe gets a line for each change, none for what stays the same, and nothing on stdout."""
    tasks = [Row("first"), Row("second")]
    with Board(Screen(), tasks) as board:
        board.change(tasks[0], "queuing")
        board.change(tasks[0], "queuing")
        board.change(tasks[1], "done", ended=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.partition(" s  ")[2] for line in err.splitlines()] == ["first: queuing", "second: done"]


def test_one_task_shows_what_is_left() -> None:
    """The line of a single task tells about how long it still takes, where that is known and worth telling."""
    row = Row("task", state="generating", begun=1.0, ended=4.0)
    shown = Board(Screen(), [row])
    lefts: list[float | None] = [12.4, 0.2, None]
    told = []
    for left in lefts:
        row.left = lambda left=left: left
        told.append(drawn(shown, 80)[0].partition("  ")[2])
    row.left = None
    told.append(drawn(shown, 80)[0].partition("  ")[2])

    assert told == ["task: generating, about 12 s left", *["task: generating"] * 3]


def test_the_clock_of_a_row_stops_at_its_end() -> None:
    """Seconds run from the first change to the end, and stand still then."""
    row = Row("task")
    assert row.seconds is None
    board = Board(Screen(), [row])
    board.change(row, "sending")
    board.change(row, "done", ended=True)
    stopped = row.seconds
    assert stopped is not None
    assert row.seconds == stopped


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_demo_cuts_off_no_figure(width: int) -> None:
    """On a narrow terminal the table leaves out how pictures were asked for, and shows what they cost."""
    screen = Screen()
    screen.out = Console(file=(terminal := io.StringIO()), width=width)
    shows = [
        Show(n, wish, Row(wish.prompt, state="moderated", begun=0.0, ended=12.5))
        for n, wish in enumerate(WISHES, start=1)
    ]
    _tell(screen, shows, Path("sheet.png"), 12.5)
    lines = terminal.getvalue().splitlines()
    assert lines[0].rstrip().endswith("credits")
    assert ("as" in lines[0].split()) == (width >= 80)
    assert len([line for line in lines if line.rstrip().endswith("12.5 s        0")]) == len(shows)
