"""What the sessions of an account keep for each other under names, and tell each other: keys, callbacks, budgets.

Each is one text, so that one change of it is one step of the rules.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final, TypeVar

import attrs

from flux2_async.coordination import budget_state, key_state
from flux2_async.coordination.account_state import FORMAT
from flux2_async.coordination.budget_state import Own, Told
from flux2_async.coordination.contract import Claim, KeyEntry, Message, Terms, encode_message
from flux2_async.coordination.key_state import KeyRow
from flux2_async.coordination.store import Change, Kept, Life, Store
from flux2_async.errors import CoordinationError
from flux2_async.models.budget import Budget

T = TypeVar("T")

# Seconds; who comes back later than that looks for what a callback told in the service's log.
CALLBACK_KEPT: Final = 86400.0


class SharedTexts:
    """What one member keeps and tells by a store; every method may raise `CoordinationError`."""

    def __init__(self, store: Store, member: str, terms: Terms) -> None:
        self._store = store
        self._member = member
        self._terms = terms

    async def publish(self, message: Message) -> None:
        """Tell the other processes; those that do not listen at the moment never hear of it."""
        await self._store.publish(encode_message(self._member, message))

    async def pass_on(self, ref: str, task_id: str) -> None:
        """Keep for a day what a callback told of a submission, and tell the others, who may not be there to hear it."""
        await self._update(f"callback:{ref}", lambda _, __: Kept(task_id, CALLBACK_KEPT, None))
        await self.publish(Message("callback", ref=ref, task_id=task_id))

    async def callback_of(self, ref: str) -> str | None:
        """Give the task that a callback which was passed on has told of a submission."""
        return await self._text(f"callback:{ref}")

    async def drop_callback(self, ref: str, task_id: str) -> None:
        """Keep what a callback told of a submission no longer, unless another one has told something else."""
        await self._update(f"callback:{ref}", lambda text, _: Kept(None if text == task_id else text, 0.0, None))

    async def tell(self, message: Message) -> None:
        """Publish what costs time and nothing else if it is lost; never raises."""
        with suppress(CoordinationError):
            await self.publish(message)

    async def look(self, key: str) -> KeyEntry | None:
        """Give what a key (its digest) stands for, or None when it is free."""
        return await self._key(key, lambda row, now: (row, key_state.view(row, now)))

    async def reserve(self, claim: Claim) -> KeyEntry | None:
        """Reserve a key for a POST that follows at once; None: done, else what it stands for already.

        The owner may reserve again: it is not done with its POST yet, or knows that the last one created nothing.
        """
        own, lease, ttl = self._own(claim), self._terms.lease, self._terms.key_ttl
        entry = await self._key(claim.key, lambda row, now: key_state.reserve(row, own, now, lease=lease, ttl=ttl))
        if entry is None:
            await self._update(f"ref:{claim.ref}", lambda _, __: Kept(claim.key, ttl, None))
        return entry

    async def bind(self, claim: Claim, task_id: str | None) -> None:
        """Let a reserved key stand for a task; None: nobody knows whether there is one."""
        own, ttl = self._own(claim), self._terms.key_ttl
        await self._say(claim.key, lambda row, now: key_state.bind(row, own, task_id, now, ttl=ttl))

    async def free(self, claim: Claim) -> None:
        """Free a reserved key: certainly nothing was created."""
        await self._say(claim.key, lambda row, _: key_state.free(row, self._own(claim)))

    async def spend(self, name: str, member: str, own: Own, budget: Budget, price: float) -> Told:
        """Tell what a process has spent and reserved under a budget; see `budget_state.spend`."""
        told = partial(budget_state.spend, member=member, own=own, price=price, budget=budget, lease=self._terms.lease)
        return await self._update(f"budget:{name}", lambda text, now: Kept(*told(text, now)))

    async def unknown_in(self, ref: str) -> float | None:
        """Give the seconds until the key that `ref` reserved is unknown, 0 if it is; None: there is none, or a task."""
        key = await self._text(f"ref:{ref}")
        entry = await self.look(key) if key else None
        return entry.wait if entry and entry.ref == ref and entry.state != "bound" else None

    async def resolve(self, ref: str, task_id: str) -> None:
        """Bind the key that `ref` reserved, if its state is unknown: a callback told the task."""
        if key := await self._text(f"ref:{ref}"):
            await self._say(key, lambda row, now: key_state.resolve(row, ref, task_id, now))

    async def _update(self, name: str, change: Change[T]) -> T:
        return await self._store.update(f"{FORMAT}:{name}", change)

    async def _text(self, name: str) -> str | None:
        return await self._update(name, lambda text, _: Kept(text, 0.0, text))

    def _own(self, claim: Claim) -> Claim:
        return attrs.evolve(claim, owner=f"{self._member}.{claim.owner}")

    async def _key(self, key: str, act: Callable[[KeyRow | None, float], tuple[KeyRow | None, T]]) -> T:
        def change(text: str | None, now: float) -> Kept[T]:
            row = None if text is None else KeyRow.load(text)
            if row and row.state == "sending" and self._life_of(row.owner) in (Life.DEAD, Life.GONE):
                row = attrs.evolve(row, lapses_at=min(row.lapses_at, now))
            after, result = act(row, now)
            if after == row:
                return Kept(text, 0.0, result)
            return Kept(after.dump(), after.expires_at - now, result) if after else Kept(None, 0.0, result)

        return await self._update(f"key:{key}", change)

    def _life_of(self, name: str) -> Life:
        """Tell whether the member of a session's name or a claim's lives."""
        return self._store.life_of(name.partition(".")[0])

    async def _say(self, key: str, change: Callable[[KeyRow | None, float], KeyRow | None]) -> None:
        def act(row: KeyRow | None, now: float) -> tuple[KeyRow | None, bool]:
            after = change(row, now)
            return after, after != row

        if await self._key(key, act):
            await self.tell(Message("key", key=key))
