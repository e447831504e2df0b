"""Sessions while the service is away: what costs nothing is tried again, what may cost is risked one at a time."""

import asyncio
import itertools
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp.abc import AbstractResolver, ResolveResult
from emulated import REQUEST, emulated, error_of, logged, until
from raw_server import Answer, RawServer, answer, raw_server

from flux2_async.emulator import Emulator, Fault, Plan, Script
from flux2_async.errors import AmbiguousSubmitError, InsufficientCreditsError, TransportError
from flux2_async.models import Polling, RateLimit
from flux2_async.models.events import OutageBegan, OutageEnded, SessionEvent
from flux2_async.session.circuit_breaker import LONGEST_FREE_PAUSE, LONGEST_PAUSE, CircuitBreaker, CircuitOpen
from flux2_async.session.session import Flux2Session


def now() -> float:
    return asyncio.get_running_loop().time()


async def submitted(flux: Flux2Session, count: int, apart: float, **options: Any) -> list[Any]:
    """What so many submissions become that come one after the other."""
    submits = []
    for _ in range(count):
        submits.append(asyncio.create_task(flux.submit(REQUEST, **options)))
        await asyncio.sleep(apart)
    return await asyncio.gather(*submits, return_exceptions=True)


async def down_for(emulator: Emulator, seconds: float, during: Awaitable[Any]) -> Any:
    """What something gives while the service refuses connections for so long at its begin."""
    await emulator.stop()
    running = asyncio.ensure_future(during)
    await asyncio.sleep(seconds)
    await emulator.start()
    return await running


async def test_twelve_seconds_of_refused_connections_end_no_submission() -> None:
    """What is never sent is tried again until the service is back: each submission becomes one task."""
    script = Script(plans=Plan(duration=1.0), credits=1e6)
    async with emulated(script, rate_limit=RateLimit(100, 10.0)) as (flux, emulator):
        begun = now()
        tasks = await down_for(emulator, 12.0, submitted(flux, 50, 0.0))

        assert sorted(task.id for task in tasks) == sorted(emulator.ledger.accepted)
        assert len(emulator.ledger.accepted) == len(emulator.ledger.requests) == 50
        assert now() - begun < 12 + 1.2 * LONGEST_FREE_PAUSE + 1


async def test_refused_connections_are_tried_for_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """Without `max_wait` a service that stays away is told after a minute, to those who tried and those who did not.

    The log says at its beginning what all wait for, once.
    """
    async with emulated() as (flux, emulator):
        begun = now()
        await emulator.stop()
        errors = await submitted(flux, 10, 0.0)

        assert 60 <= now() - begun < 61
        assert all(isinstance(error, TransportError) and error.never_sent for error in errors)
        [warning] = logged(caplog, level=logging.WARNING)
        assert warning.startswith("createTask gets no answers (the connection was refused; ")
        await emulator.start()
        await flux.submit(REQUEST)
        assert len(emulator.ledger.requests) == 1


@pytest.mark.parametrize(("max_wait", "made"), [(120.0, True), (30.0, False)])
async def test_refused_connections_are_tried_until_max_wait(max_wait: float, made: bool) -> None:
    """`max_wait` says how long a service that is away is tried, longer or shorter than a minute."""
    async with emulated() as (flux, emulator):
        begun = now()
        outcomes = await down_for(emulator, 90.0, submitted(flux, 5, 0.0, max_wait=max_wait))

        assert len(emulator.ledger.accepted) == (5 if made else 0)
        assert all(isinstance(outcome, TransportError) != made for outcome in outcomes)
        assert now() - begun < 97


async def test_no_time_to_wait() -> None:
    """With `max_wait=0` there is one try, and while others try there is none."""
    async with emulated() as (flux, emulator):
        begun = now()
        await emulator.stop()
        errors = await submitted(flux, 5, 0.0, max_wait=0)

        assert now() == begun
        assert all(isinstance(error, TransportError) and error.never_sent for error in errors)
        await emulator.start()


async def test_others_are_no_hurdle_to_a_patient_joiner() -> None:
    """Whose `max_wait` ran out in an outage says nothing to those who joined by key."""
    async with emulated() as (flux, emulator):
        hasty, patient = await down_for(
            emulator,
            10.0,
            asyncio.gather(
                flux.submit(REQUEST, key="a", max_wait=1.0), flux.submit(REQUEST, key="a"), return_exceptions=True
            ),
        )

        assert isinstance(hasty, TransportError)
        assert [patient.id] == emulator.ledger.accepted


def lost_for(seconds: float, lost: bytes) -> Answer:
    """A service whose answers are lost for so long, and that makes a task of each request afterwards."""
    until, numbers = now() + seconds, itertools.count()

    async def serve(writer: asyncio.StreamWriter) -> None:
        writer.write(lost if now() < until else made(f"task-{next(numbers)}"))

    return serve


def made(task_id: str) -> bytes:
    return answer(200, {"code": 200, "msg": "success", "data": {"taskId": task_id}})


