"""Rooms: creating, finding and listing them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final
from uuid import UUID

from msgspec import UNSET, UnsetType
from uuid_utils.compat import uuid7

from hubbub import inputs
from hubbub.commits import MembersJoined, RoomTouched
from hubbub.deletions import DELETE_ROOM, HIDE, Deletion, check_outside_transaction, finish
from hubbub.errors import Conflict, Forbidden, HubbubError, Invalid, NotAMember, NotFound
from hubbub.events import MemberJoined, RoomChanged
from hubbub.models import Message, Page, Role, Room, RoomSummary
from hubbub.postgres import LockNotAvailable, OpenTransaction, Statement, key_of_value, uuid_of
from hubbub.repository import Cursor, Repository
from hubbub.sql import (
    acting_admin,
    at_most,
    by_id,
    columns,
    entry,
    folded,
    has_member,
    lock_timeout,
    not_deleted,
    readable,
    representable,
    require,
    unread,
    with_numbers,
)

MESSAGE = columns(Message)
IS_DIRECT: Final = {"is_direct": "direct_key IS NOT NULL"}
ROOM = readable(Room, computed=IS_DIRECT)

ROOM_COLUMNS: Final = len(Room.__struct_fields__)

MAX_LIST_LENGTH: Final = 1_000
"""Each page looks at all rooms of the user, so one page of 1,000 is quicker than five of 200."""

PREVIEW_AMONG: Final = 200
"""How many of its newest messages are searched for one that is not deleted."""

UPDATE_ATTEMPTS: Final = 3
"""How often a deletion that a deadlock has ended is tried, as the pool does where it is one statement."""

DIRECT_NAME: Final = "direct"
"""Direct rooms have no name of their own, because a screen shows the name of the partner."""


def _summary(*row: Any) -> RoomSummary:  # noqa: ANN401 - each column has a type of its own
    """From the columns of a room, five of the summary, and those of the newest message, NULL if there is none."""
    room, row = Room.of_row(*row[:ROOM_COLUMNS]), row[ROOM_COLUMNS:]
    role, last_read_seq, unread, partner_id, active_at = row[:5]
    last_message = None if row[5] is None else Message.of_row(*row[5:])
    cursor = None if last_message is None else last_message.cursor
    return RoomSummary(room, Role(role), last_read_seq, unread, partner_id, last_message, active_at, cursor)


def direct_key(first: UUID, second: UUID) -> bytes:
    """The unique key of the direct room of two users: a SHA-256 of their ids, in either order."""
    return sha256(b"".join(sorted((first.bytes, second.bytes)))).digest()


def direct_id(key: bytes) -> UUID:
    """The id of the direct room with this key: a UUIDv8 of its first 16 bytes.

    By its id it is unique also in a database that is distributed by rooms, which keeps no other column unique.
    """
    return uuid_of(8, int.from_bytes(key[:16]))


class Rooms(Repository):
    """Rooms. The creation of a room and each change of it are entries of its log, each with a seq.

    With `as_user` a call is checked: members see a room, and all users a public one. Admins change and delete it.
    """

    # The joining of each member, in their order, is an entry of the log.
    _CREATE = Statement(
        "rooms.create",
        Room,
        f"""
        WITH room AS (
            INSERT INTO rooms (
                id, name, description, is_private, created_by, keeps_receipts, direct_key, last_seq, metadata
            )
            SELECT $1, $2, $3, $4, $5, $6, $7, cardinality($8::uuid[]), $10::jsonb
            WHERE NOT EXISTS (SELECT 1 FROM hubbub_deletions AS hidden WHERE hidden.id = ANY($8::uuid[]))
            RETURNING {ROOM}
        ), member AS (
            SELECT user_id, seq
            FROM unnest($8::uuid[]) WITH ORDINALITY AS member (user_id, seq)
        ), members AS (
            INSERT INTO room_users (room_id, user_id, role, last_read_seq, joined_seq)
            SELECT room.id, member.user_id, $9, room.last_seq, member.seq
            FROM room, member
        ), entries AS ({
            entry(
                MemberJoined,
                "room, member",
                room_id="room.id",
                seq="member.seq",
                user_id="member.user_id",
                payload={"role": "$9::text"},
            )
        })
        SELECT {columns(Room)}
        FROM room
        """,
        distributed=f"SELECT {ROOM} FROM hubbub_create_room($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )

    async def create(
        self,
        name: str,
        *,
        created_by: UUID,
        description: str | None = None,
        is_private: bool = False,
        keeps_receipts: bool | None = None,
        metadata: Mapping[str, Any] | None = None,
        id: UUID | None = None,
    ) -> Room:
        """Create a room. Its creator is its first member and admin, whose joining is the first entry of its log.

        `keeps_receipts` is whether the time at which each member reads each message is stored: True, False, or
        None for as long as the room has at most 50 members. Which members have read a message is known either way
        (`receipts.readers`). `metadata` is a JSON object of the application's, of at most 8 KiB.

        `id` may be of any version but 8, as the ids of direct rooms are.
        Raises: NotFound (no such creator), Conflict (the id is taken).
        """
        created_by = inputs.uuid("created_by", created_by)
        room_id = uuid7() if id is None else inputs.uuid("id", id)
        if room_id.version == 8:  # or it could be that of a pair, whose id can be computed
            raise Invalid("id", "must not be a UUIDv8, the form of the ids of direct rooms")
        value = key_of_value("rooms.id", room_id)
        await self._check_not_locked(value)
        room = await self._executor.fetch_one(
            self._CREATE,
            room_id,
            inputs.text("name", name, longest=inputs.ROOM_NAME_LENGTH),
            inputs.description(description),
            inputs.flag("is_private", is_private),
            created_by,
            _keeps_receipts(keeps_receipts),
            None,
            [created_by],
            Role.ADMIN,
            inputs.metadata(metadata),
        )
        room = require(room, NotFound, "user", created_by)
        self._executor.note_locked(value)
        self._changed(MembersJoined(room.id, (created_by,)))
        return room

    _GET = by_id(Room, "rooms", IS_DIRECT)
    _GET_MANY = _GET.many

    _GET_VISIBLE = Statement(
        "rooms.get_visible",
        Room,
        f"""
        SELECT {ROOM}
        FROM rooms
        WHERE id = $1
            AND {not_deleted("$1", "$2")}
            AND (
                {has_member("$1", "$2")}
                OR (NOT is_private AND EXISTS (SELECT 1 FROM users WHERE id = $2))
            )
        """,
    )

    async def get(self, room_id: UUID, *, as_user: UUID | None = None) -> Room:
        """The room. Raises: NotFound, NotAMember (`as_user`)."""
        room_id = inputs.uuid("room_id", room_id)
        if as_user is not None:
            viewer = inputs.uuid("as_user", as_user)
            visible = await self._executor.fetch_one(self._GET_VISIBLE, room_id, viewer)
            return require(visible, NotAMember, room_id, viewer)
        room = await self._executor.look_up(self._GET, room_id)
        return require(room, NotFound, "room", room_id)

    async def get_many(self, room_ids: Iterable[UUID]) -> dict[UUID, Room]:
        """The rooms that exist, by id, in one query per 1,000 ids."""
        return await self._get_many(self._GET_MANY, room_ids, field="room_ids")

    _UPDATE = Statement(
        "rooms.update",
        Room,
        f"""
        WITH {acting_admin("$1", "$9")}, changer AS MATERIALIZED (
            SELECT user_id
            FROM room_users
            WHERE room_id = $1
                AND user_id = $5
                AND {not_deleted("$5")}
            FOR KEY SHARE
        ), room AS (
            UPDATE rooms
            SET name = COALESCE($2, name),
                description = NULLIF(COALESCE($3, description), ''),
                is_private = COALESCE($4, is_private),
                keeps_receipts = CASE WHEN $6::boolean THEN $7 ELSE keeps_receipts END,
                metadata = CASE WHEN $10::boolean THEN $11::jsonb ELSE metadata END,
                last_seq = last_seq + 1,
                updated_at = CURRENT_TIMESTAMP
            WHERE id = $1
                AND {lock_timeout("$8")}
                AND {not_deleted("$1")}
                AND ($9::uuid IS NULL OR EXISTS (SELECT 1 FROM acting_admin))
                AND ($5::uuid IS NULL OR EXISTS (SELECT 1 FROM changer))
            RETURNING {ROOM}
        ), entry AS ({entry(RoomChanged, "room", user_id="$5")})
        SELECT {columns(Room)}
        FROM room
        """,
        distributed=f"SELECT {ROOM} FROM hubbub_update_room($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
    )

    async def update(
        self,
        room_id: UUID,
        *,
        name: str | None = None,
        description: str | None = None,
        is_private: bool | None = None,
        keeps_receipts: bool | UnsetType | None = UNSET,
        metadata: Mapping[str, Any] | UnsetType | None = UNSET,
        by: UUID | None = None,
        as_user: UUID | None = None,
    ) -> Room:
        """Change the properties that are given. An entry of the room's log. An empty description removes it.

        `keeps_receipts` is as in `create`, with None for the default. It applies to messages that are read from
        now on: stored receipts stay, and messages that were read without one get none later. `metadata` replaces
        all of the former, and None removes it. `by` is the member who changes the room, for the log, and by
        default that of `as_user`. What a member may change is checked for `as_user` alone.

        Raises: NotFound, NotAMember (`by`), and with `as_user` NotAMember and Forbidden.
        """
        unset = keeps_receipts is UNSET and metadata is UNSET
        if name is None and description is None and is_private is None and unset:
            return await self.get(room_id, as_user=as_user)
        room_id, viewer = inputs.uuid("room_id", room_id), inputs.viewer(as_user)
        name = None if name is None else inputs.text("name", name, longest=inputs.ROOM_NAME_LENGTH)
        description = inputs.description(description)
        is_private = None if is_private is None else inputs.flag("is_private", is_private)
        by = viewer if by is None else inputs.uuid("by", by)
        receipts = None if keeps_receipts is UNSET else _keeps_receipts(keeps_receipts)
        encoded = None if metadata is UNSET else inputs.metadata(metadata)

        async def apply(lock_wait: str | None, deadline: float) -> Room:
            changed = await self._executor.fetch_one(
                self._UPDATE,
                room_id,
                name,
                description,
                is_private,
                by,
                keeps_receipts is not UNSET,
                receipts,
                lock_wait,
                viewer,
                metadata is not UNSET,
                encoded,
                deadline=deadline,
            )
            if changed is None and viewer is not None:
                role = await self._executor.fetch_one(self._ROLE_OF, room_id, viewer, deadline=deadline)
                if role != Role.ADMIN or by == viewer:
                    raise _not_an_admin(role, room_id, viewer, "change this room")
            if changed is None and by is not None:
                found = await self._executor.fetch_one(self._GET, room_id, deadline=deadline)
                require(found, NotFound, "room", room_id)
                raise NotAMember(room_id, by)
            room = require(changed, NotFound, "room", room_id)
            self._changed(RoomTouched(room.id))
            self._note_locked(locks)
            return room

        locks = () if viewer is None else ((room_id, viewer),)
        deadline = self._executor.deadline()
        return await self._change_alone(apply, key=room_id, locks=locks, deadline=deadline)

    _ROLE_OF = Statement(
        "rooms.role_of",
        str,
        f"SELECT role FROM room_users WHERE room_id = $1 AND user_id = $2 AND {not_deleted('$1', '$2')}",
    )

    async def delete(self, room_id: UUID, *, as_user: UUID | None = None) -> None:
        """Delete the room with its members, messages, receipts and log.

        A room with more than 2,000 messages, members or events is gone for all calls at once, and its rows are
        deleted in steps. `Unavailable` at the deadline means that rows are left: the same call, or `hub.maintain`,
        goes on. Until then its id cannot be used again.

        Raises: NotFound, Invalid (such a room, in a transaction), and with `as_user` NotAMember and Forbidden.
        """
        room_id, viewer = inputs.uuid("room_id", room_id), inputs.viewer(as_user)
        deadline = self._executor.deadline()
        await self._check_not_locked(of=room_id)
        may_hide = not isinstance(self._executor, OpenTransaction)
        if self._executor.is_distributed:
            is_large = await self._delete_distributed(room_id, may_hide=may_hide, viewer=viewer, deadline=deadline)
        else:
            is_large = await self._executor.fetch_one(DELETE_ROOM, room_id, may_hide, viewer, deadline=deadline)
        if is_large is None and viewer is not None:
            role = await self._executor.fetch_one(self._ROLE_OF, room_id, viewer, deadline=deadline)
            raise _not_an_admin(role, room_id, viewer, "delete this room")
        self._changed(RoomTouched(room_id))  # also on a retry: the first attempt may not have reported it
        if require(is_large, NotFound, "room", room_id):
            check_outside_transaction(self._executor, "room_id")
            await finish(self._executor, Deletion(room_id, is_room=True), self._on_commit, deadline=deadline)

    async def _delete_distributed(
        self, room_id: UUID, *, may_hide: bool, viewer: UUID | None, deadline: float
    ) -> bool | None:
        attempts_left = 1 if isinstance(self._executor, OpenTransaction) else UPDATE_ATTEMPTS
        while True:
            attempts_left -= 1
            try:
                async with self._executor.transaction(deadline=deadline) as part:
                    is_large = await part.fetch_one(DELETE_ROOM, room_id, may_hide, viewer)
                    if is_large and may_hide:
                        await part.execute(HIDE, room_id, True)
                    return is_large
            except LockNotAvailable:  # a change of the room was in its way, and nothing is done
                if not attempts_left:
                    raise

    _FIND_DIRECT_SQL = f"""
        SELECT {ROOM}
        FROM rooms
        WHERE direct_key = $1
            AND {not_deleted("rooms.id")}
            AND ($2::uuid IS NULL OR {has_member("{room_id}", "$2")})
        """
    _FIND_DIRECT = Statement("rooms.find_direct", Room, _FIND_DIRECT_SQL.format(room_id="rooms.id"))
    _FIND_DIRECT_BY_ID = Statement(
        "rooms.find_direct_by_id", Room, _FIND_DIRECT_SQL.format(room_id="$3") + "AND rooms.id = $3"
    )
    _CREATE_DIRECT = Statement("rooms.create_direct", Room, _CREATE.sql, distributed=_CREATE.distributed)

    async def direct(self, user_id: UUID, partner_id: UUID, *, as_user: UUID | None = None) -> Room:
        """The one direct room of two users, in either order. It is created if there is none, also under a race.

        Raises: Invalid (the same user twice), Forbidden (`as_user` is neither of them), NotFound (no such user,
        and no room yet).
        """
        first, second = inputs.uuid("user_id", user_id), inputs.uuid("partner_id", partner_id)
        viewer = inputs.viewer(as_user)
        if first == second:
            raise Invalid("partner_id", "a direct room needs two different users")
        if viewer not in (None, first, second):
            raise Forbidden("open this direct room", "it is one of two other users")
        key, deadline = direct_key(first, second), self._executor.deadline()
        found: list[Room] = []
        if self._executor.is_distributed:  # one node has it, unless it is from before ids were made from pairs
            id = direct_id(key)
            found = await self._executor.fetch_all(self._FIND_DIRECT_BY_ID, key, viewer, id, deadline=deadline)
        if not found:
            found = await self._executor.fetch_all(self._FIND_DIRECT, key, viewer, deadline=deadline)
        if found:
            return found[0]
        value = key_of_value("rooms.direct_key", key.hex())
        await self._check_not_locked(value)
        # A large one that is being deleted keeps the id for a while. Meanwhile the next one has another, unless
        # rooms are distributed: there only the id keeps the room unique.
        for id in (direct_id(key),) if self._executor.is_distributed else (direct_id(key), uuid7()):
            try:
                made = await self._executor.fetch_in_savepoint(
                    self._CREATE_DIRECT,
                    id,
                    DIRECT_NAME,
                    None,
                    True,
                    first,
                    None,
                    key,
                    [first, second],
                    Role.MEMBER,
                    None,
                    deadline=deadline,
                )
            except Conflict:  # the partner was faster, or the id is taken
                found = await self._executor.fetch_all(self._FIND_DIRECT, key, viewer, deadline=deadline)
                if found:
                    return found[0]
                continue
            if not made:  # one of them is being deleted
                raise NotFound("user", f"{first} or {second}")
            self._executor.note_locked(value)
            self._changed(MembersJoined(made[0].id, (first, second)))
            return made[0]
        raise NotFound("direct room", key.hex())  # it was deleted again

    _PUBLIC_CURSOR = Cursor("public rooms", tuple[str, UUID])
    _PUBLIC_SQL = f"""
        SELECT {ROOM}
        FROM rooms
        WHERE NOT is_private
            AND ({folded("rooms.name")}, id) > ($1, $2)
            AND {not_deleted("rooms.id")}
            AND (
                $4::uuid IS NULL
                OR EXISTS (SELECT 1 FROM users WHERE users.id = $4 AND {not_deleted("$4")})
            )
            {{condition}}
        ORDER BY {folded("rooms.name")}, id
        LIMIT $3
        """
    _PUBLIC = Statement("rooms.public", Room, _PUBLIC_SQL.format(condition=""))
    _SEARCH = Statement("rooms.search", Room, _PUBLIC_SQL.format(condition=f"AND {folded('rooms.name')} < $5"))

    async def public(
        self, *, limit: int = 50, after: str | None = None, as_user: UUID | None = None
    ) -> Page[Room]:
        """The rooms that are not private, by name: apple before Zebra.

        The order is that of the characters of Unicode, except for the case of Latin, Greek, Cyrillic and Armenian
        letters. So accented letters come after z. `limit` is 1 to 200; `after` is the `next` of the last page.
        With `as_user` the list is empty for an account that is deleted.
        """
        limit, viewer = inputs.limit(limit), inputs.viewer(as_user)
        name, room_id = ("", UUID(int=0)) if after is None else self._PUBLIC_CURSOR.decode(None, after)
        rooms = await self._executor.fetch_all(self._PUBLIC, inputs.folded(name), room_id, limit + 1, viewer)
        return self._PUBLIC_CURSOR.page(None, rooms, limit, lambda room: (room.name, room.id))

    async def search(
        self, prefix: str, *, limit: int = 20, after: str | None = None, as_user: UUID | None = None
    ) -> Page[Room]:
        """The rooms that are not private whose name starts with `prefix`, in upper or lower case, as `public`."""
        (first, end), limit = inputs.room_prefix(prefix), inputs.limit(limit)
        viewer, room_id = inputs.viewer(as_user), UUID(int=0)
        if after is not None:
            name, room_id = self._PUBLIC_CURSOR.decode(None, after)
            first = max(first, inputs.folded(name))
        rooms = await self._executor.fetch_all(self._SEARCH, first, room_id, limit + 1, viewer, end)
        return self._PUBLIC_CURSOR.page(None, rooms, limit, lambda room: (room.name, room.id))

    # The newest message of each room is one probe of the index (room_id, seq). Only the rooms of the page are
    # counted: a count reads up to the cap of messages, a probe reads one. The preview skips tombstones, of which a
    # room can have any number, so the search for it is bounded.
    _LIST_CURSOR = Cursor("rooms of a user", tuple[datetime, UUID])
    _OWN_ROOMS_SQL = f"""
            SELECT
                room_users.room_id,
                room_users.role,
                room_users.last_read_seq,
                newest.seq AS newest_seq,
                COALESCE(newest.created_at, room_users.joined_at) AS active_at
            FROM room_users
            LEFT JOIN LATERAL (
                SELECT messages.seq, messages.created_at
                FROM messages
                WHERE messages.room_id = {{newest_in}}
                ORDER BY messages.seq DESC
                LIMIT 1
            ) AS newest ON true
            WHERE room_users.user_id = $1
                AND {not_deleted("room_users.room_id", "$1")}
                {{condition}}
    """
    _SUMMARIES_SQL = f"""
        {{with_page}}
        SELECT
            {readable(Room, "rooms", {"is_direct": "rooms.direct_key IS NOT NULL"})},
            page.role,
            page.last_read_seq,
            unread.count AS unread,
            partner.user_id AS partner_id,
            {representable("page.active_at")} AS active_at,
            {readable(Message, "preview")}
        FROM {{page}}
        JOIN rooms ON rooms.id = {{in_room}}
        LEFT JOIN LATERAL (
            SELECT {MESSAGE}
            FROM (
                SELECT {MESSAGE}
                FROM messages
                WHERE messages.room_id = {{in_room}}
                    AND messages.seq <= page.newest_seq
                ORDER BY messages.seq DESC
                {at_most(PREVIEW_AMONG)}
            ) AS newest
            WHERE newest.deleted_at IS NULL
            ORDER BY newest.seq DESC
            LIMIT 1
        ) AS preview ON true
        LEFT JOIN LATERAL (
            SELECT others.user_id
            FROM room_users AS others
            WHERE others.room_id = {{in_room}}
                AND others.user_id <> $1
                AND {not_deleted("others.user_id")}
                AND rooms.direct_key IS NOT NULL
            LIMIT 1
        ) AS partner ON true
        CROSS JOIN LATERAL {unread("page", "$1", "{cap}", room_id="{in_room}")} AS unread
        ORDER BY page.active_at DESC, page.room_id DESC
        """
    _AFTER: Final = "AND (COALESCE(newest.created_at, room_users.joined_at), room_users.room_id) < ($2, $3)"
    # Nodes cannot look a page up that was materialized. So where rooms are distributed, the messages of all rooms
    # of the user are counted.
    _LIST_FOR = Statement(
        "rooms.list_for",
        _summary,
        _SUMMARIES_SQL.format(
            with_page=f"WITH page AS MATERIALIZED ({_OWN_ROOMS_SQL})".format(
                newest_in="room_users.room_id",
                condition=f"""{_AFTER}
            ORDER BY active_at DESC, room_users.room_id DESC
            LIMIT $4""",
            ),
            page="page",
            in_room="page.room_id",
            cap="$5",
        ),
        distributed=with_numbers(_SUMMARIES_SQL).format(
            with_page="",
            page=f"({_OWN_ROOMS_SQL}) AS page".format(newest_in="room_users.room_id", condition=_AFTER),
            in_room="page.room_id",
            cap="$5",
        )
        + "LIMIT $4",
    )
    _SUMMARY_SQL = _SUMMARIES_SQL.format(
        with_page=f"WITH page AS MATERIALIZED ({_OWN_ROOMS_SQL})".format(
            newest_in="$2", condition="AND room_users.room_id = $2"
        ),
        page="page",
        in_room="$2",
        cap="$3",
    )
    _SUMMARY = Statement("rooms.summary", _summary, _SUMMARY_SQL, distributed=with_numbers(_SUMMARY_SQL))

    async def list_for(
        self, user_id: UUID, *, limit: int = 50, after: str | None = None, unread_cap: int = 100
    ) -> Page[RoomSummary]:
        """The rooms of a user, the most recently active first, each with its newest message and unread count.

        `last_message` is the newest that is not deleted, among the newest 200 of the room. A deletion does not
        move the room in the list. One query. `limit` is 1 to 1,000; `after` is the `next` of the previous page.
        `unread` stops counting at `unread_cap` (1 to 1,000), because a screen shows "99+", and counts among the
        newest 5,000 messages of the room.
        """
        limit = inputs.limit(limit, longest=MAX_LIST_LENGTH)
        user_id = inputs.uuid("user_id", user_id)
        cursor = self._LIST_CURSOR
        newest = (datetime.max.replace(tzinfo=UTC), UUID(int=2**128 - 1))
        active_at, room_id = newest if after is None else cursor.decode(user_id, after)
        cap, deadline = inputs.limit(unread_cap, longest=1_000, field="unread_cap"), self._executor.deadline()
        await self._settle_marks(user_id=user_id, deadline=deadline)
        rows = await self._executor.fetch_all(
            self._LIST_FOR, user_id, active_at, room_id, limit + 1, cap, deadline=deadline
        )
        return cursor.page(user_id, rows, limit, lambda summary: (summary.active_at, summary.room.id))

    async def summary(self, room_id: UUID, user_id: UUID, *, unread_cap: int = 100) -> RoomSummary:
        """One room of `list_for`, as when it comes to the list by a message. One query.

        Raises: NotAMember (also when there is no such room).
        """
        room_id, user_id = inputs.uuid("room_id", room_id), inputs.uuid("user_id", user_id)
        cap, deadline = inputs.limit(unread_cap, longest=1_000, field="unread_cap"), self._executor.deadline()
        await self._settle_marks(room_id=room_id, user_id=user_id, deadline=deadline)
        found = await self._executor.fetch_one(self._SUMMARY, user_id, room_id, cap, deadline=deadline)
        return require(found, NotAMember, room_id, user_id)


def _not_an_admin(role: str | None, room_id: UUID, user_id: UUID, action: str) -> HubbubError:
    return NotAMember(room_id, user_id) if role is None else Forbidden(action, "it needs the role admin")


def _keeps_receipts(keeps_receipts: bool | None) -> bool | None:
    return None if keeps_receipts is None else inputs.flag("keeps_receipts", keeps_receipts)
