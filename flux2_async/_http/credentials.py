"""Who we are and whom we talk to: the key and the addresses.

Error reporters print the local variables of every frame that an error passes. So the key goes about wrapped, and
nobody holds the environment.
"""

import os
import re
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

import aiohttp
import attrs

from flux2_async._protocol.refusals import Redactor
from flux2_async._shown.frames import without_frames
from flux2_async.errors import ConfigurationError

BASE_URL: Final = "https://api.apikley.ru"


class Secret:
    """Something that shows itself only when it is asked to.

    Args:
        value: Whatever was given for it; white space at its ends is dropped.
    """

    __slots__ = ("_value",)

    def __init__(self, value: object) -> None:
        self._value = value.strip() if isinstance(value, str) else value

    def __repr__(self) -> str:
        return "<secret>"

    def reveal(self) -> Any:
        """Give it; not to be kept in a variable."""
        return self._value


def _concealed(value: Secret | str) -> Secret:
    return value if isinstance(value, Secret) else Secret(value)


@attrs.frozen
class Credentials:
    """The account and where it lives, checked when made.

    Attributes:
        api_key: Never shown.
        base_url: The API's address without a slash at its end.
        upload_url: The address of the upload calls, likewise; by default `/file-upload` below the former.
        redact: Takes the key out of a text that is shown.

    Raises:
        ConfigurationError: Something is missing or malformed.
    """

    api_key: Secret = attrs.field(repr=False, converter=_concealed)
    base_url: str
    upload_url: str
    redact: Redactor = attrs.field(
        init=False, repr=False, default=attrs.Factory(lambda self: Redactor(self.api_key.reveal()), takes_self=True)
    )

    def __attrs_post_init__(self) -> None:
        _check_key(self.api_key)
        _check_url("base_url", self.base_url)
        _check_url("upload_url", self.upload_url)

    def authorize(self, request: aiohttp.ClientRequest) -> None:
        """Put the key on a request, over whatever a netrc file put there.

        To be called by a middleware: what is passed to aiohttp as an argument lies open in its frames.
        """
        request.headers["Authorization"] = f"Bearer {self.api_key.reveal()}"


# Straight ones and those that word processors make.
QUOTES: Final = frozenset("'\"`\u2018\u2019\u201c\u201d")


def _check_key(key: Secret) -> None:
    if not isinstance(key.reveal(), str):
        raise ConfigurationError(
            f"api_key: {type(key.reveal()).__name__} given, it must be text; or set the environment variable "
            "APIKLEY_API_KEY"
        )
    if not key.reveal():
        raise ConfigurationError(
            "no API key: pass Flux2Session(api_key=...) or set the environment variable APIKLEY_API_KEY; "
            "keys are made at https://app.apikley.ru/keys"
        )
    if {key.reveal()[0], key.reveal()[-1]} & QUOTES:
        raise ConfigurationError(
            "api_key: it is in quotes, which are no part of it; take them away (docker --env-file, for one, keeps them)"
        )
    if key.reveal().lower().startswith("bearer "):
        raise ConfigurationError("api_key: give the key alone, without the word Bearer before it")
    if not re.fullmatch(r"[!-~]+", key.reveal()):
        raise ConfigurationError(
            "api_key: it holds a space, a line break or a character that no key has; copy it again, as one word"
        )


def _check_url(name: str, url: object) -> None:
    parts = _parts(url)
    if parts is None:
        shown = "an address with a user name" if "@" in str(url) else _shown(url)
        raise ConfigurationError(f"{name}: {shown} given, it must look like https://api.apikley.ru (http or https)")
    if parts.username or parts.password:
        raise ConfigurationError(f"{name}: it holds a user name or password; the API takes the key only")
    if parts.query or parts.fragment or re.search(r"\s", str(url)):
        raise ConfigurationError(f"{name}: it must be an address without white space, ? and #")


def _shown(url: object) -> str:
    return repr(url) if isinstance(url, str) and not set("?#") & set(url) else type(url).__name__


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


def check_given(api_key: Secret | None, base_url: object, upload_url: object) -> None:
    """Check what was given; what the environment has is read when a session is opened.

    Raises:
        ConfigurationError: Something is malformed.
    """
    if api_key is not None:
        _check_key(api_key)
    for name, url in (("base_url", base_url), ("upload_url", upload_url)):
        if url is not None:
            _check_url(name, _bare(url))


@without_frames
def make_credentials(api_key: Secret | None, base_url: str | None, upload_url: str | None) -> Credentials:
    """Fill up what was not given from the environment, then from the defaults.

    Raises:
        ConfigurationError: Something is missing or malformed.
    """
    # An address that was given and is empty must not become another one: the key would go there.
    base = _bare(os.environ.get("APIKLEY_BASE_URL") or BASE_URL if base_url is None else base_url)
    if upload_url is None:
        # Pictures for a service that was named in the call must not go to the one the environment names.
        named = os.environ.get("APIKLEY_UPLOAD_URL") if base_url is None else None
        upload_url = named or f"{base}/file-upload"
    # What is no text at all is left for Credentials to refuse.
    return Credentials(
        Secret(os.environ.get("APIKLEY_API_KEY", "")) if api_key is None else api_key, base, _bare(upload_url)
    )


def _bare(url: Any) -> Any:
    return url.strip().rstrip("/") if isinstance(url, str) else url
