"""Addresses as they are requested, where a redirect leads to, and which lie in a private network."""

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flux2_async._protocol import addresses, converter

FIT = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="#"))


@given(FIT)
@example("/a%2Fb%28c%29~%7E%27'//d/../e;f=g,h?X-Signature=a%2bB+c==&q=%20&")
@example("?")
@example("")
def test_what_may_stand_in_a_request_line_stays(rest: str) -> None:
    """Byte for byte: signatures are made over the address as it is written."""
    target = rest if rest.startswith("/") else f"/{rest}"
    if rest == "" or rest[0] in "/?":
        assert addresses.split_address(f"https://h.example:8443{rest}#fragment") == ("https://h.example:8443", target)


@given(FIT)
def test_what_a_record_says_is_kept_as_it_is_written(rest: str) -> None:
    """On the way from a reply to a request an address is only looked at."""
    assert converter.http_address(f"https://h.example/{rest}") == f"https://h.example/{rest}"


@given(st.text())
@example("/bild 1.png")
@example("/\u00a0\u0416\n\udce9")
@example("/\ud800")
def test_only_what_may_not_is_escaped(rest: str) -> None:
    """Spaces, control characters and what is not ASCII; nothing can end the request line. Or the address is refused."""
    try:
        _, target = addresses.split_address(f"http://h/{rest}")
    except ValueError:
        assert any("\ud800" <= character <= "\udfff" for character in rest)
        return
    assert all("!" <= character <= "~" for character in target)
    kept = "".join(character for character in rest.partition("#")[0] if "!" <= character <= "~")
    assert [character for character in target if character not in "%0123456789ABCDEF"] == [
        character for character in f"/{kept}" if character not in "%0123456789ABCDEF"
    ]


def test_bytes_of_a_header_are_escaped_as_they_came() -> None:
    """A Location in Latin-1 leads to the same bytes."""
    assert addresses.split_address("http://h/caf\udce9") == ("http://h", "/caf%E9")


@pytest.mark.parametrize("address", ["", "/a", "ftp://h/a", "http:/h", "file:///etc/passwd", "//h/a"])
def test_other_addresses_are_refused(address: str) -> None:
    """Only http and https are fetched."""
    with pytest.raises(ValueError, match="http"):
        addresses.split_address(address)


@pytest.mark.parametrize(
    ("location", "address"),
    [
        ("https://b/x%2Fy?z", "https://b/x%2Fy?z"),
        ("HTTPS://b", "HTTPS://b"),
        ("//b/x", "http://b/x"),
        ("/x//y%28", "http://h:1/x//y%28"),
        ("x%2Fy", "http://h:1/a/x%2Fy"),
        ("./x", "http://h:1/a/x"),
        ("../x", "http://h:1/x"),
        ("../../../x", "http://h:1/x"),
        ("?x=%2F", "http://h:1/a/b%2Fc?x=%2F"),
        ("", "http://h:1/a/b%2Fc?q=1"),
        ("#end", "http://h:1/a/b%2Fc?q=1"),
        (" /x ", "http://h:1/x"),
        ("x?y=http://z/", "http://h:1/a/x?y=http://z/"),
        ("ftp://b/x", "ftp://b/x"),
    ],
)
def test_where_a_redirect_leads(location: str, address: str) -> None:
    """Absolute or relative, byte for byte."""
    assert addresses.redirected("http://h:1/a/b%2Fc?q=1", location) == address


@pytest.mark.parametrize(
    ("number", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::808:808", True),
        ("2002:808:808::1", True),
        ("10.0.0.1", False),
        ("100.64.0.1", False),
        ("127.0.0.1", False),
        ("169.254.169.254", False),
        ("0.0.0.0", False),  # noqa: S104  a case
        ("224.0.0.1", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("ff02::1", False),
    ],
)
def test_numbers_of_private_networks(number: str, public: bool) -> None:
    """Also where IPv6 wraps an IPv4 address."""
    assert addresses.is_public_number(number) == public


@given(
    st.ip_addresses(network="10.0.0.0/8")
    | st.ip_addresses(network="192.168.0.0/16")
    | st.ip_addresses(network="fc00::/7")
)
def test_no_private_number_is_public(number: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    """None of those that are reserved for private networks."""
    assert not addresses.is_public_number(str(number))
