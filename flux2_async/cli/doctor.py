"""The checks of `flux2 doctor`: read-only calls that cost nothing."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urlsplit

import aiohttp
import attrs

from flux2_async._credentials import Credentials, make_credentials
from flux2_async.errors import AuthenticationError, ConfigurationError, Flux2Error
from flux2_async.models import Timeouts
from flux2_async.session import Flux2Session

__all__ = ["Check", "checks"]

TIMEOUT: Final = 10.0
# A Retry-After that is a date is read by this machine's clock.
MAX_SKEW: Final = 30.0
PLACEHOLDER: Final = "none"


@attrs.frozen
class Check:
    """One line of the doctor's report.

    Attributes:
        name: What was looked at.
        ok: Whether it is as it should be.
        detail: What was found.
        advice: What to do; empty when it is ok.
    """

    name: str
    ok: bool
    detail: str
    advice: str = ""


async def checks(environ: Mapping[str, str] = os.environ) -> AsyncIterator[Check]:
    """Look at everything a task needs.

    Args:
        environ: Where the key and the addresses are.

    Yields:
        One after the other, as they are found; nothing is created and nothing is charged.
    """
    key = _key(environ)
    yield key
    try:
        places = make_credentials(PLACEHOLDER, None, None, environ)
    except ConfigurationError as error:
        yield Check("addresses", False, str(error), "correct APIKLEY_BASE_URL and APIKLEY_UPLOAD_URL, or unset them")
        return
    async with aiohttp.ClientSession(trust_env=True, cookie_jar=aiohttp.DummyCookieJar()) as http:
        api, upload = await asyncio.gather(
            _reachable(http, "API", f"{places.base_url}/api/v1/chat/credit"),
            _reachable(http, "uploads", f"{places.upload_url}/api/file-stream-upload"),
        )
        yield api.check
        yield upload.check
        yield _clock(api if api.skew is not None else upload)
        if key.ok and api.check.ok:
            async for check in _account(http):
                yield check


def _key(environ: Mapping[str, str]) -> Check:
    try:
        make_credentials(None, PLACES.base_url, PLACES.upload_url, environ)
    except ConfigurationError as error:
        missing = not environ.get("APIKLEY_API_KEY", "").strip()
        found = "APIKLEY_API_KEY is not set" if missing else str(error)
        return Check("key", False, found, "export APIKLEY_API_KEY=... (keys are made at https://app.apikley.ru/keys)")
    return Check("key", True, "APIKLEY_API_KEY is set and well-formed")


# Only so that the key can be judged apart from the addresses.
PLACES: Final = Credentials(PLACEHOLDER, "https://localhost", "https://localhost")


@attrs.frozen
class _Answer:
    check: Check
    skew: float | None = None


async def _reachable(http: aiohttp.ClientSession, name: str, url: str) -> _Answer:
    """Ask without the key: any answer but a proxy's or a broken server's proves that somebody is there."""
    host = urlsplit(url).netloc
    timeout = aiohttp.ClientTimeout(total=TIMEOUT)
    try:
        async with http.get(url, allow_redirects=False, timeout=timeout) as response:
            status, date = response.status, response.headers.get("Date", "")
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        reason = "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
        advice = "check the address, the network and the proxy settings"
        return _Answer(Check(name, False, f"{host} cannot be reached ({reason})", advice))
    if status >= 500:  # noqa: PLR2004  HTTP's own class
        check = Check(name, False, f"{host} answers HTTP {status}", "the service has a problem; try again later")
    else:
        check = Check(name, True, f"{host} answers")
    return _Answer(check, _skew(date))


def _skew(date: str) -> float | None:
    try:
        served = parsedate_to_datetime(date)
        return (datetime.now(UTC) - served).total_seconds()
    except (ValueError, TypeError):
        return None


def _clock(answer: _Answer) -> Check:
    if answer.skew is None:
        return Check("clock", False, "no answer told the time", "make the addresses reachable, then look again")
    if abs(answer.skew) > MAX_SKEW:
        direction = "ahead of" if answer.skew > 0 else "behind"
        detail = f"this clock is {abs(answer.skew):.0f} s {direction} the server's"
        return Check("clock", False, detail, "set this machine's clock, best by NTP")
    # The Date header has whole seconds.
    return Check("clock", True, f"within {max(1.0, abs(answer.skew)):.0f} s of the server's")


async def _account(http: aiohttp.ClientSession) -> AsyncIterator[Check]:
    timeouts = Timeouts(connect=TIMEOUT, record=TIMEOUT)
    async with Flux2Session(http=http, timeouts=timeouts) as flux:
        try:
            balance = await flux.credits()
        except AuthenticationError as error:
            advice = "copy the key again from https://app.apikley.ru/keys, and look at its list of allowed addresses"
            yield Check("account", False, f"the key is not accepted ({error.code}: {error.message})", advice)
            return
        except Flux2Error as error:
            yield Check("account", False, f"the balance cannot be read: {error}", "try again later")
            return
    yield Check("account", True, "the key is accepted")
    yield Check("balance", balance > 0, f"{balance:g} credits", "" if balance > 0 else "top up the account")
