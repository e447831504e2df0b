"""What a session and the state that all processes of one account share say to each other.

All times are seconds from now or ago, never clock readings, since each side has a clock of its own.
"""

import math
from typing import Any, Final, Literal

import attrs

from flux2_async._limiter.permit import PermitEvent as PermitEvent  # noqa: PLC0414  a settlement is told by it
from flux2_async._limiter.window import Supply
from flux2_async._limiter.windows import rates_of
from flux2_async.errors import ConfigurationError
from flux2_async.models import RateLimit
from flux2_async.models.settings import Told

# What belongs to each kind of message.
_PARTS: Final[dict[str, tuple[str, ...]]] = {
    "wake": (),
    "pause": ("seconds",),
    "callback": ("ref", "task_id"),
    "key": ("key",),
    "peers": ("rates", "peers"),
}


@attrs.frozen
class Terms:
    """On what terms permits are lent.

    Attributes:
        rates: The account's limits, all of which hold; without any a 429 pauses everybody all the same.
        lease: Seconds after which a permit whose owner says nothing counts as unclear; no POST lives longer.
        post: Seconds that a POST may take; with less than that left of its lease no permit is used.
        key_ttl: Seconds from its reservation on for which a key is kept.
        per_group: How many tasks of one group may run, or None for no bound.
        max_running: Likewise of all.
    """

    rates: tuple[RateLimit, ...] = attrs.field(converter=rates_of)
    lease: float
    post: float = 0.0
    key_ttl: float = 86400.0
    per_group: int | None = None
    max_running: int | None = None


@attrs.frozen
class Known:
    """What a process remembers of the state, to notice that it was lost.

    Attributes:
        epoch: The state's name, or empty for a process that has never asked.
        number: The highest number of a lease it has heard of.
        seen: The state's time in the last answer, of which the state alone makes something.
    """

    epoch: str = ""
    number: int = 0
    seen: float = math.inf


@attrs.frozen
class Answer:
    """What the shared state says to a process that asks for permits.

    Attributes:
        leases: Names of the permits that are lent now.
        wait: Seconds after which the process should ask again when it wants more.
        paused: Seconds for which nobody may send, 0 when sending is free.
        learned_limit: Starts per period that 429s have taught, or None while the configured limit holds; of several
            limits that of the tightest.
        rates: What all limits are believed to be now.
        peers: Processes seen lately, at least 1.
        waiting: One in so many permits is for this process while it waits.
        supply: When there will be permits for all of them.
        groups: For whom each lease is, as the process has named them.
        kept_back: Of which groups so many run that they have to wait.
        known: To be told with the next question.
        running: How many run in all processes.
    """

    leases: tuple[str, ...]
    wait: float
    paused: float
    learned_limit: int | None
    peers: int
    waiting: int = 0
    supply: Supply | None = attrs.field(default=None, repr=False, eq=False)
    rates: tuple[RateLimit, ...] = ()
    groups: tuple[str, ...] = ()
    kept_back: tuple[str, ...] = ()
    running: int = 0
    known: Known = attrs.field(default=Known(), repr=False, eq=False)


@attrs.frozen
class Settlement:
    """What became of a request that had a permit.

    Attributes:
        lease: The name of the permit. One that is not known (any more) is counted as taken just then.
        event: What happened.
        ago: Seconds since it happened.
        pause: For `PermitEvent.THROTTLED`, seconds from that moment for which nobody may send; 0: as many as its limit
            says.
    """

    lease: str
    event: PermitEvent
    ago: float
    pause: float = 0.0


@attrs.frozen
class Hint:
    """What the service told of its limits, and how many seconds ago."""

    told: tuple[Told, ...]
    ago: float


@attrs.frozen
class Claim:
    """A submission's wish that a key of `submit(key=)` stands for it.

    Attributes:
        key: The digest of the key.
        fingerprint: The digest of the request.
        ref: The submission's name, which the caller may have used before.
        owner: A name that no other claim has.
    """

    key: str
    fingerprint: str
    ref: str
    owner: str


@attrs.frozen
class KeyEntry:
    """What a key stands for.

    Attributes:
        fingerprint: The digest of the request.
        ref: The submission that reserved it.
        state: `sending` until its owner knows more; `unknown` when the task may exist; `bound` to `task_id`.
        task_id: The task, or empty.
        wait: While sending, seconds after which an owner that said nothing has died, and the state is unknown.
    """

    fingerprint: str
    ref: str
    state: Literal["sending", "unknown", "bound"]
    task_id: str = ""
    wait: float = 0.0


def _read_rates(given: str | tuple[RateLimit, ...]) -> tuple[RateLimit, ...]:
    if isinstance(given, tuple):
        return given
    parts = (part.split("/") for part in given.split(",") if part)
    return tuple(RateLimit(int(limit), float(period)) for limit, period in parts)


@attrs.frozen
class Message:
    """What one process tells all others of the account; a lost one costs time, nothing else.

    Attributes:
        kind: `wake`: permits came back early, ask again. `pause`: nobody may send for `seconds`. `callback`: the
            service called for task `task_id` at the address of submission `ref`. `key`: the entry of `key` changed.
            `peers`: so many processes were seen lately, one of which has just joined, and have these limits.
        ref: Of a callback.
        task_id: Of a callback.
        key: The digest of a key.
        seconds: Of a pause.
        rates: Of the processes together.
        peers: Processes, the one that hears it included.
    """

    kind: Literal["wake", "pause", "callback", "key", "peers"]
    ref: str = ""
    task_id: str = ""
    key: str = ""
    seconds: float = attrs.field(default=0.0, converter=float, validator=attrs.validators.ge(0.0))
    rates: tuple[RateLimit, ...] = attrs.field(default=(), converter=_read_rates)
    peers: int = attrs.field(default=1, converter=int, validator=attrs.validators.ge(1))


def encode_message(sender: str, message: Message) -> str:
    """Give a message as one line: sender, kind, and what belongs to the kind; none of them holds a blank."""
    return " ".join((sender, message.kind, *(_written(getattr(message, part)) for part in _PARTS[message.kind])))


def _written(value: object) -> str:
    return ",".join(f"{rate.limit}/{rate.period}" for rate in value) if isinstance(value, tuple) else str(value)


def decode_message(line: str) -> tuple[str, Message] | None:
    """Give the sender and the message, or None for what no version of this library that we know has sent."""
    try:
        sender, *words = line.split(" ")
        told: dict[str, Any] = dict(zip(("kind", *_PARTS[words[0]]), words, strict=True))
        return sender, Message(**told)
    except (ValueError, LookupError, ConfigurationError):
        return None
