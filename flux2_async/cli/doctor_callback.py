"""What `flux2 doctor --callback-url` can find out about the way of callbacks, from inside."""

import ipaddress
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from typing import Final
from urllib.parse import urljoin, urlsplit

import aiohttp
import attrs

from flux2_async._http.failures import words_of
from flux2_async.cli.options import is_loopback
from flux2_async.errors import Flux2Error
from flux2_async.models import Callbacks
from flux2_async.session.callback_settings import VARIABLE as SECRET
from flux2_async.session.callback_settings import environment_secret
from flux2_async.webhooks import signed_url

TIMEOUT: Final = 15.0
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
    timeout = aiohttp.ClientTimeout(total=TIMEOUT)
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
