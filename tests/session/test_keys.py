"""How much is kept of what a key stands for, and that forgetting is never paying again."""

import asyncio
import gc
import sys
from typing import Any

import attrs
import pytest
from emulated import REQUEST, emulated, error_of, session_for
from hypothesis import given
from hypothesis import strategies as st
from memory_coordination import Memory

from flux2_async.emulator import Fault, Plan, Script
from flux2_async.errors import AmbiguousSubmitError, ConfigurationError, InvalidRequestError
from flux2_async.models import Callbacks, ImageToImage, RateLimit, TextToImage
from flux2_async.session import callback_entries, keys
from flux2_async.session.byte_bound import ByteBound, memory_of_request
from flux2_async.session.session import Flux2Session
from flux2_async.webhooks import Callback

DAY = 86400.0
LARGE = TextToImage("a red kettle", extra_input={"notes": ["x" * 1000] * 10})


@pytest.fixture
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for no more than a few."""
    monkeypatch.setattr(keys, "MAX_WHOLE", 3 * 2 * memory_of_request(LARGE) + 3 * keys.RECORD)


@pytest.mark.usefixtures("little_room")
async def test_an_old_key_gives_its_task_again() -> None:
    """A key whose request and record were dropped gives a new handle of the same task, and nothing is paid twice."""
    async with emulated(Script(plans=Plan(duration=1.0)), rate_limit=RateLimit(100, 1.0)) as (flux, emulator):

        async def made(number: int) -> str:
            task = await flux.submit(LARGE, key=f"key {number}")
            await task.wait()
            return task.id

        ids = [await made(number) for number in range(10)]
        gc.collect()
        again = [await flux.submit(LARGE, key=f"key {number}", group="later") for number in range(10)]

        assert [task.id for task in again] == ids == emulator.ledger.accepted
        assert [task.request for task in again] == [LARGE] * 10
        assert [task.key for task in again] == [f"key {number}" for number in range(10)]
        assert [task.group for task in again] == ["later"] * 7 + [None] * 3
        assert [task.done() for task in again] == [False] * 7 + [True] * 3
        assert (await again[0]).task_id == ids[0]
        assert isinstance(await error_of(flux.submit(REQUEST, key="key 0")), InvalidRequestError)


@pytest.mark.usefixtures("little_room")
async def test_an_old_key_gives_the_handle_that_somebody_keeps() -> None:
    """There is one handle of a task, for as long as anybody has it."""
    async with emulated(Script(plans=Plan(duration=1.0)), rate_limit=RateLimit(100, 1.0)) as (flux, _):
        tasks = [await flux.submit(LARGE, key=f"key {number}") for number in range(10)]
        await asyncio.gather(*(task.wait() for task in tasks))

        assert [await flux.submit(LARGE, key=f"key {number}") for number in range(10)] == tasks


@pytest.mark.usefixtures("little_room")
async def test_an_old_key_stays_unclear() -> None:
    """A key of which nobody knows whether its task exists goes on saying so under its ref, and nothing is sent."""
    script = Script(faults=[Fault("createTask", "cut_after", accepted=True)], plans=Plan(duration=1.0))
    async with emulated(script, rate_limit=RateLimit(100, 1.0)) as (flux, emulator):
        error = await error_of(flux.submit(LARGE, key="lost", ref="mine"))
        assert isinstance(error, AmbiguousSubmitError)
        del error
        for number in range(10):
            await flux.submit(LARGE, key=f"key {number}")
        gc.collect()
        sent = len(emulator.ledger.requests)
        again = await error_of(flux.submit(LARGE, key="lost"))

        assert isinstance(again, AmbiguousSubmitError)
        assert (again.ref, again.request) == ("mine", LARGE)
        assert len(emulator.ledger.requests) == sent


@pytest.mark.usefixtures("little_room")
async def test_a_forgotten_unclear_one_can_be_recovered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A callback finds the task of a submission of which nothing but the ref is kept; its key stands for that then."""
    monkeypatch.setattr(callback_entries, "MAX_UNCLEAR_BYTES", memory_of_request(LARGE) - 1)
    script = Script(faults=[Fault("createTask", "cut_after", accepted=True)], plans=Plan(duration=1.0, callback="lost"))
    options = {"rate_limit": RateLimit(100, 1.0), "callbacks": Callbacks("https://app.example/callback")}
    async with emulated(script, **options) as (flux, emulator):
        await error_of(flux.submit(LARGE, key="lost", ref="mine"))
        for number in range(10):
            await flux.submit(LARGE, key=f"key {number}")
        gc.collect()
        await flux.deliver("mine", Callback(emulator.ledger.accepted[0], None))
        task = await flux.recover("mine", timeout=5)

        assert task.id == emulator.ledger.accepted[0]
        assert await flux.submit(LARGE, key="lost") is task
        assert len(emulator.ledger.requests) == 11


