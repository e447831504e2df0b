"""The file of the report: whole or not at all, in flat memory, with nothing of a row outside its data block."""

import base64
import hashlib
import json
import re
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from batch_outcomes import done, painted, queued

from flux2_async.batch import Outcome
from flux2_async.batch.report import write_report


def data_of(report: Path) -> list[dict[str, Any]]:
    """The rows as a browser finds them."""
    match = re.search(r'<script type="application/json" id="rows">(.*?)</script>', report.read_text("utf-8"), re.DOTALL)
    assert match is not None
    rows: list[dict[str, Any]] = json.loads(match[1])
    return rows


def test_the_rows_are_in_the_page(tmp_path: Path) -> None:
    """In the order given, with the addresses of their pictures and thumbnails."""
    painted(tmp_path / "out/images/1.jpg")
    painted(tmp_path / "in/a b.png")
    outcome = done(1, files=("images/1.jpg",), images=(str(tmp_path / "in/a b.png"), "https://example.com/x.png"))
    rows = data_of(write_report([outcome, done(2)], tmp_path / "out"))
    assert [row["id"] for row in rows] == ["shot-1", "shot-2"]
    [output], [local, remote] = rows[0]["outputs"], rows[0]["inputs"]
    assert (output["name"], output["href"]) == ("1.jpg", "./images/1.jpg")
    assert (local["name"], local["href"]) == ("a b.png", "../in/a%20b.png")
    assert all((tmp_path / "out" / picture["thumb"]).is_file() for picture in (output, local))
    assert remote == {"name": "https://example.com/x.png", "href": "https://example.com/x.png"}


def test_relative_inputs_start_at_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As everywhere else where a path is typed."""
    monkeypatch.chdir(tmp_path)
    painted(tmp_path / "cat.png")
    (tmp_path / "out").mkdir()
    [row] = data_of(write_report([done(1, images=("cat.png",))], "out"))
    assert row["inputs"][0]["href"] == "../cat.png"
    assert "thumb" in row["inputs"][0]


def test_an_undecodable_picture_stays_done(tmp_path: Path) -> None:
    """It has a link and no thumbnail."""
    (tmp_path / "bad.jpg").write_text("no picture")
    [row] = data_of(write_report([done(1, files=("bad.jpg",))], tmp_path))
    assert row["state"] == "done"
    assert row["outputs"] == [{"name": "bad.jpg", "href": "./bad.jpg"}]


def test_without_files_the_addresses_are_linked(tmp_path: Path) -> None:
    """With --no-download the service's own addresses are all there is."""
    [row] = data_of(write_report([done(1, urls=("https://files.example/1.png",))], tmp_path))
    assert row["outputs"] == [{"name": "https://files.example/1.png", "href": "https://files.example/1.png"}]


def test_an_empty_batch_has_a_report(tmp_path: Path) -> None:
    """No rows is no error."""
    assert data_of(write_report([], tmp_path)) == []


class Elements(HTMLParser):
    """The elements of a page, as a parser sees them."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.policy = ""
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        if ("http-equiv", "Content-Security-Policy") in attrs:
            self.policy = dict(attrs)["content"] or ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in ("script", "style"):
            self.scripts.append(data)


def test_the_policy_knows_script_and_style_by_their_hashes(tmp_path: Path) -> None:
    """Nothing else runs: no `unsafe-inline`, and the default is nothing at all."""
    page = Elements()
    page.feed(write_report([done(1)], tmp_path).read_text("utf-8"))
    style, _, script = page.scripts
    for kind, text in (("style", style), ("script", script)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in page.policy
    assert page.policy.startswith("default-src 'none';")
    assert "unsafe" not in page.policy


def test_no_character_of_a_row_can_end_its_block(tmp_path: Path) -> None:
    """`<`, `>`, `&` and the separators that end lines of scripts are escaped; the title is escaped for HTML."""
    text = "</script><!-- & \u2028\u2029 -->"
    report = write_report([done(1, prompt=text, extra={text: text})], tmp_path, title=text)
    content = report.read_text("utf-8")
    block = content[content.index('id="rows">') + 10 : content.index("]</script>")]
    assert not set("<>&\u2028\u2029") & set(block)
    assert content.count("</script>") == 2
    assert "<title>&lt;/script&gt;&lt;!-- &amp;" in content


def test_a_report_that_fails_leaves_the_one_before(tmp_path: Path) -> None:
    """It is written beside and put in place when it is whole; nothing is left of the attempt."""

    def broken() -> Iterator[Outcome]:
        yield done(1)
        raise RuntimeError("the journal broke")

    report = write_report([done(7)], tmp_path)
    with pytest.raises(RuntimeError, match="the journal broke"):
        write_report(broken(), tmp_path)
    assert [row["id"] for row in data_of(report)] == ["shot-7"]
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_report_can_be_read_by_others(tmp_path: Path) -> None:
    """It has the rights of any new file, so that a web server may show it."""
    plain = tmp_path / "plain"
    plain.touch()
    report = write_report([], tmp_path)
    assert stat.S_IMODE(report.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_many_rows_take_flat_memory(tmp_path: Path) -> None:
    """Rows go to the disk as they come: the peak is that of a few."""
    write_report(queued(1), tmp_path)
    tracemalloc.start()
    try:
        report = write_report((outcome for outcome in queued(3_000)), tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(data_of(report)) == 3_000
    assert peak < 1_000_000


def test_without_the_extra_it_says_what_to_install() -> None:
    """In an interpreter that never had it, already where it is imported."""
    code = "import sys; sys.modules['PIL'] = None; import flux2_async.batch.report"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603  our own
    assert done.stderr.splitlines()[-1] == (
        'ImportError: flux2_async.batch.report needs the extra "cli"; install it with: pip install "flux2-async[cli]"'
    )
