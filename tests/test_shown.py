"""Texts of others: on a terminal, in errors, in log lines and in JSON."""

import io
import json
import logging
import unicodedata

import pytest
from emulated import logged
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from flux2_async._shown.text import Redactor, json_escaped, printable
from flux2_async.cli.board import Board, Row
from flux2_async.cli.screen import Screen
from flux2_async.errors import ApiError, Flux2Error

texts = st.text(st.characters(codec=None, categories=None))
# A window title, a clear screen in 7 and 8 bits, a link, another direction of reading, a line of its own.
HOSTILE = "a\x1b]0;owned\x07b\x1b[2Jc\x9b2Jd\x1b]8;;http://x\x1b\\e\u202egnp.exe\u2066f\rg\x7f[bold]h[/bold][link=http://x]i\ud800"


def is_harmless(text: str) -> bool:
    """Whether nothing in it is a control character, turns the direction or has no meaning."""
    marks = {*"\u061c\u200e\u200f", *map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}
    return not any((unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t") or c in marks for c in text)


@given(texts)
def test_whatever_comes_is_printable(text: str) -> None:
    """Nothing steers, it is stable, and what was harmless is as it was."""
    shown = printable(text)
    assert is_harmless(shown)
    assert printable(shown) == shown
    shown.encode()
    if text.isprintable():
        assert shown == text


@given(st.recursive(texts, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=5))
def test_json_means_the_same(value: object) -> None:
    """What a machine reads does not change, and a terminal is not steered."""
    written = json_escaped(json.dumps(value, ensure_ascii=False))
    assert json.loads(written) == json.loads(json.dumps(value))
    assert is_harmless(written)


def test_letters_stay() -> None:
    """Other scripts, joined letters and emoji are no control characters."""
    for text in ("Zoë", "Привет, мир", "שלום", "\u0646\u200c\u0627", "👨\u200d👩\u200d👧", "日本語\n\tzwei"):
        assert printable(text) == text
    assert printable("\x1b[2J\u202e\ud800") == "\\x1b[2J\\u202e\\ud800"


def test_errors_are_printable() -> None:
    """A traceback prints an error as it is; its facts stay as the service told them."""
    for error in (ApiError(422, HOSTILE), Flux2Error(HOSTILE)):
        assert is_harmless(str(error))
    assert ApiError(422, HOSTILE).message == HOSTILE


def test_log_lines_are_printable(caplog: pytest.LogCaptureFixture) -> None:
    """Ids and reasons that others chose steer nobody's log."""
    logger = logging.getLogger("flux2_async")
    with caplog.at_level(logging.DEBUG, "flux2_async"):
        logger.info("task %s refused (%d): %s, %.1f s", HOSTILE, 422, ValueError(HOSTILE), 0.5)
    [line] = logged(caplog)
    assert is_harmless(line)
    assert line.endswith("0.5 s")


@pytest.mark.parametrize("machine", [False, True])
def test_every_way_to_the_terminal(capsys: pytest.CaptureFixture[str], *, machine: bool) -> None:
    """Results, notes, complaints, documents, tables and progress show control characters instead of sending them."""
    screen = Screen(machine=machine)
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    for renderable in (HOSTILE, Text(HOSTILE), table):
        screen.result(renderable)
    screen.note(HOSTILE)
    screen.complain(HOSTILE, HOSTILE)
    screen.error(ApiError(422, HOSTILE), HOSTILE)
    screen.document({HOSTILE: [HOSTILE]})
    for count in (1, 2):
        row = Row(HOSTILE, HOSTILE, HOSTILE)
        board = Board(screen, [row] * count, lambda: HOSTILE)
        board.change(row, f"{HOSTILE} now")
        screen.err.print(board)
    out, err = capsys.readouterr()
    assert is_harmless(out)
    assert is_harmless(err)
    assert "[bold]h[/bold][link=http://x]i" in err
    if machine:
        assert json.loads(out[out.rindex("{\n") :]) == {HOSTILE: [HOSTILE]}


def test_only_rich_steers() -> None:
    """On a terminal the only escapes are those of colours."""
    screen = Screen()
    screen.err.file = terminal = io.StringIO()
    screen.err._force_terminal = True
    screen.complain(HOSTILE)
    written = terminal.getvalue()
    assert "\x1b]" not in written
    assert "\x9b" not in written
    assert "\x1b[2J" not in written


@pytest.mark.parametrize(
    ("key", "text", "shown"),
    [
        ("sk-0123456789abcdef", "no key sk-0123456789abcdefs", "no key <redacted>s"),
        (
            "test",
            "the key test, of the latest test-suite, tests",
            "the key <redacted>, of the latest test-suite, tests",
        ),
        ("k", "bad key 'k'", "bad key '<redacted>'"),
        (".", "a.b . c", "a.b <redacted> c"),
        ("other", "nothing of it", "nothing of it"),
    ],
)
def test_keys_in_texts(key: str, text: str, shown: str) -> None:
    """A key is taken out of a text that is shown, a short one as a word alone; it shows in no repr."""
    assert Redactor(key)(text) == shown
    assert repr(Redactor(key)) == "Redactor()"
