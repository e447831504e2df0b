"""Polls against lag as a picture: both axes logarithmic, so that all fixed intervals lie on one straight line."""

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.polling import Comparison

COLUMNS = 2


def draw(comparisons: Iterable[Comparison], path: Path) -> None:
    """Draw a field for each distribution of durations into a PNG.

    Args:
        comparisons: What was simulated.
        path: The file.
    """
    fields = tuple(comparisons)
    pyplot: Any = import_module("matplotlib.pyplot")
    rows = -(-len(fields) // COLUMNS)
    figure, axes = pyplot.subplots(rows, COLUMNS, figsize=(12, 4.5 * rows), squeeze=False)
    for comparison, axis in zip(fields, axes.flat, strict=False):
        _field(comparison, axis)
    figure.tight_layout()
    figure.savefig(path, format="png", dpi=120)
    pyplot.close(figure)


def _field(comparison: Comparison, axis: Any) -> None:
    for front, label, style in ((comparison.learned, "learned", "-"), (comparison.optimum, "optimum", "--")):
        axis.plot([lag for _, lag in front.points], [polls for polls, _ in front.points], style, label=label)
    for row in comparison.rows:
        if "learned" not in row.schedule and "optimum" not in row.schedule:
            # The best interval may be one of the others: a ring lets it show.
            ring: dict[str, Any] = {"markersize": 10, "markerfacecolor": "none"} if "best" in row.schedule else {}
            axis.plot([row.lag], [row.polls], "o", label=row.schedule, **ring)
    axis.set(xscale="log", yscale="log", xlabel="lag, s", ylabel="polls per task", title=comparison.durations)
    ticker: Any = import_module("matplotlib.ticker")
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        scale.set_major_formatter(ticker.FormatStrFormatter("%g"))
        scale.set_minor_formatter(ticker.NullFormatter())
    axis.legend(fontsize="small")
