"""Trying again what costs nothing to repeat."""

import asyncio

import pytest
from emulated import logged

from flux2_async._http.retry import PAUSES, persist
from flux2_async.errors import (
    ApiError,
    AuthenticationError,
    FeatureDisabledError,
    Flux2Error,
    InsufficientCreditsError,
    InvalidRequestError,
    MaintenanceError,
    ProtocolError,
    RateLimitedError,
    RequestRejectedError,
    ServerError,
    TransportError,
)


class Attempts:
    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.times: list[float] = []

    async def __call__(self) -> str:
        self.times.append(asyncio.get_running_loop().time())
        if self.errors:
            raise self.errors.pop(0)
        return "done"

    @property
    def pauses(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False)]


@pytest.mark.parametrize(
    "error",
    [
        TransportError("cut"),
        RateLimitedError(429, "slow"),
        MaintenanceError(455, "later"),
        ServerError(500, "oops"),
        ProtocolError("html"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_transient_failures_are_tried_again(error: Flux2Error) -> None:
    """What may be gone at the next try is tried again after a pause."""
    attempts = Attempts(error, error)

    assert await persist(attempts) == "done"
    assert attempts.pauses == [0.5, 1.5]


async def test_each_further_try_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """At INFO, with what went wrong and when it goes on; what fails for good is its caller's to tell."""
    caplog.set_level("INFO", "flux2_async.transfers")

    assert await persist(Attempts(TransportError("cut."), TransportError("no answer"))) == "done"
    with pytest.raises(InvalidRequestError):
        await persist(Attempts(InvalidRequestError("empty")))
    assert logged(caplog) == ["cut; trying again in 0.5 s", "no answer; trying again in 1.5 s"]


async def test_the_nature_of_an_error_decides() -> None:
    """A class that nobody here knows is tried again where it says that it passes."""

    class PassingError(ApiError):
        transient = True

    attempts = Attempts(PassingError(418, "soon gone"))
    assert await persist(attempts) == "done"
    assert attempts.pauses == [0.5]


@pytest.mark.parametrize(
    "error",
    [
        RequestRejectedError(400, "bad"),
        AuthenticationError(401, "key"),
        InsufficientCreditsError(402, "poor"),
        FeatureDisabledError(505, "off"),
        ApiError(405, "method"),
        InvalidRequestError("changed"),
        OSError(28, "full"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_final_failures_come_out_at_once(error: Exception) -> None:
    """A refusal that would come again is not provoked again."""
    attempts = Attempts(error)

    with pytest.raises(type(error)) as caught:
        await persist(attempts)
    assert error is caught.value
    assert len(attempts.times) == 1


async def test_gives_up_with_the_last_error() -> None:
    """After five tries with growing pauses the last error comes out."""
    errors = [TransportError(str(number)) for number in range(9)]
    attempts = Attempts(*errors)

    with pytest.raises(TransportError, match=r"^4$"):
        await persist(attempts)
    assert attempts.pauses == list(PAUSES)
    assert sorted(PAUSES) == list(PAUSES)


async def test_a_longer_retry_after_is_kept() -> None:
    """The service's own wish lengthens a pause and never shortens it."""
    attempts = Attempts(RateLimitedError(429, "slow", retry_after=7.0), RateLimitedError(429, "slow", retry_after=0.1))

    await persist(attempts)
    assert attempts.pauses == [7.0, 1.5]


async def test_a_very_long_retry_after_is_left_to_the_caller() -> None:
    """Nobody is kept waiting for more than a minute; the error tells how long it would be."""
    attempts = Attempts(RateLimitedError(429, "slow", retry_after=61.0))

    with pytest.raises(RateLimitedError) as caught:
        await persist(attempts)
    assert caught.value.retry_after == 61.0
    assert len(attempts.times) == 1
