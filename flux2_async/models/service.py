"""Who speaks the jobs API, and what differs there: a frozen value, checked when made, without I/O."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import attrs

from flux2_async._shown.frames import made_without_frames, showable
from flux2_async.errors import ConfigurationError
from flux2_async.models.image_sources import http_parts
from flux2_async.models.plain import plain
from flux2_async.models.settings import RateLimit, by_type

__all__ = ["APIKLEY", "KIE", "Service", "bare_address", "check_address", "checked_headers"]

_PATH: Final = re.compile(r"(/[A-Za-z0-9._~-]+)*")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\t -~\x80-\xff]*")
# What each call says by itself, and what only the connection knows.
_OURS: Final = frozenset(
    {"authorization", "proxy-authorization", "host", "content-length", "content-type", "transfer-encoding"}
    | {"connection", "accept", "accept-encoding", "cookie", "expect", "upgrade", "te", "user-agent"}
)

_ADVICE: Final = {"authorization": "the key is given as api_key", "user-agent": "words behind ours: user_agent=..."}


def bare_address(url: Any) -> Any:
    """Give an address or a path without white space and slashes at its ends; what is no text is left to be refused."""
    return plain(url.strip().rstrip("/")) if isinstance(url, str) else url


def check_address(name: str, url: object) -> None:
    """Check the address of a service.

    Raises:
        ConfigurationError: It cannot be used; the text says why, and shows nothing private of it.
    """
    parts = http_parts(url)
    if parts is None:
        shown = "an address with a user name" if "@" in str(url) else _shown(url)
        raise ConfigurationError(f"{name}: {shown} given, it must look like https://api.apikley.ru (http or https)")
    if parts.username or parts.password:
        raise ConfigurationError(f"{name}: it holds a user name or password; the API takes the key only")
    if parts.query or parts.fragment or re.search(r"\s", str(url)):
        raise ConfigurationError(f"{name}: it must be an address without white space, ? and #")


def _shown(url: object) -> str:
    return repr(url) if isinstance(url, str) and not set("?#") & set(url) else type(url).__name__


def checked_headers(value: Any) -> dict[str, str]:
    """Give a copy of headers that may go with every call.

    Raises:
        ConfigurationError: They cannot be used; the text names the header, and never its value.
    """
    if wrong := wrong_header(value):
        raise ConfigurationError(wrong)
    return {plain(name): plain(text) for name, text in value.items()}


def wrong_header(value: Any) -> str:
    """Say why headers cannot be used, without their values; empty for those that can."""
    if not isinstance(value, Mapping):
        return f"headers: {type(value).__name__} given, it must be a mapping of names to texts"
    seen: set[str] = set()
    for name, text in value.items():
        if not isinstance(name, str) or not _TOKEN.fullmatch(name):
            return "headers: a name given that no header can have; it is made of letters, digits and '-'"
        if name.lower() in _OURS:
            return f"headers: {name} given; {_ADVICE.get(name.lower(), 'the library sets it itself')}"
        if not isinstance(text, str) or not _VALUE.fullmatch(text):
            return f"headers: the value of {name} must be text of Latin letters, without line breaks"
        if name.lower() in seen:
            return f"headers: {name} given twice"
        seen.add(name.lower())
    return ""


def checked_user_agent(value: Any) -> str:
    """Give what is to stand behind our own words in User-Agent; None: nothing.

    Raises:
        ConfigurationError: It cannot stand there.
    """
    if value is None:
        return ""
    if not isinstance(value, str) or not re.fullmatch(r"[ -~]{1,500}", value) or not value.strip():
        raise ConfigurationError("user_agent: it must be text of printable ASCII such as 'my-shop/1.4', or None")
    return plain(value).strip()


def checked_limits(name: str, value: Any) -> tuple[RateLimit, ...]:
    """Give one limit, several, or None for no limit, as several.

    Raises:
        ConfigurationError: They are none; the text says what is allowed.
    """
    if value is None:
        return ()
    several = (value,) if isinstance(value, RateLimit) else value
    limits: tuple[Any, ...] = tuple(several) if isinstance(several, Iterable) else (None,)
    if not all(isinstance(limit, RateLimit) for limit in limits):
        raise ConfigurationError(f"{name}: it must be RateLimit(tasks, seconds), or a list of them")
    return limits


def _limits(value: Any) -> tuple[RateLimit, ...]:
    return checked_limits("Service.limits", value)


def _matches(pattern: re.Pattern[str], allowed: str, *, none: bool = False) -> Any:
    def check(_: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if not (none and value is None) and not (isinstance(value, str) and pattern.fullmatch(value)):
            raise ConfigurationError(f"Service.{attribute.name}: it must be {allowed}")

    return check


def _names(headers: Mapping[str, str]) -> str:
    return f"<{', '.join(headers) or 'none'}>"


@made_without_frames
@showable
@attrs.frozen(kw_only=True, field_transformer=by_type)
class Service:
    """A service that speaks the jobs API (createTask, recordInfo, callBackUrl), and how it differs from others.

    One that differs in a field or two is made of another one: `attrs.evolve(KIE, base_url="https://proxy.example")`.

    Attributes:
        base_url: The API's address, without a path of its calls.
        upload_url: The address of the upload calls. None: `/file-upload` below `base_url`.
        api_path: Stands before the path of each call (`/jobs/createTask`, `/jobs/recordInfo`, `/chat/credit`,
            `/common/download-url`).
        headers: Sent with every call to the service, by name; never with downloads from other hosts, and in no `repr`.
            The key is none of them.
        idempotency_header: The header by which the service recognises a repeated createTask (`X-Request-ID`,
            `Idempotency-Key`) and returns the task of the first: each carries the `ref` of its submission there, and
            one whose answer was unclear is sent again under it until it is clear. None: nothing unclear is sent again.
        idempotency_period: Seconds for which it keeps such a name, from its first createTask on.
        limits: New tasks per period that the service allows; all of them hold. Empty: no limit on this side.
        max_running: Tasks that may be unfinished at once. None: no bound.
        max_image_bytes: Bytes that one uploaded reference picture may have.
        key_variable: The environment variable of the key, for a session that is given none. None: no variable, so that
            a key of one service never goes to another.

    Raises:
        ConfigurationError: A value cannot be used; the text names it.
    """

    base_url: str = attrs.field(converter=bare_address)
    upload_url: str | None = attrs.field(default=None, converter=bare_address)
    api_path: str = attrs.field(
        default="/api/v1", converter=bare_address, validator=_matches(_PATH, "a path such as /api/v1, or empty")
    )
    headers: Mapping[str, str] = attrs.field(factory=dict, converter=checked_headers, hash=False, repr=_names)
    idempotency_header: str | None = attrs.field(
        default=None, validator=_matches(_TOKEN, "the name of a header, or None", none=True)
    )
    idempotency_period: float = 86400.0
    limits: tuple[RateLimit, ...] = attrs.field(default=(RateLimit(20, 10.0),), converter=_limits)
    max_running: int | None = 100
    max_image_bytes: int = 10_000_000
    key_variable: str | None = attrs.field(
        default=None, validator=_matches(_VARIABLE, "the name of an environment variable, or None", none=True)
    )

    def __attrs_post_init__(self) -> None:
        check_address("Service.base_url", self.base_url)
        if self.upload_url is not None:
            check_address("Service.upload_url", self.upload_url)
        if taken := name_taken(self, self.headers):
            raise ConfigurationError(taken)

    @property
    def uploads_at(self) -> str:
        """Where the upload calls are, whether or not that was given."""
        return self.upload_url or f"{self.base_url}/file-upload"


def resent_within(kept: float) -> float:
    """For how many seconds from its first createTask on a name may be used again, of those for which it is kept.

    A request takes its time on the way, and the service may begin to count before.
    """
    return kept - max(0.1 * kept, 120.0)


def name_taken(service: Service, headers: Mapping[str, str]) -> str:
    """Say that headers take the one of the idempotency name; empty where they do not."""
    header = service.idempotency_header
    if header is None or header.lower() not in map(str.lower, headers):
        return ""
    return f"headers: {header} given; it carries the name of the submission, which is given as ref"


APIKLEY: Final = Service(base_url="https://api.apikley.ru", key_variable="APIKLEY_API_KEY")
"""Apikley, https://docs.apikley.ru. Limit and running tasks are those that upstream documents."""

KIE: Final = Service(
    base_url="https://api.kie.ai", upload_url="https://kieai.redpandaai.co", key_variable="KIE_API_KEY"
)
"""kie.ai, https://docs.kie.ai: 20 new tasks in 10 seconds, typically 100 and more running."""
