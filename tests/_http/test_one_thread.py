"""Blocking work, one call after another, in a thread of its own."""

import gc
import threading
import time
from concurrent.futures import Future

import pytest

from flux2_async._http.one_thread import OneThread


def names() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


def test_calls_keep_their_order_and_tell_their_end() -> None:
    """One at a time, each with its result or its error; one that was cancelled before its turn is left out."""
    thread, seen, gate = OneThread("one at a time"), list[int](), threading.Event()
    thread.submit(gate.wait)
    left_out = thread.submit(seen.append, 0)
    assert left_out.cancel()
    done: list[Future[None]] = [thread.submit(seen.append, number) for number in (1, 2, 3)]
    broken = thread.submit(int, "x")
    gate.set()
    with pytest.raises(ValueError, match="invalid literal"):
        broken.result(10)
    assert seen == [1, 2, 3]
    assert all(each.done() for each in done)
    thread.shutdown()
    assert "one at a time" not in names()
    with pytest.raises(RuntimeError, match="has ended"):
        thread.submit(seen.append, 4)


def test_what_was_asked_for_before_the_end_is_done() -> None:
    """Ending waits for it, unless that is not wanted."""
    thread, seen = OneThread("does the rest"), list[int]()
    for number in range(100):
        thread.submit(seen.append, number)
    last = thread.submit(seen.append, 100)
    thread.shutdown(wait=False)
    last.result(10)
    assert seen == list(range(101))


def test_a_thread_that_is_forgotten_ends() -> None:
    """Whoever drops it need not end it."""
    OneThread("never begun").shutdown()
    thread = OneThread("forgotten")
    thread.submit(int).result(10)
    del thread
    gc.collect()
    deadline = time.monotonic() + 10
    while "forgotten" in names():
        assert time.monotonic() < deadline
        time.sleep(0.01)
