"""What every receiver does with a request: check it, let the session use it, and answer; polls come afterwards.

The order of the checks is method, size, signature of the address, body, signature of the service. Whoever fails one
learns nothing about the next, and wakes nothing; a packed body is unpacked for those who signed the address. Logs hold
ids and kinds of errors, never what a request brought.
"""

import asyncio
import json
import logging
import time
import traceback
import zlib
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Final, NoReturn, Protocol

import attrs

from flux2_async._protocol.refusals import header
from flux2_async.errors import ConfigurationError, ProtocolError
from flux2_async.session.callback_entries import MAX_RECORD
from flux2_async.session.callback_settings import CallbackSettings
from flux2_async.webhooks import Callback, parse_callback, verify_signature, verify_url

MAX_BODY: Final = 1024 * 1024
"""Bytes; a callback with the longest prompt has a tenth of that."""

READ_TIMEOUT: Final = 15.0
"""Seconds for the whole body: no sender waits longer for the answer."""

Read = Callable[[], Awaitable[tuple[bytes, bool]]]
"""Gives the next part of a body and whether more follows; raises `DisconnectedError` where it ends too early."""

# As many as aiohttp takes.
_MAX_MEMBERS: Final = 1024
_GZIP: Final = 16
# Nothing that is packed begins like this.
_BEGINS_JSON: Final = frozenset((b"", b" ", b"\t", b"\r", b"\n", b"{", b"[", b"\xef"))

logger = logging.getLogger("flux2_async")


class CallbackTarget(Protocol):
    """What a receiver needs of a session; `Flux2Session` is one."""

    @property
    def callback_settings(self) -> CallbackSettings | None:
        """What addresses and bodies are checked by; None: it expects no callbacks."""

    def accepts_callbacks(self) -> bool:
        """Whether `deliver` takes callbacks now."""
        ...

    async def deliver(self, ref: str, callback: Callback, /) -> bool:
        """Use a callback whose address was checked; False: it is to come again, see `Flux2Session.deliver`."""
        ...


# Made twice as fast as a frozen one, for each request.
@attrs.define(eq=False)
class Incoming:
    """One request, which nobody changes.

    Attributes:
        method: In capitals.
        query: As it came, percent-encoded.
        headers: The case of their names does not matter.
        content_length: Bytes as declared, or None; what is here already tells its length by itself.
        read: Reads the body, where it is not here.
        body: The body where all of it is here already, so that reading it need not wait; else None.
        unpacks: Whether the server unpacks bodies by itself, as far as it can, and leaves the header that says how.
        packing: That header, Content-Encoding, or None.
    """

    method: str
    query: str = attrs.field(repr=False)
    headers: Mapping[str, str] = attrs.field(repr=False)
    content_length: int | None
    read: Read = attrs.field(repr=False)
    body: bytes | None = attrs.field(default=None, repr=False)
    unpacks: bool = attrs.field(default=False, repr=False)
    packing: str | None = attrs.field(default=None, repr=False)


@attrs.frozen
class Answer:
    """What to send back.

    Attributes:
        status: The HTTP status.
        body: JSON; empty where the method allows none.
        headers: Of the answer, without its length.
    """

    status: int
    body: bytes
    headers: Mapping[str, str]


class DisconnectedError(Exception):
    """The rest of the body will not come."""


class _RefusedError(Exception):
    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status)
        self.status = status


def settings_of(flux: CallbackTarget) -> CallbackSettings:
    """The settings of a session that expects callbacks.

    Raises:
        ConfigurationError: It was made without `callbacks`.
    """
    settings = flux.callback_settings
    if settings is None:
        raise ConfigurationError(
            "the session expects no callbacks; make it with Flux2Session(callbacks=Callbacks(...))"
        )
    return settings


def declared_length(value: str | None) -> int | None:
    """Read Content-Length, None where it is missing or no number; more digits than any body has are a large number."""
    if value is None or not (value.isascii() and value.isdigit()):
        return None
    # Python refuses to read very many, and ten say enough.
    return int(value.lstrip("0")[:10] or "0")


async def handle(flux: CallbackTarget, incoming: Incoming) -> Answer:
    """Check one request, reading no more of it than needed, hand it to the session, and decide on the answer.

    Returns:
        200 when the callback is taken, and kept where only it tells of a task and the session shares an account; 405,
        413, 401 or 400 by the first check that fails, 408 when the body does not come in 15 seconds; 503 while the
        session is not open, or cannot keep it, so that the sender tries again; 500 for a defect of ours.
    """
    try:
        await _deliver(flux, *await _checked(flux, incoming))
    except _RefusedError as refused:
        return _answer(refused.status, refused.status.phrase.lower(), empty=incoming.method == "HEAD")
    except Exception as error:  # noqa: BLE001  whatever it is, the sender gets an answer
        _log_defect("a callback could not be checked", error)
        return _answer(HTTPStatus.INTERNAL_SERVER_ERROR, "internal server error")
    return _TAKEN


