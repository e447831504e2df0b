"""Which processes wait for permits, for whom, and who is next. Pure: time comes in as an argument.

Turns. Groups take turns, and within a group the processes in which somebody of it waits. Who has had the fewest rounds
is next, then whose last turn is longest ago; who comes has had as many as those with the fewest, and who may not pass
saves none. With somebody whom a 429 has refused a group and its process are next at once.

Bounds. A group of which so many run already is kept back, and the others go on; where so many of all run, all are.

Deaths. What is kept for a process is kept until `grace` after it was to ask again; then it is passed over, and those
that were to come after it come at once.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, TypedDict, Unpack

import attrs

# Seconds after which a process asks again whose groups are kept back: whoever died since has told nobody.
ASK_WHILE_KEPT_BACK: Final = 1.0


class Asked(TypedDict, total=False):
    """What a process says of the permits that it wants.

    Attributes:
        groups: How many for each; with 0 a group keeps its place while others of this process go first. None: all are
            for those without a group.
        first: The groups of those that were refused.
        bound: How many of a group may run at once; None: any number.
        most: Likewise of all.
    """

    groups: Mapping[str, int] | None
    first: Iterable[str]
    bound: int | None
    most: int | None


@attrs.define(eq=False)
class _Place:
    """How many permits a process can use for a group; `kept_back`: it was told that too many of that run."""

    peer: str
    want: int
    kept_back: bool = False


@attrs.define
class _Line:
    """The places of a group by process, whoever is next first, and how many rounds it has had."""

    rounds: int
    places: dict[str, _Place] = attrs.field(factory=dict)

    def had_turn(self, peer: str) -> _Place:
        """Let the place of a process be the last one, and count the round."""
        place = self.places[peer] = self.places.pop(peer)
        self.rounds += 1
        return place


@attrs.define
class _Waiting:
    """A process: how many permits it can use, when one is its turn, when it is to ask again, and its bounds."""

    want: int
    turn: float
    due: float
    bound: int | None
    most: int | None


@attrs.define(eq=False)
class PermitQueue:
    """The queue of all processes of an account."""

    # Whose last turn is longest ago first.
    _lines: dict[str, _Line] = attrs.field(init=False, factory=dict)
    _peers: dict[str, _Waiting] = attrs.field(init=False, factory=dict)

    def __len__(self) -> int:
        return len(self._peers)

    @property
    def has_groups(self) -> bool:
        """Whether several groups take turns."""
        return len(self._lines) > 1

    def enter(self, peer: str, want: int, now: float, **asked: Unpack[Asked]) -> None:
        """Let a process wait, or go on waiting, for as many permits as it can use now."""
        groups = {"": want} if (given := asked.get("groups")) is None else given
        self._peers[peer] = _Waiting(want, now, now, asked.get("bound"), asked.get("most"))
        self._remove(peer, {group for group in self._lines if group not in groups})
        fewest = min((line.rounds for line in self._lines.values()), default=0)
        for group, count in groups.items():
            line = self._lines.setdefault(group, _Line(fewest))
            place = line.places.setdefault(peer, _Place(peer, count))
            place.want, place.kept_back = count, False
        for group in asked.get("first", ()):
            line = self._lines[group]
            line.rounds = fewest
            line.places = {peer: line.places[peer], **line.places}
            self._lines = {group: line, **self._lines}

    def leave(self, peer: str) -> None:
        """Forget a process."""
        self._peers.pop(peer, None)
        self._remove(peer, self._lines)

    def late(self, due: float) -> Sequence[str]:
        """Give the processes that were to ask again by then, and have not."""
        return [peer for peer, waiting in self._peers.items() if waiting.due <= due]

    def drop(self, peer: str, now: float, grace: float) -> bool:
        """Forget a process that has died; give whether it was before others, who are to ask again at once."""
        if peer not in self._peers:
            return False
        self.leave(peer)
        for waiting in self._peers.values():
            waiting.turn, waiting.due = min(waiting.turn, now), min(waiting.due, now + grace)
        return bool(self._peers)

    def deal(
        self, peer: str, is_free: Callable[[int], bool], now: float, running: Mapping[str, int]
    ) -> tuple[Sequence[str], int]:
        """Deal what is free, one by one, among those whose turn it is.

        `is_free` tells whether there is one more permit than so many, `running` how many run of each group. Gives the
        groups for which the process that asks gets one each, and how many are kept for others.
        """
        own: list[str] = []
        kept: Counter[str] = Counter()
        rounds = 0
        for number, (group, place, had) in enumerate(self._in_turn(running, now)):
            if not is_free(number):
                break
            rounds = had
            if place.peer == peer:
                own.append(group)
            else:
                kept[group] += 1
        for group in own:
            line = self._lines[group] = self._lines.pop(group)
            place = line.had_turn(peer)
            place.want -= 1
            self._peers[peer].want -= 1
            if not place.want:
                self._remove(peer, [group])
        for group, line in self._lines.items():
            # Who might have had them, and could not come.
            line.rounds = max(line.rounds, rounds - kept[group])
        alive = Counter(running) + Counter(own)
        for group, place in self._places_of(peer).items():
            place.kept_back = place.want > 0 and self._is_kept_back(group, peer, alive)
        return own, kept.total()

    def ahead(self, peer: str, running: Mapping[str, int]) -> int | None:
        """How many permits come before the first of a process; None: all its groups are kept back."""
        order = enumerate(self._in_turn(running))
        return next((number for number, (_, place, _) in order if place.peer == peer), None)

    def postpone(self, peer: str, turn: float, due: float) -> float:
        """Let a process ask again later; give when."""
        waiting = self._peers[peer]
        waiting.turn, waiting.due = turn, due
        return due

    def keep_back(self, peer: str, now: float) -> float:
        """Let a process wait until fewer run, also where others take the last room; give when it is to ask again."""
        for place in self._places_of(peer).values():
            place.kept_back = place.want > 0
        return self.postpone(peer, now, now + ASK_WHILE_KEPT_BACK)

    def wants(self, peer: str) -> bool:
        """Whether a process can use more than it has got."""
        return self._peers[peer].want > 0 and any(place.want for place in self._places_of(peer).values())

    def kept_back(self, peer: str) -> Sequence[str]:
        """Give the groups of a process that are kept back."""
        return [group for group, place in self._places_of(peer).items() if place.kept_back]

    def is_freed(self, running: Mapping[str, int]) -> bool:
        """Whether somebody was told that too many run, and they do not any more."""
        return any(
            place.kept_back and not self._is_kept_back(group, place.peer, running)
            for group, line in self._lines.items()
            for place in line.places.values()
        )

    def share(self, peer: str) -> int:
        """One in how many permits is for a process."""
        lines = [[place.peer for place in line.places.values() if place.want] for line in self._lines.values()]
        lines = [line for line in lines if line]
        own = sum(1 / len(line) for line in lines if peer in line)
        return max(round(len(lines) / own), 1) if own else len(self._peers)

    def _places_of(self, peer: str) -> dict[str, _Place]:
        return {group: line.places[peer] for group, line in self._lines.items() if peer in line.places}

    def _remove(self, peer: str, groups: Iterable[str]) -> None:
        for group in tuple(groups):
            line = self._lines[group]
            line.places.pop(peer, None)
            if not line.places:
                del self._lines[group]

    def _in_turn(self, running: Mapping[str, int], now: float | None = None) -> Iterator[tuple[str, _Place, int]]:
        """Give whose the permits are that come, one by one; of those whose turn it is by now, or of all.

        Each with its group, and how many rounds those with the fewest have had.
        """
        wants: dict[_Place, int] = {}
        lines: dict[str, _Line] = {}
        for group, line in self._lines.items():
            places = {
                peer: each
                for peer, each in line.places.items()
                if now is None or each.kept_back or self._peers[peer].turn <= now
            }
            wants |= {place: place.want for place in places.values()}
            lines[group] = _Line(line.rounds, places)
        left = {peer: waiting.want for peer, waiting in self._peers.items()}
        alive = Counter(running)
        while lines:
            group, line = min(lines.items(), key=lambda item: item[1].rounds)
            able = (
                each
                for each in line.places.values()
                if wants[each] and left[each.peer] and not self._is_kept_back(group, each.peer, alive)
            )
            if (place := next(able, None)) is None:
                del lines[group]
                continue
            yield group, place, line.rounds
            lines[group] = lines.pop(group)
            line.had_turn(place.peer)
            wants[place] -= 1
            left[place.peer] -= 1
            alive[group] += 1

    def _is_kept_back(self, group: str, peer: str, running: Mapping[str, int]) -> bool:
        waiting = self._peers[peer]
        if waiting.most is not None and sum(running.values()) >= waiting.most:
            return True
        return waiting.bound is not None and running.get(group, 0) >= waiting.bound
