"""Reading state: a read mark per member, and receipts per message in small rooms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final, NamedTuple
from uuid import UUID

from hubbub import inputs
from hubbub.commits import ReadMarkMoved
from hubbub.errors import NotAMember, NotFound
from hubbub.models import Page, ReadReceipt
from hubbub.postgres import NOT_SUPPORTED, Statement
from hubbub.renamed import Renamed
from hubbub.repository import Cursor, Repository
from hubbub.sql import (
    OLDEST,
    at_most,
    has_member,
    in_steps,
    lock_timeout,
    not_deleted,
    representable,
    require,
    unread,
    with_numbers,
)

RECEIPTS_UP_TO_MEMBERS: Final = 50
"""A room of up to this many members stores a row per message and reader, unless it is set otherwise. In larger
rooms that would be members x messages rows, and the read marks alone tell which members have read a message."""

MAX_RECEIPTS_PER_CALL: Final = 1_000
"""A member with more unread messages gets receipts for the newest of them. 100,000 rows would take longer than the
deadline, so that the member could never mark the room as read."""

MARKS_PER_STATEMENT: Final = 50
"""With the receipts of each, a statement stores at most 50,000 rows, which takes about a second."""

SEQS_PER_STEP: Final = 2_000
"""Each may be a message with a receipt, whose deletion `mark_unread` commits together with the step of the
read mark."""


class MarkedRow(NamedTuple):
    """How far a member has read, whether the call has moved that, and whether the room shows it to the others."""

    room_id: UUID
    user_id: UUID
    last_read_seq: int
    has_moved: bool
    is_shown: bool


class ReadReceipts(Repository, Renamed):
    """Reading state. A member who joined before a message has read it when `last_read_seq` is at least its seq.

    A hub also marks the room as read for the author of a message: see `messages.send`.
    """

    _FORMER_NAMES: ClassVar = {"who_read": "readers"}

    # In each of these, `{room_id}` is the parameter of the room, or a column where several rooms are marked.
    _KEEPS_RECEIPTS = f"""COALESCE(
                    rooms.keeps_receipts,
                    rooms.direct_key IS NOT NULL OR NOT EXISTS (
                        SELECT 1
                        FROM room_users
                        WHERE room_users.room_id = {{room_id}}
                        OFFSET {RECEIPTS_UP_TO_MEMBERS}
                    )
                )"""

    # last_read_message_id follows the read mark.
    _MOVED = """moved AS (
            UPDATE room_users
            SET last_read_seq = target.new_seq,
                last_read_message_id = (
                    SELECT messages.id
                    FROM messages
                    WHERE messages.room_id = {room_id}
                        AND messages.seq <= target.new_seq
                    ORDER BY messages.seq DESC
                    LIMIT 1
                )
            FROM target
            WHERE room_users.room_id = {room_id}
                AND room_users.user_id = target.user_id
                AND target.new_seq {than} target.old_seq
        )"""

    # One statement, however much is unread. The memberships are locked first, so that a read mark only moves
    # forward when two devices report at the same time.
    _MARK = f"""
        WITH member AS MATERIALIZED ({{member}}
        ), target AS MATERIALIZED (
            SELECT
                member.room_id,
                member.user_id,
                member.last_read_seq AS old_seq,
                LEAST(member.up_to, rooms.last_seq) AS new_seq,
                {_KEEPS_RECEIPTS.format(room_id="{of_member}")} AS keeps_receipts
            FROM member
            JOIN rooms ON rooms.id = {{of_member}}
        ), {_MOVED.format(room_id="{room_id}", than=">")}, receipts AS (
            INSERT INTO message_read_receipts (message_id, user_id, room_id)
            SELECT unread.id, target.user_id, target.room_id
            FROM target
            CROSS JOIN LATERAL (
                SELECT messages.id
                FROM messages
                WHERE messages.room_id = {{room_id}}
                    AND messages.seq > target.old_seq
                    AND messages.seq <= target.new_seq
                    AND messages.user_id IS DISTINCT FROM target.user_id
                    AND messages.deleted_at IS NULL
                ORDER BY messages.seq DESC
                {at_most(MAX_RECEIPTS_PER_CALL)}
            ) AS unread
            WHERE target.keeps_receipts
            ON CONFLICT DO NOTHING
        )
        SELECT
            room_id,
            user_id,
            GREATEST(old_seq, new_seq) AS last_read_seq,
            new_seq > old_seq AS has_moved,
            keeps_receipts AS is_shown
        FROM target
    """
    _MARK_READ = Statement(
        "read_receipts.mark_read",
        MarkedRow,
        _MARK.format(
            member=f"""
            SELECT room_id, user_id, last_read_seq, $3::bigint AS up_to
            FROM room_users
            WHERE room_id = $1
                AND user_id = $2
                AND {not_deleted("$1", "$2")}
            FOR NO KEY UPDATE""",
            of_member="$1",
            room_id="$1",
        ),
        idempotent=True,
        distributed=f"""
        SELECT of_room AS room_id, of_user AS user_id, watermark AS last_read_seq, has_moved, is_shown
        FROM hubbub_mark_read($1, $2, $3, {RECEIPTS_UP_TO_MEMBERS}, {MAX_RECEIPTS_PER_CALL})
        """,
    )
    _MARK_MANY = Statement(
        "read_receipts.mark_many",
        MarkedRow,
        _MARK.format(
            member=f"""
            SELECT room_users.room_id, room_users.user_id, room_users.last_read_seq, requested.up_to
            FROM unnest($1::uuid[], $2::uuid[], $3::bigint[]) AS requested (room_id, user_id, up_to)
            JOIN room_users USING (room_id, user_id)
            WHERE {not_deleted("room_users.room_id", "room_users.user_id")}
                AND {lock_timeout("$4")}
            ORDER BY room_users.room_id, room_users.user_id
            FOR NO KEY UPDATE OF room_users""",
            of_member="member.room_id",
            room_id="target.room_id",
        ),
        idempotent=True,
        distributed=NOT_SUPPORTED,
    )

    async def mark_read(self, room_id: UUID, user_id: UUID, *, up_to: int) -> int:
        """Mark all up to and including the seq `up_to` as read. Returns the read mark.

        The read mark never moves back: an older `up_to` from a second device changes nothing. One beyond the head
        of the log counts as the head. Where the room stores receipts, this stores those of the newest 1,000
        messages.

        Raises: NotAMember.
        """
        key = inputs.uuid("room_id", room_id), inputs.uuid("user_id", user_id)
        mark, deadline = (key, inputs.seq("up_to", up_to)), self._executor.deadline()
        return await self._change(self._mark_each, mark, key=key, id=key, deadline=deadline)

    async def _mark_each(
        self, marks: Sequence[tuple[tuple[UUID, UUID], int]], lock_wait: str | None, deadline: float
    ) -> list[int | Exception]:
        keys, up_to = zip(*marks, strict=True)
        rooms, users = zip(*keys, strict=True)
        if len(keys) == 1 and lock_wait is None:
            marked = await self._executor.fetch_all(
                self._MARK_READ, rooms[0], users[0], up_to[0], deadline=deadline
            )
        else:
            marked = await self._executor.fetch_all(
                self._MARK_MANY, rooms, users, up_to, lock_wait, deadline=deadline
            )
        moved = {(mark.room_id, mark.user_id): self._reported(mark) for mark in marked}
        self._note_locked(moved)
        return [moved[key] if key in moved else NotAMember(*key) for key in keys]

    def _reported(self, row: MarkedRow, *, is_back: bool = False) -> int:
        room_id, user_id, last_read_seq, has_moved, is_shown = row
        if has_moved:
            self._changed(ReadMarkMoved(room_id, user_id, last_read_seq, is_shown, is_back))
        return last_read_seq

    # The newest messages first: the read mark of each step is right by itself, with no receipt above it. So a call
    # that is cut leaves nothing to finish. A step ends at a message, so that one over a long part of the log
    # without messages is one step.
    #
    # Receipts of a `mark_read` that was committed while this waited for the membership are not in the snapshot. A
    # step whose `member` is not that of the snapshot changes nothing, and is run again.
    _MARK_UNREAD = in_steps(
        "read_receipts.mark_unread",
        MarkedRow,
        f"""
        WITH member AS MATERIALIZED (
            SELECT
                room_id,
                user_id,
                last_read_seq,
                last_read_seq = (
                    SELECT seen.last_read_seq
                    FROM room_users AS seen
                    WHERE seen.room_id = $1
                        AND seen.user_id = $2
                ) AS is_seen
            FROM room_users
            WHERE room_id = $1
                AND user_id = $2
                AND {not_deleted("$1", "$2")}
            FOR NO KEY UPDATE
        ), target AS MATERIALIZED (
            SELECT
                room_id,
                user_id,
                last_read_seq AS old_seq,
                CASE
                    WHEN NOT is_seen OR last_read_seq < $3 THEN last_read_seq
                    WHEN last_read_seq - {SEQS_PER_STEP} < $3 THEN $3 - 1
                    ELSE GREATEST(
                        $3 - 1,
                        (
                            SELECT messages.seq
                            FROM messages
                            WHERE messages.room_id = $1
                                AND messages.seq <= member.last_read_seq - {SEQS_PER_STEP}
                            ORDER BY messages.seq DESC
                            LIMIT 1
                        )
                    )
                END AS new_seq
            FROM member
        ), page AS MATERIALIZED (
            SELECT messages.id, (SELECT user_id FROM target) AS user_id
            FROM messages
            WHERE messages.room_id = $1
                AND messages.seq > (SELECT new_seq FROM target)
                AND messages.seq <= (SELECT old_seq FROM target)
        ), {_MOVED.format(room_id="$1", than="<")}, receipts AS (
            DELETE FROM message_read_receipts
            USING {{page}}
            WHERE message_read_receipts.message_id = page.id
                AND message_read_receipts.user_id = page.user_id
                AND message_read_receipts.room_id = $1
        )
        SELECT
            target.room_id,
            target.user_id,
            target.new_seq AS last_read_seq,
            target.new_seq < target.old_seq AS has_moved,
            {_KEEPS_RECEIPTS.format(room_id="$1")} AS is_shown
        FROM target
        JOIN rooms ON rooms.id = $1
        """,
        idempotent=True,
        page=("id", "user_id"),
    )

    async def mark_unread(self, room_id: UUID, user_id: UUID, *, from_seq: int) -> int:
        """Mark all from the seq `from_seq` (1 or higher) on as unread, and delete its receipts.

        Returns the read mark. Only this call moves it back. Beyond 2,000 messages it moves back in steps, each of
        them committed. After `Unavailable` it may be between the two, and the same call moves it on.

        Raises: NotAMember.
        """
        from_seq = inputs.seq("from_seq", from_seq, least=1)
        room_id, user_id = inputs.uuid("room_id", room_id), inputs.uuid("user_id", user_id)
        deadline, read_seq, steps = self._executor.deadline(), from_seq, 0
        await self._check_not_locked((room_id, user_id))
        # A mark that comes later would undo this.
        await self._settle_marks(room_id=room_id, user_id=user_id, deadline=deadline)
        while read_seq >= from_seq:
            with self._after_steps(steps):
                found = await self._executor.fetch_one(
                    self._MARK_UNREAD, room_id, user_id, from_seq, deadline=deadline
                )
            read_seq = self._reported(require(found, NotAMember, room_id, user_id), is_back=True)
            self._executor.note_locked((room_id, user_id))
            steps += 1
        return read_seq

    _READERS_CURSOR = Cursor("readers", tuple[UUID])
    _READERS_SQL = f"""
        SELECT
            messages.id AS message_id,
            room_users.user_id,
            {representable("message_read_receipts.read_at")} AS read_at
        FROM messages
        JOIN room_users
            ON room_users.room_id = {{room_id}}
            AND room_users.last_read_seq >= messages.seq
            AND room_users.user_id IS DISTINCT FROM messages.user_id
        LEFT JOIN message_read_receipts
            ON message_read_receipts.message_id = $1
            AND message_read_receipts.user_id = room_users.user_id
            AND message_read_receipts.room_id = {{room_id}}
        WHERE messages.id = $1
            AND messages.room_id = {{room_id}}
            AND room_users.user_id > $2
            AND {not_deleted("room_users.room_id", "room_users.user_id")}
            AND (room_users.joined_seq < messages.seq OR message_read_receipts.read_at IS NOT NULL)
            AND ($4::uuid IS NULL OR {has_member("{room_id}", "$4")})
        ORDER BY room_users.user_id
        LIMIT $3
        """
    _READERS = Statement(
        "read_receipts.readers",
        ReadReceipt,
        _READERS_SQL.format(room_id="messages.room_id"),
        distributed=NOT_SUPPORTED,  # several rooms may have a message with this id
    )
    _READERS_IN_ROOM = Statement("read_receipts.readers_in_room", ReadReceipt, _READERS_SQL.format(room_id="$5"))
    _ROOM_OF_SQL = f"""
        SELECT
            messages.room_id,
            $2::uuid IS NULL OR {has_member("{room_id}", "$2")} AS is_visible
        FROM messages
        WHERE messages.id = $1
            AND messages.room_id = {{room_id}}
            AND {not_deleted("{room_id}")}
        """
    _ROOM_OF = Statement(
        "read_receipts.room_of",
        lambda room_id, is_visible: (room_id, is_visible),
        _ROOM_OF_SQL.format(room_id="messages.room_id"),
        distributed=_ROOM_OF_SQL.format(room_id="messages.room_id") + OLDEST,
    )
    _ROOM_OF_IN_ROOM = Statement(
        "read_receipts.room_of_in_room",
        lambda room_id, is_visible: (room_id, is_visible),
        _ROOM_OF_SQL.format(room_id="$3"),
    )

    async def readers(
        self,
        message_id: UUID,
        *,
        room_id: UUID | None = None,
        limit: int = 50,
        after: str | None = None,
        as_user: UUID | None = None,
    ) -> Page[ReadReceipt]:
        """The members who have read the message, except its author, in the order of their ids.

        `limit` is 1 to 200; `after` is the `next` of the previous page. `read_at` is known if the room stored
        receipts when the message was read (`rooms.create`). A message from before a member joined counts as read
        only with a receipt: of an earlier membership, or because it was marked as unread and then read. `room_id`
        is as in `messages.get`.

        Raises: NotFound, NotAMember (`as_user`).
        """
        message_id, limit = inputs.uuid("message_id", message_id), inputs.limit(limit)
        viewer = inputs.viewer(as_user)
        (user_id,) = (UUID(int=0),) if after is None else self._READERS_CURSOR.decode(message_id, after)
        deadline = self._executor.deadline()
        if room_id is None and (self._executor.is_distributed or self._waiting_marks() is not None):
            room_id, _ = await self._room_of(message_id, None, viewer, deadline)
        if room_id is None:
            receipts = await self._executor.fetch_all(
                self._READERS, message_id, user_id, limit + 1, viewer, deadline=deadline
            )
        else:
            room_id = inputs.uuid("room_id", room_id)
            await self._settle_marks(room_id=room_id, deadline=deadline)
            receipts = await self._executor.fetch_all(
                self._READERS_IN_ROOM, message_id, user_id, limit + 1, viewer, room_id, deadline=deadline
            )
        if not receipts:
            of_room, is_visible = await self._room_of(message_id, room_id, viewer, deadline)
            if viewer is not None and not is_visible:
                raise NotAMember(of_room, viewer)
        return self._READERS_CURSOR.page(message_id, receipts, limit, lambda receipt: (receipt.user_id,))

    async def _room_of(
        self, message_id: UUID, room_id: UUID | None, viewer: UUID | None, deadline: float
    ) -> tuple[UUID, bool]:
        """The room of the message, and whether the viewer, if there is one, may see it. Raises: NotFound."""
        if room_id is None:
            found = await self._executor.fetch_one(self._ROOM_OF, message_id, viewer, deadline=deadline)
        else:
            found = await self._executor.fetch_one(
                self._ROOM_OF_IN_ROOM, message_id, viewer, room_id, deadline=deadline
            )
        return require(found, NotFound, "message", message_id)

    _UNREAD_COUNTS_SQL = f"""
        SELECT room_users.room_id, unread.count AS unread
        FROM room_users
        CROSS JOIN LATERAL {unread("room_users", "$1", "$2")} AS unread
        WHERE room_users.user_id = $1
            AND {not_deleted("room_users.room_id", "$1")}
        """
    _UNREAD_COUNTS = Statement(
        "read_receipts.unread_counts",
        lambda room_id, unread: (room_id, unread),
        _UNREAD_COUNTS_SQL,
        distributed=with_numbers(_UNREAD_COUNTS_SQL),
    )

    async def unread_counts(self, user_id: UUID, *, cap: int = 100) -> dict[UUID, int]:
        """How many messages are unread in each room of the user, in one query.

        Counts messages of other users after the read mark that are not deleted, up to `cap` (1 to 1,000), among
        the newest 5,000 of the room.
        """
        cap = inputs.limit(cap, longest=1_000, field="cap")
        user_id, deadline = inputs.uuid("user_id", user_id), self._executor.deadline()
        await self._settle_marks(user_id=user_id, deadline=deadline)
        rows = await self._executor.fetch_all(self._UNREAD_COUNTS, user_id, cap, deadline=deadline)
        return dict(rows)

    _UNREAD_COUNT_SQL = f"""
        SELECT unread.count AS unread
        FROM room_users
        CROSS JOIN LATERAL {unread("room_users", "$2", "$3", room_id="$1")} AS unread
        WHERE room_users.room_id = $1
            AND room_users.user_id = $2
            AND {not_deleted("$1", "$2")}
        """
    _UNREAD_COUNT = Statement(
        "read_receipts.unread_count",
        int,
        _UNREAD_COUNT_SQL,
        distributed=with_numbers(_UNREAD_COUNT_SQL),
    )

    async def unread_count(self, room_id: UUID, user_id: UUID, *, cap: int = 100) -> int:
        """How many messages of the room are unread, counted as in `unread_counts`. Raises: NotAMember."""
        room_id, user_id = inputs.uuid("room_id", room_id), inputs.uuid("user_id", user_id)
        cap, deadline = inputs.limit(cap, longest=1_000, field="cap"), self._executor.deadline()
        await self._settle_marks(room_id=room_id, user_id=user_id, deadline=deadline)
        count = await self._executor.fetch_one(self._UNREAD_COUNT, room_id, user_id, cap, deadline=deadline)
        return require(count, NotAMember, room_id, user_id)
