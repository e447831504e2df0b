"""The cell that many wait for."""

import asyncio
import gc
import threading

import pytest

from flux2_async.errors import ConfigurationError
from flux2_async.tasks.outcome import Outcome, Signal


async def read(outcome: Outcome[int]) -> int:
    await outcome.wait()
    return outcome.get()


async def test_everybody_gets_the_value() -> None:
    """All who wait, and all who come later, read the value."""
    outcome: Outcome[int] = Outcome()
    readers = [asyncio.create_task(read(outcome)) for _ in range(3)]
    await asyncio.sleep(0)

    assert not outcome.done
    assert outcome.settle(7)
    assert await asyncio.gather(*readers) == [7, 7, 7]
    assert await read(outcome) == 7


async def test_first_settle_wins() -> None:
    """A second settle is refused and changes nothing."""
    outcome: Outcome[int] = Outcome()

    assert outcome.settle(1)
    assert not outcome.settle(2)
    assert not outcome.settle(error=RuntimeError())
    assert outcome.get() == 1
    assert outcome.error is None


@pytest.mark.parametrize("cancelled", [0, 1, 2])
async def test_cancelling_one_waiter_leaves_the_others(cancelled: int) -> None:
    """A cancelled waiter takes neither the outcome nor another waiter with it."""
    outcome: Outcome[int] = Outcome()
    readers = [asyncio.create_task(read(outcome)) for _ in range(3)]
    await asyncio.sleep(0)
    readers[cancelled].cancel()
    await asyncio.wait([readers[cancelled]])
    outcome.settle(7)
    answers = await asyncio.gather(*readers, return_exceptions=True)

    assert [isinstance(answer, asyncio.CancelledError) for answer in answers] == [n == cancelled for n in range(3)]
    assert [answer for n, answer in enumerate(answers) if n != cancelled] == [7, 7]


async def test_cancelled_in_the_moment_of_settling() -> None:
    """A waiter that is cancelled after the settle and before it runs is cancelled; the outcome stands."""
    outcome: Outcome[int] = Outcome()
    reader = asyncio.create_task(read(outcome))
    await asyncio.sleep(0)
    outcome.settle(7)
    reader.cancel()

    with pytest.raises(asyncio.CancelledError):
        await reader
    assert outcome.get() == 7


async def test_errors_do_not_grow() -> None:
    """Reading an error many times does not collect the frames of all readers in its traceback."""
    outcome: Outcome[int] = Outcome()
    outcome.settle(error=ValueError("no"))
    depths = []
    for _ in range(3):
        with pytest.raises(ValueError, match="no") as caught:
            await read(outcome)
        depths.append(len(caught.traceback))

    assert len(set(depths)) == 1


async def test_waiters_wake_who_waits_now() -> None:
    """A wake reaches those who wait and is not remembered for those who come later."""
    signal = Signal()
    signal.wake()
    waiting = asyncio.create_task(signal.wait())
    await asyncio.sleep(0)

    assert not waiting.done()
    signal.wake()
    await waiting


async def test_another_event_loop_is_refused() -> None:
    """Waiting in another event loop is a clear error instead of a wait for ever."""
    outcome: Outcome[int] = Outcome()
    caught: list[BaseException] = []

    def elsewhere() -> None:
        try:
            asyncio.run(outcome.wait())
        except ConfigurationError as error:
            caught.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()

    assert "another event loop" in str(caught[0])


async def test_who_left_is_forgotten() -> None:
    """A wait that was cancelled leaves nothing in the cell, however long that stays open."""
    signal = Signal()
    left = await asyncio.gather(
        *(asyncio.wait_for(signal.wait(), seconds) for seconds in (1, 2, 3)), return_exceptions=True
    )

    assert [type(each) for each in left] == [TimeoutError] * 3
    held = gc.get_referents(signal)
    held += [each for found in held if isinstance(found, dict) for each in found]
    assert not [each for each in held if isinstance(each, asyncio.Future)]
