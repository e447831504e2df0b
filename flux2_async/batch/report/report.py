"""The report of a batch: one page to look at, with everything in it but the pictures.

A prompt is hostile text, and so is every other word in here. The rows travel as JSON inside a data block, the page's
script writes them as text only, and its Content-Security-Policy allows nothing but that script, that style sheet and
pictures that lie beside it.
"""

import base64
import hashlib
import json
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from string import Template
from typing import Final

from flux2_async._http.atomic_file import replacing
from flux2_async._shown.local_page import HEADERS, SCRIPT, STYLE
from flux2_async.batch.outcomes import Outcome
from flux2_async.batch.report.rows import link_to, report_row
from flux2_async.batch.report.thumbnails import Thumbnails

NAME: Final = "report.html"
# A text with `</script` in it would end the block of rows.
ESCAPED: Final = str.maketrans({sign: f"\\u{ord(sign):04x}" for sign in "<>&"})
PAGE: Final = Path(__file__).with_name("page")


def write_report(
    outcomes: Iterable[Outcome], directory: str | os.PathLike[str], *, title: str = "Flux-2 batch"
) -> Path:
    """Write `report.html` and the thumbnails it shows; blocks, the longer the more pictures are new.

    The page needs no network and no server. Beside it have to stay the pictures and the folder `thumbnails`. It
    appears whole or not at all; the one from before stays until then.

    Example:
        async with Journal("run.db") as journal:
            outcomes = [outcome async for outcome in journal.outcomes()]
        write_report(outcomes, "results")

    Args:
        outcomes: What to show, in the order of the input; read once and one by one.
        directory: The folder of the batch, which `Outcome.files` are relative to.
        title: Its headline.

    Returns:
        Where it is.

    Raises:
        OSError: The folder cannot be written to.
    """
    head, tail, _ = _page(title)
    folder = Path(directory).resolve()

    def known(path: Path) -> dict[str, str | None]:
        return {"href": link_to(path, folder), "thumb": thumbnails.make(path)}

    with Thumbnails(folder) as thumbnails:
        with replacing(folder / NAME) as file:
            file.write(head)
            for number, outcome in enumerate(outcomes):
                row = json.dumps(report_row(outcome, folder, known), separators=(",", ":"), allow_nan=False)
                file.write(b",\n" * (number > 0) + row.translate(ESCAPED).encode())
            file.write(tail)
        thumbnails.forget_others()
    return folder / NAME


def served_page(title: str) -> tuple[str, str]:
    """Give the page without rows, for a server that sends them as `events`, and its Content-Security-Policy."""
    head, tail, words = _page(title, live=True)
    policy = HEADERS["Content-Security-Policy"]
    for kind in ("script", "style"):
        policy = policy.replace(f"{kind}-src 'self'", f"{kind}-src '{words[f'{kind}_hash']}'")
    return (head + tail).decode(), policy


def _page(title: str, *, live: bool = False) -> tuple[bytes, bytes, dict[str, str]]:
    """Give the page up to its rows, what comes behind them, and the words that were put into it."""
    words = {
        "title": escape(title),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "events": "./events" if live else "",
        "connect": " connect-src 'self';" if live else "",
    }
    # One script to the browser, in this order.
    names = ("rows", "grid", "viewer", "controls", *(["live"] if live else []), "start")
    scripts = [SCRIPT, *(PAGE / f"{name}.js" for name in names)]
    for kind, files in (("style", [STYLE, PAGE / "report.css"]), ("script", scripts)):
        words[kind] = "".join(file.read_text("utf-8") for file in files)
        digest = hashlib.sha256(words[kind].encode()).digest()
        # By which the page's policy knows it.
        words[f"{kind}_hash"] = f"sha256-{base64.b64encode(digest).decode()}"
    head, _, tail = (PAGE / "report.html").read_text("utf-8").partition("$rows")
    top, end = (Template(text).substitute(words).encode("utf-8", "replace") for text in (head, tail))
    return top, end, words
