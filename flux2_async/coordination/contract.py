"""What a session asks of the state that all processes of one account share.

A `Coordination` is what the user makes: settings, no connection. It gives one `Coordinator` to each open session. All
times that cross this border are seconds from now or ago, never clock readings, since each side has a clock of its own.
Every method of a coordinator that cannot reach the shared state raises `CoordinationError`, and nothing else.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal

import attrs

from flux2_async._limiter.window import Fate
from flux2_async.models import RateLimit

__all__ = [
    "Answer",
    "Claim",
    "Coordination",
    "Coordinator",
    "KeyEntry",
    "Message",
    "Settlement",
    "Terms",
    "decode_message",
    "encode_message",
]


@attrs.frozen
class Terms:
    """On what terms permits are lent.

    Attributes:
        rate: The account's limit, or None for no window; a 429 pauses everybody all the same.
        lease: Seconds after which a permit whose owner says nothing counts as ambiguous; no POST lives longer.
        post: Seconds that a POST may take; with less than that left of its lease no permit is used.
    """

    rate: RateLimit | None
    lease: float
    post: float = 0.0


@attrs.frozen
class Answer:
    """What the shared state says to a process that asks for permits.

    Attributes:
        leases: Names of the permits that are lent now.
        wait: Seconds after which the process should ask again when it wants more.
        paused: Seconds for which nobody may send, 0 when sending is free.
        learned_limit: Starts per period that 429s have taught, or None while the configured limit holds.
        peers: Processes seen lately, at least 1.
    """

    leases: tuple[str, ...]
    wait: float
    paused: float
    learned_limit: int | None
    peers: int


@attrs.frozen
class Settlement:
    """What became of a request that had a permit.

    Attributes:
        lease: The name of the permit. One that is not known (any more) is counted as taken just then.
        fate: What happened.
        ago: Seconds since it happened.
        pause: For `Fate.REFUSED`, seconds from that moment for which nobody may send; else 0.
    """

    lease: str
    fate: Fate
    ago: float
    pause: float = 0.0


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


@attrs.frozen
class Message:
    """What one process tells all others of the account; a lost one costs time, nothing else.

    Attributes:
        kind: `wake`: permits came back early, ask again. `pause`: nobody may send for `seconds`. `callback`: the
            service called for task `task_id` at the address of submission `ref`. `key`: the entry of `key` changed.
            `peers`: so many processes were seen lately, one of which has just joined.
        ref: Of a callback.
        task_id: Of a callback.
        key: The digest of a key.
        seconds: Of a pause.
        peers: Processes, the one that hears it included.
    """

    kind: Literal["wake", "pause", "callback", "key", "peers"]
    ref: str = ""
    task_id: str = ""
    key: str = ""
    seconds: float = 0.0
    peers: int = 0


def encode_message(sender: str, message: Message) -> str:
    """Give a message as one line: sender, kind, and what belongs to the kind; none of them holds a blank."""
    parts: dict[str, tuple[str, ...]] = {
        "wake": (),
        "pause": (repr(message.seconds),),
        "callback": (message.ref, message.task_id),
        "key": (message.key,),
        "peers": (str(message.peers),),
    }
    return " ".join((sender, message.kind, *parts[message.kind]))


def decode_message(line: str) -> tuple[str, Message] | None:
    """Give the sender and the message, or None for what no version of this library that we know has sent."""
    try:
        match line.split(" "):
            case [sender, "wake"]:
                return sender, Message("wake")
            case [sender, "pause", seconds] if float(seconds) >= 0.0:
                return sender, Message("pause", seconds=float(seconds))
            case [sender, "callback", ref, task_id]:
                return sender, Message("callback", ref=ref, task_id=task_id)
            case [sender, "key", key]:
                return sender, Message("key", key=key)
            case [sender, "peers", peers] if int(peers) > 0:
                return sender, Message("peers", peers=int(peers))
    except ValueError:
        pass
    return None


class Coordinator(ABC):
    """One session's seat at the shared state; every method may raise `CoordinationError`."""

    @abstractmethod
    async def open(self) -> None:
        """Start to listen for messages, and check what can be checked once.

        Raises:
            ConfigurationError: It can never work: wrong password, too old a server, a folder of somebody else's.
            CoordinationError: It cannot be reached now. `join` may be tried later; `aclose` is needed all the same.
        """

    @abstractmethod
    async def join(self, held: Sequence[float] = (), keeps: Sequence[str] = (), alone: float = 0.0) -> Answer:
        """Take part: at first, and again after every `CoordinationError`; the others are told how many there are now.

        Args:
            held: For each permit that was taken while the shared state was away, the seconds until it comes back.
            keeps: The leases that are still to be settled; others that were lent meanwhile never reached anybody.
            alone: Seconds since this session last heard of the shared state, if it has lost it since; else 0.
        """

    @abstractmethod
    async def acquire(self, want: int, *, first: bool = False) -> Answer:
        """Ask for permits.

        Args:
            want: How many can be used at once; 0 leaves the queue.
            first: Before the other processes: a submission was refused by 429.
        """

    @abstractmethod
    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """Give permits back; the other processes are told of a pause, and of permits that came back early."""

    @abstractmethod
    async def publish(self, message: Message) -> None:
        """Tell the other processes; those that do not listen at the moment never hear of it."""

    @abstractmethod
    async def look(self, key: str) -> KeyEntry | None:
        """Give what a key (its digest) stands for, or None when it is free."""

    @abstractmethod
    async def reserve(self, claim: Claim) -> KeyEntry | None:
        """Reserve a key for a POST that follows at once; None: done, else what it stands for already.

        The owner may reserve again, when it knows that its last POST created nothing.
        """

    @abstractmethod
    async def bind(self, claim: Claim, task_id: str) -> None:
        """Let a reserved key stand for a task."""

    @abstractmethod
    async def doubt(self, claim: Claim) -> None:
        """Say of a reserved key that nobody knows whether its task exists."""

    @abstractmethod
    async def free(self, claim: Claim) -> None:
        """Free a reserved key: certainly nothing was created."""

    @abstractmethod
    async def unknown_in(self, ref: str) -> float | None:
        """Give the seconds until the key that `ref` reserved is unknown, 0 if it is; None: there is none, or a task."""

    @abstractmethod
    async def resolve(self, ref: str, task_id: str) -> None:
        """Bind the key that `ref` reserved, if its state is unknown: a callback told the task."""

    @abstractmethod
    async def aclose(self) -> None:
        """Leave; never raises and never takes long."""


class Coordination(ABC):
    """Settings of a shared state, as `Flux2Session(coordination=...)` takes them.

    Attributes:
        on_failure: What submissions without a key do when the shared state cannot be asked: `degrade` to a safe share
            of the limit, or `fail` with `CoordinationError`.
    """

    on_failure: Literal["degrade", "fail"]

    @abstractmethod
    def coordinator(self, account: str, terms: Terms, on_message: Callable[[Message], None]) -> Coordinator:
        """Make the coordinator of a session.

        Args:
            account: The digest of address and API key; never the key.
            terms: On what terms permits are lent.
            on_message: Called in the event loop with what other processes publish.
        """