def test_a_subclass_counts_whole() -> None:
    """Whatever a request holds is counted: its text, its lists, the fields of a subclass."""

    @attrs.frozen(kw_only=True)
    class Longer(TextToImage):
        story: str = ""

    pictures = ImageToImage("edit", images=["https://files.example/" + "a" * 1000])
    assert memory_of_request(LARGE) > 1000
    assert (
        memory_of_request(pictures)
        > memory_of_request(attrs.evolve(pictures, images=["https://files.example/a"])) + 900
    )
    assert memory_of_request(Longer(prompt="edit", story="x" * 5000)) > sys.getsizeof("x" * 5000)


@given(sizes=st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 40)), max_size=60))
def test_the_oldest_give_way(sizes: list[tuple[str, int]]) -> None:
    """What is kept never exceeds the bound, and who must go is who came first."""
    bound, kept = ByteBound(100), dict[str, int]()
    for name, size in sizes:
        kept.pop(name, None)
        kept[name] = size
        gone = bound.keep(name, size)
        assert gone == list(kept)[: len(gone)]
        for each in gone:
            del kept[each]
        assert sum(kept.values()) <= 100
        assert not gone or sum(kept.values()) + 40 > 100


@pytest.mark.parametrize(
    ("ttl", "shared", "kept", "free"),
    [(600.0, False, 500.0, 700.0), (600.0, True, 500.0, 700.0), (None, False, 2 * DAY, None)],
)
async def test_keys_are_remembered_as_long_as_was_asked_for(
    *, ttl: float | None, kept: float, free: float | None, shared: bool
) -> None:
    """Within `key_ttl` a key stands for its task, here and for others who share the account; then it is free."""
    coordination = Memory() if shared else None
    async with emulated(key_ttl=ttl, coordination=coordination) as (flux, emulator):
        loop = asyncio.get_running_loop()
        task = await flux.submit(REQUEST, key="order-1")
        begun = loop.time()
        await task.wait()
        for passed in filter(None, (kept, free)):
            await asyncio.sleep(begun + passed - loop.time())
            if shared:
                async with session_for(emulator, key_ttl=ttl, coordination=coordination) as other:
                    again = await other.submit(REQUEST, key="order-1")
            else:
                again = await flux.submit(REQUEST, key="order-1")
            assert (again.id == task.id) is (passed == kept)
        assert len(emulator.ledger.accepted) == (1 if free is None else 2)


@pytest.mark.parametrize("value", [0, -1.0, "day", True])
def test_a_time_that_cannot_be_kept_is_refused(value: Any) -> None:
    """The error says what is allowed."""
    with pytest.raises(ConfigurationError, match="key_ttl"):
        Flux2Session("key", key_ttl=value)


async def test_a_picture_asked_for_twice_by_one_key_is_paid_once() -> None:
    """`generate` with a key whose picture did not come in time waits for the same task when it is called again."""
    async with emulated(Script(plans=Plan(duration=30.0))) as (flux, emulator):
        late = await error_of(flux.generate(REQUEST, key="night", timeout=5.0))
        first, second = await asyncio.gather(*[flux.generate(REQUEST, key="night") for _ in range(2)])

    assert isinstance(late, TimeoutError)
    assert first.task_id == second.task_id
    assert len(emulator.ledger.accepted) == 1
