"""Read replicas, and which reads may go to them.

A replica:

    away --it has what the primary had a second ago--> measured --again--> in service
      ^                                                   |                    |
      +---------------------------------------------------+--------------------+
        it lags, fails, takes 0.5 s for a read, is promoted, or was last known to have all 4 s ago

A replica in service is at most `LAG_SECONDS` behind. Within that, a read of a room carries the minimum `last_seq`
required: the highest that this process has committed, received or read. It is a condition of the statement, so
check and result are of one snapshot, whichever server a connection leads to. Without a row the read is repeated on
the primary, and the `last_seq` there is noted. A room to which this process has added an entry of unknown seq is
read on the primary at once. Seqs are forgotten after `KEPT_SECONDS`, when all replicas in service have them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple, TypeVar
from uuid import UUID

from hubbub.background import BackgroundTask
from hubbub.commits import (
    Commits,
    MembersJoined,
    MessagesSent,
    ReadMarkMoved,
    RoomRewound,
    RoomTouched,
    UserChanged,
    UserDeleted,
)
from hubbub.errors import HubbubError
from hubbub.postgres.connection import now
from hubbub.postgres.pool import Pool
from hubbub.postgres.statement import Executor, Lookup, Statement

T = TypeVar("T")

MEASURE_SECONDS: Final = 1.0
"""The pause between two measurements of all replicas: three small statements, one of them on the primary."""

LAG_SECONDS: Final = 4.0
"""The oldest state of a replica in service. A replica leaves when it was last complete longer ago than this."""

KEPT_SECONDS: Final = 2 * LAG_SECONDS

READ_SECONDS: Final = 0.5
"""How long a read may take on a replica. Then it is repeated on the primary, well before the call's deadline."""


class _Head(NamedTuple):
    id: UUID
    last_seq: int


_HEADS: Final = Statement("replicas.heads", _Head, "SELECT id, last_seq FROM rooms WHERE id = ANY($1::uuid[])")
_HEAD: Final = Lookup(
    "replicas.head",
    _Head,
    "SELECT id, last_seq FROM rooms WHERE id = $1",
    many=_HEADS,
    key_of_args=lambda id: id.int,
    key_of_row=lambda head: head.id.int,
)

# The end of all commits, also of those that are not written yet (`synchronous_commit=off`). Where a record fills
# its page, the end is behind the header of the next page or file, and a replica that has all is before the header.
_WRITTEN: Final = Statement(
    "replicas.written",
    int,
    """
    SELECT (
        inserted - '0/0' - CASE
            WHEN (pg_walfile_name_offset(inserted)).file_offset = 40 THEN 40
            WHEN (inserted - '0/0') % 8192 = 24 THEN 24
            ELSE 0
        END
    )::bigint AS written
    FROM pg_current_wal_insert_lsn() AS inserted
    """,
)
_REPLAYED: Final = Statement(
    "replicas.replayed",
    int,
    """
    SELECT (pg_last_wal_replay_lsn() - '0/0')::bigint AS replayed
    WHERE pg_is_in_recovery()
    """,
)


class _Unknown:
    """A room with an entry whose seq is not known, which is at least `least`."""

    def __init__(self) -> None:
        self.least = 0


class _Replica:
    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.measurements = 0
        """Good ones in a row."""
        self.replayed = 0
        """Bytes of the log of the primary."""
        self.has_all_until = 0.0
        """It has what was committed before this time of the event loop."""

    @property
    def is_in_service(self) -> bool:
        return self.measurements > 1 and now() - self.has_all_until < LAG_SECONDS

    def leave(self) -> None:
        self.measurements = 0


