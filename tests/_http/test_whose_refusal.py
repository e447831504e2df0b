"""Whose an answer is: a refusal counts where nothing else comes over its connection, a task where no other one does."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
from emulated import REQUEST, error_of, until
from nginx import CREATE_TASK, nginx
from raw_server import answer, read_request

from flux2_async import Flux2Session, RateLimit, SubmissionEvent, TextToImage
from flux2_async.emulator import Emulator, Plan, Script
from flux2_async.errors import AmbiguousSubmitError, InsufficientCreditsError, RateLimitedError

STRAY = answer(429, {"code": 429, "msg": "too many requests"}, "Retry-After: 1\r\n")
STRAY_CHUNKED = (
    b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nslow\r\n0\r\n\r\n"
)
STRAY_TO_THE_END = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\n\r\nslow down"


UPSTREAM = RateLimit(20, 10.0)


def accepted(number: int) -> bytes:
    return answer(200, {"code": 200, "msg": "success", "data": {"taskId": f"task_{number}"}})


@attrs.define
class Service:
    """Says `first` on each connection, and what it answers to the request itself after `seconds`, or None: nothing."""

    first: bytes
    seconds: float | None
    reply: Callable[[int], bytes] = accepted
    closes: bool = True
    url: str = ""
    requests: list[bytes] = attrs.field(factory=list)
    open: set[asyncio.StreamWriter] = attrs.field(factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open.add(writer)
        try:
            # What was written when the connection was accepted is seen a round trip later, behind the head.
            self.requests.append(await read_request(reader))
            reply = self.reply(len(self.requests))
            if self.seconds == 0:
                writer.write(self.first + reply)
            else:
                writer.write(self.first)
                if self.seconds is not None:
                    await asyncio.sleep(self.seconds)
                    writer.write(reply)
            if not self.closes:
                await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            self.open.discard(writer)


@asynccontextmanager
async def serving(service: Service, rate_limit: RateLimit = UPSTREAM) -> AsyncIterator[Flux2Session]:
    async with await asyncio.start_server(service.serve, "127.0.0.1", 0) as listener:
        service.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        async with Flux2Session("key", base_url=service.url, rate_limit=rate_limit) as flux:
            yield flux
        await until(lambda: not service.open)


LIMIT = 30.0  # A submission that is sent again and again ends a test soon.


@pytest.mark.parametrize("stray", [STRAY, STRAY_CHUNKED, STRAY_TO_THE_END], ids=["length", "chunked", "no end"])
@pytest.mark.parametrize("seconds", [0, 0.001, 0.1, 0.8], ids=["same segment", "1 ms", "a round trip", "slow"])
async def test_a_stray_429_is_not_paid_twice(stray: bytes, seconds: float) -> None:
    """A 429 before the answer to the request is nobody's: the request was accepted, and is not sent again."""
    service = Service(stray, seconds)
    async with serving(service) as flux, asyncio.timeout(LIMIT):
        error = await error_of(flux.submit(REQUEST))

    assert isinstance(error, AmbiguousSubmitError)
    assert "task_1" in str(error)
    assert len(service.requests) == 1


async def test_a_stray_429_holds_its_permit() -> None:
    """The request behind it was counted: its permit comes back after two periods, not after the pause of a second."""
    service = Service(STRAY, 0.1)
    async with serving(service, RateLimit(1, 5.0)) as flux, asyncio.timeout(LIMIT):
        assert isinstance(await error_of(flux.submit(REQUEST)), AmbiguousSubmitError)
        begun = asyncio.get_running_loop().time()
        assert isinstance(await error_of(flux.submit(REQUEST)), AmbiguousSubmitError)

        assert asyncio.get_running_loop().time() - begun >= 10.0


