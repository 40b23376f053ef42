"""Batches of messages: each draft gets what it deserves, whatever is wrong with another."""

from __future__ import annotations

import time
from collections.abc import Sequence

from hubbub.errors import Conflict, Unavailable
from hubbub.postgres import Executor, LockNotAvailable
from hubbub.repositories.messages.sending import Draft, Outcomes, in_the_way, send_one, sent_before
from hubbub.repositories.messages.together import append, rooms_not_locked

# For how long the ids of a batch are looked up first, after one that was sent before was found in a batch.
WARY_SECONDS = 1.0


class Batches:
    """Sends the messages of many senders together, each with an outcome of its own.

    Where one id comes that was sent before, others are likely to follow: a client, or a whole process, sends again
    what was not answered. A batch that fails on one goes out twice, so for a while the ids are looked up first.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._wary_until = 0.0

    async def send(self, drafts: Sequence[Draft], *, deadline: float) -> Outcomes:
        """Append messages, in their order, in as few statements as their faults allow: usually one.

        What is refused or was sent before is found and set aside, and the others go on without it. Of several
        rooms one that stays locked is left out: its drafts have no outcome. Raises nothing: a failure is the
        outcome of the drafts that it befell, for others may have been committed by then.
        """
        is_wary = len(drafts) > 1 and time.monotonic() < self._wary_until
        return await self._send(drafts, deadline, is_wary=is_wary)

    async def _send(self, drafts: Sequence[Draft], deadline: float, *, is_wary: bool = False) -> Outcomes:
        if not drafts:
            return {}
        try:
            if is_wary:
                return await self._without(await self._sent_before(drafts, deadline), drafts, deadline)
            return await self._send_unknown(drafts, deadline)
        except Unavailable as error:
            return {draft.id: error.for_another() for draft in drafts}
        except Exception as error:  # noqa: BLE001 - whatever it is, their senders get it
            return {draft.id: error for draft in drafts}

    async def _send_unknown(self, drafts: Sequence[Draft], deadline: float) -> Outcomes:
        if len(drafts) == 1:
            return {drafts[0].id: await send_one(self._executor, drafts[0], deadline=deadline)}
        try:
            outcomes = await append(self._executor, drafts, deadline=deadline)
        except Unavailable as error:
            rooms = {draft.room_id for draft in drafts}
            if not isinstance(error, LockNotAvailable) or len(rooms) == 1:
                raise
            free = await rooms_not_locked(self._executor, rooms, deadline=deadline)
            return await self._send([draft for draft in drafts if draft.room_id in free], deadline)
        except Conflict:
            aside = await self._sent_before(drafts, deadline)
        except Exception:  # noqa: BLE001 - one of them cannot be stored, be it for a rule of the application's own
            return await self._by_halves(drafts, deadline)
        else:
            if outcomes:
                return outcomes
            aside = await in_the_way(self._executor, drafts, deadline=deadline)
        if not aside:
            return await self._by_halves(drafts, deadline)  # what was in the way is gone
        return await self._without(aside, drafts, deadline)

    async def _sent_before(self, drafts: Sequence[Draft], deadline: float) -> Outcomes:
        known = await sent_before(self._executor, drafts, deadline=deadline)
        if known:
            self._wary_until = time.monotonic() + WARY_SECONDS
        return known

    async def _without(self, aside: Outcomes, drafts: Sequence[Draft], deadline: float) -> Outcomes:
        return aside | await self._send([draft for draft in drafts if draft.id not in aside], deadline)

    async def _by_halves(self, drafts: Sequence[Draft], deadline: float) -> Outcomes:
        middle = len(drafts) // 2
        first = await self._send(drafts[:middle], deadline)
        # What follows a message that was left out must not overtake it.
        locked = {draft.room_id for draft in drafts[:middle] if draft.id not in first}
        return first | await self._send(
            [draft for draft in drafts[middle:] if draft.room_id not in locked], deadline
        )
