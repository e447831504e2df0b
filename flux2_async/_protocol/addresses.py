"""Addresses as they are requested, where a redirect leads to, and which lie in a private network. Pure."""

import ipaddress
import re
from functools import lru_cache
from typing import Final
from urllib.parse import quote

ADDRESS: Final = re.compile(r"(https?://[^/?#]*)([^#]*)(?:#.*)?", re.IGNORECASE | re.DOTALL)
SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
UNFIT: Final = re.compile(r"[^!-~]+")

# Stricter than any parser of addresses: no user, no escape, no backslash and no foreign letter, which one parser takes
# for a part of the host and another one does not. U+017F is one, which `re.IGNORECASE` alone takes for an s.
STRICT_ADDRESS: Final = re.compile(
    r"(?i:https?)://(?:\[([0-9A-Fa-f:.]+)\]|([0-9A-Za-z_.-]+))(?::[0-9]{1,5})?(?=[/?#]|\Z)", re.ASCII
)
NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*", re.IGNORECASE)
LOCAL_DOMAINS: Final = (
    ".localhost", ".localdomain", ".local", ".internal", ".intranet", ".private", ".lan", ".home", ".corp",
    ".home.arpa",
)  # fmt: skip
# Outside lie the addresses that wrap an IPv4 one (mapped, NAT64), and 2002: is a third way to wrap one.
GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
SIX_TO_FOUR: Final = ipaddress.IPv6Network("2002::/16")
# An IPv4 address as a network that has IPv6 only hands it out.
NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


def split_address(address: str) -> tuple[str, str]:
    """Take an address apart for a request.

    Nothing in it is decoded, encoded anew or tidied: it may be signed.

    Returns:
        Scheme and host, such as `https://host:8080`, and what stands in the request line, where only spaces, control
        characters and what is not ASCII are escaped.

    Raises:
        ValueError: It is no http(s) address.
    """
    match = ADDRESS.fullmatch(address)
    if match is None:
        raise ValueError("no http(s) address")
    # Bytes of headers that are no UTF-8 come as surrogates.
    target = UNFIT.sub(lambda unfit: quote(unfit[0].encode("utf-8", "surrogateescape")), match[2])
    return match[1], target if target.startswith("/") else f"/{target}"


def redirected(address: str, location: str) -> str:
    """Give the address that a Location header leads to, seen from the address that was requested.

    Raises:
        ValueError: It is no http(s) address.
    """
    location = location.strip().partition("#")[0]
    if SCHEME.match(location):
        return location
    origin, target = split_address(address)
    path = target.partition("?")[0]
    if location.startswith("//"):
        return origin.partition("//")[0] + location
    if location.startswith("/"):
        return origin + location
    if not location or location.startswith("?"):
        return origin + (path if location else target) + location
    folder = path.rpartition("/")[0]
    while location.startswith(("./", "../")):
        step, _, location = location.partition("/")
        folder = folder.rpartition("/")[0] if step == ".." else folder
    return f"{origin}{folder}/{location}"


def is_public_number(text: str) -> bool:
    """Whether an IP address, as a connection has it, can be reached from everywhere.

    Raises:
        ValueError: It is none.
    """
    number = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(number, ipaddress.IPv6Address):
        inner = number.ipv4_mapped or number.sixtofour
        if number in NAT64:
            inner = ipaddress.IPv4Address(number.packed[-4:])
        if inner is None:
            return number.is_global and number in GLOBAL_UNICAST
        number = inner
    return number.is_global and not number.is_multicast


def is_public_address(url: str) -> bool:
    """Whether the host of an http(s) address is written as a public one: a number, or a name of several labels."""
    address = STRICT_ADDRESS.match(url)
    if address is None:
        return False
    try:
        return _is_public_v6(address[1]) if address[1] else _is_public_host(address[2].lower().removesuffix("."))
    except ValueError:
        return False


def _is_public_v6(text: str) -> bool:
    number = ipaddress.IPv6Address(text)
    return number.is_global and number in GLOBAL_UNICAST and number not in SIX_TO_FOUR


# A service's pictures lie on one host, or a few.
@lru_cache(maxsize=16)
def _is_public_host(host: str) -> bool:
    labels = host.split(".")
    if NUMBER.fullmatch(labels[-1]):
        # 127.1, 0x7f.0.0.1 and the like are numbers to the resolver; here they raise.
        number = ipaddress.IPv4Address(host)
        return number.is_global and not number.is_multicast
    return len(labels) > 1 and all(labels) and not f".{host}".endswith(LOCAL_DOMAINS)
