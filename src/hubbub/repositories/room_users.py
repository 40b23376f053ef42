"""Memberships: which users are in which rooms, with which role."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from uuid import UUID

from hubbub import inputs
from hubbub.commits import MembershipEnded, MembersJoined, RoomTouched
from hubbub.cursors import Cursor
from hubbub.errors import Conflict, Invalid, NotAMember, NotFound
from hubbub.events import MemberJoined, MemberLeft, RoleChanged
from hubbub.models import Page, Role, RoomUser
from hubbub.postgres import Lookup, Statement
from hubbub.sql import Repository, entry, existing, next_entry, readable

MEMBER = readable(RoomUser)

MEMBERS_PER_STATEMENT: Final = 1_000
"""A join locks its room until it is committed. On a busy machine of 2 cores this is some 30 ms."""


class RoomUsers(Repository):
    """Members of rooms. Joining, leaving and a change of role are entries of the room's log, each with a seq."""

    # Users who are members already are left out, and take no seq. New members start with nothing unread.
    _ADD = Statement(
        "room_users.add",
        RoomUser,
        f"""
        WITH new AS MATERIALIZED (
            SELECT user_id, row_number() OVER (ORDER BY user_id) AS ordinal
            FROM (SELECT DISTINCT user_id FROM unnest($2::uuid[]) AS requested (user_id)) AS requested
            WHERE NOT EXISTS (
                SELECT 1
                FROM room_users
                WHERE room_id = $1
                    AND room_users.user_id = requested.user_id
            )
        ), head AS (
            UPDATE rooms
            SET last_seq = last_seq + (SELECT count(*) FROM new)
            WHERE id = $1
                AND direct_key IS NULL
                AND EXISTS (SELECT 1 FROM new)
            RETURNING id, last_seq, last_seq - (SELECT count(*) FROM new) AS before
        ), joined AS (
            INSERT INTO room_users (room_id, user_id, role, last_read_seq, joined_seq)
            SELECT head.id, new.user_id, $3, head.last_seq, head.before + new.ordinal
            FROM head, new
            RETURNING {MEMBER}
        ), entries AS ({
            entry(
                MemberJoined,
                "head, new",
                room_id="head.id",
                seq="head.before + new.ordinal",
                user_id="new.user_id",
                payload={"role": "$3::text"},
            )
        })
        SELECT {MEMBER}
        FROM joined
        """,
    )

    _LOCK = Statement(
        "room_users.lock_room", lambda id: id, "SELECT id FROM rooms WHERE id = $1 FOR NO KEY UPDATE"
    )

    async def add(self, room_id: UUID, user_id: UUID, role: Role | str = Role.MEMBER) -> RoomUser:
        """Add the user to the room. A second join changes nothing, and returns the membership as it is.

        Raises: NotFound (no such room or user), Invalid (a third user in a direct room).
        """
        room_id, user_id = inputs.uuid("room_id", room_id), inputs.uuid("user_id", user_id)
        deadline = self._executor.deadline()
        joined = await self._add(room_id, {user_id}, inputs.role(role), deadline)
        return joined[0] if joined else await self._get(room_id, user_id, deadline)

    async def add_many(
        self, room_id: UUID, user_ids: Iterable[UUID], role: Role | str = Role.MEMBER
    ) -> list[RoomUser]:
        """Add the users to the room: all, or none if one of them does not exist. Members stay as they are.

        More than 1,000 are committed in steps of 1,000, so that other changes of the room come in between. After
        `Unavailable` a part of them may be members. The same call then adds the others.

        Returns the new memberships.

        Raises: NotFound (no such room or user), Invalid (a third user in a direct room).
        """
        room_id = inputs.uuid("room_id", room_id)
        requested = sorted(inputs.uuids("user_ids", user_ids))
        role, deadline = inputs.role(role), self._executor.deadline()
        steps = [
            requested[start : start + MEMBERS_PER_STATEMENT]
            for start in range(0, max(len(requested), 1), MEMBERS_PER_STATEMENT)
        ]
        for step in steps if len(steps) > 1 else ():
            for unknown in await self._executor.fetch_all(self._UNKNOWN, step, deadline=deadline):
                raise NotFound("user", str(unknown))
        return [member for step in steps for member in await self._add(room_id, set(step), role, deadline)]

    _UNKNOWN = Statement(
        "room_users.unknown_users",
        lambda id: id,
        """
        SELECT requested.id
        FROM unnest($1::uuid[]) AS requested (id)
        WHERE NOT EXISTS (
            SELECT 1
            FROM users
            WHERE users.id = requested.id
        )
        LIMIT 1
        """,
    )

    async def _add(self, room_id: UUID, requested: set[UUID], role: Role, deadline: float) -> list[RoomUser]:
        try:
            joined = await self._executor.attempt(self._ADD, room_id, requested, role, deadline=deadline)
        except Conflict:  # one of them joined meanwhile, which none can once the room is locked
            async with self._executor.transaction(deadline=deadline) as part:
                await part.fetch_one(self._LOCK, room_id)
                joined = await part.fetch_all(self._ADD, room_id, requested, role)
        if joined:
            self._changed(MembersJoined(room_id, tuple(member.user_id for member in joined)))
            self._changed(RoomTouched(room_id))
            return joined
        state = await self._executor.fetch_one(self._STATE, room_id, requested, deadline=deadline)
        is_direct, members = existing(state, NotFound, "room", room_id)
        if is_direct and requested - set(members):
            raise Invalid("room_id", "a direct room has exactly two members")
        return []

    _STATE = Statement(
        "room_users.state",
        lambda is_direct, members: (is_direct, members),
        """
        SELECT
            direct_key IS NOT NULL AS is_direct,
            ARRAY(
                SELECT user_id
                FROM room_users
                WHERE room_id = $1
                    AND user_id = ANY($2::uuid[])
            ) AS members
        FROM rooms
        WHERE id = $1
        """,
    )

    # The membership is deleted first: of two calls for the same member, the second waits and then finds none.
    _REMOVE = Statement(
        "room_users.remove",
        lambda id: id,
        f"""
        WITH gone AS (
            DELETE FROM room_users
            USING rooms
            WHERE room_users.room_id = $1
                AND room_users.user_id = $2
                AND rooms.id = room_users.room_id
                AND rooms.direct_key IS NULL
            RETURNING room_users.room_id, room_users.user_id
        ), {next_entry(MemberLeft, "gone", user_id="$2")}
        SELECT id
        FROM head
        """,
    )

    async def remove(self, room_id: UUID, user_id: UUID) -> bool:
        """End the membership. Returns whether there was one: False on a retry.

        A `send` of this user that starts after this returns is refused.

        Raises: Invalid (a direct room keeps its two members).
        """
        room_id, user_id = inputs.uuid("room_id", room_id), inputs.uuid("user_id", user_id)
        deadline = self._executor.deadline()
        is_gone = await self._executor.fetch_one(self._REMOVE, room_id, user_id, deadline=deadline) is not None
        if not is_gone:
            state = await self._executor.fetch_one(self._STATE, room_id, [user_id], deadline=deadline)
            if state is not None and all(state):
                raise Invalid("room_id", "a direct room keeps its two members")
        # Also on a retry: the first attempt may not have reported it.
        self._changed(MembershipEnded(room_id, user_id))
        self._changed(RoomTouched(room_id))
        return is_gone

    _SET_ROLE = Statement(
        "room_users.set_role",
        RoomUser,
        f"""
        WITH changed AS (
            UPDATE room_users
            SET role = $3
            WHERE room_id = $1
                AND user_id = $2
                AND role <> $3
            RETURNING {MEMBER}
        ), {next_entry(RoleChanged, "changed", user_id="$2", payload={"role": "$3::text"})}
        SELECT {MEMBER}
        FROM changed
        """,
    )

    async def set_role(self, room_id: UUID, user_id: UUID, role: Role | str) -> RoomUser:
        """Give the member a role. The one that it has changes nothing. Raises: NotAMember."""
        room_id, user_id = inputs.uuid("room_id", room_id), inputs.uuid("user_id", user_id)
        role, deadline = inputs.role(role), self._executor.deadline()
        changed = await self._executor.fetch_one(self._SET_ROLE, room_id, user_id, role, deadline=deadline)
        member = changed or await self._get(room_id, user_id, deadline)
        self._changed(RoomTouched(room_id))
        return member

    _GET_MANY = Statement(
        "room_users.get_many",
        RoomUser,
        f"""
        SELECT {MEMBER}
        FROM room_users
        JOIN unnest($1::uuid[], $2::uuid[]) AS requested (room_id, user_id) USING (room_id, user_id)
        """,
    )
    _GET = Lookup(
        "room_users.get",
        RoomUser,
        f"SELECT {MEMBER} FROM room_users WHERE room_id = $1 AND user_id = $2",
        many=_GET_MANY,
        key_of_args=lambda room_id, user_id: (room_id.int, user_id.int),
        key_of_row=lambda member: (member.room_id.int, member.user_id.int),
    )

    async def get(self, room_id: UUID, user_id: UUID) -> RoomUser:
        """The membership. Raises: NotAMember (also when there is no such room)."""
        room_id, user_id = inputs.uuid("room_id", room_id), inputs.uuid("user_id", user_id)
        member = await self._executor.look_up(self._GET, room_id, user_id)
        return existing(member, NotAMember, room_id, user_id)

    async def _get(self, room_id: UUID, user_id: UUID, deadline: float) -> RoomUser:
        """The membership, as the second statement of a call. Raises: NotAMember."""
        member = await self._executor.fetch_one(self._GET, room_id, user_id, deadline=deadline)
        return existing(member, NotAMember, room_id, user_id)

    async def is_member(self, room_id: UUID, user_id: UUID) -> bool:
        """Whether the user is in the room now."""
        room_id, user_id = inputs.uuid("room_id", room_id), inputs.uuid("user_id", user_id)
        return await self._executor.look_up(self._GET, room_id, user_id) is not None

    _LIST = """
        SELECT {member}
        FROM room_users
        WHERE {of} = $1
            AND {by} > $2
        ORDER BY {by}
        LIMIT $3
    """
    _MEMBERS_CURSOR = Cursor("members", tuple[UUID])
    _MEMBERS = Statement("room_users.members", RoomUser, _LIST.format(member=MEMBER, of="room_id", by="user_id"))

    async def members(self, room_id: UUID, *, limit: int = 50, after: str | None = None) -> Page[RoomUser]:
        """The members of a room, in the order of their ids, which is stable while users join and leave.

        `limit` is 1 to 200; `after` is the `next` of the previous page. Empty for an unknown room.
        """
        room_id, limit = inputs.uuid("room_id", room_id), inputs.limit(limit)
        (user_id,) = (UUID(int=0),) if after is None else self._MEMBERS_CURSOR.decode(room_id, after)
        members = await self._executor.fetch_all(self._MEMBERS, room_id, user_id, limit + 1)
        return self._MEMBERS_CURSOR.page(room_id, members, limit, lambda member: (member.user_id,))

    _ROOMS_CURSOR = Cursor("memberships", tuple[UUID])
    _ROOMS_OF = Statement("room_users.rooms_of", RoomUser, _LIST.format(member=MEMBER, of="user_id", by="room_id"))

    async def rooms_of(self, user_id: UUID, *, limit: int = 50, after: str | None = None) -> Page[RoomUser]:
        """The memberships of a user, in the order of the ids of the rooms. For a screen, see `rooms.list_for`."""
        user_id, limit = inputs.uuid("user_id", user_id), inputs.limit(limit)
        (room_id,) = (UUID(int=0),) if after is None else self._ROOMS_CURSOR.decode(user_id, after)
        members = await self._executor.fetch_all(self._ROOMS_OF, user_id, room_id, limit + 1)
        return self._ROOMS_CURSOR.page(user_id, members, limit, lambda member: (member.room_id,))
