"""Batches at a service that knows a createTask again by its name: no request is left unknown, in no run."""

import asyncio
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import attrs
import pytest
from batches import batch_in, collect, lines, requests, run
from emulated import until
from hypothesis import given
from hypothesis import strategies as st

from flux2_async import Flux2Session, Polling, Service, TextToImage
from flux2_async.batch import Journal
from flux2_async.batch.names import new_name, seconds_left
from flux2_async.emulator import Emulator, Fault, Plan, Script

HEADER = "Idempotency-Key"
HERE = Service(base_url="https://a.example", idempotency_header=HEADER)


def script(*faults: Fault) -> Script:
    return Script(plans=Plan(duration=2.0), render=False, idempotency_header=HEADER, faults=[*faults])


def session(emulator: Emulator, **options: Any) -> Flux2Session:
    service = Service(base_url=emulator.base_url, idempotency_header=HEADER, **options)
    return Flux2Session(emulator.api_key, service=service, polling=Polling(interval=1.0))


def paid(emulator: Emulator) -> Counter[str | None]:
    return Counter(call.name for call in emulator.ledger.requests if call.outcome == "accepted")


@given(st.floats(0, 4e9), st.floats(0, 90000.0))
def test_names_tell_their_age(born: float, age: float) -> None:
    """A name is good at the service it was made for, and for as long as that keeps names."""
    name = new_name(HERE, born)
    assert uuid.UUID(name).version == 8
    assert uuid.UUID(name).variant == uuid.RFC_4122
    left = seconds_left(name, HERE, born + age)
    assert left == pytest.approx(max(0.0, 0.9 * 86400.0 - age), abs=0.01)
    assert seconds_left(name, HERE, born - 1.0) == 0.0
    for other in (
        attrs.evolve(HERE, base_url="https://b.example"),
        attrs.evolve(HERE, idempotency_header="X-Request-ID"),
        attrs.evolve(HERE, idempotency_header=None),
    ):
        assert seconds_left(name, other, born + age) == 0.0


def test_what_is_no_such_name() -> None:
    """Names of other making, as journals of before have them, were never sent as one: they are not sent again."""
    assert len({new_name(HERE, 1e9) for _ in range(1000)}) == 1000
    assert seconds_left(new_name(attrs.evolve(HERE, idempotency_header=None), 1e9), HERE, 1e9) == 0.0
    for name in (None, "", "order-1", uuid.uuid4().hex, "f" * 32, "0" * 32):
        assert seconds_left(name, HERE, 1e9) == 0.0


async def test_a_run_leaves_nothing_unknown(tmp_path: Path) -> None:
    """Answers that are lost on the way are asked for again under the name, within the run."""
    faults = [Fault("createTask", "cut_after", times=2, after=2 * number) for number in range(4)]
    async with Emulator(script(*faults)) as emulator, session(emulator) as flux:
        outcomes = await run(tmp_path, flux, requests(12))
    assert Counter(outcome.state for outcome in outcomes) == {"done": 12}
    assert len(emulator.ledger.accepted) == 12
    assert set(paid(emulator).values()) == {1}


async def broken_off(folder: Path, emulator: Emulator, number: int) -> None:
    """A run whose answers are all lost, ended at once."""
    async with session(emulator) as flux:
        batch = batch_in(folder, flux, requests(number))
        running = asyncio.ensure_future(collect(batch))
        await until(lambda: len(emulator.ledger.accepted) == number)
        await batch.aclose()
        await running


async def test_the_next_run_sends_again_under_the_written_name(tmp_path: Path) -> None:
    """What was unclear when a run was broken off becomes clear in the next one, without a second payment."""
    async with Emulator(script(Fault("createTask", "cut_after", times=None))) as emulator:
        await broken_off(tmp_path, emulator, 3)
        sent = len(emulator.ledger.requests)
        emulator.clear_faults()
        async with session(emulator) as flux:
            outcomes = await run(tmp_path, flux, requests(5))
    assert Counter(outcome.state for outcome in outcomes) == {"done": 5}
    assert len(emulator.ledger.accepted) == 5
    assert set(paid(emulator).values()) == {1}
    repeated = [call for call in emulator.ledger.requests[sent:] if call.outcome == "repeated"]
    assert {call.name for call in repeated} <= paid(emulator).keys()
    assert len(repeated) == 3
    assert {line["state"] for line in lines(tmp_path)} == {"done"}


async def test_a_refusal_leaves_it_unknown(tmp_path: Path) -> None:
    """A repetition that is refused says nothing of the first: the row stays unknown and keeps its name."""
    async with Emulator(script(Fault("createTask", "cut_after", times=None))) as emulator:
        await broken_off(tmp_path, emulator, 2)
        emulator.clear_faults()
        emulator.inject(Fault("createTask", "refuse", times=None, code=402))
        async with session(emulator) as flux:
            outcomes = await run(tmp_path, flux, requests(2))
        assert [outcome.state for outcome in outcomes] == ["unknown"] * 2
        assert all("402" in outcome.error.message for outcome in outcomes if outcome.error)
        async with Journal(tmp_path / "run.db") as journal:
            unknown = await journal.unknown()
        assert {each.outcome.ref for each in unknown} == paid(emulator).keys()
        emulator.clear_faults()
        async with session(emulator) as flux:
            outcomes = await run(tmp_path, flux, requests(2))
    assert [outcome.state for outcome in outcomes] == ["done"] * 2
    assert len(emulator.ledger.accepted) == 2


async def test_what_must_not_be_sent_again(tmp_path: Path) -> None:
    """A row that nobody asks for any more, one for another service, and one whose name is too old stay unknown."""
    async with Emulator(script(Fault("createTask", "cut_after", times=None))) as emulator:
        await broken_off(tmp_path, emulator, 2)
        emulator.clear_faults()
        sent = len(emulator.ledger.requests)
        async with session(emulator) as flux:
            await run(tmp_path, flux, [TextToImage("something else")])
        async with session(emulator, idempotency_period=120.5) as flux:
            await run(tmp_path, flux, requests(2))
        nameless = Flux2Session(emulator.api_key, base_url=emulator.base_url, polling=Polling(interval=1.0))
        async with nameless as flux:
            await run(tmp_path, flux, requests(2))
        async with Journal(tmp_path / "run.db") as journal:
            assert len(await journal.unknown()) == 2
    assert len(emulator.ledger.requests) == sent + 1


async def test_retry_unknown_gives_no_name_up(tmp_path: Path) -> None:
    """What can be made clear by its name is, also where it is asked to be sent again at the risk of paying twice."""
    async with Emulator(script(Fault("createTask", "cut_after", times=None))) as emulator:
        await broken_off(tmp_path, emulator, 3)
        emulator.clear_faults()
        async with session(emulator) as flux:
            outcomes = await run(tmp_path, flux, requests(3), retry_unknown=True)
    assert [outcome.state for outcome in outcomes] == ["done"] * 3
    assert len(emulator.ledger.accepted) == 3