@asynccontextmanager
async def served(*answers: Answer) -> AsyncIterator[tuple[Flux2Session, RawServer]]:
    """A session, and a service that gives these answers to createTask."""
    async with raw_server(answers) as server:
        polling, limit = Polling(interval=600.0), RateLimit(100, 10.0)
        async with Flux2Session("key", base_url=server.url, polling=polling, rate_limit=limit) as flux:
            yield flux, server


@pytest.mark.parametrize(
    "lost", [answer(503, b"<html>nginx</html>"), b"", b"HTTP/1.1 20"], ids=["503", "cut", "broken"]
)
async def test_few_are_lost_in_an_outage(lost: bytes) -> None:
    """Of 80 submissions within four seconds few are unclear when answers are lost for three; all others are made."""
    async with served(lost_for(3.0, lost)) as (flux, server):
        outcomes = await submitted(flux, 80, 0.05)

        unclear = [outcome for outcome in outcomes if isinstance(outcome, AmbiguousSubmitError)]
        # Two, and the tries after about 0.5, 1.5 and 3.5 s.
        assert 2 <= len(unclear) <= 5
        assert len([outcome for outcome in outcomes if not isinstance(outcome, Exception)]) == 80 - len(unclear)
        assert len(server.requests) == 80
        assert flux.statistics().ambiguous == len(unclear)
        assert flux.statistics().waiting == 0


async def test_answers_that_stay_lost(caplog: pytest.LogCaptureFixture) -> None:
    """One at a time is risked, ever more rarely; the others end after a minute and were never sent; a line tells."""
    caplog.set_level(logging.INFO, "flux2_async")
    script = Script(faults=[Fault("createTask", "html", status=503, times=None)])
    async with emulated(script, rate_limit=None) as (flux, emulator):
        outcomes = await submitted(flux, 40, 0.1)
        times = [call.time for call in emulator.ledger.requests]

    pauses = [after - before for before, after in itertools.pairwise(times[1:7])]
    assert 7 <= len(times) <= 10
    assert times[-1] - times[0] <= 64.1
    assert all(after > 1.3 * before for before, after in itertools.pairwise(pauses))
    sent = [isinstance(outcome, AmbiguousSubmitError) for outcome in outcomes]
    assert sum(sent) == len(times)
    assert all(
        sent or (isinstance(each, TransportError) and each.never_sent)
        for each, sent in zip(outcomes, sent, strict=True)
    )
    assert caplog.text.count("one at a time is tried") == 1
    assert "answered again" not in caplog.text


