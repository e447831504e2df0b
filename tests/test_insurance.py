"""When to look at a task whose callback may get lost."""

import itertools

import pytest

from flux2_async._insurance import Insurance, Trust
from flux2_async._schedule import DocumentedAdvice
from flux2_async.models import Polling


def test_trust_is_learned() -> None:
    """A few polls that were first end the trust, a few callbacks bring it back."""
    trust = Trust()
    assert trust
    for _ in range(4):
        trust.learn(arrived=False)
    assert not trust
    for _ in range(4):
        trust.learn(arrived=True)
    assert trust


def test_insurance_looks_at_the_age_limits() -> None:
    """Trusted callbacks leave a look at 30 s and at 2 min, then the usual schedule."""
    schedule = Insurance(DocumentedAdvice(Polling()), Trust())
    ages = list(itertools.accumulate(range(3), lambda age, _: age + schedule.wait(age, 0.0), initial=0.0))

    assert ages[1:3] == [30.0, 120.0]
    assert ages[3] - ages[2] == pytest.approx(22.5, abs=2)
