"""`flux2 batch --dry-run`: what it is going to be, before anything is sent."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import attrs

from flux2_async.batch import BadLine, BatchEstimate, InvalidInputError, Job, estimate_batch
from flux2_async.cli.batch_options import BatchOptions
from flux2_async.cli.options import Service, parse_rate_limit
from flux2_async.cli.screen import Screen, UsageError, counted
from flux2_async.models import RateLimit
from flux2_async.models.prices import DEAREST, PRICES_FROM, documented_price

SHOWN: Final = 20
"""Faults that are shown."""
# Lines that are named of one fault.
NAMED: Final = 5
HOUR: Final = 3600.0
MINUTE: Final = 60.0
USUAL_RUNNING: Final = 100


async def dry_run(
    screen: Screen, wanted: Iterator[Job | BadLine], options: BatchOptions, service: Service, journal: Path
) -> int:
    """Tell requests, credits and hours, and give 0; needs no account, and leaves the journal as it is."""
    limit = parse_rate_limit(service.rate_limit)
    try:
        own = {"journal": journal, "rate_limit": limit, "max_running": options.max_running or USUAL_RUNNING}
        estimate = await estimate_batch(wanted, **options.as_taken_by(estimate_batch) | own)
    except InvalidInputError as error:
        raise unusable(screen, error) from None
    for _, text in grouped(estimate.invalid):
        screen.note(f"skipped: {text}", "yellow")
    screen.result("\n".join([_requests(estimate), *_credits(estimate), _hours(estimate, limit)]))
    for words in _advice(estimate, options):
        screen.note(words)
    screen.document(_document(estimate))
    return 0


def unusable(screen: Screen, error: InvalidInputError) -> UsageError:
    """Show lines that cannot be used, and give what to say of them."""
    groups = grouped(error.lines)
    for _, text in groups:
        screen.note(text, "red")
    shown = sum(count for count, _ in groups)
    more = f", {shown} of which are shown" if error.count > shown else ""
    return UsageError(
        f"{counted(error.count, 'request')} cannot be used{more}; nothing was sent. Correct the list, or go on "
        "without them with --skip-invalid"
    )


def grouped(lines: Iterable[BadLine]) -> list[tuple[int, str]]:
    """Give what is wrong, at most `SHOWN` things, each once with its lines, and how many those are."""
    places: dict[str, list[int]] = {}
    for line in lines:
        places.setdefault(line.reason, []).append(line.line)
    told = []
    for reason, numbers in list(places.items())[:SHOWN]:
        named = ", ".join(map(str, numbers[:NAMED]))
        more = f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
        told.append((len(numbers), f"line{'s' * (len(numbers) > 1)} {named}{more}: {reason}"))
    return told


def _requests(estimate: BatchEstimate) -> str:
    others = {
        "done": estimate.done,
        "at the service": estimate.waiting,
        "failed": estimate.failed,
        "unknown": estimate.unknown,
        "skipped": estimate.invalid_count,
    }
    parts = [f"{counted(estimate.requests, 'request')} to send"]
    return " · ".join([*parts, *(f"{count} {what}" for what, count in others.items() if count)])


def _credits(estimate: BatchEstimate) -> list[str]:
    total = f"about {estimate.credits:.10g} credits" if estimate.requests else "0 credits"
    lines = [total + (f", besides {estimate.spent:.10g} spent before" if estimate.spent else "")]
    for kind in estimate.kinds:
        source = "as this batch was charged" if kind.seen else f"as documented upstream, seen {PRICES_FROM}"
        lines.append(f"  {kind.requests} of {kind.model} {kind.resolution} at {kind.price:.10g}: {source}")
    return lines


def _hours(estimate: BatchEstimate, limit: RateLimit | None) -> str:
    least, most = (_span(seconds) for seconds in estimate.seconds)
    pace = "without a limit on this side" if limit is None else f"at {limit.limit} in any {limit.period:g} s"
    return f"about {least if least == most else f'{least} to {most}'}, {pace}"


def _span(seconds: float) -> str:
    if seconds >= HOUR / 2:
        return f"{seconds / HOUR:.1f} hours"
    return f"{max(1, round(seconds / MINUTE))} min"


def _advice(estimate: BatchEstimate, options: BatchOptions) -> list[str]:
    found = []
    if any(not kind.seen for kind in estimate.kinds):
        found.append(
            "Apikley publishes no prices, so yours may differ from these: the first picture that is done tells the "
            "real one, and --max-credits goes by that."
        )
    kinds = [kind for kind in estimate.kinds if "/flex-" in kind.model]
    flex = sum(kind.requests * kind.price for kind in kinds)
    pro = sum(k.requests * documented_price(k.model.replace("/flex-", "/pro-"), k.resolution) for k in kinds)
    if pro < flex:
        found.append(
            f"flex, the default tier, is the expensive one: as pro these {flex:.10g} credits would be {pro:.10g}."
        )
    if options.max_credits is None:
        return found
    if estimate.least_max_credits > options.max_credits:
        found.append(
            f"--max-credits {options.max_credits:g} is too little to begin with: a first picture, whose price was not "
            f"seen yet in this batch, counts with the dearest documented price, {DEAREST:g}. Give "
            f"--max-credits {estimate.least_max_credits:g} or more."
        )
    elif estimate.spent + estimate.credits > options.max_credits:
        found.append(f"--max-credits {options.max_credits:g} will stop it before its end.")
    return found


def _document(estimate: BatchEstimate) -> dict[str, Any]:
    left_out = ("invalid", "invalid_count", "seconds")
    return attrs.asdict(estimate, recurse=False, filter=lambda field, _: field.name not in left_out) | {
        "kinds": [attrs.asdict(kind) for kind in estimate.kinds],
        "hours": [seconds / HOUR for seconds in estimate.seconds],
        "skipped": estimate.invalid_count,
        "prices_from": PRICES_FROM,
    }
