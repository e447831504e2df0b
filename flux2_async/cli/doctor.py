"""The checks of `flux2 doctor`: read-only calls that cost nothing, and one callback that names no task."""

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlsplit

import aiohttp

from flux2_async._http.api import CREDITS, UPLOAD
from flux2_async._http.credentials import Secret, make_credentials
from flux2_async._http.failures import words_of
from flux2_async._protocol.refusals import http_date
from flux2_async.cli.doctor_callback import Check, callback_checks
from flux2_async.cli.options import key_variable, named_service
from flux2_async.errors import AuthenticationError, ConfigurationError, Flux2Error, NotFoundError, ProtocolError
from flux2_async.models import Timeouts
from flux2_async.session.session import Flux2Session

TIMEOUT: Final = 10.0
# A Retry-After that is a date is read by this machine's clock.
MAX_SKEW: Final = 30.0


async def checks(callback_url: str | None = None) -> AsyncIterator[Check]:
    """Look at everything a task needs, with the key and the addresses of the environment.

    They are given one after the other, as they are found; nothing is created and nothing is charged.
    """
    key = _key()
    yield key
    try:
        # Any word for the key, so that the addresses alone are judged.
        places = make_credentials(Secret("none"), None, None, named_service())
    except ConfigurationError as error:
        yield Check("addresses", str(error), "correct APIKLEY_BASE_URL and APIKLEY_UPLOAD_URL, or unset them")
        return
    async with aiohttp.ClientSession(trust_env=True, cookie_jar=aiohttp.DummyCookieJar()) as http:
        (api, skew), (upload, other) = await asyncio.gather(
            _reachable(http, "API", f"{places.base_url}{places.service.api_path}{CREDITS.path}"),
            _reachable(http, "uploads", f"{places.upload_url}{UPLOAD.path}"),
        )
        yield api
        yield upload
        yield _clock(other if skew is None else skew)
        if key.ok and api.ok:
            async for check in _account(http):
                yield check
    if callback_url is not None:
        async for check in callback_checks(callback_url, places.base_url):
            yield check


def _key() -> Check:
    service, variable = named_service(), key_variable()
    # An address that is certainly well-formed, so that the key alone is judged.
    address = "https://localhost" if service is None else None
    try:
        make_credentials(None, address, address, service)
    except ConfigurationError as error:
        missing = not os.environ.get(variable, "").strip()
        found = f"{variable} is not set" if missing else str(error)
        made = " (keys are made at https://app.apikley.ru/keys)" if service is None else ""
        return Check("key", found, f"export {variable}=...{made}")
    return Check("key", f"{variable} is set and well-formed")


async def _reachable(http: aiohttp.ClientSession, name: str, url: str) -> tuple[Check, float | None]:
    """Ask without the key: any answer, also a refusal, proves that the service is there; give the `clock_skew` too."""
    host = urlsplit(url).netloc
    timeout = aiohttp.ClientTimeout(total=TIMEOUT)
    try:
        async with http.get(url, allow_redirects=False, timeout=timeout) as response:
            status, date = response.status, response.headers.get("Date", "")
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        # What is said there of what to do is said here with more.
        reason = words_of(error).partition(";")[0]
        return Check(name, f"{host}: {reason}", "check the address, the network and the proxy settings"), None
    if status >= 500:  # noqa: PLR2004  HTTP's own class
        check = Check(name, f"{host} answers HTTP {status}", "the service has a problem; try again later")
    else:
        check = Check(name, f"{host} answers")
    return check, clock_skew(date)


def clock_skew(date: str) -> float | None:
    """Give the seconds by which this clock is ahead of a server that told its `Date`; None where it told none."""
    served = http_date(date)
    return None if served is None else (datetime.now(UTC) - served).total_seconds()


def _clock(skew: float | None) -> Check:
    if skew is None:
        return Check("clock", "no answer told the time", "make the addresses reachable, then try again")
    if abs(skew) > MAX_SKEW:
        direction = "ahead of" if skew > 0 else "behind"
        detail = f"this clock is {abs(skew):.0f} s {direction} the server's"
        return Check("clock", detail, "set this machine's clock, best by NTP")
    # The Date header has whole seconds.
    return Check("clock", f"within {max(1.0, abs(skew)):.0f} s of the server's")


async def _account(http: aiohttp.ClientSession) -> AsyncIterator[Check]:
    timeouts = Timeouts(connect=TIMEOUT, record=TIMEOUT)
    async with Flux2Session(service=named_service(), http=http, timeouts=timeouts) as flux:
        try:
            balance = await flux.credits()
        except AuthenticationError as error:
            apikley = " from https://app.apikley.ru/keys" if named_service() is None else ""
            advice = f"copy the key again{apikley} into {key_variable()}, and check its list of allowed addresses"
            yield Check("account", f"the key is not accepted ({error.code}: {error.message})", advice)
            return
        except (NotFoundError, ProtocolError) as error:
            advice = "correct APIKLEY_BASE_URL" if named_service() is None else "try again later"
            yield Check("account", f"no answer of the API ({error})", advice)
            return
        except Flux2Error as error:
            yield Check("account", f"the balance cannot be read: {error}", "try again later")
            return
    yield Check("account", "the key is accepted")
    yield Check("balance", f"{balance:.10g} credits", "" if balance > 0 else "top up the account")
