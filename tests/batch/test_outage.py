"""Batches while the service is away: one request at a time is risked, and who tries holds nobody up for ever."""

import asyncio
import ssl
from collections import Counter
from pathlib import Path

import aiohttp
import pytest
import trustme
from batches import batch_in, collect, lines, requests, run
from emulated import emulated, session_for, until
from raw_server import answer, raw_server

from flux2_async.batch import Journal, run_batch
from flux2_async.emulator import Emulator, Fault, Plan, Script
from flux2_async.emulator.files import tiny_png
from flux2_async.errors import TransportError
from flux2_async.models import ImageToImage, RateLimit, Timeouts
from flux2_async.session.session import Flux2Session

LOST = Fault("createTask", "html", status=502, accepted=True, times=None)


@pytest.mark.parametrize("code", [429, 455])
async def test_stopped_while_answers_are_on_their_way(tmp_path: Path, code: int) -> None:
    """A batch ends also when the answers to what had left before the stop ask to come again later."""
    away = Fault("createTask", "refuse", code=code, retry_after=3000, times=None)
    async with emulated(Script(latency=3.0, faults=[away])) as (flux, emulator):
        batch = batch_in(tmp_path, flux, requests(3))
        running = asyncio.create_task(collect(batch))
        await until(lambda: len(emulator.ledger.requests) == 3)
        batch.stop()
        async with asyncio.timeout(4):
            assert await running == []
        assert batch.progress is not None
        assert (batch.progress.queued, batch.progress.reserved) == (3, 0)


async def test_a_refusal_ends_an_outage(tmp_path: Path) -> None:
    """A service that refuses a request for its content is there."""
    faults = [Fault("createTask", "refuse", code=code) for code in (455, 422)]
    async with emulated(Script(faults=faults)) as (flux, _):
        batch = batch_in(tmp_path, flux, requests(1))
        assert [outcome.state for outcome in await collect(batch)] == ["failed"]
        assert batch.progress is not None
        assert batch.progress.away is None


async def test_a_request_that_cannot_be_sent(tmp_path: Path) -> None:
    """Whose file is gone says nothing about the service, and the next one tries instead."""
    (tmp_path / "gone.png").write_bytes(tiny_png("gone"))
    edits = [ImageToImage(f"edit {n}", images=[tmp_path / "gone.png"]) for n in range(10)]
    async with emulated(Script(latency=0.5, faults=[LOST]), rate_limit=None) as (flux, emulator):
        batch = batch_in(tmp_path, flux, [*requests(10), *edits, *requests(90, "later")], max_running=10)
        running = asyncio.create_task(collect(batch))
        await until(lambda: emulator.ledger.requests)
        (tmp_path / "gone.png").unlink()
        await asyncio.sleep(90)
        assert batch.progress is not None
        assert batch.progress.failed
        # What had left before the first answer, and tries after 2, 4, 8, 16 and 32 seconds.
        assert batch.progress.unknown == 10 + 5
        running.cancel()
        await asyncio.wait([running])


async def test_answers_that_are_lost_late(tmp_path: Path) -> None:
    """What had left before the service went away, and is given up while another tries, lets nobody else try."""
    script = Script(
        plans=[Plan(duration=seconds) for seconds in (1.0, 4.0, 7.0, 10.0)],
        faults=[Fault("createTask", "hang", after=4, times=None)],
    )
    options = {"rate_limit": RateLimit(8, 10.0), "timeouts": Timeouts(submit=60.0)}
    async with emulated(script, **options) as (flux, emulator):
        running = asyncio.create_task(collect(batch_in(tmp_path, flux, requests(100), max_running=4)))
        calls = emulator.ledger.calls
        await until(lambda: calls["createTask"] == 8)
        # The first is given up after 60 seconds, and 2 later the only try begins, which takes 60 as well.
        await asyncio.sleep(100)
        assert calls["createTask"] == 8 + 1
        running.cancel()
        await asyncio.wait([running])


async def test_a_slow_reader(tmp_path: Path) -> None:
    """Outcomes that nobody takes, and the only slot, are in nobody's way who waits for the service."""
    script = Script(plans=Plan(duration=1.0), faults=[Fault("createTask", "html", status=502, times=6)])
    async with emulated(script, max_running=1) as (flux, _), Journal(tmp_path / "run.db") as journal:
        batch = run_batch(flux, requests(12), journal=journal, directory=tmp_path / "results", max_running=2)
        states = Counter[str]()
        async with asyncio.timeout(2000):
            async for outcome in batch:
                states[outcome.state] += 1
                await asyncio.sleep(100)
        assert states == {"done": 6, "unknown": 6}


async def test_what_bars_the_way_ends_a_batch_at_once(tmp_path: Path) -> None:
    """A certificate that is not trusted, and a proxy that wants a password, are told and not waited for.

    That is so for createTask and for uploads; everything stays in the queue, and the next run makes it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    (tmp_path / "a.png").write_bytes(tiny_png("a"))
    wanted = [*requests(3), ImageToImage("edit", images=[tmp_path / "a.png"])]
    async with (
        raw_server([b""], tls=context) as server,
        raw_server([answer(407, b"who are you?")]) as proxy,
        aiohttp.ClientSession(proxy=proxy.url) as proxied,
        Emulator(Script(render=False)) as emulator,
        Flux2Session("key", base_url=server.url) as untrusting,
        Flux2Session("key", base_url="https://api.example", http=proxied) as through_proxy,
        Flux2Session(emulator.api_key, base_url=emulator.base_url, upload_url=server.url) as uploading,
    ):
        begun = asyncio.get_running_loop().time()
        for flux, items, reason in (
            (untrusting, wanted, "certificate is not trusted"),
            (through_proxy, wanted, "the proxy refused the connection"),
            (uploading, wanted[3:], "certificate is not trusted"),
        ):
            with pytest.raises(TransportError, match=reason):
                await run(tmp_path, flux, items)
            assert {line["state"] for line in lines(tmp_path)} == {"queued"}
        assert asyncio.get_running_loop().time() - begun < 5
        assert (server.requests, emulator.ledger.requests) == ([], [])
        async with session_for(emulator) as flux:
            assert [outcome.state for outcome in await run(tmp_path, flux, wanted)] == ["done"] * 4
