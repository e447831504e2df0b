"""Results as data, and as Markdown for people."""

import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, Final

import attrs

# Rows that mostly wait, so several may be measured at the same time.
SIDE_BY_SIDE: Final = 4


def rows_of(runs: Iterable[Callable[[], list[Any]]]) -> list[list[Any]]:
    """Measure rows side by side, and show each on stderr as soon as it is there; they are given in order."""
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        started = [pool.submit(run) for run in runs]
        for run in as_completed(started):
            print(" | ".join(map(_cell, run.result())), file=sys.stderr, flush=True)
    return [run.result() for run in started]


@attrs.frozen
class Table:
    """One table of a part.

    Attributes:
        title: What was measured, with its sizes.
        columns: Their headings; units stand there.
        rows: One list of cells each; numbers are given unrounded, None means not available.
        notes: What a reader has to know to believe it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    notes: Sequence[str] = ()

    def markdown(self) -> str:
        """Give it as text."""
        lines = [self.columns, ["---"] * len(self.columns), *([_cell(each) for each in row] for row in self.rows)]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        notes = "".join(f"\n- {note}" for note in self.notes)
        return f"### {self.title}\n\n{table}\n{notes}\n"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"  # noqa: PLR2004  three digits are what can be believed
