"""Who may read a page on this machine and press its buttons; as HTTP in the tests of the emulator and of the report."""

import pytest

from flux2_async._shown.local_page import HEADERS, refusal

HERE = "127.0.0.1:8765"
OWN = ["127.0.0.1:8765", "localhost", "LOCALHOST.:1", "[::1]:8765", "192.168.1.7", "studio.local:80"]
OTHER = [
    "",
    "evil.example",
    "evil.example:8765",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "[::1",
    "x@y",
    "a:b",
]
ORIGINS = ["http://evil.example", "null", "", "http://127.0.0.1:8766", "http://localhost:8765", "http://["]


def refused(method: str = "GET", path: str = "/ledger", **headers: str) -> bool:
    given = {"Host": HERE} | {name.replace("_", "-"): value for name, value in headers.items()}
    return refusal(method, path, given, frozenset({"studio.local"})) is not None


@pytest.mark.parametrize("host", OWN)
def test_the_page_answers_to_addresses_and_its_own_names(host: str) -> None:
    """No attacker's name leads to an address that was typed, to localhost, or to the name it was given."""
    assert not refused(Host=host)


@pytest.mark.parametrize("host", OTHER)
def test_the_page_answers_to_no_other_name(host: str) -> None:
    """A name that was rebound to this machine makes the attacker's page one of the same origin; its Host betrays it."""
    assert refused(Host=host)
    assert refused("POST", "/faults", Host=host, Sec_Fetch_Site="same-origin", Origin=f"http://{host}")


@pytest.mark.parametrize("site", ["cross-site", "same-site", "none", "nonsense", ""])
def test_buttons_take_only_what_the_page_itself_sends(site: str) -> None:
    """Another port of this machine is the same site, and another origin all the same."""
    assert refused("POST", "/faults", Sec_Fetch_Site=site)


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_origin_that_is_not_the_page_is_refused(method: str, origin: str) -> None:
    """Also where an old browser says nothing of the site."""
    assert refused(method, Origin=origin)
    assert refused(method, Origin=origin, Sec_Fetch_Site="same-origin")


def test_the_page_itself_and_programs_are_let_in() -> None:
    """The page's own requests, a link to the page, and what is no browser."""
    assert not refused("POST", "/faults", Sec_Fetch_Site="same-origin", Origin=f"http://{HERE}")
    assert not refused("POST", "/faults")
    assert not refused("GET", "/", Sec_Fetch_Site="cross-site")
    assert not refused("GET", "/ledger", Sec_Fetch_Site="none")


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_what_the_page_is_made_of_is_for_the_page(site: str) -> None:
    """A site that embeds an address of the page learns nothing by it, and holds no stream of events open."""
    assert refused("GET", "/events", Sec_Fetch_Site=site)


def test_the_policy_has_no_way_around() -> None:
    """No script but the page's own file, no other host, no frame around the buttons."""
    policy = HEADERS["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert "http" not in policy
    for rule in ("default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "trusted-types 'none'"):
        assert rule in policy
