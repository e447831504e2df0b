"""The served report over HTTP: its rows, its pictures, and who may have them."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from batch_outcomes import Told, done, painted

from flux2_async.batch.report import serve_report

PARTS = ["", "events", "files/{token}", "thumbnails/{token}", "favicon.ico"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A batch under way: one request is done, with a reference picture from elsewhere."""
    folder = tmp_path / "results"
    painted(folder / "images/1.jpg", (640, 480))
    painted(tmp_path / "in/cat.png")
    (folder / "secret.txt").write_text("nobody named this file")
    changes = Told(folder, 2)
    changes.tell(done(1, files=("images/1.jpg",), images=(str(tmp_path / "in/cat.png"), "https://example.com/x.jpg")))
    changes.end(remove=False)
    return folder


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def token(path: Path) -> str:
    return hashlib.sha256(bytes(path.resolve())).hexdigest()[:32]


async def rows_of(http: aiohttp.ClientSession, address: str, wanted: int) -> dict[str, Any]:
    """The rows that a page has been told when there are so many."""
    rows: dict[str, Any] = {}
    async with http.get(f"{address}events") as response:
        while len(rows) < wanted:
            line = await response.content.readline()
            if line.startswith(b"data: "):
                rows |= {row["id"]: row for row in json.loads(line[6:])["rows"]}
    return rows


@pytest.mark.real_time
async def test_rows_and_pictures_are_given(folder: Path, http: aiohttp.ClientSession) -> None:
    """A row names its pictures by addresses of the page; both the whole one and the small one are pictures."""
    async with serve_report(folder) as address:
        row = (await rows_of(http, address, 1))["shot-1"]
        [output] = row["outputs"]
        whole, small = await http.get(address + output["href"]), await http.get(address + output["thumb"])

        assert (whole.status, whole.content_type) == (200, "image/jpeg")
        assert await whole.read() == (folder / "images/1.jpg").read_bytes()
        assert (small.status, small.content_type) == (200, "image/jpeg")
        assert [picture["name"] for picture in row["inputs"]] == ["cat.png", "https://example.com/x.jpg"]
        for answer in (whole, small):
            assert answer.headers["Content-Security-Policy"] == "sandbox"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.real_time
async def test_rows_arrive_while_the_page_is_open(folder: Path, http: aiohttp.ClientSession) -> None:
    """A change of the batch is told without being asked for."""
    async with serve_report(folder) as address:
        waiting = asyncio.ensure_future(rows_of(http, address, 2))
        await asyncio.sleep(0.2)
        changes = Told(folder, 2)
        changes.tell(done(2))
        assert (await waiting)["shot-2"]["state"] == "done"
        changes.end(remove=True)


@pytest.mark.real_time
async def test_only_files_of_the_batch_are_given(folder: Path, http: aiohttp.ClientSession) -> None:
    """Neither what lies beside them, nor the journal, nor anything by its path."""
    async with serve_report(folder) as address:
        await rows_of(http, address, 1)
        for path in ("secret.txt", "images/1.jpg", "../in/cat.png", "files/../secret.txt", "files/%2e%2e/secret.txt"):
            assert (await http.get(address + path)).status == 404
        for name in ("secret.txt", "changes.jsonl"):
            assert (await http.get(f"{address}files/{token(folder / name)}")).status == 404
            assert (await http.get(f"{address}thumbnails/{token(folder / name)}")).status == 404
        assert (await http.get(f"{address}files/{token(folder / 'images/1.jpg')}")).status == 200


@pytest.mark.real_time
@pytest.mark.parametrize("part", PARTS)
async def test_no_other_site_reads_the_report(folder: Path, http: aiohttp.ClientSession, part: str) -> None:
    """A rebound name and, but for the page itself, a site that embeds an address get 403."""
    async with serve_report(folder) as address:
        await rows_of(http, address, 1)
        url = address + part.format(token=token(folder / "images/1.jpg"))
        own = await http.get(url)
        rebound = await http.get(url, headers={"Host": "evil.example"})
        embedded = await http.get(url, headers={"Sec-Fetch-Site": "cross-site"})
        other = await http.get(url, headers={"Origin": "http://evil.example"})

        assert own.status in {200, 204}
        assert (rebound.status, other.status) == (403, 403)
        assert embedded.status == (403 if part else 200)
        assert (await http.post(url)).status == 405
        own.close()


@pytest.mark.real_time
async def test_the_page_allows_its_own_script_only(folder: Path, http: aiohttp.ClientSession) -> None:
    """By its hash; no frame, no other host; and nothing of it is kept by the browser."""
    async with serve_report(folder, title="<script>x</script>") as address:
        answer = await http.get(address)
        policy, text = answer.headers["Content-Security-Policy"], await answer.text()
    assert "frame-ancestors 'none'" in policy
    assert "script-src 'sha256-" in policy
    assert "unsafe" not in policy
    assert answer.headers["Cache-Control"] == "no-store"
    assert "&lt;script&gt;x&lt;/script&gt;" in text


@pytest.mark.real_time
async def test_it_stops_while_pages_are_open(folder: Path, http: aiohttp.ClientSession) -> None:
    """Whoever looks on does not hold the end up, and nothing is left behind."""
    async with asyncio.timeout(20):
        async with serve_report(folder) as address:
            open_pages = [await http.get(f"{address}events") for _ in range(3)]
            await open_pages[0].content.readline()
        with pytest.raises(aiohttp.ClientError):
            await http.get(address)
        for page in open_pages:
            page.close()


@pytest.mark.real_time
async def test_very_many_rows_come_in_parts(tmp_path: Path, http: aiohttp.ClientSession) -> None:
    """The first are shown before the last are sent."""
    changes = Told(tmp_path, 1200)
    for number in range(1, 1201):
        changes.tell(done(number))
    changes.end(remove=False)
    sizes: list[int] = []
    async with (
        serve_report(tmp_path) as address,
        # a line has 500 rows
        http.get(f"{address}events", read_bufsize=2**20) as response,
    ):
        while sum(sizes) < 1200:
            line = await response.content.readline()
            if line.startswith(b"data: "):
                sizes.append(len(json.loads(line[6:])["rows"]))
    assert max(sizes) == 500
