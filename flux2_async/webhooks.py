"""Callbacks: addresses that only the service can call, signatures, and what a body says. Pure.

The service signs no body. So an address carries `ref`, our name of a submission, and `sig`, which nobody else can make;
whoever holds one address can call for that submission only. What a body says stays a hint until a record confirms it.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final
from urllib.parse import parse_qsl, quote, urlsplit

import attrs

from flux2_async._protocol import lenient_json
from flux2_async._protocol.addresses import is_public_address
from flux2_async._protocol.converter import http_address
from flux2_async._protocol.records import record_of, task_id_of
from flux2_async._protocol.refusals import ENDS_TASK
from flux2_async._shown.frames import without_frames
from flux2_async.errors import ConfigurationError, InvalidRequestError, ProtocolError
from flux2_async.models import TaskRecord, TaskState
from flux2_async.models.image_sources import is_url
from flux2_async.models.plain import plain

__all__ = ["Callback", "parse_callback", "public_urls", "sign", "signed_url", "verify_signature", "verify_url"]

OWN_PARAMETERS: Final = ("ref", "sig")
MAX_PARAMETERS: Final = 100
MAX_TASK_ID: Final = 256

FAILURES: Final = {str(code) for code in (400, 500, *ENDS_TASK)}
"""Codes by which a callback without a state says that the task failed."""

# What nearly every query is, the public address having none of its own: nothing is escaped, and both are there once.
_ONLY_OWN: Final = re.compile(r"ref=([\w.~-]+)&sig=([0-9a-f]{64})", re.ASCII)
_TIMESTAMP: Final = re.compile(r"[0-9]{1,12}")


@attrs.frozen
class Callback:
    """What the body of a callback says.

    Attributes:
        task_id: The task it names, 1 to 256 printable characters.
        record: What it says of the task, not confirmed by the service; None when it only says that there is news,
            says it in a way that cannot be read, or was not asked for it.
    """

    task_id: str
    record: TaskRecord | None


@without_frames
def signed_url(url: str, ref: str, secret: str | bytes) -> str:
    """The address for the callback of one submission.

    Args:
        url: The public address of the receiver; its own query is kept as it is.
        ref: The name of the submission, printable and not empty; it will stand in logs.
        secret: What only the receivers know, not empty.

    Returns:
        The address with `ref` and, last, `sig`, the hex HMAC-SHA256 of `ref` under `secret`.

    Raises:
        ConfigurationError: The address is not a complete http(s) address, has a fragment (which no sender sends) or a
            parameter `ref` or `sig` of its own, or the secret is empty.
        InvalidRequestError: `ref` is empty or not printable.
    """
    _check_address(url)
    url, ref = plain(url), plain(ref)
    if not ref or not ref.isprintable():
        raise InvalidRequestError(f"ref: {ref!r} given, it must be text of one or more printable characters")
    joint = "?" if "?" not in url else "" if url.endswith(("?", "&")) else "&"
    return f"{url}{joint}ref={quote(ref, safe='')}&sig={_url_signature(ref, secret)}"


@without_frames
def verify_url(query: str, secret: str | bytes) -> str | None:
    """Check the signature in the address of a callback, in constant time.

    Args:
        query: The query of the request as it came, still percent-encoded, or the whole http(s) address.
        secret: What the address was signed with.

    Returns:
        `ref`, or None when `ref` or `sig` is missing, wrong or there twice.

    Raises:
        ConfigurationError: The secret is empty.
    """
    if (only := _ONLY_OWN.fullmatch(query)) is not None:
        ref, sig = only.groups()
        return ref if hmac.compare_digest(_hmac(secret, ref, "secret").hexdigest(), sig) else None
    raw = query.partition("#")[0].partition("?")[2] if is_url(query) else query
    own = [pair for pair in _parameters(raw) if pair[0] in OWN_PARAMETERS]
    ref, sig = map(dict(own).get, OWN_PARAMETERS)
    if len(own) != len(OWN_PARAMETERS) or not ref or not sig:
        return None
    return ref if hmac.compare_digest(_url_signature(ref, secret).encode(), _bytes(sig)) else None


@without_frames
def sign(task_id: str, timestamp: str | int, hmac_key: str | bytes) -> str:
    """The `X-Webhook-Signature` of a callback, as the service makes it; for tests of a receiver.

    Example:
        stamp = str(int(time.time()))
        headers = {"X-Webhook-Timestamp": stamp, "X-Webhook-Signature": sign(task_id, stamp, "the account's key")}

    Args:
        task_id: The task in the body.
        timestamp: `X-Webhook-Timestamp`, Unix seconds.
        hmac_key: The account's webhook key.

    Returns:
        Base64 of the HMAC-SHA256 of both. The rest of the body is not signed.

    Raises:
        ConfigurationError: The key is empty.
    """
    return base64.b64encode(_hmac(hmac_key, f"{task_id}.{timestamp}", "hmac_key").digest()).decode()


@without_frames
def verify_signature(  # noqa: PLR0917  the facts of one signature, in the order of the signature itself
    task_id: str, timestamp: str, signature: str, hmac_key: str | bytes, now: float, tolerance: float = 300
) -> bool:
    """Check the service's own signature of a callback, in constant time.

    Args:
        task_id: The task in the body.
        timestamp: The header `X-Webhook-Timestamp` as it came.
        signature: The header `X-Webhook-Signature` as it came.
        hmac_key: The account's webhook key.
        now: The present, Unix seconds.
        tolerance: Seconds by which the timestamp may be older or newer than the present.

    Returns:
        Whether the signature is right and fresh; False for anything that is no timestamp or no signature.

    Raises:
        ConfigurationError: The key is empty.
    """
    right = hmac.compare_digest(_bytes(sign(task_id, timestamp, hmac_key)), _bytes(signature))
    return right and _TIMESTAMP.fullmatch(timestamp) is not None and abs(now - int(timestamp)) <= tolerance


def parse_callback(body: bytes, *, read_record: bool = True) -> Callback:
    """Read the body of a callback.

    Args:
        body: As it came.
        read_record: Whether to read more than the task's id; who confirms callbacks has no use for more.

    Returns:
        The task it names in `data.taskId`, `data.task_id`, `taskId` or `task_id`, and its record: by `data.state`, or
        where there is none a failure for the codes 400, 408, 451, 500 and 501.

    Raises:
        ProtocolError: It is not a JSON object, or names no task.
    """
    try:
        message = lenient_json.loads_reply(body)
    except ValueError:
        message = None
    # Raised out here, so that no error carries the parser's, which holds the whole body.
    if not isinstance(message, dict):
        raise ProtocolError(f"callback: {len(body)} bytes that are not a JSON object")
    data = message.get("data")
    fields = data if isinstance(data, dict) else {}
    task_id = task_id_of(fields) or task_id_of(message)
    if task_id is None or len(task_id) > MAX_TASK_ID or " " in task_id or not task_id.isprintable():
        raise ProtocolError("callback: no task id in data.taskId, data.task_id, taskId or task_id")
    return Callback(task_id, _record(task_id, message, fields) if read_record else None)


def public_urls(record: TaskRecord) -> bool:
    """Whether all addresses of a record lead to the public network, so that fetching them reaches nothing inside.

    Names are not resolved: it is about what an address says.

    Args:
        record: From a callback that was not confirmed.

    Returns:
        False when an address is not http(s), carries a user, or names a host by a private, reserved or unusually
        written number, by a single word, or below `localhost`, `local`, `internal` and the like. True when there are
        no addresses.
    """
    return all(map(is_public_address, record.result_urls))


def _check_address(url: str) -> None:
    # What `http_address` would mend makes a wrong signature here, or an address that the service refuses.
    if http_address(url) != url:
        raise ConfigurationError("callback url: not complete, it must look like https://app.example/flux2/callback/")
    parts = urlsplit(url)
    if "#" in url:
        raise ConfigurationError("callback url: it has a fragment ('#'), which is never sent; leave it out")
    taken = {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)}.intersection(OWN_PARAMETERS)
    if taken:
        raise ConfigurationError(f"callback url: the parameter {min(taken)!r} is added here; name yours differently")


def _parameters(query: str) -> list[tuple[str, str]]:
    """Name and value of each parameter; none when they cannot be read or are too many."""
    if "%" not in query and "+" not in query and query.count("&") < MAX_PARAMETERS:
        # Nothing is escaped, as in nearly every query; `parse_qsl` takes three times as long for the same.
        return [(name, value) for name, _, value in (pair.partition("=") for pair in query.split("&"))]
    try:
        return parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS)
    except ValueError:
        return []


def _url_signature(ref: str, secret: str | bytes) -> str:
    return _hmac(secret, ref, "secret").hexdigest()


def _hmac(key: str | bytes, message: str, name: str) -> hmac.HMAC:
    if not key:
        # Everybody can sign with an empty key.
        raise ConfigurationError(f"{name}: empty, give a long random text")
    code = _keyed(key).copy()
    code.update(_bytes(message))
    return code


@lru_cache(maxsize=8)
def _keyed(key: str | bytes) -> hmac.HMAC:
    # To take in the key takes longer than all that follows, and a receiver has one.
    return hmac.new(_bytes(key), digestmod=hashlib.sha256)


def _bytes(text: str | bytes) -> bytes:
    # Servers decode headers with surrogates for bytes that are no UTF-8.
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")


def _record(task_id: str, message: Mapping[str, Any], fields: Mapping[str, Any]) -> TaskRecord | None:
    if fields.get("state") in (None, ""):
        code = str(message.get("code")).strip()
        if code not in FAILURES:
            return None
        reason = {"failCode": fields.get("failCode") or code, "failMsg": fields.get("failMsg") or message.get("msg")}
        fields = {**fields, "state": TaskState.FAIL.value, **reason}
    try:
        return record_of(fields, task_id)
    except ProtocolError:
        # The id is certain, so there is something to poll.
        return None
