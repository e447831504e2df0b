"""Who we are and whom we talk to: the key, the addresses, and what a borrowed session may bring along."""

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

import aiohttp
import attrs

from flux2_async.errors import ConfigurationError

__all__ = ["Credentials", "check_borrowed", "make_credentials"]

BASE_URL: Final = "https://api.apikley.ru"

# A borrowed session's own headers reach every host, so only those that tell nobody anything may be there.
HARMLESS_HEADERS: Final = frozenset({"user-agent", "accept", "accept-language", "accept-encoding", "cache-control"})


@attrs.frozen
class Credentials:
    """The account and where it lives, checked when made.

    Attributes:
        api_key: Stripped of white space at its ends; never shown.
        base_url: The API's address without a slash at its end.
        upload_url: The address of the upload calls, likewise; by default `/file-upload` below the former.

    Raises:
        ConfigurationError: Something is missing or malformed.
    """

    api_key: str = attrs.field(repr=False)
    base_url: str
    upload_url: str

    def __attrs_post_init__(self) -> None:
        _check_key(self.api_key)
        _check_url("base_url", self.base_url)
        _check_url("upload_url", self.upload_url)


def _check_key(key: object) -> None:
    if not isinstance(key, str):
        raise ConfigurationError(
            f"api_key: {type(key).__name__} given, it must be text; or set the environment variable APIKLEY_API_KEY"
        )
    if not key:
        raise ConfigurationError(
            "no API key: pass Flux2Session(api_key=...) or set the environment variable APIKLEY_API_KEY; "
            "keys are made at https://app.apikley.ru/keys"
        )
    if not re.fullmatch(r"[!-~]+", key):
        raise ConfigurationError(
            "api_key: it holds a space, a line break or a character that no key has; copy it again, as one word"
        )


def _check_url(name: str, url: object) -> None:
    parts = _parts(url)
    if parts is None:
        shown = "an address with a user name" if "@" in str(url) else repr(url)
        raise ConfigurationError(f"{name}: {shown} given, it must look like https://api.apikley.ru (http or https)")
    if parts.username or parts.password:
        raise ConfigurationError(f"{name}: it holds a user name or password; the API takes the key only")
    if parts.query or parts.fragment or re.search(r"\s", str(url)):
        raise ConfigurationError(f"{name}: {url!r} given, it must be an address without white space, ? and #")


def _parts(url: object) -> SplitResult | None:
    """Take an http(s) address apart; None when it is none."""
    if not isinstance(url, str):
        return None
    try:
        parts = urlsplit(url)
        # Reading the port is what checks it.
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    return parts if usable else None


def make_credentials(
    api_key: str | None, base_url: str | None, upload_url: str | None, environ: Mapping[str, str]
) -> Credentials:
    """Fill up what was not given from the environment, then from the defaults.

    Raises:
        ConfigurationError: Something is missing or malformed.
    """
    key: Any = environ.get("APIKLEY_API_KEY", "") if api_key is None else api_key
    # An address that was given and is empty must not become another one: the key would go there.
    base = _bare(environ.get("APIKLEY_BASE_URL") or BASE_URL if base_url is None else base_url)
    if upload_url is None:
        # Pictures for a service that was named in the call must not go to the one the environment names.
        named = environ.get("APIKLEY_UPLOAD_URL") if base_url is None else None
        upload_url = named or f"{base}/file-upload"
    # What is no text at all is left for Credentials to refuse.
    return Credentials(key.strip() if isinstance(key, str) else key, base, _bare(upload_url))


def _bare(url: Any) -> Any:
    return url.strip().rstrip("/") if isinstance(url, str) else url


def check_borrowed(http: aiohttp.ClientSession) -> None:
    """Refuse a session that would show something of its own to hosts of pictures, or cannot be imitated.

    Raises:
        ConfigurationError: It would; the text says what to change.
    """
    if http.closed:
        raise ConfigurationError("http: the aiohttp.ClientSession is closed; pass an open one or None")
    # `auth` is deprecated and will be gone with aiohttp 4.
    if getattr(http, "auth", None) is not None:
        raise ConfigurationError("http: its `auth` would reach hosts of pictures; pass a session without it")
    for name in http.headers:
        if name.lower() not in HARMLESS_HEADERS:
            raise ConfigurationError(f"http: its default header {name!r} would reach hosts of pictures; remove it")
    connector = http.connector
    if connector is not None and type(connector) is not aiohttp.TCPConnector:
        raise ConfigurationError(
            f"http: createTask needs connections of its own, which cannot be made like those of a "
            f"{type(connector).__name__}; pass a session with a TCPConnector (and proxy=... or trust_env=True)"
        )
