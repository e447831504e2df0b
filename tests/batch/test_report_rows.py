"""What the report's page is told about one request."""

from datetime import timedelta
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from batch_outcomes import START, done, failed
from hypothesis import given
from hypothesis import strategies as st

from flux2_async.batch import Outcome, State
from flux2_async.batch.report.rows import MAX_TEXT, link_to, page_row


def test_what_is_not_known_is_left_out() -> None:
    """A request that was never sent is told by what its author wrote."""
    row = page_row(Outcome(id="a", state=State.QUEUED, prompt="a house"), [], [])
    assert row == {
        "id": "a",
        "state": "queued",
        "prompt": "a house",
        "ratio": "1:1",
        "resolution": "1K",
        "tier": "flex",
    }


def test_a_finished_request_is_told_whole() -> None:
    """Figures are figures, times are seconds since 1970, and pictures are passed on."""
    row = page_row(done(3, files=("images/3.jpg",)), [{"name": "in"}], [{"name": "out"}])
    assert row["credits"] == 4.0
    assert row["took"] == 3.0
    assert row["finished"] - row["submitted"] == 3.0
    assert row["submitted"] == START.timestamp()
    assert (row["inputs"], row["outputs"], row["download"], row["line"]) == (
        [{"name": "in"}],
        [{"name": "out"}],
        "saved",
        3,
    )


def test_a_failure_is_told_with_its_kind() -> None:
    """The page gets the text and the name of the error's class."""
    row = page_row(failed(1, "no"), [], [])
    assert (row["error"], row["type"]) == ("no", "ContentModeratedError")


def test_the_service_tells_how_long_it_took() -> None:
    """The service's own stamps count before this machine's, which include our waiting; never less than nothing."""
    stamped = done(9, create_time=START, complete_time=START + timedelta(seconds=2.5))
    assert page_row(stamped, [], [])["took"] == 2.5
    turned = done(9, create_time=START, complete_time=START - timedelta(seconds=1))
    assert page_row(turned, [], [])["took"] == 0.0
    assert "took" not in page_row(done(9, finished_at=None), [], [])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_credits_that_are_no_figure_are_not_known(value: float) -> None:
    """JSON has no word for them, and a browser would refuse all rows for one of them."""
    assert "credits" not in page_row(done(1, credits=value), [], [])


def test_extra_columns_become_text() -> None:
    """They are passed on in their order, whatever they are called and hold; empty ones are dropped."""
    extra = {
        "__proto__": "x",
        "n": 5,
        "flag": False,
        "none": None,
        "empty": "",
        "list": [1, {"é": None}],
        "nan": float("nan"),
    }
    pairs = page_row(done(1, extra=extra), [], [])["extra"]
    assert pairs == [["__proto__", "x"], ["n", "5"], ["flag", "false"], ["list", '[1, {"é": null}]'], ["nan", "NaN"]]


def test_endless_text_is_cut() -> None:
    """A column that holds a picture in base64 does not fill the page."""
    row = page_row(done(1, extra={"picture": "x" * (MAX_TEXT + 1)}), [], [])
    assert row["extra"][0][1] == "x" * MAX_TEXT + " …"
    assert page_row(done(1, prompt="y" * MAX_TEXT), [], [])["prompt"] == "y" * MAX_TEXT


names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1).filter(
    lambda name: name not in (".", "..")
)


@given(st.lists(names, min_size=1, max_size=3), st.sampled_from(["out", "out/deeper", "elsewhere"]))
def test_a_link_leads_back_to_its_file(parts: list[str], folder: str) -> None:
    """Whatever a file is called, its link is relative, is plain ASCII and resolves to it."""
    path = Path("/base/out", *parts)
    link = link_to(path, Path("/base", folder))
    assert link is not None
    assert link.startswith(("./", "../"))
    assert link.isascii()
    resolved = urlsplit(urljoin(f"file:///base/{folder}/report.html", link))
    assert (resolved.scheme, resolved.netloc, resolved.query, resolved.fragment) == ("file", "", "", "")
    assert unquote(resolved.path) == path.as_posix()


def test_a_name_that_no_file_can_have_has_no_link() -> None:
    """It is shown without a link."""
    assert link_to(Path("/out/\ud800.jpg"), Path("/out")) is None
    assert link_to(Path("/out/a\0.jpg"), Path("/out")) in (None, "./a%00.jpg")
