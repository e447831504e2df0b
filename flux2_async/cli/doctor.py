"""The checks of `flux2 doctor`: read-only calls that cost nothing, and one callback that names no task."""

import asyncio
import ipaddress
import json
import os
import secrets
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urljoin, urlsplit

import aiohttp
import attrs

from flux2_async._http.api import CREDITS, UPLOAD
from flux2_async._http.credentials import make_credentials
from flux2_async._http.failures import words_of
from flux2_async._protocol.refusals import http_date
from flux2_async._shown.frames import Secret
from flux2_async.cli.options import EMULATOR, is_loopback, key_variable, named_service
from flux2_async.errors import AuthenticationError, ConfigurationError, Flux2Error, NotFoundError, ProtocolError
from flux2_async.models import Callbacks, Timeouts
from flux2_async.session.callback_settings import VARIABLE as SECRET
from flux2_async.session.callback_settings import environment_secret
from flux2_async.session.session import Flux2Session
from flux2_async.webhooks import signed_url

TIMEOUT: Final = 10.0
CALLBACK_TIMEOUT: Final = 15.0
# A Retry-After that is a date is read by this machine's clock.
MAX_SKEW: Final = 30.0
# It has the shape of a callback and names no task, so that a receiver wakes nothing: it answers 400, after it has
# checked the signature of the address.
BODY: Final = json.dumps({"code": 200, "msg": "flux2 doctor", "data": {}}).encode()
NOT_PROVEN: Final = (
    "whether the service reaches it from outside (its name there, firewalls) only a callback proves; the session warns "
    "when one does not come"
)
ADVICE: Final[Mapping[int, str]] = {
    403: "let POSTs through that have no cookie and no header of yours (a firewall, CSRF protection)",
    404: "mount the receiver at this path; a mount's address ends in a slash",
    405: "mount the receiver at this path; what is there takes no POST",
    413: "raise the bound of what stands in front of the receiver: callbacks may be some hundred kilobytes",
    503: "open the session that the receiver belongs to",
}


@attrs.frozen
class Check:
    """One line of the doctor's report; the advice is empty when there is nothing to do.

    `known` is whether it could be looked at; False is no failure.
    """

    name: str
    detail: str
    advice: str = ""
    known: bool = True

    @property
    def ok(self) -> bool:
        """Whether all is as it should be."""
        return not self.advice


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
        made = f" (keys are made at https://app.apikley.ru/keys; without an {EMULATOR})" if service is None else ""
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


async def callback_checks(url: str, service_url: str) -> AsyncIterator[Check]:
    """Call the receiver's address once as the service would, signed where the environment has the secret.

    A service whose own address is on this machine, as an emulator's is, reaches what we reach.
    """
    secret = environment_secret()
    ref = f"flux2-doctor-{secrets.token_hex(4)}"
    try:
        address = signed_url(Callbacks(url).url, ref, secret or secrets.token_hex(16))
    except Flux2Error as error:
        yield Check("callback", str(error), "give the address that the service is to call")
        return
    inside, service = (_is_inside(urlsplit(each).hostname or "") for each in (url, service_url))
    if inside and not (service and (is_loopback(service) or not is_loopback(inside))):
        where = "this machine alone" if is_loopback(inside) else "the inside"
        yield Check("callback", f"{inside} is an address of {where}", "give one that the service reaches")
    yield await _call(address, signed=bool(secret))
    if not is_loopback(service):
        yield Check("outside", NOT_PROVEN, known=False)


def _is_inside(host: str) -> str:
    """The host, where it is none that anybody outside could reach; else nothing."""
    try:
        return "" if ipaddress.ip_address(host).is_global else host
    except ValueError:
        return host if host == "localhost" or host.endswith((".localhost", ".local", ".internal")) else ""


async def _call(address: str, *, signed: bool) -> Check:
    timeout = aiohttp.ClientTimeout(total=CALLBACK_TIMEOUT)
    headers = {"Content-Type": "application/json", "User-Agent": "flux2 doctor"}
    host = urlsplit(address).netloc.rpartition("@")[2]
    try:
        async with (
            aiohttp.ClientSession(trust_env=True, cookie_jar=aiohttp.DummyCookieJar()) as http,
            http.post(address, data=BODY, headers=headers, allow_redirects=False, timeout=timeout) as response,
        ):
            status, location = response.status, response.headers.get("Location", "")
            ours = status in (400, 401) and await _is_receivers(response, status)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        reason = words_of(error).partition(";")[0]
        return Check("callback", f"{host}: {reason}", "make the address reachable, with a certificate that all trust")
    if ours:
        return _of_receiver(status, signed=signed)
    if 300 <= status < 400:  # noqa: PLR2004  HTTP's own class
        there = urlsplit(urljoin(address, location))
        where = f"{there.scheme}://{there.netloc.rpartition('@')[2]}{there.path}"
        return Check(
            "callback", f"it redirects to {where} (HTTP {status})", "give that address: the service follows none"
        )
    advice = ADVICE.get(status, "let the address lead to the receiver: see flux2_async.receivers")
    return Check("callback", f"it answers HTTP {status}, which no receiver of a session does here", advice)


async def _is_receivers(response: aiohttp.ClientResponse, status: int) -> bool:
    """Whether an answer has the shape of a receiver's."""
    try:
        answer = json.loads(await response.content.read(1000))
    except (ValueError, RecursionError):
        return False
    return isinstance(answer, dict) and answer.get("code") == status and "msg" in answer


def _of_receiver(status: int, *, signed: bool) -> Check:
    if status == 400:  # noqa: PLR2004  what it answers to a body that names no task
        return Check("callback", "a receiver answers, and takes the signature" if signed else "a receiver answers")
    if signed:
        return Check(
            "callback", "a receiver answers, and refuses the signature", f"give the session the secret of {SECRET}"
        )
    return Check("callback", f"a receiver answers, and refuses what is not signed; {SECRET} would try a signature")
