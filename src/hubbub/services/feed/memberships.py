"""The memberships of many users at a time, as followers need them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

import msgspec

from hubbub.postgres import Executor, Statement
from hubbub.sql import not_deleted


class MemberRoom(msgspec.Struct, frozen=True, gc=False):
    """A room that a user is a member of, with the head of its log."""

    user_id: UUID
    room_id: UUID
    last_seq: int
    joined_seq: int
    """The seq at which the membership began; 0 for a membership that is older than this column."""
    digest: int
    """A digest of all rooms of the user. It changes with the set of rooms."""


class Memberships:
    """Reads the rooms that users are members of."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    _ROOMS_OF = Statement(
        "memberships.rooms_of",
        MemberRoom,
        f"""
        SELECT
            room_users.user_id,
            room_users.room_id,
            rooms.last_seq,
            room_users.joined_seq,
            bit_xor(uuid_hash_extended(room_users.room_id, 0)) OVER (PARTITION BY room_users.user_id) AS digest
        FROM room_users
        JOIN rooms ON rooms.id = room_users.room_id
        WHERE room_users.user_id = ANY($1::uuid[])
            AND {not_deleted("room_users.room_id", "room_users.user_id")}
        """,
    )

    async def rooms_of(
        self, user_ids: Sequence[UUID], *, deadline: float | None = None
    ) -> dict[UUID, list[MemberRoom]]:
        """The rooms of each of the users."""
        rooms: dict[UUID, list[MemberRoom]] = {user_id: [] for user_id in user_ids}
        for room in await self._executor.fetch_all(self._ROOMS_OF, user_ids, deadline=deadline):
            rooms[room.user_id].append(room)
        return rooms

    _PAIRS = Statement(
        "memberships.pairs",
        lambda user_id, room_id: (user_id, room_id),
        f"""
        SELECT user_id, room_id
        FROM room_users
        WHERE user_id = ANY($1::uuid[])
            AND {not_deleted("room_users.room_id", "room_users.user_id")}
        """,
    )

    async def pairs(self, user_ids: Sequence[UUID]) -> list[tuple[UUID, UUID]]:
        """The rooms of the users, in pairs of user and room."""
        return await self._executor.fetch_all(self._PAIRS, user_ids)

    _DIGESTS = Statement(
        "memberships.digests",
        lambda user_id, digest: (user_id, digest),
        f"""
        SELECT
            user_id,
            bit_xor(uuid_hash_extended(room_id, 0)) AS digest
        FROM room_users
        WHERE user_id = ANY($1::uuid[])
            AND {not_deleted("room_users.room_id", "room_users.user_id")}
        GROUP BY user_id
        """,
    )

    async def digests(self, user_ids: Sequence[UUID]) -> dict[UUID, int]:
        """The digest of each user's rooms; 0 for a user without rooms."""
        found = dict(await self._executor.fetch_all(self._DIGESTS, user_ids))
        return {user_id: found.get(user_id, 0) for user_id in user_ids}

    _EXISTING = Statement(
        "memberships.existing",
        lambda id: id,
        f"""
        SELECT id
        FROM users
        WHERE id = ANY($1::uuid[])
            AND {not_deleted("users.id")}
        """,
    )

    async def existing(self, user_ids: Sequence[UUID]) -> set[UUID]:
        """The users among these who are not deleted."""
        return set(await self._executor.fetch_all(self._EXISTING, user_ids))

    # The user's newest entry decides: after a leaving the user was away. A user without an entry up to the seq had
    # never been in the room, and reads what was before the first joining.
    _LEFT_AT = Statement(
        "memberships.left_at",
        lambda room_id: room_id,
        """
        SELECT cursors.room_id
        FROM unnest($2::uuid[], $3::bigint[]) AS cursors (room_id, seq)
        CROSS JOIN LATERAL (
            SELECT room_events.kind
            FROM room_events
            WHERE room_events.room_id = cursors.room_id
                AND room_events.seq <= cursors.seq
                AND room_events.user_id = $1
                AND room_events.kind IN ('joined', 'left')
            ORDER BY room_events.seq DESC
            LIMIT 1
        ) AS latest
        WHERE latest.kind = 'left'
        """,
        # Nodes cannot look up one row per cursor.
        distributed="""
        SELECT latest.room_id
        FROM (
            SELECT
                room_events.room_id,
                (array_agg(room_events.kind ORDER BY room_events.seq DESC))[1] AS kind
            FROM room_events
            JOIN unnest($2::uuid[], $3::bigint[]) AS cursors (room_id, seq)
                ON room_events.room_id = cursors.room_id
                AND room_events.seq <= cursors.seq
            WHERE room_events.user_id = $1
                AND room_events.kind IN ('joined', 'left')
            GROUP BY room_events.room_id
        ) AS latest
        WHERE latest.kind = 'left'
        """,
    )

    async def left_at(
        self, user_id: UUID, seqs: Mapping[UUID, int], *, deadline: float | None = None
    ) -> set[UUID]:
        """The rooms that the user had left at the given seq."""
        room_ids = await self._executor.fetch_all(
            self._LEFT_AT, user_id, list(seqs), list(seqs.values()), deadline=deadline
        )
        return set(room_ids)

    # A member may read every message as it is now, also one that was edited during an absence.
    _EDITED_AFTER_LEAVING = Statement(
        "memberships.edited_after_leaving",
        lambda message_id: message_id,
        f"""
        SELECT room_events.message_id
        FROM room_events
        WHERE room_events.room_id = $1
            AND room_events.seq > $3
            AND room_events.kind = 'edited'
            AND room_events.message_id = ANY($4::uuid[])
            AND NOT EXISTS (
                SELECT 1
                FROM room_users
                WHERE room_users.room_id = $1
                    AND room_users.user_id = $2
                    AND {not_deleted("$1", "$2")}
            )
            AND room_events.seq > COALESCE(
                (
                    SELECT leaving.seq
                    FROM room_events AS leaving
                    WHERE leaving.room_id = $1
                        AND leaving.seq > $3
                        AND leaving.user_id = $2
                        AND leaving.kind = 'left'
                    ORDER BY leaving.seq DESC
                    LIMIT 1
                ),
                0
            )
        """,
    )

    async def edited_after_leaving(
        self, room_id: UUID, user_id: UUID, seq: int, message_ids: Sequence[UUID]
    ) -> set[UUID]:
        """The messages that were edited after the user left the room, after the seq. None for a member."""
        rows = await self._executor.fetch_all(self._EDITED_AFTER_LEAVING, room_id, user_id, seq, message_ids)
        return set(rows)

    _LEFT_AFTER = Statement(
        "memberships.left_after",
        lambda user_id: user_id,
        """
        SELECT user_id
        FROM room_events
        WHERE room_id = $1
            AND seq > $2
            AND kind = 'left'
        """,
    )

    async def left_after(self, room_id: UUID, seq: int) -> set[UUID]:
        """The users who left the room after the seq, also those who have joined again."""
        return set(await self._executor.fetch_all(self._LEFT_AFTER, room_id, seq))

    _JOINED_AFTER_SQL = f"""
        SELECT room_users.room_id
        FROM room_users
        WHERE room_users.user_id = $1
            AND room_users.room_id = ANY($2::uuid[])
            AND {not_deleted("room_users.room_id", "$1")}
            AND room_users.joined_at > ({{newest}}
            )
        """
    _JOINED_AFTER = Statement(
        "memberships.joined_after",
        lambda room_id: room_id,
        _JOINED_AFTER_SQL.format(
            newest="""
                SELECT max(COALESCE(messages.created_at, room_events.created_at))
                FROM unnest($3::uuid[], $4::bigint[]) AS cursors (room_id, seq)
                LEFT JOIN messages
                    ON messages.room_id = cursors.room_id
                    AND messages.seq = cursors.seq
                LEFT JOIN room_events
                    ON room_events.room_id = cursors.room_id
                    AND room_events.seq = cursors.seq"""
        ),
        # For an outer join to a list the tables would be read as a whole.
        distributed=_JOINED_AFTER_SQL.format(
            newest="""
                SELECT max(seen.created_at)
                FROM (
                    SELECT messages.created_at
                    FROM messages
                    JOIN unnest($3::uuid[], $4::bigint[]) AS cursors (room_id, seq)
                        ON messages.room_id = cursors.room_id
                        AND messages.seq = cursors.seq
                    UNION ALL
                    SELECT room_events.created_at
                    FROM room_events
                    JOIN unnest($3::uuid[], $4::bigint[]) AS cursors (room_id, seq)
                        ON room_events.room_id = cursors.room_id
                        AND room_events.seq = cursors.seq
                ) AS seen"""
        ),
    )

    async def joined_after(
        self, user_id: UUID, room_ids: Sequence[UUID], seen: Mapping[UUID, int], *, deadline: float | None = None
    ) -> set[UUID]:
        """The rooms that the user joined after the newest of the entries at the given seqs."""
        rows = await self._executor.fetch_all(
            self._JOINED_AFTER, user_id, room_ids, list(seen), list(seen.values()), deadline=deadline
        )
        return set(rows)
