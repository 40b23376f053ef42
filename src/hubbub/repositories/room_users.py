"""Memberships: which users are in which rooms, with which role."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple
from uuid import UUID

from hubbub import inputs
from hubbub.commits import MembershipEnded, MembersJoined, RoomTouched
from hubbub.errors import Conflict, Forbidden, Invalid, NotAMember, NotFound, Unavailable
from hubbub.events import MemberChanged, MemberJoined, MemberLeft, RoleChanged
from hubbub.models import Page, Role, RoomUser
from hubbub.postgres import NOT_SUPPORTED, Lookup, Statement
from hubbub.repository import Cursor, Repository
from hubbub.sql import (
    columns,
    entry,
    has_member,
    lock_timeout,
    next_entries,
    next_entry,
    not_deleted,
    quickly_readable,
    readable,
    require,
)

MEMBER = readable(RoomUser)

MEMBERS_PER_STATEMENT: Final = 1_000
"""A join locks its room until it is committed. On a busy machine of 2 cores this is some 30 ms."""

NO_USER: Final = UUID(int=0)
"""No account has this id."""


LAST_ADMIN: Final = "is the last admin of the room: make another member an admin first"


class _IsAdmin(Exception):
    """The member is an admin, whose role or membership ends by a statement of its own."""


class _Kept(Exception):
    """A membership that has to stay. `hint` is advice for the application."""

    def __init__(self, field: str, reason: str, hint: str = "") -> None:
        super().__init__(field, reason, hint)
        self._field, self._reason, self._hint = field, reason, hint

    def for_caller(self, as_user: UUID | None) -> Exception:
        if as_user is not None:
            return Forbidden("leave this room", self._reason)
        return Invalid(self._field, self._reason + self._hint)


class MemberKey(NamedTuple):
    """The key of a membership."""

    room_id: UUID
    user_id: UUID


class Join(NamedTuple):
    """A user who is to be a member. `by` is the user who adds them, None without a check."""

    key: MemberKey
    role: Role
    by: UUID | None

    @property
    def needs_rights(self) -> bool:
        """Whether the user who adds has to be a member with rights. All users may join a public room."""
        return self.by is not None and (self.by != self.key.user_id or self.role is not Role.MEMBER)


class _State(NamedTuple):
    """A membership, or that there is none. `is_direct` is None if there is no such room."""

    key: MemberKey
    is_direct: bool | None
    member: RoomUser | None

    def check_may(self, action: str, *roles: Role) -> None:
        """Check that the user has one of these roles, as of now. Raises: NotAMember, Forbidden."""
        if self.member is None:
            raise NotAMember(*self.key)
        if self.is_direct:
            raise Forbidden(action, "a direct room keeps its two members and their roles")
        if self.member.role not in roles:
            raise Forbidden(action, f"it needs the role {' or '.join(roles)}")

    @property
    def is_admin(self) -> bool:
        return self.member is not None and self.member.role is Role.ADMIN

    def why_not_added(self) -> Exception:
        if self.is_direct is None:
            return NotFound("room", self.key.room_id)
        if self.is_direct:
            return Invalid("room_id", "a direct room has exactly two members")
        return NotAMember(*self.key)  # it left a moment ago


def _actor(user_id: str, lock_wait: str) -> str:
    """A part of a WITH: the membership of the user who changes that of $2.

    Both rows are locked in the order of their ids, so that neither changes before the COMMIT. Two users who change
    each other take turns. An admin who removes another one stays admin.
    """
    return f"""actor AS MATERIALIZED (
            SELECT user_id AS actor_id, role AS actor_role
            FROM room_users
            WHERE room_id = $1
                AND user_id IN ($2, {user_id})
                AND {not_deleted("$1", "$2", user_id)}
                AND {lock_timeout(lock_wait)}
            ORDER BY user_id
            FOR NO KEY UPDATE
        )"""


# Two admins are locked, always in the same order, so that the second of two concurrent calls sees the result of
# the first. The statements for members leave admins out, and need not look for others.
_ADMINS: Final = f"""admins AS MATERIALIZED (
            SELECT user_id
            FROM room_users
            WHERE room_id = $1
                AND role = 'admin'
                AND {not_deleted("user_id")}
                AND {lock_timeout("$4")}
            ORDER BY user_id
            LIMIT 2
            FOR NO KEY UPDATE
        )"""
_ANOTHER_ADMIN: Final = "EXISTS (SELECT 1 FROM admins WHERE user_id <> $2)"


def _removal(
    name: str, function_call: str, condition: str, before: str = "", source: str = ""
) -> Statement[MemberKey]:
    """Ends a membership if the condition holds. `before` and `source` are as in `_set_role`. `function_call` does
    the same where rooms are distributed.

    The membership is deleted first, so that the second of two calls for one member waits and finds none.
    """
    return Statement(
        name,
        MemberKey,
        f"""
        WITH {before and f"{before}, "}gone AS (
            DELETE FROM room_users
            {source and f"USING {source}"}
            WHERE room_users.room_id = $1
                AND room_users.user_id = $2
                AND {condition}
            RETURNING room_users.room_id, room_users.user_id
        ), {next_entry(MemberLeft, "gone", room_id="$1", user_id="$2")}
        SELECT room_id, user_id
        FROM gone
        """,
        distributed=function_call and f"SELECT of_room AS room_id, of_user AS user_id FROM {function_call}",
    )


def _set_role(
    name: str, last_arguments: str, condition: str, before: str = "", source: str = ""
) -> Statement[RoomUser]:
    """Gives a member another role if the condition holds. `before` are the tables that the condition reads, of
    which `source` is joined. `last_arguments` are those of the function that does the same."""
    return Statement(
        name,
        RoomUser,
        f"""
        WITH {before and f"{before}, "}changed AS (
            UPDATE room_users
            SET role = $3
            {source and f"FROM {source}"}
            WHERE room_id = $1
                AND user_id = $2
                AND role <> $3
                AND {not_deleted("$1", "$2")}
                AND {condition}
            RETURNING {MEMBER}
        ), {next_entry(RoleChanged, "changed", room_id="$1", user_id="$2", payload={"role": "$3::text"})}
        SELECT {MEMBER}
        FROM changed
        """,
        distributed=f"SELECT {MEMBER} FROM hubbub_set_role($1, $2, $3, {last_arguments})",
    )


class RoomUsers(Repository):
    """Members of rooms. Joining, leaving and a change of role are entries of the room's log, each with a seq."""

    # An account that is being deleted fails the foreign key, as one that does not exist.
    #
    # $4 is the user who adds the member, if that is to be checked: the same user, who joins a public room, or one
    # whose own membership is locked, so that it cannot end before this is committed.
    #
    # Users who are members already are left out, and take no seq. New members start with nothing unread.
    _ADD = Statement(
        "room_users.add",
        RoomUser,
        f"""
        WITH actor AS MATERIALIZED (
            SELECT role
            FROM room_users
            WHERE room_id = $1
                AND user_id = $4
                AND {not_deleted("$4")}
                AND {lock_timeout("$5")}
            FOR SHARE
        ), head AS (
            UPDATE rooms
            SET last_seq = last_seq + 1
            WHERE id = $1
                AND direct_key IS NULL
                AND {not_deleted("$1")}
                AND (
                    $4::uuid IS NULL
                    OR ($4 = $2 AND $3::text = 'member' AND NOT is_private)
                    OR EXISTS (
                        SELECT 1
                        FROM actor
                        WHERE role = 'admin'
                            OR (role = 'moderator' AND $3::text = 'member')
                    )
                )
                AND NOT EXISTS (
                    SELECT 1
                    FROM room_users
                    WHERE room_id = $1
                        AND user_id = $2
                        AND {not_deleted("$2")}
                )
            RETURNING id, last_seq
        ), entry AS ({entry(MemberJoined, "head", user_id="$2", payload={"role": "$3::text"})})
        INSERT INTO room_users (room_id, user_id, role, last_read_seq, joined_seq)
        SELECT id, CASE WHEN {not_deleted("$2")} THEN $2 ELSE '{NO_USER}' END, $3, last_seq, last_seq
        FROM head
        RETURNING {MEMBER}
        """,
        distributed=f"SELECT {MEMBER} FROM hubbub_add_member($1, $2, $3, $4, $5, '{NO_USER}')",
    )
    _ADD_MANY = Statement(
        "room_users.add_many",
        RoomUser,
        f"""
        WITH new AS MATERIALIZED (
            SELECT requested.room_id, requested.user_id, requested.role, requested.if_public, requested.ordinal
            FROM unnest($1::uuid[], $2::uuid[], $3::text[], $5::boolean[])
                WITH ORDINALITY AS requested (room_id, user_id, role, if_public, ordinal)
            JOIN rooms ON rooms.id = requested.room_id
            WHERE rooms.direct_key IS NULL
                AND NOT (requested.if_public AND (rooms.is_private OR requested.role <> 'member'))
                AND {not_deleted("rooms.id")}
                AND NOT EXISTS (
                    SELECT 1
                    FROM room_users
                    WHERE room_users.room_id = requested.room_id
                        AND room_users.user_id = requested.user_id
                        AND {not_deleted("requested.user_id")}
                )
                AND {lock_timeout("$4")}
        ), {
            next_entries(MemberJoined, "new", "user_id", "role", unless="if_public AND locked.is_private")
        }, joined AS (
            INSERT INTO room_users (room_id, user_id, role, last_read_seq, joined_seq)
            SELECT
                room_id,
                CASE WHEN {not_deleted("user_id")} THEN user_id ELSE '{NO_USER}' END,
                role,
                last_seq,
                seq
            FROM item
            RETURNING {MEMBER}
        )
        SELECT {MEMBER}
        FROM joined
        """,
        distributed=f"""
        SELECT {MEMBER}
        FROM hubbub_add_members(($1::uuid[])[1], $2, $3, $4, $5, '{NO_USER}')
        """,
    )
    _LOCK = Statement(
        "room_users.lock_room",
        lambda id: id,
        f"SELECT id FROM rooms WHERE id = $1 AND {lock_timeout('$2')} FOR NO KEY UPDATE",
    )

    async def add(
        self, room_id: UUID, user_id: UUID, role: Role | str = Role.MEMBER, *, as_user: UUID | None = None
    ) -> RoomUser:
        """Add the user to the room. A second join changes nothing, and returns the membership as it is.

        With `as_user`, a user may join a public room as a member, moderators may add members, and admins anyone.

        Raises: NotFound (no such room or user), Invalid (a third user in a direct room), NotAMember and Forbidden
        (`as_user`).
        """
        key = MemberKey(inputs.uuid("room_id", room_id), inputs.uuid("user_id", user_id))
        join, deadline = Join(key, inputs.role(role), inputs.viewer(as_user)), self._executor.deadline()
        if join.by is None or not join.needs_rights:
            return await self._change(self._add_each, join, key=key.room_id, id=key, deadline=deadline)
        actor = MemberKey(key.room_id, join.by)
        return await self._change_alone(
            partial(self._add_by, join, actor), key=key.room_id, id=key, locks=(actor,), deadline=deadline
        )

    async def _add_each(
        self, joins: Sequence[Join], lock_wait: str | None, deadline: float
    ) -> list[RoomUser | Exception]:
        joined = await self._join(joins, lock_wait, deadline)
        states = await self._states([join.key for join in joins if join.key not in joined], deadline)
        return [
            joined.get(key)
            or states[key].member
            or (states[key].why_not_added() if by is None else NotAMember(*key))
            for key, _, by in joins
        ]

    async def _add_by(self, join: Join, actor: MemberKey, lock_wait: str | None, deadline: float) -> RoomUser:
        key, role, _ = join
        joined = await self._join([join], lock_wait, deadline)
        if joined:
            self._executor.note_locked(actor)
            return joined[key]
        states = await self._states([actor, key], deadline)
        roles = (Role.ADMIN, Role.MODERATOR) if role is Role.MEMBER else (Role.ADMIN,)
        states[actor].check_may(f"add a member with the role {role}", *roles)
        state = states[key]
        if state.member is None:
            raise state.why_not_added()
        return state.member

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
        joined: list[RoomUser] = []
        for number, step in enumerate(steps):
            add_step = partial(self._add_step, room_id, step, role)
            with self._after_steps(number):
                joined += await self._change_alone(add_step, key=room_id, deadline=deadline)
        return joined

    async def _add_step(
        self, room_id: UUID, user_ids: list[UUID], role: Role, lock_wait: str | None, deadline: float
    ) -> list[RoomUser]:
        keys = [MemberKey(room_id, user_id) for user_id in user_ids]
        joined = await self._join([Join(key, role, None) for key in keys], lock_wait, deadline)
        # Without a user the room is looked up all the same.
        states = {} if joined else await self._states(keys or [MemberKey(room_id, NO_USER)], deadline)
        for state in states.values():
            if state.is_direct is None or (state.is_direct and not state.member and keys):
                raise state.why_not_added()
        return list(joined.values())

    _UNKNOWN = Statement(
        "room_users.unknown_users",
        lambda id: id,
        f"""
        SELECT requested.id
        FROM unnest($1::uuid[]) AS requested (id)
        WHERE NOT EXISTS (
            SELECT 1
            FROM users
            WHERE users.id = requested.id
                AND {not_deleted("users.id")}
        )
        LIMIT 1
        """,
    )

    async def _join(
        self, joins: Sequence[Join], lock_wait: str | None, deadline: float
    ) -> dict[MemberKey, RoomUser]:
        """The new memberships."""
        if not joins:  # with a NULL in place of the room of a function, Citus 14.0.1 crashes
            return {}
        rooms, users = [key.room_id for key, _, _ in joins], [key.user_id for key, _, _ in joins]
        roles, if_public = [role for _, role, _ in joins], [by is not None for _, _, by in joins]
        key, role, by = first = joins[0]

        async def insert(run: Callable[..., Awaitable[list[RoomUser]]]) -> list[RoomUser]:
            if first.needs_rights or (len(joins) == 1 and lock_wait is None):
                return await run(self._ADD, key.room_id, key.user_id, role, by, lock_wait, deadline=deadline)
            return await run(self._ADD_MANY, rooms, users, roles, lock_wait, if_public, deadline=deadline)

        try:
            members = await insert(self._executor.fetch_in_savepoint)
        except Conflict:  # one of them joined meanwhile, which none can once the room is locked
            if len(set(rooms)) > 1:
                raise
            async with self._executor.transaction(deadline=deadline) as part:
                await part.fetch_one(self._LOCK, rooms[0], lock_wait)
                members = await insert(part.fetch_all)
        except NotFound as failure:
            if failure.key != str(NO_USER):
                raise
            found = await self._executor.fetch_all(self._UNKNOWN, users, deadline=deadline)
            raise NotFound("user", str(found[0]) if found else failure.key) from failure
        by_room: dict[UUID, list[UUID]] = {}
        for member in members:
            by_room.setdefault(member.room_id, []).append(member.user_id)
        for room_id, user_ids in by_room.items():
            self._changed(MembersJoined(room_id, tuple(user_ids)))
            self._changed(RoomTouched(room_id))
        return {MemberKey(member.room_id, member.user_id): member for member in members}

    _STATES_SQL = f"""
        SELECT
            requested.room_id AS of_room,
            requested.user_id AS of_user,
            CASE WHEN rooms.id IS NOT NULL THEN rooms.direct_key IS NOT NULL END AS is_direct,
            {readable(RoomUser, "room_users")}
        FROM unnest($1::uuid[], $2::uuid[]) AS requested (room_id, user_id)
        LEFT JOIN rooms ON rooms.id = {{room_id}} AND {not_deleted("rooms.id")}
        LEFT JOIN room_users
            ON room_users.room_id = {{room_id}}
            AND room_users.user_id = requested.user_id
            AND {not_deleted("requested.room_id", "requested.user_id")}
        """
    _STATES = Statement(
        "room_users.states",
        lambda room_id, user_id, is_direct, *member: _State(
            MemberKey(room_id, user_id), is_direct, None if member[0] is None else RoomUser.of_row(*member)
        ),
        _STATES_SQL.format(room_id="requested.room_id"),
        distributed=_STATES_SQL.format(room_id="($1::uuid[])[1]"),
    )

    async def _states(self, keys: Sequence[MemberKey], deadline: float) -> dict[MemberKey, _State]:
        """The current states, read by a second statement to explain why a change had no effect."""
        if not keys:
            return {}
        rooms, users = [key.room_id for key in keys], [key.user_id for key in keys]
        try:
            states = await self._executor.fetch_all(self._STATES, rooms, users, deadline=deadline)
        except Unavailable as failure:
            raise failure.with_unknown_outcome() from failure  # others of the batch were changed
        return {state.key: state for state in states}

    _REMOVE = _removal(
        "room_users.remove",
        "hubbub_remove_member($1, $2)",
        f"""{not_deleted("$1", "$2")}
                AND rooms.id = $1
                AND rooms.direct_key IS NULL
                AND room_users.role <> 'admin'""",
        source="rooms",
    )
    _REMOVE_ADMIN = _removal(
        "room_users.remove_admin",
        "hubbub_remove_admin($1, $2, $3, $4)",  # also of the last member: the next two statements are parts of it
        f"{not_deleted('$1', '$2')} AND ($3::boolean OR role <> 'admin' OR {_ANOTHER_ADMIN})",
        _ADMINS,
    )
    # A join in flight is in no snapshot. So the last admin's own row and the room are locked, in the order of a
    # join, by a statement of their own, and the next one sees all members there are.
    _LOCK_WITH_ROOM = Statement(
        "room_users.lock_with_room",
        lambda id: id,
        f"""
        WITH member AS MATERIALIZED (
            SELECT user_id
            FROM room_users
            WHERE room_id = $1
                AND user_id = $2
                AND {lock_timeout("$3")}
            FOR UPDATE
        )
        SELECT id
        FROM rooms
        WHERE id = $1
            AND (SELECT count(*) FROM member) > 0
        FOR NO KEY UPDATE
        """,
        distributed=NOT_SUPPORTED,
    )
    _REMOVE_LAST_MEMBER = _removal(
        "room_users.remove_last_member",
        NOT_SUPPORTED,
        f"""{not_deleted("$1", "$2")}
                AND NOT EXISTS (
                    SELECT 1
                    FROM room_users AS other
                    WHERE other.room_id = $1
                        AND other.user_id <> $2
                        AND {not_deleted("other.user_id")}
                )""",
    )
    _REMOVE_BY = _removal(
        "room_users.remove_by",
        "hubbub_remove_member_by($1, $2, $3, $4)",
        """rooms.id = $1
                AND rooms.direct_key IS NULL
                AND actor_id = $3
                AND (actor_role = 'admin' OR (actor_role = 'moderator' AND role = 'member'))""",
        _actor("$3", "$4"),
        "rooms, actor",
    )
    _REMOVE_MANY = Statement(
        "room_users.remove_many",
        MemberKey,
        f"""
        WITH gone AS (
            DELETE FROM room_users
            USING rooms, unnest($1::uuid[], $2::uuid[])
                WITH ORDINALITY AS requested (room_id, user_id, ordinal)
            WHERE room_users.room_id = requested.room_id
                AND room_users.user_id = requested.user_id
                AND rooms.id = requested.room_id
                AND rooms.direct_key IS NULL
                AND {not_deleted("requested.room_id", "requested.user_id")}
                AND room_users.role <> 'admin'
                AND {lock_timeout("$3")}
            RETURNING room_users.room_id, room_users.user_id, requested.ordinal
        ), {next_entries(MemberLeft, "gone", "user_id")}
        SELECT room_id, user_id
        FROM item
        """,
        distributed=NOT_SUPPORTED,
    )

    async def remove(
        self, room_id: UUID, user_id: UUID, *, force: bool = False, as_user: UUID | None = None
    ) -> bool:
        """End the membership. Returns whether there was one: False on a retry.

        A `send` of this user that starts after this returns is refused. The last admin stays while there are other
        members: another one becomes admin first, by `set_role`. With `force` the room is left without an admin.

        With `as_user`, users may leave, moderators may remove members, and admins anyone.

        Raises: Invalid (a direct room keeps its two members, and any room its last admin), and with `as_user`
        NotAMember and Forbidden, also instead of Invalid.
        """
        key = MemberKey(inputs.uuid("room_id", room_id), inputs.uuid("user_id", user_id))
        viewer, force, deadline = inputs.viewer(as_user), inputs.flag("force", force), self._executor.deadline()
        if viewer is not None and viewer != key.user_id:
            actor = MemberKey(key.room_id, viewer)
            remove = partial(self._remove_by, key, actor)
            return await self._change_alone(remove, key=key.room_id, id=key, locks=(key, actor), deadline=deadline)
        try:
            with suppress(_IsAdmin):
                return await self._change(
                    self._remove_each, key, key=key.room_id, id=key, locks=(key,), deadline=deadline
                )
            remove = partial(self._remove_admin, key, force and viewer is None)
            return await self._change_alone(remove, key=key.room_id, id=key, locks=(key,), deadline=deadline)
        except _Kept as refusal:
            raise refusal.for_caller(viewer) from None

    async def _remove_by(self, key: MemberKey, actor: MemberKey, lock_wait: str | None, deadline: float) -> bool:
        gone = await self._executor.fetch_all(
            self._REMOVE_BY, key.room_id, key.user_id, actor.user_id, lock_wait, deadline=deadline
        )
        if not gone:
            states = await self._states([actor, key], deadline)
            member = states[key].member
            roles = (Role.ADMIN, Role.MODERATOR) if not member or member.role is Role.MEMBER else (Role.ADMIN,)
            states[actor].check_may("remove this member", *roles)
            if member is not None:
                raise Forbidden("remove this member", "a role was changed meanwhile")
        else:
            self._executor.note_locked(actor)
        self._report_ended([key], gone)
        return bool(gone)

    async def _remove_admin(self, key: MemberKey, force: bool, lock_wait: str | None, deadline: float) -> bool:
        gone = await self._executor.fetch_all(
            self._REMOVE_ADMIN, key.room_id, key.user_id, force, lock_wait, deadline=deadline
        )
        if not gone and not self._executor.is_distributed:
            async with self._executor.transaction(deadline=deadline) as part:
                if await part.fetch_one(self._LOCK_WITH_ROOM, key.room_id, key.user_id, lock_wait) is not None:
                    gone = await part.fetch_all(self._REMOVE_LAST_MEMBER, key.room_id, key.user_id)
        if not gone and (await self._states([key], deadline))[key].is_admin:
            raise _Kept("user_id", LAST_ADMIN, ", or use force=True")
        self._report_ended([key], gone)
        return bool(gone)

    async def _remove_each(
        self, keys: Sequence[MemberKey], lock_wait: str | None, deadline: float
    ) -> list[bool | Exception]:
        rooms, users = [key.room_id for key in keys], [key.user_id for key in keys]
        if len(keys) == 1 and lock_wait is None:
            gone = await self._executor.fetch_all(self._REMOVE, rooms[0], users[0], deadline=deadline)
        else:
            gone = await self._executor.fetch_all(self._REMOVE_MANY, rooms, users, lock_wait, deadline=deadline)
        found = set(gone)
        staying: dict[MemberKey, Exception] = {}
        for key, state in (await self._states([key for key in keys if key not in found], deadline)).items():
            if state.is_direct and state.member is not None:
                staying[key] = _Kept("room_id", "a direct room keeps its two members")
            elif state.is_admin:
                staying[key] = _IsAdmin()
        self._report_ended([key for key in keys if key not in staying], found)
        return [staying.get(key, key in found) for key in keys]

    def _report_ended(self, keys: Sequence[MemberKey], gone: Iterable[MemberKey]) -> None:
        """Report them, also those that were gone before: on a retry, the first attempt may not have done so."""
        gone = set(gone)
        for key in keys:
            self._changed(MembershipEnded(*key), locks=key in gone)
        left = {key.room_id for key in gone}
        for room_id in {key.room_id for key in keys}:
            self._changed(RoomTouched(room_id), locks=room_id in left)

    _SET_ROLE = _set_role("room_users.set_role", "NULL, false, NULL", "role <> 'admin'")
    _DEMOTE = _set_role("room_users.demote", "NULL, true, $4", f"(role <> 'admin' OR {_ANOTHER_ADMIN})", _ADMINS)
    _STEP_DOWN = _set_role("room_users.step_down", "$2, true, $4", f"role = 'admin' AND {_ANOTHER_ADMIN}", _ADMINS)
    _SET_ROLE_BY = _set_role(
        "room_users.set_role_by",
        "$4, false, $5",
        "actor_id = $4 AND actor_role = 'admin'",
        _actor("$4", "$5"),
        "actor",
    )
    _SET_ROLES = Statement(
        "room_users.set_roles",
        RoomUser,
        f"""
        WITH changed AS (
            UPDATE room_users
            SET role = requested.role
            FROM unnest($1::uuid[], $2::uuid[], $3::text[])
                WITH ORDINALITY AS requested (room_id, user_id, role, ordinal)
            WHERE room_users.room_id = requested.room_id
                AND room_users.user_id = requested.user_id
                AND room_users.role <> requested.role
                AND {not_deleted("requested.room_id", "requested.user_id")}
                AND room_users.role <> 'admin'
                AND {lock_timeout("$4")}
            RETURNING {columns(RoomUser, "room_users")}, requested.ordinal
        ), {next_entries(RoleChanged, "changed", "user_id", "role")}
        SELECT {MEMBER}
        FROM changed
        """,
        distributed=NOT_SUPPORTED,
    )

    async def set_role(
        self, room_id: UUID, user_id: UUID, role: Role | str, *, as_user: UUID | None = None
    ) -> RoomUser:
        """Give the member a role. If the member has it already, nothing changes. With `as_user`, only admins may.

        Raises: NotAMember, Invalid (the last admin stays admin, also of two that change each other at once), and
        with `as_user` Forbidden, also instead of Invalid.
        """
        key = MemberKey(inputs.uuid("room_id", room_id), inputs.uuid("user_id", user_id))
        role, viewer, deadline = inputs.role(role), inputs.viewer(as_user), self._executor.deadline()
        if viewer is not None:
            actor = MemberKey(key.room_id, viewer)
            set_by = partial(self._set_by, key, role, actor)
            return await self._change_alone(set_by, key=key.room_id, id=key, locks=(key, actor), deadline=deadline)
        with suppress(_IsAdmin):
            return await self._change(
                self._set_each, (key, role), key=key.room_id, id=key, locks=(key,), deadline=deadline
            )
        return await self._change_alone(
            partial(self._demote, key, role), key=key.room_id, id=key, locks=(key,), deadline=deadline
        )

    async def _demote(self, key: MemberKey, role: Role, lock_wait: str | None, deadline: float) -> RoomUser:
        changed = await self._executor.fetch_one(
            self._DEMOTE, key.room_id, key.user_id, role, lock_wait, deadline=deadline
        )
        member = changed or (await self._states([key], deadline))[key].member
        self._member_changed(changed is not None, key)
        member = require(member, NotAMember, *key)
        if member.role is not role:
            raise Invalid("role", LAST_ADMIN)
        return member

    async def _set_by(
        self, key: MemberKey, role: Role, actor: MemberKey, lock_wait: str | None, deadline: float
    ) -> RoomUser:
        if actor == key:
            changed = await self._executor.fetch_one(
                self._STEP_DOWN, key.room_id, key.user_id, role, lock_wait, deadline=deadline
            )
        else:
            changed = await self._executor.fetch_one(
                self._SET_ROLE_BY, key.room_id, key.user_id, role, actor.user_id, lock_wait, deadline=deadline
            )
        self._member_changed(changed is not None, key, actor)
        if changed is not None:
            return changed
        states = await self._states(list({actor, key}), deadline)
        states[actor].check_may("change a role", Role.ADMIN)
        member = require(states[key].member, NotAMember, *key)
        if member.role is not role:
            raise Forbidden("change a role", LAST_ADMIN)
        return member

    async def _set_each(
        self, changes: Sequence[tuple[MemberKey, Role]], lock_wait: str | None, deadline: float
    ) -> list[RoomUser | Exception]:
        keys, roles = zip(*changes, strict=True)
        rooms, users = [key.room_id for key in keys], [key.user_id for key in keys]
        if len(keys) == 1 and lock_wait is None:
            members = await self._executor.fetch_all(
                self._SET_ROLE, rooms[0], users[0], roles[0], deadline=deadline
            )
        else:
            members = await self._executor.fetch_all(
                self._SET_ROLES, rooms, users, roles, lock_wait, deadline=deadline
            )
        changed = {MemberKey(member.room_id, member.user_id): member for member in members}
        states = await self._states([key for key in keys if key not in changed], deadline)
        self._note_locked(changed)
        locked = {key.room_id for key in changed}
        for room_id in set(rooms):
            self._changed(RoomTouched(room_id), locks=room_id in locked)  # also on a retry
        return [
            changed.get(key)
            or (_IsAdmin() if states[key].is_admin and role is not Role.ADMIN else states[key].member)
            or NotAMember(*key)
            for key, role in changes
        ]

    _UPDATE = Statement(
        "room_users.update",
        RoomUser,
        f"""
        WITH changed AS (
            UPDATE room_users
            SET metadata = $3::jsonb
            WHERE room_id = $1
                AND user_id = $2
                AND metadata IS DISTINCT FROM $3::jsonb
                AND {not_deleted("$1", "$2")}
                AND {lock_timeout("$4")}
            RETURNING {MEMBER}
        ), {next_entry(MemberChanged, "changed", room_id="$1", user_id="$2", payload={"metadata": "$3::jsonb"})}
        SELECT {MEMBER}
        FROM changed
        """,
        distributed=f"SELECT {MEMBER} FROM hubbub_update_member($1, $2, $3, $4)",
    )

    async def update(self, room_id: UUID, user_id: UUID, *, metadata: Mapping[str, Any] | None) -> RoomUser:
        """Give the membership other metadata, a JSON object of at most 8 KiB, or none. An entry of the room's log.

        It replaces all of the former. The same as before changes nothing. All members of the room may see it.

        Raises: NotAMember.
        """
        key = MemberKey(inputs.uuid("room_id", room_id), inputs.uuid("user_id", user_id))
        encoded, deadline = inputs.metadata(metadata), self._executor.deadline()

        async def apply(lock_wait: str | None, deadline: float) -> RoomUser:
            changed = await self._executor.fetch_one(
                self._UPDATE, key.room_id, key.user_id, encoded, lock_wait, deadline=deadline
            )
            self._member_changed(changed is not None, key)
            member = changed or (await self._states([key], deadline))[key].member
            return require(member, NotAMember, *key)

        return await self._change_alone(apply, key=key.room_id, id=key, locks=(key,), deadline=deadline)

    def _member_changed(self, is_changed: bool, *locked: MemberKey) -> None:
        """Report it also if nothing was changed, as on a retry. `locked` are the memberships that it locks."""
        if is_changed:
            self._note_locked(locked)
        self._changed(RoomTouched(locked[0].room_id), locks=is_changed)

    # Without the subqueries PostgreSQL would replan it each time for a few members, as SEND_MANY.
    _GET_MANY = Statement(
        "room_users.get_many",
        RoomUser,
        f"""
        SELECT {quickly_readable(RoomUser)}
        FROM room_users
        JOIN unnest((SELECT $1::uuid[]), (SELECT $2::uuid[])) AS requested (room_id, user_id)
            USING (room_id, user_id)
        WHERE {not_deleted("room_users.room_id", "room_users.user_id")}
        """,
    )
    _GET = Lookup(
        "room_users.get",
        RoomUser,
        f"SELECT {MEMBER} FROM room_users WHERE room_id = $1 AND user_id = $2 AND {not_deleted('$1', '$2')}",
        many=_GET_MANY,
        key_of_args=lambda room_id, user_id: (room_id.int, user_id.int),
        key_of_row=lambda member: (member.room_id.int, member.user_id.int),
        has_room=True,
    )

    async def get(self, room_id: UUID, user_id: UUID) -> RoomUser:
        """The membership. Raises: NotAMember (also when there is no such room)."""
        room_id, user_id = inputs.uuid("room_id", room_id), inputs.uuid("user_id", user_id)
        member = await self._executor.look_up(self._GET, room_id, user_id)
        return require(member, NotAMember, room_id, user_id)

    async def is_member(self, room_id: UUID, user_id: UUID) -> bool:
        """Whether the user is in the room now."""
        room_id, user_id = inputs.uuid("room_id", room_id), inputs.uuid("user_id", user_id)
        return await self._executor.look_up(self._GET, room_id, user_id) is not None

    _LIST = """
        SELECT {member}
        FROM room_users
        WHERE {of} = $1
            AND {by} > $2
            AND {condition}
        ORDER BY {by}
        LIMIT $3
    """
    _MEMBERS_CURSOR = Cursor("members", tuple[UUID])
    _MEMBERS = Statement(
        "room_users.members",
        RoomUser,
        _LIST.format(
            member=MEMBER,
            condition=f"""{not_deleted("$1", "room_users.user_id")}
            AND ($4::uuid IS NULL OR {has_member("$1", "$4")})""",
            of="room_id",
            by="user_id",
        ),
    )

    async def members(
        self, room_id: UUID, *, limit: int = 50, after: str | None = None, as_user: UUID | None = None
    ) -> Page[RoomUser]:
        """The members of a room, in the order of their ids, which is stable while users join and leave.

        `limit` is 1 to 200; `after` is the `next` of the previous page. Empty for an unknown room.

        Raises: NotAMember (`as_user`).
        """
        room_id, limit, viewer = inputs.uuid("room_id", room_id), inputs.limit(limit), inputs.viewer(as_user)
        (user_id,) = (UUID(int=0),) if after is None else self._MEMBERS_CURSOR.decode(room_id, after)
        deadline = self._executor.deadline()
        await self._settle_marks(room_id=room_id, deadline=deadline)
        members = await self._executor.fetch_all(
            self._MEMBERS, room_id, user_id, limit + 1, viewer, deadline=deadline
        )
        if viewer is not None and not members:
            await self.get(room_id, viewer)  # it raises NotAMember, unless the viewer joined a moment ago
            members = await self._executor.fetch_all(
                self._MEMBERS, room_id, user_id, limit + 1, viewer, deadline=deadline
            )
        return self._MEMBERS_CURSOR.page(room_id, members, limit, lambda member: (member.user_id,))

    _MEMBER_COUNTS_SQL = f"""
        SELECT {{room_id}} AS room_id, counted.members
        FROM {{source}}
        CROSS JOIN LATERAL (
            SELECT count(*) AS members
            FROM (
                SELECT 1
                FROM room_users
                WHERE room_users.room_id = {{room_id}}
                    AND {not_deleted("room_users.room_id", "room_users.user_id")}
                LIMIT $2
            ) AS capped
        ) AS counted
        WHERE {{condition}}(
            $3::uuid IS NULL
            OR {has_member("{room_id}", "$3")}
            OR EXISTS (
                SELECT 1
                FROM rooms
                WHERE rooms.id = {{room_id}}
                    AND NOT rooms.is_private
                    AND {not_deleted("rooms.id")}
                    AND EXISTS (SELECT 1 FROM users WHERE users.id = $3 AND {not_deleted("$3")})
            )
        )
        """
    _MEMBER_COUNTS = Statement(
        "room_users.member_counts",
        lambda room_id, members: (room_id, members),
        _MEMBER_COUNTS_SQL.format(
            room_id="requested.id", source="unnest($1::uuid[]) AS requested (id)", condition=""
        ),
        distributed=_MEMBER_COUNTS_SQL.format(
            room_id="room.id", source="rooms AS room", condition="room.id = ANY($1::uuid[]) AND "
        ),
    )

    async def member_counts(
        self, room_ids: Iterable[UUID], *, cap: int = 1_000, as_user: UUID | None = None
    ) -> dict[UUID, int]:
        """How many members each of up to 200 rooms has. A room that does not exist has none. One query.

        It stops counting at `cap` (1 to 10,000), because a screen shows "999+". With `as_user` it leaves out rooms
        that this user does not see.

        Raises: Invalid (more than 200 rooms).
        """
        rooms = inputs.uuids("room_ids", room_ids)
        if len(rooms) > inputs.PAGE_LIMIT:
            raise Invalid("room_ids", f"must be at most {inputs.PAGE_LIMIT}, the most on a page")
        cap, viewer = inputs.limit(cap, longest=10_000, field="cap"), inputs.viewer(as_user)
        counts = dict(await self._executor.fetch_all(self._MEMBER_COUNTS, rooms, cap, viewer))
        if self._executor.is_distributed and viewer is None:  # the statement leaves out rooms that do not exist
            counts = dict.fromkeys(rooms, 0) | counts
        return counts

    _ROOMS_CURSOR = Cursor("memberships", tuple[UUID])
    _ROOMS_OF = Statement(
        "room_users.rooms_of",
        RoomUser,
        _LIST.format(member=MEMBER, condition=not_deleted("room_users.room_id", "$1"), of="user_id", by="room_id"),
    )

    async def rooms_of(self, user_id: UUID, *, limit: int = 50, after: str | None = None) -> Page[RoomUser]:
        """The memberships of a user, in the order of the ids of the rooms. For a screen, see `rooms.list_for`."""
        user_id, limit = inputs.uuid("user_id", user_id), inputs.limit(limit)
        (room_id,) = (UUID(int=0),) if after is None else self._ROOMS_CURSOR.decode(user_id, after)
        members = await self._executor.fetch_all(self._ROOMS_OF, user_id, room_id, limit + 1)
        return self._ROOMS_CURSOR.page(user_id, members, limit, lambda member: (member.room_id,))
