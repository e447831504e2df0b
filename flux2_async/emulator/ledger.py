"""What the emulator saw, took and charged: the book that tests check the client's promises against.

Times are those of the event loop's clock, so that a test can compare them with its own.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import attrs

from flux2_async.emulator.script import FaultKind

CreateOutcome: TypeAlias = Literal["accepted", "repeated", "refused", "cut"]


@attrs.frozen
class CreateCall:
    """One createTask that reached the service.

    Attributes:
        time: When it was judged, in seconds of the event loop.
        body: The request, or None when it was no JSON object.
        outcome: `accepted`; `refused`: nothing was created and the answer says so; `cut`: nothing was created and
            the answer does not say so; `repeated`: its name was that of an accepted one, whose task it gives.
        code: The `code` of the answer, whether it came through or not; None where there was none.
        task_id: The accepted task, else None.
        fault: The kind of the fault it met, else None.
        name: The idempotency name that it was accepted or repeated under, else None.
    """

    time: float
    body: Mapping[str, Any] | None
    outcome: CreateOutcome
    code: int | None = None
    task_id: str | None = None
    fault: FaultKind | None = None
    name: str | None = None


@attrs.frozen
class UploadCall:
    """One file that was kept.

    Attributes:
        time: When, in seconds of the event loop.
        way: `stream`, `base64` or `url`.
        file_name: Its name at the service.
        size: Bytes.
        sha256: Hex digest of the content.
    """

    time: float
    way: Literal["stream", "base64", "url"]
    file_name: str
    size: int
    sha256: str


@attrs.frozen
class CallbackCall:
    """One attempt to deliver a callback.

    Attributes:
        time: When it was sent, in seconds of the event loop.
        task_id: The task.
        url: The callBackUrl.
        attempt: 1, 2, ... of one delivery.
        status: The HTTP status of the answer, or None when none came (in time).
    """

    time: float
    task_id: str
    url: str
    attempt: int
    status: int | None


@attrs.frozen
class Exchange:
    """One request and what became of it.

    Attributes:
        time: When it came, in seconds of the event loop.
        seconds: From then to its end.
        endpoint: Its name; the path of what is no endpoint.
        status: The HTTP status of the answer, or None when the connection was cut.
        code: The `code` of the answer, or None where there was none.
        task_id: The task it is about, or None.
        fault: The kind of the fault it met, else None.
        retry_after: The header of the answer, or None.
    """

    time: float
    seconds: float
    endpoint: str
    status: int | None
    code: int | None = None
    task_id: str | None = None
    fault: FaultKind | None = None
    retry_after: str | None = None


@attrs.define
class Ledger:
    """What one emulator has seen, accepted and charged.

    Attributes:
        requests: Every createTask, in the order they were judged.
        accepted: Ids of the accepted tasks, in order.
        accepted_at: When each was accepted, in seconds of the event loop.
        charged: Credits, all tasks together; a task that fails costs nothing.
        refused: How many createTask were refused, for whatever reason.
        calls: Number of calls by endpoint name.
        poll_times: When each task was asked for, by id (ids that do not exist included).
        uploads: Every file that was kept.
        callbacks: Every attempt to deliver a callback.
        authorization_seen: Names of the endpoints that were sent the API key; `redirected` stands for the place that a
            `redirect` fault leads to.
        in_flight: Calls being answered now, by endpoint name.
        max_in_flight: The most at one time, by endpoint name.
    """

    requests: list[CreateCall] = attrs.field(factory=list)
    accepted: list[str] = attrs.field(factory=list)
    accepted_at: list[float] = attrs.field(factory=list)
    charged: float = 0.0
    refused: int = 0
    calls: Counter[str] = attrs.field(factory=Counter)
    poll_times: dict[str, list[float]] = attrs.field(factory=dict)
    uploads: list[UploadCall] = attrs.field(factory=list)
    callbacks: list[CallbackCall] = attrs.field(factory=list)
    authorization_seen: set[str] = attrs.field(factory=set)
    in_flight: Counter[str] = attrs.field(factory=Counter)
    max_in_flight: Counter[str] = attrs.field(factory=Counter)

    @property
    def polls(self) -> int:
        """Number of recordInfo calls, faulty ones included."""
        return self.calls["recordInfo"]

    def polls_of(self, task_id: str) -> int:
        """Number of recordInfo calls that asked for a task.

        Args:
            task_id: The task.

        Returns:
            0 for one never asked for.
        """
        return len(self.poll_times.get(task_id, ()))

    def max_in_window(self, period: float) -> int:
        """The most tasks accepted in any half-open window.

        Args:
            period: Its length in seconds.

        Returns:
            Their number.
        """
        times = self.accepted_at
        return max((bisect_left(times, first + period) - number for number, first in enumerate(times)), default=0)

    def arrive(self, endpoint: str) -> None:
        """A call came in."""
        self.calls[endpoint] += 1
        self.in_flight[endpoint] += 1
        self.max_in_flight[endpoint] = max(self.max_in_flight[endpoint], self.in_flight[endpoint])

    def leave(self, endpoint: str) -> None:
        """A call was answered, or its connection is gone."""
        self.in_flight[endpoint] -= 1

    def polled(self, task_id: str, now: float) -> None:
        """A recordInfo asked for this task."""
        self.poll_times.setdefault(task_id, []).append(now)

    def judged(self, call: CreateCall) -> None:
        """A createTask was judged."""
        self.requests.append(call)
        self.refused += call.outcome == "refused"

    def took(self, task_id: str, now: float, price: float) -> None:
        """A task was accepted; `price` is what it costs in the end."""
        self.accepted.append(task_id)
        self.accepted_at.append(now)
        self.charged += price
