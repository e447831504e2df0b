"""What the report's page is told about one request, in the words of its script."""

import json
import math
import os
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import quote

from flux2_async.batch.outcomes import Outcome
from flux2_async.models.image_sources import is_url

Picture: TypeAlias = dict[str, str]
"""How the page can show a picture: its `name`, and where there is one the `href` of its file and its `thumb`nail."""

# Nobody reads further in a browser, and a page of 10,000 rows has to be opened.
MAX_TEXT: Final = 10_000


def report_row(outcome: Outcome, folder: Path, known: Callable[[Path], dict[str, str | None]]) -> dict[str, Any]:
    """Say what became of a request of the batch in `folder`; `known` gives `href` and `thumb` of a file, or None."""

    def picture_of(source: str, base: Path) -> Picture:
        # What would have to be fetched is left to who clicks on it.
        if is_url(source):
            return {"name": source, "href": source}
        told = {"name": Path(source).name} | known(base / source)
        return {key: value for key, value in told.items() if value is not None}

    inputs = [picture_of(source, Path.cwd()) for source in outcome.images]
    return page_row(outcome, inputs, [picture_of(file, folder) for file in outcome.files or outcome.urls])


def page_row(outcome: Outcome, inputs: Sequence[Picture], outputs: Sequence[Picture]) -> dict[str, Any]:
    """Say what became of a request, with its reference pictures and its own; what is not known is left out."""
    failure = outcome.error
    # In the word of the command, which the page names beside it.
    message = failure.message.replace("with retry_unknown", "with --retry-unknown") if failure else ""
    entry = {
        "id": _text(outcome.id),
        "state": _text(outcome.state),
        "prompt": _text(outcome.prompt),
        "task": _text(outcome.task_id or ""),
        "download": _text(outcome.download or ""),
        "model": _text(outcome.model),
        "tier": _text(outcome.tier),
        "ratio": _text(outcome.aspect_ratio),
        "resolution": _text(outcome.resolution),
        "credits": outcome.credits if outcome.credits is not None and math.isfinite(outcome.credits) else None,
        "submitted": _seconds(outcome.submitted_at),
        "finished": _seconds(outcome.finished_at),
        "took": _took(outcome),
        "line": outcome.line or None,
        "error": _text(message),
        "type": _text(failure.type if failure else ""),
        # Pairs, since a column may be called __proto__.
        "extra": [[_text(name), _text(value)] for name, value in outcome.extra.items() if value not in (None, "")],
        "inputs": inputs,
        "outputs": outputs,
    }
    return {name: value for name, value in entry.items() if value not in (None, "", [])}


def link_to(path: Path, directory: Path) -> str | None:
    """Give the address of a file as a page in `directory` writes it, both absolute; None when there is none.

    It is a relative address that a browser takes for nothing else, whatever the file is called.
    """
    try:
        relative = Path(os.path.relpath(path, directory))
        encoded = quote(os.fsencode(relative.as_posix()))
    except ValueError:
        # Another drive of Windows, or a name that no file can have.
        return None
    return encoded if encoded.startswith("../") else f"./{encoded}"


def _text(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} …"


def _took(outcome: Outcome) -> float | None:
    """Seconds by the service's clock where it told, else by this machine's."""
    begun, ended = outcome.create_time, outcome.complete_time
    if begun is None or ended is None:
        begun, ended = outcome.submitted_at, outcome.finished_at
    return None if begun is None or ended is None else max(0.0, round((ended - begun).total_seconds(), 3))


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else round(moment.timestamp(), 3)