@pytest.mark.parametrize(
    ("behind", "clear"),
    [
        (accepted(8), False),
        (accepted(8).replace(b"HTTP/1.1 200 OK", b"HTTP/1.1 201 Created"), False),
        (accepted(7), True),
        (answer(400, {"code": 400, "msg": "bad request line"}), True),
    ],
    ids=["another task", "another task, 201", "the same task", "an error"],
)
async def test_two_tasks_over_one_connection_are_unclear(behind: bytes, *, clear: bool) -> None:
    """Where two answers name different tasks nobody knows which is ours; all else behind an id takes nothing back."""
    service = Service(b"", 0, lambda number: accepted(6 + number) + behind if number == 1 else accepted(7))
    async with serving(service) as flux, asyncio.timeout(LIMIT):
        if clear:
            assert (await flux.submit(REQUEST, key="mine")).id == "task_7"
        else:
            errors = [await error_of(flux.submit(REQUEST, key="mine")) for _ in range(2)]
            assert [type(error) for error in errors] == [AmbiguousSubmitError] * 2
            assert "task_7" in str(errors[0])
            assert "task_8" in str(errors[0])
            assert len(service.requests) == 1
            # Neither id is taken by the submission that may not have it.
            assert (await flux.submit(REQUEST)).id == "task_7"


async def test_a_slow_answer_behind_a_stray_429() -> None:
    """The connection is watched for as long as the 429 asks all to wait, not for a second only."""
    service = Service(STRAY.replace(b"Retry-After: 1", b"Retry-After: 9"), 8.5)
    async with serving(service) as flux, asyncio.timeout(LIMIT):
        error = await error_of(flux.submit(REQUEST))

    assert isinstance(error, AmbiguousSubmitError)
    assert len(service.requests) == 1


@pytest.mark.parametrize("status", [400, 401, 402, 413, 422])
async def test_another_stray_refusal_keeps_the_key(status: int) -> None:
    """Behind any refusal the answer may come: the key stays bound, and a second submit under it sends nothing."""
    service = Service(answer(status, {"code": status, "msg": "no"}), 0.1)
    async with serving(service) as flux, asyncio.timeout(LIMIT):
        errors = [await error_of(flux.submit(REQUEST, key="mine")) for _ in range(2)]

    assert [type(error) for error in errors] == [AmbiguousSubmitError] * 2
    assert len(service.requests) == 1


async def test_an_id_of_the_request_itself_is_not_named() -> None:
    """An echo of the prompt behind a refusal names no task."""
    prompt = '"taskId":"task_1"'
    service = Service(STRAY, 0)
    async with serving(service) as flux, asyncio.timeout(LIMIT):
        error = await error_of(flux.submit(TextToImage(prompt)))

    assert isinstance(error, AmbiguousSubmitError)
    assert "task_1" not in str(error)


def refused_once(number: int) -> bytes:
    return STRAY if number == 1 else accepted(number)


@attrs.define
class Keeper:
    """Notes what it is told, with the time since it was made."""

    told: list[tuple[str, float]] = attrs.field(factory=list)
    begun: float = attrs.field(factory=lambda: asyncio.get_running_loop().time())

    async def intent(self, _: str) -> None:
        self.note("intent")

    async def answer(self, _: str, event: SubmissionEvent, task_id: str | None) -> None:
        self.note(task_id or str(event))

    def wanted(self) -> bool:
        return True

    def note(self, what: str) -> None:
        self.told.append((what, asyncio.get_running_loop().time() - self.begun))


async def test_a_server_that_ends_the_connection_is_believed_at_once() -> None:
    """The end of the connection behind a 429 proves the refusal, which is told before the pause."""
    service = Service(b"", 0, refused_once)
    async with serving(service) as flux:
        keeper = Keeper()
        await flux.submit(REQUEST, ref="mine", steps=keeper)

    assert [what for what, _ in keeper.told] == ["intent", "throttled", "intent", "task_2"]
    assert keeper.told[1][1] < 0.5
    assert 1.0 <= keeper.told[2][1] < 1.5


async def test_a_server_that_keeps_the_connection_is_believed_before_the_next_try() -> None:
    """Where the connection does not end the refusal stays open, until just before the pause is over; then it counts."""
    service = Service(b"", 0, refused_once, closes=False)
    async with serving(service) as flux:
        keeper = Keeper()
        await flux.submit(REQUEST, ref="mine", steps=keeper)

    assert [what for what, _ in keeper.told] == ["intent", "throttled", "intent", "task_2"]
    assert 0.9 <= keeper.told[1][1] < 1.0 <= keeper.told[2][1] < 1.5


