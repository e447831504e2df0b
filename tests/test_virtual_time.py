"""The clock the other tests rely on."""

import asyncio
import time

import anyio.to_thread
from aiohttp import ClientSession, web


async def test_jumps_to_the_next_timer() -> None:
    """An hour passes in no time."""
    loop = asyncio.get_running_loop()
    begun, real = loop.time(), time.monotonic()
    await asyncio.sleep(3600)

    assert loop.time() - begun == 3600
    assert time.monotonic() - real < 5


async def test_stands_still_for_sockets_and_threads() -> None:
    """Replies over real sockets and results of worker threads arrive before the next timer."""

    async def hello(request: web.Request) -> web.Response:
        await anyio.to_thread.run_sync(time.sleep, 0.02)
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_get("/", hello)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    begun = asyncio.get_running_loop().time()
    async with ClientSession() as http:
        for _ in range(20):
            async with asyncio.timeout(0.5), http.get(f"http://127.0.0.1:{port}/") as response:
                assert await response.text() == "hello"
    await runner.cleanup()

    assert asyncio.get_running_loop().time() - begun < 0.5
