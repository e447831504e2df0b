"""The table of a submission: what it says in words, in data, and about money is one thing."""

import itertools
import re

import pytest

from flux2_async.models import submission_state
from flux2_async.models.submission_state import (
    TRANSITIONS,
    IllegalTransitionError,
    SubmissionEvent,
    SubmissionState,
    after,
)

ROW = re.compile(r"^    (\w+) +(\w+) +-> (\w+) ", re.MULTILINE)
PATH = re.compile(r"(?=\b(\w+) --(\w+)--> (\w+))")


def test_the_drawing_is_the_table() -> None:
    """The rows of the docstring are those of the table, each once, and the path that it draws is in it."""
    text = submission_state.__doc__ or ""
    rows = [(before, event, then) for before, event, then in ROW.findall(text)]
    table = [(str(before), str(event), str(then)) for (before, event), then in TRANSITIONS.items()]

    assert sorted(rows) == sorted(table)
    drawn = PATH.findall(text)
    assert len(drawn) == 4
    assert set(drawn) <= set(table)


@pytest.mark.parametrize("state", SubmissionState)
@pytest.mark.parametrize("event", SubmissionEvent)
def test_every_pair(state: SubmissionState, event: SubmissionEvent) -> None:
    """A pair that is in the table leads somewhere; any other is an error that names both."""
    if (state, event) in TRANSITIONS:
        assert after(state, event) is TRANSITIONS[state, event]
    else:
        with pytest.raises(IllegalTransitionError, match=rf"{state} cannot be {event}"):
            after(state, event)


def test_the_money_law() -> None:
    """What was sent, or may exist, goes back to the queue after a 429 alone; what was refused or withdrawn stays so."""
    sent = {SubmissionState.SENT, SubmissionState.UNKNOWN, SubmissionState.ACCEPTED}
    again = {SubmissionState.QUEUED, SubmissionState.ARMED, SubmissionState.ANNOUNCED}
    ways_back = [pair for pair, then in TRANSITIONS.items() if pair[0] in sent and then in again]
    ends = [before for before, _ in TRANSITIONS if before in (SubmissionState.REFUSED, SubmissionState.WITHDRAWN)]

    assert ways_back == [(SubmissionState.SENT, SubmissionEvent.THROTTLED)]
    assert ends == []


def test_nothing_is_withdrawn_once_it_was_sent() -> None:
    """Nobody can say of what was sent that nothing was."""
    withdrawn = {before for (before, _), then in TRANSITIONS.items() if then is SubmissionState.WITHDRAWN}

    assert withdrawn == {SubmissionState.QUEUED, SubmissionState.ARMED, SubmissionState.ANNOUNCED}


def test_everything_is_used() -> None:
    """Every state can be reached from the queue, and every event happens somewhere."""
    reached = {SubmissionState.QUEUED}
    for _ in SubmissionState:
        reached |= {after(*pair) for pair in itertools.product(reached, SubmissionEvent) if pair in TRANSITIONS}

    assert reached == set(SubmissionState)
    assert {event for _, event in TRANSITIONS} == set(SubmissionEvent)