@pytest.mark.parametrize("refused", [False, True])
async def test_an_outage_and_its_end_are_told(refused: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Observers are told once that the service is away and why, and once that it is back and for how long it was."""
    seen: list[SessionEvent] = []
    caplog.set_level(logging.INFO, "flux2_async")
    faults = [Fault("createTask", "html", status=503, times=4)]
    faults += [Fault("createTask", "refuse", code=402, after=4)] if refused else []
    async with emulated(Script(faults=faults), rate_limit=None, observers=[seen.append]) as (flux, _):
        await submitted(flux, 20, 0.1)

    [began, ended] = [event for event in seen if isinstance(event, OutageBegan | OutageEnded)]
    assert isinstance(began, OutageBegan)
    assert isinstance(began.error, AmbiguousSubmitError)
    assert isinstance(ended, OutageEnded)
    assert None not in (began.ref, ended.ref)
    assert ended.seconds == pytest.approx(0.5 + 1.0 + 2.0, rel=0.25)
    told = [(record.levelname, record.message) for record in caplog.records if "createTask" in record.message]
    assert told == [
        ("WARNING", "createTask gets no answers (AmbiguousSubmitError); one at a time is tried until one is answered"),
        ("INFO", f"createTask is answered again after {ended.seconds:.1f} s; all submissions go on"),
    ]


async def test_a_refusal_is_an_answer() -> None:
    """A refusal shows that the service is there, and lets all go who waited."""
    faults = [Fault("createTask", "html", times=2), Fault("createTask", "refuse", code=402, after=2)]
    async with emulated(Script(faults=faults)) as (flux, emulator):
        for _ in range(2):
            assert isinstance(await error_of(flux.submit(REQUEST)), AmbiguousSubmitError)
        begun = now()
        outcomes = await submitted(flux, 10, 0.0)

        assert [type(outcome) for outcome in outcomes].count(InsufficientCreditsError) == 1
        assert len(emulator.ledger.accepted) == 9
        assert now() - begun < 1


async def test_one_lost_answer_brakes_nobody() -> None:
    """Only two failures in a row say that the service is away."""
    lost = answer(503, b"<html>nginx</html>")
    async with served(lost, made("1"), lost, made("3"), lost, made("5")) as (flux, _):
        begun = now()
        outcomes = await submitted(flux, 6, 0.01)

        assert [isinstance(outcome, AmbiguousSubmitError) for outcome in outcomes] == [True, False] * 3
        assert now() - begun < 0.1


async def test_a_caller_who_leaves_leaves_the_turn() -> None:
    """Who is cancelled while it waits for its turn, or has it, holds nobody up."""
    async with emulated() as (flux, emulator):
        await emulator.stop()
        submits = [asyncio.create_task(flux.submit(REQUEST)) for _ in range(3)]
        await asyncio.sleep(5)
        assert flux.statistics().waiting == 3
        for submit in submits[:2]:
            submit.cancel()
        await emulator.start()
        task = await submits[2]

        assert [task.id] == emulator.ledger.accepted
        assert flux.statistics().waiting == 0


@pytest.mark.parametrize(("free", "longest"), [(True, LONGEST_FREE_PAUSE), (False, LONGEST_PAUSE)])
async def test_pauses(free: bool, longest: float) -> None:
    """Pauses double from the first one to the longest, each up to a fifth shorter or longer."""
    breaker = CircuitBreaker(threshold=1, first_pause=0.5)
    breaker.failed("first", OSError(), free=free)
    expected = 0.5
    for number in range(12):
        begun = now()
        await breaker.passed(number)
        assert 0.8 * expected - 1e-6 <= now() - begun <= 1.2 * expected + 1e-6
        breaker.failed(number, OSError(), free=free)
        breaker.done(number)
        expected = min(2 * expected, longest)


async def test_turns() -> None:
    """Who cannot wait so long is told so; one at a time has the turn, and is not held by its own check."""
    breaker = CircuitBreaker(threshold=2, first_pause=1.0)
    breaker.failed("a", OSError())
    await breaker.passed("b")
    breaker.check("b")
    breaker.failed("b", OSError())
    begun = now()
    with pytest.raises(CircuitOpen):
        await breaker.wait(until=begun + 0.5)
    assert now() - begun == pytest.approx(0.5)
    with pytest.raises(CircuitOpen):
        breaker.take("c")
    await breaker.passed("d")
    breaker.check("d")
    breaker.take("d")
    for refuse in (breaker.check, breaker.take):
        with pytest.raises(CircuitOpen):
            refuse("c")
    breaker.answered()
    breaker.check("c")


async def test_a_long_pause_is_no_outage() -> None:
    """Who waits for a permit has no turn: a pause of the limit in the midst of an outage ends no submission."""
    busy, lost = answer(429, b"", "Retry-After: 300\r\n"), answer(503, b"<html>nginx</html>")
    async with served(busy, lost, lost, *(made(str(number)) for number in range(6))) as (flux, server):
        begun = now()
        submits = [asyncio.create_task(flux.submit(REQUEST)) for _ in range(3)]
        await until(lambda: len(server.requests) == 3)
        outcomes = await submitted(flux, 5, 0.1)
        first = await asyncio.gather(*submits, return_exceptions=True)

        assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        assert [type(outcome).__name__ for outcome in first].count("AmbiguousSubmitError") == 2
        assert 300 <= now() - begun < 303


class Hosts(AbstractResolver):
    """Knows the service, or says that there is no such host."""

    known = True

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        if not self.known:
            raise socket.gaierror(socket.EAI_NONAME, "no such host")
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": family, "proto": 0, "flags": 0}]

    async def close(self) -> None:
        pass


async def test_a_name_that_is_not_known() -> None:
    """A host name that nobody knows is told at once, and waited for where the host was reached before."""
    hosts, begun = Hosts(), now()
    connector = aiohttp.TCPConnector(resolver=hosts, use_dns_cache=False)
    async with raw_server([made("1"), made("2")]) as server, aiohttp.ClientSession(connector=connector) as http:
        url, polling = f"http://api.inside:{server.port}", Polling(interval=600.0)
        async with Flux2Session("key", base_url=url, http=http, polling=polling) as flux:
            hosts.known = False
            error = await error_of(flux.submit(REQUEST))
            assert isinstance(error, TransportError)
            assert error.never_sent
            assert now() - begun < 1
            hosts.known = True
            await flux.submit(REQUEST)
            hosts.known = False
            waiting = asyncio.create_task(flux.submit(REQUEST))
            await asyncio.sleep(20)
            assert not waiting.done()
            hosts.known = True
            await waiting


async def test_what_cannot_change_is_told_at_once() -> None:
    """A certificate that is not trusted, and a proxy that wants a password, are no outage: each caller is told."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with (
        raw_server([made("1")], tls=context) as server,
        raw_server([answer(407, b"who are you?")]) as proxy,
        aiohttp.ClientSession(proxy=proxy.url) as proxied,
        Flux2Session("key", base_url=server.url) as untrusting,
        Flux2Session("key", base_url="https://api.example", http=proxied) as through_proxy,
    ):
        begun = now()
        for flux in (untrusting, through_proxy):
            errors = await submitted(flux, 5, 0.0)
            assert all(isinstance(error, TransportError) and error.never_sent for error in errors)
            assert flux.statistics().waiting == 0
        assert now() - begun < 2
        assert server.requests == []