async def test_another_refusal_waits_a_second_at_most() -> None:
    """A refusal over a connection that does not end is told after a second."""
    service = Service(b"", 0, lambda _: answer(402, {"code": 402, "msg": "no credits"}), closes=False)
    async with serving(service) as flux:
        keeper = Keeper()
        error = await error_of(flux.submit(REQUEST, ref="mine", steps=keeper))

    assert isinstance(error, InsufficientCreditsError)
    assert [what for what, _ in keeper.told] == ["intent", "refused"]
    assert keeper.told[1][1] == pytest.approx(1.0, abs=0.1)


async def test_max_wait_is_not_outwaited() -> None:
    """Who does not wait for the end of the pause is told a second later at most."""
    reply = STRAY.replace(b"Retry-After: 1", b"Retry-After: 600")
    service = Service(b"", 0, lambda _: reply, closes=False)
    async with serving(service) as flux:
        begun = asyncio.get_running_loop().time()
        error = await error_of(flux.submit(REQUEST, max_wait=5.0))
        assert asyncio.get_running_loop().time() - begun < 1.5

    assert isinstance(error, RateLimitedError)
    assert len(service.requests) == 1


async def test_the_gate_closes_before_the_proof() -> None:
    """Whoever a 429 is meant for, nobody else sends until its pause is over."""
    service = Service(STRAY.replace(b"Retry-After: 1", b"Retry-After: 9"), None, closes=False)
    async with serving(service) as flux:
        first = asyncio.create_task(flux.submit(REQUEST))
        await until(lambda: service.requests)
        await asyncio.sleep(0.1)
        assert isinstance(await error_of(flux.submit(REQUEST, max_wait=2.0)), RateLimitedError)
        assert len(service.requests) == 1
        first.cancel()


@pytest.mark.parametrize("seconds", [0.05, 0.5, 5.0])
async def test_cancelled_while_it_is_watched(seconds: float) -> None:
    """A caller that leaves ends the watch within a second, and what it then is: nothing is sent again, or left open."""
    service = Service(STRAY.replace(b"Retry-After: 1", b"Retry-After: 9"), None, closes=False)
    async with serving(service) as flux:
        keeper = Keeper()
        caller = asyncio.create_task(flux.submit(REQUEST, ref="mine", steps=keeper))
        await until(lambda: service.requests)
        await asyncio.sleep(seconds)
        caller.cancel()
        await asyncio.sleep(1.5)
        assert [what for what, _ in keeper.told] == ["intent", "throttled"]
        assert not service.open
        await flux.drain()

    assert len(service.requests) == 1


@pytest.mark.parametrize(
    ("grace", "refs", "told", "kind"),
    [(5.0, (), ["intent", "throttled"], RateLimitedError), (0.0, ("mine",), ["intent"], AmbiguousSubmitError)],
)
async def test_closed_while_it_is_watched(
    grace: float, refs: tuple[str, ...], told: list[str], kind: type[Exception]
) -> None:
    """Closing lets the watch come to its end, within its grace; a watch that it cuts off leaves the submission open."""
    service = Service(STRAY.replace(b"Retry-After: 1", b"Retry-After: 9"), None, closes=False)
    async with serving(service) as flux:
        keeper = Keeper()
        caller = asyncio.create_task(flux.submit(REQUEST, ref="mine", steps=keeper))
        await until(lambda: service.requests)
        await asyncio.sleep(0.1)
        left = await flux.aclose(grace=grace)
        error = await error_of(caller)

    assert isinstance(error, kind)
    assert left.refs == refs
    assert [what for what, _ in keeper.told] == told


@pytest.mark.real_time
async def test_a_limit_that_we_did_not_write(tmp_path: Path) -> None:
    """Behind nginx's `limit_req` refused submissions are sent again, and each is accepted once."""
    script = Script(plans=Plan(duration=0.0), credits=1e6, render=False)
    refusing = "limit_req_status 429; add_header Retry-After 1 always;"
    async with Emulator(script) as emulator:
        with nginx(tmp_path / "nginx", emulator.base_url, CREATE_TASK, refusing) as url:
            async with Flux2Session(emulator.api_key, base_url=url, rate_limit=None) as flux:
                tasks = await asyncio.gather(*(flux.submit(REQUEST) for _ in range(4)))
                refused = flux.statistics().refused
                ids = sorted(task.id for task in tasks)

    assert refused > 0
    assert ids == sorted(emulator.ledger.accepted)
    assert len(ids) == 4
