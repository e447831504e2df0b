"""Public objects that could not be made, as error reporters show them."""

import inspect
from collections.abc import Callable
from traceback import walk_tb
from typing import Any

import pytest

import flux2_async
from flux2_async import batch, coordination, emulator
from flux2_async.errors import Flux2Error

# What is handed on untyped here is what a user may hand on by mistake.
WRONG: dict[str, Callable[[], Any]] = {
    "a session with a number for a key": lambda: flux2_async.Flux2Session(7),  # type: ignore[arg-type]
    "a session with a word for an address": lambda: flux2_async.Flux2Session("key", base_url="x"),
    "a session with settings of another kind": lambda: flux2_async.Flux2Session("key", polling=3),  # type: ignore[arg-type]
    "callbacks": lambda: flux2_async.Callbacks("https://h.example/x", secret=""),
    "a rate limit": lambda: flux2_async.RateLimit(0, 1.0),
    "polling": lambda: flux2_async.Polling(price="x"),  # type: ignore[arg-type]
    "time-outs": lambda: flux2_async.Timeouts(connect=0),
    "a prompt": lambda: flux2_async.TextToImage(7),  # type: ignore[arg-type]
    "fields": lambda: flux2_async.TextToImage("a house", extra_input=7),
    "pictures": lambda: flux2_async.ImageToImage("a house", images=7),  # type: ignore[arg-type]
    "a picture": lambda: flux2_async.ImageToImage("a house", images=[7]),  # type: ignore[list-item]
    "a file": lambda: coordination.HostCoordination(7),  # type: ignore[arg-type]
    "what happens on failure": lambda: coordination.HostCoordination(on_failure="x"),  # type: ignore[arg-type]
    "a namespace": lambda: coordination.RedisCoordination("redis://h", namespace=7),  # type: ignore[arg-type]
    "an address of Redis": lambda: coordination.RedisCoordination(7),  # type: ignore[arg-type]
    "a schema": lambda: coordination.PostgresCoordination("host=h", schema=7),  # type: ignore[arg-type]
    "an address of Postgres": lambda: coordination.PostgresCoordination(7),  # type: ignore[arg-type]
    "an address of Postgres that is no Unicode": lambda: coordination.PostgresCoordination("postgresql://h/\ud800"),
    "a journal": lambda: batch.Journal(7),  # type: ignore[arg-type]
    "an emulator": lambda: emulator.Emulator(7),  # type: ignore[arg-type]
    "a limit of the emulator": lambda: emulator.Limit(0, 0),
}


@pytest.mark.parametrize("make", WRONG.values(), ids=list(WRONG))
def test_what_cannot_be_made_can_be_shown(make: Callable[[], Any]) -> None:
    """Every local variable of every frame that an error passed has a repr."""
    with pytest.raises((Flux2Error, AttributeError, TypeError, ValueError)) as caught:
        make()
    values = [value for frame, _ in walk_tb(caught.value.__traceback__) for value in list(frame.f_locals.values())]
    ours = [value for value in values if type(value).__module__.startswith("flux2_async")]
    assert ours
    assert all(map(repr, ours))


@pytest.mark.parametrize(
    "module", [flux2_async, batch, coordination, emulator], ids=["session", "batch", "coordination", "emulator"]
)
def test_classes_with_a_repr_of_their_own_show_an_empty_object(module: Any) -> None:
    """One of which nothing was set has a repr."""
    for name in module.__all__:
        kind = getattr(module, name)
        if inspect.isclass(kind) and "__repr__" in vars(kind) and not hasattr(kind, "__attrs_attrs__"):
            assert name in repr(object.__new__(kind))
