"""Looks at many tasks behind a limit that we did not write: nginx's `limit_req`, in front of the emulator."""

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest
from emulated import REQUEST, free_port
from programs import program

from flux2_async.emulator import Emulator, Plan, Script
from flux2_async.models import Polling
from flux2_async.session.session import Flux2Session

pytestmark = pytest.mark.real_time

TASKS = 40

CONFIGURATION = """
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    limit_req_zone $binary_remote_addr zone=looks:1m rate=5r/s;
    server {{
        listen 127.0.0.1:{port};
        location / {{ proxy_pass {service}; }}
        location /api/v1/jobs/recordInfo {{
            limit_req zone=looks;
            {refusing}
            proxy_pass {service};
        }}
    }}
}}
"""


@contextmanager
def nginx(folder: Path, service: str, refusing: str) -> Iterator[str]:
    """Run it in front of a service, with five looks a second; give its address."""
    folder.mkdir()
    port = free_port()
    text = CONFIGURATION.format(folder=folder, service=service, port=port, refusing=refusing)
    (folder / "nginx.conf").write_text(text)
    command = [program("nginx"), "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
    with subprocess.Popen(command) as running:  # noqa: S603  the program under test
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            running.terminate()


async def up(url: str) -> None:
    """Wait until it answers."""
    async with aiohttp.ClientSession() as http, asyncio.timeout(10):
        while True:
            try:
                async with http.get(url):
                    return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.02)


CASES = {
    "default": (Polling(), "limit_req_status 429;"),
    "interval-Retry-After": (Polling(interval=1.0), "limit_req_status 429; add_header Retry-After 1 always;"),
    "often-503": (Polling(price=0.03), ""),
}


async def learn_all(folder: Path, polling: Polling, refusing: str) -> int:
    """Submit tasks that are finished at once, look at them through nginx, and give how many looks it refused."""
    script = Script(plans=Plan(duration=0.0), credits=1e6, render=False)
    async with Emulator(script) as emulator:
        with nginx(folder, emulator.base_url, refusing) as url:
            await up(url)
            async with Flux2Session(emulator.api_key, base_url=url, rate_limit=None, polling=polling) as flux:
                tasks = await asyncio.gather(*(flux.submit(REQUEST) for _ in range(TASKS)))
                await asyncio.gather(*(task.result() for task in tasks))
    return (folder / "error.log").read_text().count("limiting requests")


async def test_all_are_known_and_few_looks_are_refused(tmp_path: Path) -> None:
    """40 finished tasks behind five looks a second are all known, and few looks are refused on the way.

    How long that takes is judged on virtual time and in the benchmarks.
    """
    refused = await asyncio.gather(*(learn_all(tmp_path / name, *case) for name, case in CASES.items()))

    assert min(refused) > 0
    # Looks of one burst leave before the first of them is refused; looks that back off each for itself met 284.
    assert max(refused) <= 3 * TASKS