async def _checked(flux: CallbackTarget, incoming: Incoming) -> tuple[str, Callback]:
    if incoming.method != "POST":
        _refuse(HTTPStatus.METHOD_NOT_ALLOWED)
    body = incoming.body
    if body is None:
        _check_size(incoming.content_length or 0)
        body = await _read(incoming.read)
    _check_size(len(body or b""))
    settings = settings_of(flux)
    ref = verify_url(incoming.query, settings.secret)
    if ref is None:
        _refuse(HTTPStatus.UNAUTHORIZED, "wrong or no signature in the address")
    if body is None or incoming.packing is not None:
        body = _unpacked(incoming, body)
    # What a large one says of its task is not worth its memory: polling tells the same.
    try:
        callback = parse_callback(body, read_record=not settings.confirm and len(body) <= MAX_RECORD)
    except ProtocolError:
        _refuse(HTTPStatus.BAD_REQUEST, f"submission {ref}: no JSON that names a task")
    if settings.hmac_key is not None and not _is_signed(callback.task_id, incoming.headers, settings.hmac_key):
        _refuse(
            HTTPStatus.UNAUTHORIZED,
            f"submission {ref}: wrong, stale or no X-Webhook-Signature; check hmac_key and the clock of this machine",
        )
    if not flux.accepts_callbacks():
        _refuse(HTTPStatus.SERVICE_UNAVAILABLE, f"submission {ref}: the session is not open")
    return ref, callback


def _check_size(size: int) -> None:
    if size > MAX_BODY:
        _refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)


async def _read(read: Read) -> bytes | None:
    """Read a body, or as much as shows that it is too large; None where the rest will not come."""
    body, more = bytearray(), True
    try:
        async with asyncio.timeout(READ_TIMEOUT):
            while more and len(body) <= MAX_BODY:
                part, more = await read()
                body += part
    except TimeoutError:
        _refuse(HTTPStatus.REQUEST_TIMEOUT)
    except DisconnectedError:
        return None
    return bytes(body)


def _unpacked(incoming: Incoming, body: bytes | None) -> bytes:
    words = (incoming.packing or "").lower().replace(" ", "").split(",")
    packing = [word for word in words if word not in ("", "identity")]
    if packing and packing not in (["gzip"], ["x-gzip"], ["deflate"]):
        # As aiohttp does by itself where it does not know a coding.
        _refuse(HTTPStatus.BAD_REQUEST, "the body is compressed, but not by gzip or deflate")
    if body is None:
        _refuse(HTTPStatus.BAD_REQUEST, "the body was cut short")
    if not packing or (incoming.unpacks and body[:1] in _BEGINS_JSON):
        return body
    try:
        unpacked = _decompressed(body, deflate=packing == ["deflate"])
    except zlib.error:
        _refuse(HTTPStatus.BAD_REQUEST, "the body cannot be unpacked")
    _check_size(len(unpacked))
    return unpacked


def _decompressed(body: bytes, *, deflate: bool) -> bytes:
    """Unpack a body, all its members and nothing behind them, or as much as shows that it is too large.

    As aiohttp unpacks what its server receives.

    Raises:
        zlib.error: It is packed in another way, or something else follows.
    """
    if deflate:
        # It comes with zlib's head or without.
        form = zlib.MAX_WBITS if body[:1] and body[0] & 0x0F == zlib.DEFLATED else -zlib.MAX_WBITS
    else:
        form = zlib.MAX_WBITS | _GZIP
    unpacked = bytearray()
    for _ in range(_MAX_MEMBERS):
        member = zlib.decompressobj(form)
        unpacked += member.decompress(body, MAX_BODY + 1 - len(unpacked))
        if len(unpacked) > MAX_BODY:
            return bytes(unpacked)
        if not member.unused_data:
            if deflate and not member.eof:
                raise zlib.error("it is cut")
            return bytes(unpacked)
        body = member.unused_data
    raise zlib.error("too many members")


def _is_signed(task_id: str, headers: Mapping[str, str], hmac_key: str) -> bool:
    timestamp, signature = header(headers, "x-webhook-timestamp"), header(headers, "x-webhook-signature")
    return verify_signature(task_id, timestamp, signature, hmac_key, time.time())


def _refuse(status: HTTPStatus, reason: str | None = None) -> NoReturn:
    logger.info("callback refused (%d): %s", status, reason or status.phrase.lower())
    raise _RefusedError(status) from None


def _answer(status: HTTPStatus, message: str, *, empty: bool = False) -> Answer:
    headers = {"Content-Type": "application/json"}
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = "POST"
    body = json.dumps({"code": int(status), "msg": message}, separators=(",", ":")).encode()
    return Answer(int(status), b"" if empty else body, headers)


_TAKEN: Final = _answer(HTTPStatus.OK, "success")


async def _deliver(flux: CallbackTarget, ref: str, callback: Callback) -> None:
    try:
        kept = await flux.deliver(ref, callback)
    except Exception as error:  # noqa: BLE001  the sender can do nothing about a defect of ours
        _log_defect(f"the callback for task {callback.task_id} (submission {ref}) was lost", error)
        return
    if not kept:
        _refuse(HTTPStatus.SERVICE_UNAVAILABLE, f"submission {ref}: it cannot be kept for other processes now")


def _log_defect(what: str, error: Exception) -> None:
    # The error's own text may quote the request, the places where it passed do not.
    places = "".join(traceback.format_tb(error.__traceback__))
    logger.error("%s: %s\n%s", what, type(error).__name__, places)