class Replicas:
    """Runs reads on replicas that have all that this process has seen, and the other reads on the primary."""

    def __init__(self, primary: Pool, replicas: Sequence[Pool], followed_seq: Callable[[UUID], int]) -> None:
        """`followed_seq` is the seq up to which this process has received the log of a room."""
        self._primary = primary
        self._followed_seq = followed_seq
        self._replicas = [_Replica(pool) for pool in replicas]
        self._turn = 0
        self._seqs: dict[UUID, int | _Unknown] = {}
        """The highest `last_seq` of each room that this process has seen."""
        self._earlier_seqs: dict[UUID, int | _Unknown] = {}
        self._changed = 0.0
        """When this process committed a change of a room last, or deleted a user."""
        self._changed_users = 0.0
        """When it committed a change of a user or a mark last."""
        self._deleted_user = 0.0
        self._forgot = 0.0
        self._written: tuple[float, int] | None = None
        """How far the log of the primary was at a time."""
        self._measuring = BackgroundTask("measure replicas", self._measure)

    def register(self, commits: Commits) -> None:
        commits.on(MessagesSent, self._sent)
        commits.on(RoomTouched, self._touched)
        commits.on(RoomRewound, self._touched)
        commits.on(MembersJoined, self._joined)
        commits.on(UserChanged, self._user_changed)
        commits.on(ReadMarkMoved, self._user_changed)
        commits.on(UserDeleted, self._user_deleted)

    def start(self) -> None:
        self._measuring.start()

    async def close(self) -> None:
        await self._measuring.close()
        await asyncio.gather(*(replica.pool.close() for replica in self._replicas))

    @property
    def in_service(self) -> int:
        """How many replicas are in service."""
        return sum(replica.is_in_service for replica in self._replicas)

    async def read_room(
        self,
        room_id: UUID,
        seen: int,
        on_replica: Callable[[Executor, int, float], Awaitable[tuple[int, T] | None]],
        on_primary: Callable[[], Awaitable[T]],
        deadline: float,
    ) -> T:
        """The result of a read of a room on a replica, or else on the primary.

        `seen` is a seq of the room that the caller has seen. `on_replica` gets an executor, the minimum `last_seq`
        and a deadline. It returns the `last_seq` of its snapshot with the result, or None.
        """
        if not any(replica.measurements for replica in self._replicas):
            return await on_primary()
        least = self._known_seq(room_id)
        if isinstance(least, int) and (replica := self._next(self._deleted_user)) is not None:
            try:
                least = max(least, seen, self._followed_seq(room_id))
                found = await on_replica(replica.pool, least, min(deadline, now() + READ_SECONDS))
            except HubbubError:  # the primary gives its own
                replica.leave()
            else:
                if found is not None:
                    self.received(room_id, found[0])
                    return found[1]
        mark = self._seqs.get(room_id)
        if not isinstance(mark, _Unknown):
            mark = self._seqs[room_id] = _Unknown()
        result = await on_primary()
        await self._note_head(room_id, mark, deadline)
        return result

    async def read(self, on_replica: Callable[[Executor, float], Awaitable[T]]) -> T | None:
        """The result of a read of several rooms, on a replica with all changes of this process, or else None."""
        replica = self._next(self._changed)
        if replica is None:
            return None
        try:
            return await on_replica(replica.pool, now() + READ_SECONDS)
        except HubbubError:
            replica.leave()
            return None

    async def pool(self) -> Pool:
        """The pool of a replica that answers and has all changes of this process, or else of the primary."""
        replica = self._next(max(self._changed, self._changed_users))
        if replica is not None:
            try:
                if await replica.pool.fetch_one(_REPLAYED, deadline=now() + READ_SECONDS) is not None:
                    return replica.pool
            except HubbubError:
                pass
            replica.leave()
        return self._primary

    def _next(self, changed: float) -> _Replica | None:
        """A replica in service that has all that was committed before this time. They take turns."""
        usable = [one for one in self._replicas if one.is_in_service and one.has_all_until > changed]
        if not usable:
            return None
        self._turn += 1
        return usable[self._turn % len(usable)]

    def _sent(self, change: MessagesSent) -> None:
        self._changed = now()
        for message in change.messages:
            self.received(message.room_id, message.seq)

    def _known_seq(self, room_id: UUID) -> int | _Unknown:
        return self._seqs.get(room_id) or self._earlier_seqs.get(room_id, 0)

    def received(self, room_id: UUID, seq: int) -> None:
        """This process has received the log of a room up to this seq. Reads of the room have it from now on."""
        known = self._known_seq(room_id)
        if isinstance(known, _Unknown):
            known.least = max(known.least, seq)
        else:
            self._seqs[room_id] = max(known, seq)

    def _touched(self, change: RoomTouched | RoomRewound) -> None:
        self._changed = now()
        self._seqs[change.room_id] = _Unknown()

    def _joined(self, _: MembersJoined) -> None:
        self._changed = now()

    def _user_changed(self, _: UserChanged | ReadMarkMoved) -> None:
        self._changed_users = now()

    def _user_deleted(self, _: UserDeleted) -> None:
        self._changed = self._deleted_user = now()

    async def _note_head(self, room_id: UUID, mark: _Unknown, deadline: float) -> None:
        """Note the seq of a room, unless it has changed meanwhile."""
        try:
            async with asyncio.timeout_at(deadline):
                head = await self._primary.look_up(_HEAD, room_id)
        except (HubbubError, TimeoutError):
            return
        if head is None:
            return
        if self._seqs.get(room_id) is mark:
            self._seqs[room_id] = max(head.last_seq, mark.least)
        else:
            self.received(room_id, head.last_seq)

    async def _measure(self) -> float:
        asked = now()
        if asked - self._forgot > KEPT_SECONDS:
            self._seqs, self._earlier_seqs, self._forgot = {}, self._seqs, asked
        try:
            [written] = await self._primary.fetch_all(_WRITTEN, deadline=asked + MEASURE_SECONDS)
        except HubbubError:
            return MEASURE_SECONDS  # no replica is in service without a measurement
        await asyncio.gather(*(self._measure_one(replica, asked, written) for replica in self._replicas))
        self._written = asked, written
        return MEASURE_SECONDS

    async def _measure_one(self, replica: _Replica, asked: float, written: int) -> None:
        # A replica that was ahead of the primary is that of a primary that was replaced.
        is_of_another = replica.replayed > written
        try:
            replayed = await replica.pool.fetch_one(_REPLAYED, deadline=now() + READ_SECONDS)
        except HubbubError:
            replayed = None
        before = self._written
        replica.replayed = replayed or 0
        if is_of_another or before is None or replayed is None or replayed < before[1]:
            replica.leave()
            return
        replica.has_all_until = asked if replayed >= written else before[0]
        replica.measurements += 1
