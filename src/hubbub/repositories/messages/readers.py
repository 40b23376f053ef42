"""Who may read which logs: the memberships as followers need them, of many users at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from hubbub.postgres import Executor, Statement


class Readable(NamedTuple):
    """A room that a user is a member of, with the head of its log."""

    user_id: UUID
    room_id: UUID
    last_seq: int
    joined_seq: int
    """Where the membership began; 0 for one that is older than this column."""
    digest: int
    """Of all rooms of the user: it is another one as soon as the user is in other rooms."""


class Readers:
    """Which rooms users are in now."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    _ROOMS_OF = Statement(
        "readers.rooms_of",
        Readable,
        """
        SELECT
            room_users.user_id,
            room_users.room_id,
            rooms.last_seq,
            room_users.joined_seq,
            bit_xor(uuid_hash_extended(room_users.room_id, 0)) OVER (PARTITION BY room_users.user_id) AS digest
        FROM room_users
        JOIN rooms ON rooms.id = room_users.room_id
        WHERE room_users.user_id = ANY($1::uuid[])
        """,
    )

    async def rooms_of(
        self, user_ids: Sequence[UUID], *, deadline: float | None = None
    ) -> dict[UUID, list[Readable]]:
        """The rooms of each of the users."""
        rooms: dict[UUID, list[Readable]] = {user_id: [] for user_id in user_ids}
        for room in await self._executor.fetch_all(self._ROOMS_OF, user_ids, deadline=deadline):
            rooms[room.user_id].append(room)
        return rooms

    # What the user did last before: who left was outside. Who had never been there reads what was before them.
    _OUTSIDE = Statement(
        "readers.outside",
        lambda room_id: room_id,
        """
        SELECT place.room_id
        FROM unnest($2::uuid[], $3::bigint[]) AS place (room_id, seq)
        CROSS JOIN LATERAL (
            SELECT room_events.kind
            FROM room_events
            WHERE room_events.room_id = place.room_id
                AND room_events.seq <= place.seq
                AND room_events.user_id = $1
                AND room_events.kind IN ('joined', 'left')
            ORDER BY room_events.seq DESC
            LIMIT 1
        ) AS latest
        WHERE latest.kind = 'left'
        """,
    )

    async def outside(
        self, user_id: UUID, seqs: Mapping[UUID, int], *, deadline: float | None = None
    ) -> set[UUID]:
        """The rooms that the user had left at the given seq."""
        rooms, places = list(seqs), list(seqs.values())
        return set(await self._executor.fetch_all(self._OUTSIDE, user_id, rooms, places, deadline=deadline))

    _ROOMS_OF_ALL = Statement(
        "readers.rooms_of_all",
        lambda user_id, room_id: (user_id, room_id),
        """
        SELECT user_id, room_id
        FROM room_users
        WHERE user_id = ANY($1::uuid[])
        """,
    )

    async def rooms_of_all(self, user_ids: Sequence[UUID]) -> list[tuple[UUID, UUID]]:
        """The rooms of many users, in pairs of user and room."""
        return await self._executor.fetch_all(self._ROOMS_OF_ALL, user_ids)

    _DIGESTS = Statement(
        "readers.digests",
        lambda user_id, digest: (user_id, digest),
        """
        SELECT
            user_id,
            bit_xor(uuid_hash_extended(room_id, 0)) AS digest
        FROM room_users
        WHERE user_id = ANY($1::uuid[])
        GROUP BY user_id
        """,
    )

    async def digests(self, user_ids: Sequence[UUID]) -> dict[UUID, int]:
        """The digest of each user's rooms; 0 for a user who is in none."""
        found = dict(await self._executor.fetch_all(self._DIGESTS, user_ids))
        return {user_id: found.get(user_id, 0) for user_id in user_ids}
