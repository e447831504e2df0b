"""Who we are and whom we talk to: the key and the addresses.

Error reporters print the local variables of every frame that an error passes. So the key goes about wrapped, and
nobody holds the environment.
"""

import hashlib
import os
import re
from typing import Any, Final

import aiohttp
import attrs
from multidict import CIMultiDict

from flux2_async._shown.frames import Secret, without_frames
from flux2_async._shown.text import Redactor
from flux2_async._shown.version import USER_AGENT
from flux2_async.errors import ConfigurationError
from flux2_async.models.service import APIKLEY, Service, bare_address, check_address


def _behind_ours(words: str) -> str:
    return words if words.startswith(USER_AGENT) else f"{USER_AGENT} {words}".rstrip()


def _concealed(value: Secret | str) -> Secret:
    return value if isinstance(value, Secret) else Secret(value)


@attrs.frozen(eq=False, repr=False)
class Credentials:
    """The account and where it lives, checked when made.

    Attributes:
        api_key: Never shown.
        base_url: The API's address without a slash at its end.
        upload_url: The address of the upload calls, likewise; by default `/file-upload` below the former.
        service: What else is its own.
        headers: The caller's, for every call to the service; they outrank those of the service.
        user_agent: The caller's words behind ours, for hosts of files as well; empty for none.
        redact: Takes the key out of a text that is shown.

    Raises:
        ConfigurationError: Something is missing or malformed.
    """

    api_key: Secret = attrs.field(repr=False, converter=_concealed)
    base_url: str
    upload_url: str
    service: Service = APIKLEY
    headers: Secret = attrs.field(factory=lambda: Secret({}))
    user_agent: str = attrs.field(default=USER_AGENT, converter=_behind_ours)
    redact: Redactor = attrs.field(
        init=False, repr=False, default=attrs.Factory(lambda self: Redactor(self.api_key.reveal()), takes_self=True)
    )
    # All that `authorize` puts on, of the kind that a request holds, since each call needs it.
    _put_on: Secret = attrs.field(
        init=False, repr=False, default=attrs.Factory(lambda self: self._all_headers(), takes_self=True)
    )

    def __attrs_post_init__(self) -> None:
        _check_key(self.api_key, self.service)
        check_address("base_url", self.base_url)
        check_address("upload_url", self.upload_url)

    @property
    def account(self) -> str:
        """A digest of address and key."""
        return hashlib.sha256(f"{self.base_url} {self.api_key.reveal()}".encode()).hexdigest()

    def authorize(self, request: aiohttp.ClientRequest) -> None:
        """Put the key on a request, over whatever a netrc file put there, and the headers of all calls.

        To be called by a middleware: what is passed to aiohttp as an argument lies open in its frames.
        """
        request.headers.update(self._put_on.reveal())

    def _all_headers(self) -> Secret:
        headers = Secret(CIMultiDict({"Accept": "application/json"}))
        headers.reveal().update(self.service.headers)
        headers.reveal().update(self.headers.reveal())
        headers.reveal()["User-Agent"] = self.user_agent
        headers.reveal()["Authorization"] = f"Bearer {self.api_key.reveal()}"
        return headers


# Straight ones and those that word processors make.
QUOTES: Final = frozenset("'\"`\u2018\u2019\u201c\u201d")


def _check_key(key: Secret, service: Service | None = None, name: str = "api_key") -> None:
    variable = (service or APIKLEY).key_variable
    way = f" or set the environment variable {variable}" if variable else ", since the service names no variable for it"
    if not isinstance(key.reveal(), str):
        raise ConfigurationError(f"{name}: {type(key.reveal()).__name__} given, it must be text;{way}")
    if not key.reveal():
        made = "; keys are made at https://app.apikley.ru/keys, and `flux2 emulator` does without an account"
        raise ConfigurationError(
            f"no API key: pass Flux2Session(api_key=...){way}{made * (variable == APIKLEY.key_variable)}"
        )
    if {key.reveal()[0], key.reveal()[-1]} & QUOTES:
        raise ConfigurationError(
            f"{name}: it is in quotes, which are no part of it; take them away (docker --env-file, for one, keeps them)"
        )
    if key.reveal().lower().startswith("bearer "):
        raise ConfigurationError(f"{name}: give the key alone, without the word Bearer before it")
    if not re.fullmatch(r"[!-~]+", key.reveal()):
        raise ConfigurationError(
            f"{name}: it holds a space, a line break or a character that no key has; copy it again, as one word"
        )


def check_given(api_key: Secret | None, base_url: object, upload_url: object, service: Service | None = None) -> None:
    """Check what was given; what the environment has is read when a session is opened.

    Raises:
        ConfigurationError: Something is malformed, or an address is given twice.
    """
    if not isinstance(service, Service | None):
        raise ConfigurationError(f"service: {type(service).__name__} given, it must be a Service such as KIE, or None")
    if api_key is not None:
        _check_key(api_key, service)
    for name, url in (("base_url", base_url), ("upload_url", upload_url)):
        if url is not None:
            check_address(name, bare_address(url))
            if service is not None:
                raise ConfigurationError(
                    f"{name}: given besides a service, which has its own; give one of the two, or change the service: "
                    f"attrs.evolve(service, {name}=...)"
                )


@without_frames
def make_credentials(
    api_key: Secret | None, base_url: str | None, upload_url: str | None, service: Service | None = None, **others: Any
) -> Credentials:
    """Fill up what was not given from the environment, then from the defaults.

    A service that was given has its addresses, and its key under a name of its own: what the environment says of
    Apikley's is not meant for it. `others` are further attributes of `Credentials`.

    Raises:
        ConfigurationError: Something is missing or malformed.
    """
    if service is not None:
        return Credentials(_found(api_key, service), service.base_url, service.uploads_at, service, **others)
    # An address that was given and is empty must not become another one: the key would go there.
    base = _found_address("APIKLEY_BASE_URL", APIKLEY.base_url) if base_url is None else bare_address(base_url)
    if upload_url is None:
        upload_url = f"{base}/file-upload"
        # Pictures for a service that was named in the call must not go to the one the environment names.
        if base_url is None:
            upload_url = _found_address("APIKLEY_UPLOAD_URL", upload_url)
    # What is no text at all is left for Credentials to refuse.
    return Credentials(_found(api_key, APIKLEY), base, bare_address(upload_url), **others)


def _found(api_key: Secret | None, service: Service) -> Secret:
    if api_key is not None:
        return api_key
    variable = service.key_variable
    key = Secret(os.environ.get(variable, "") if variable else "")
    _check_key(key, service, variable or "api_key")
    return key


def _found_address(variable: str, default: str) -> str:
    if not (address := os.environ.get(variable)):
        return default
    check_address(variable, address := bare_address(address))
    return str(address)
