"""Messages, as an application sends, changes and reads them. A change takes the next seq of its room."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar
from uuid import UUID

from hubbub import inputs
from hubbub.commits import MessagesSent, OnCommit, RoomRewound, RoomTouched, ignore
from hubbub.errors import Forbidden, Invalid, NotAMember, NotFound, Unavailable
from hubbub.events import LogEvent, LogPage, Resync
from hubbub.models import Message, MessagePage, MessageType, NewMessage, Page
from hubbub.positions import START, Position
from hubbub.postgres import Executor, Replicas, Statement
from hubbub.repositories.messages.edit import (
    DELETE,
    DELETE_IN_ROOM,
    DELETE_MANY,
    EDIT,
    EDIT_IN_ROOM,
    EDIT_MANY,
)
from hubbub.repositories.messages.log import PAGE_BYTES, Entry, LogCheck, Logs, LogSlice, entry_of, event_of
from hubbub.repositories.messages.pages import (
    NEWEST,
    PageAnchor,
    Span,
    read_page,
    read_page_json,
    read_page_json_on_replica,
    read_page_on_replica,
    seq_of,
)
from hubbub.repositories.messages.send import draft_of, drafts_of, send_all, send_one
from hubbub.repositories.messages.writer import MessageWriter
from hubbub.repository import Apply, ChangeBatcher, Cursor, Repository
from hubbub.sql import (
    OLDEST_LAST,
    by_id,
    not_deleted,
    readable,
    require,
)

__all__ = [
    "PAGE_BYTES",
    "Entry",
    "LogCheck",
    "LogSlice",
    "Logs",
    "MessageWriter",
    "Messages",
    "entry_of",
    "event_of",
]

T = TypeVar("T")


class _MessageChange(NamedTuple):
    """An edit or a deletion. The room is None where the caller does not know it."""

    message_id: UUID
    user_id: UUID
    room_id: UUID | None
    content: str


class Messages(Repository):
    """The messages of rooms. Their order is `seq`, and their id makes a retry harmless.

    With `as_user`, a read is checked: it raises `NotAMember` unless this user is in the room.
    """

    def __init__(
        self,
        executor: Executor,
        on_commit: OnCommit = ignore,
        writer: MessageWriter | None = None,
        changes: ChangeBatcher | None = None,
        *,
        replicas: Replicas | None = None,
    ) -> None:
        """With a `writer`, concurrent sends share statements. In a transaction there is none: each has its own."""
        super().__init__(executor, on_commit, changes)
        self._writer = writer
        self._replicas = replicas
        self._logs = Logs(executor)

    async def send(
        self,
        room_id: UUID,
        user_id: UUID,
        content: str,
        *,
        message_type: MessageType | str = MessageType.TEXT,
        id: UUID | None = None,
        reply_to: UUID | None = None,
        metadata: Mapping[str, object] | None = None,
    ) -> Message:
        """Append a message to the room: committed, with its `seq`, when this returns.

        `content` has 1 to 20,000 characters, or none in a message with metadata, an image or a file. `id` makes a
        retry safe, also after `Unavailable`: a second send with the same id returns the first message and takes no
        seq, also in another process. Without one, hubbub makes a UUIDv7. `reply_to` is a message of the same room,
        deleted or not. `metadata` is a JSON object of the application's, of at most 8 KiB and 32 levels. A retry
        does not compare it, and keeps that of the first send.

        The hub marks the room as read for the author about a second later, up to the message, unless the message
        directly follows the author's previous one. A call of the same hub for unread counts, readers, or lists of
        rooms or members waits for the mark, for a second at most, and not in a transaction. With
        `Options(mark_read_on_send=False)` the hub marks nothing.

        Raises: NotAMember (also when there is no such room), NotFound (the author's account is deleted at this
        moment), Conflict (the id was used with other content, room, author, type or `reply_to`). Content is not
        compared with that of a message that was edited or deleted since.
        """
        room_id, user_id = inputs.uuid("room_id", room_id), inputs.uuid("user_id", user_id)
        draft = draft_of(room_id, user_id, NewMessage(content, message_type, id, reply_to, metadata))
        if self._writer is not None:
            return await self._writer.send(draft)
        message = await send_one(self._executor, draft, self._executor.deadline())
        self._changed(MessagesSent([message]))
        return message

    async def send_many(self, room_id: UUID, user_id: UUID, drafts: Iterable[NewMessage]) -> list[Message]:
        """Append up to 10,000 messages to the room: all or none, in their order, committed when this returns.

        They follow each other in the log, except those with an id that was sent before: these keep their seq, so a
        retry with the same ids is safe. A draft may reply to an earlier one. An `Invalid` names the field as
        `drafts[3].content`, counted from 0. `Unavailable` with `outcome_unknown` means that all or none were sent.

        Raises: NotAMember, NotFound, Conflict (each as in `send`).
        """
        room_id, user_id = inputs.uuid("room_id", room_id), inputs.uuid("user_id", user_id)
        checked = await drafts_of(room_id, user_id, inputs.items("drafts", drafts))
        if not checked:
            return []
        if self._writer is not None:
            return await self._writer.send_many(checked)
        messages = await send_all(self._executor, checked, deadline=self._executor.deadline())
        self._changed(MessagesSent(messages))
        return messages

    _GET = by_id(Message, "messages")
    _GET_MANY = _GET.many
    _GET_IN_ROOM = Statement("messages.get_in_room", Message, f"{_GET.sql} AND messages.room_id = $2")
    # A join, because for `id = ANY ($1)` beside the room PostgreSQL may read all messages of the room.
    _GET_MANY_IN_ROOM = Statement(
        "messages.get_many_in_room",
        Message,
        f"""
        SELECT {readable(Message, "messages")}
        FROM unnest($1::uuid[]) AS wanted (id)
        JOIN messages
            ON messages.id = wanted.id
            AND messages.room_id = $2
        WHERE {not_deleted("messages.room_id")}
        """,
    )

    async def get(self, message_id: UUID, *, room_id: UUID | None = None, as_user: UUID | None = None) -> Message:
        """The message, or the tombstone that is left of it.

        A message of another room than `room_id` is not found. Where a server keeps each room on one of several
        nodes, only the node of that room is asked.

        Raises: NotFound, NotAMember (`as_user`).
        """
        message_id = inputs.uuid("message_id", message_id)
        room_id = None if room_id is None else inputs.uuid("room_id", room_id)
        if as_user is not None:
            return await self._get_as_member(
                message_id, room_id, inputs.uuid("as_user", as_user), self._executor.deadline()
            )
        if room_id is None:
            message = await self._executor.look_up(self._GET, message_id)
        else:
            message = await self._executor.fetch_one(self._GET_IN_ROOM, message_id, room_id)
        return require(message, NotFound, "message", message_id)

    async def _get_as_member(
        self, message_id: UUID, room_id: UUID | None, viewer: UUID, deadline: float
    ) -> Message:
        found = await self._permissions({message_id: viewer}, room_id, deadline)
        message, is_member, _ = require(found[-1] if found else None, NotFound, "message", message_id)
        if not is_member:
            raise NotAMember(message.room_id, viewer)
        return message

    async def get_many(self, message_ids: Iterable[UUID], *, room_id: UUID | None = None) -> dict[UUID, Message]:
        """The messages that exist, by id, in one query per 1,000 ids. `room_id` is as in `get`."""
        if room_id is None:
            return await self._get_many(self._GET_MANY, message_ids, field="message_ids")
        room_id = inputs.uuid("room_id", room_id)
        return await self._get_many(self._GET_MANY_IN_ROOM, message_ids, room_id, field="message_ids")

    async def edit(self, message_id: UUID, content: str, *, by: UUID, room_id: UUID | None = None) -> Message:
        """Give the message other content. An entry of the room's log; the message keeps its seq and the rest.

        `by` is its author, still in the room, or a moderator or admin of the room. The same content again changes
        nothing. It may be empty in a message with metadata, an image or a file. `room_id` is as in `get`. It saves
        an edit beside others the query for the room.

        Raises: NotFound, NotAMember, Forbidden (`by` may not edit it), Invalid (it is deleted).
        """
        message_id, by = inputs.uuid("message_id", message_id), inputs.uuid("by", by)
        content = inputs.text("content", content, longest=inputs.CONTENT_LENGTH, shortest=1 if content else 0)
        message = await self._change_message(self._edit_all, message_id, room_id, by, content)
        if message.deleted_at is not None:
            raise Invalid("message_id", "the message is deleted")
        if not content and message.content:
            raise Invalid("content", "must not be blank")
        return message

    async def _edit_all(
        self, edits: Sequence[_MessageChange], lock_wait: str | None, deadline: float
    ) -> list[Message | Exception]:
        ids, users, rooms, contents = zip(*edits, strict=True)
        if len(edits) > 1 or lock_wait is not None:
            edited = await self._executor.fetch_all(
                EDIT_MANY, ids, users, contents, lock_wait, rooms, deadline=deadline
            )
        elif rooms[0] is None:
            edited = await self._executor.fetch_all(EDIT, ids[0], users[0], contents[0], deadline=deadline)
        else:
            edited = await self._executor.fetch_all(
                EDIT_IN_ROOM, ids[0], users[0], contents[0], rooms[0], deadline=deadline
            )
        return await self._outcomes(edits, edited, deadline)

    async def delete(self, message_id: UUID, *, by: UUID, room_id: UUID | None = None) -> Message:
        """Delete the message. A tombstone stays, with its seq and `reply_to`, without content and metadata.

        `by` and `room_id` are as in `edit`. Deleting it again changes nothing.

        Raises: NotFound, NotAMember, Forbidden (`by` may not delete it).
        """
        message_id, by = inputs.uuid("message_id", message_id), inputs.uuid("by", by)
        return await self._change_message(self._delete_all, message_id, room_id, by)

    async def _delete_all(
        self, deletions: Sequence[_MessageChange], lock_wait: str | None, deadline: float
    ) -> list[Message | Exception]:
        ids, users, rooms, _ = zip(*deletions, strict=True)
        if len(deletions) > 1 or lock_wait is not None:
            deleted = await self._executor.fetch_all(DELETE_MANY, ids, users, lock_wait, rooms, deadline=deadline)
        elif rooms[0] is None:
            deleted = await self._executor.fetch_all(DELETE, ids[0], users[0], deadline=deadline)
        else:
            deleted = await self._executor.fetch_all(DELETE_IN_ROOM, ids[0], users[0], rooms[0], deadline=deadline)
        return await self._outcomes(deletions, deleted, deadline)

    async def _change_message(
        self,
        apply: Apply[_MessageChange, Message],
        message_id: UUID,
        room_id: UUID | None,
        by: UUID,
        content: str = "",
    ) -> Message:
        deadline = self._executor.deadline()
        if room_id is not None:
            room_id = inputs.uuid("room_id", room_id)
        elif self._changes is not None:
            room_id = await self._changes.find_room(lambda: self.get(message_id))
        elif self._executor.is_distributed:
            room_id = (await self.get(message_id)).room_id
        change = _MessageChange(message_id, by, room_id, content)
        return await self._change(apply, change, key=room_id, id=message_id, deadline=deadline)

    _PERMISSIONS_SQL = f"""
        SELECT
            {readable(Message, "messages")},
            room_users.role IS NOT NULL AS is_member,
            COALESCE(messages.user_id = change.user_id OR room_users.role IN ('admin', 'moderator'), false)
                AS may_change
        FROM unnest($1::uuid[], $2::uuid[]) AS change (message_id, user_id)
        JOIN messages ON messages.id = change.message_id
        LEFT JOIN room_users
            ON room_users.room_id = {{room_id}}
            AND room_users.user_id = change.user_id
            AND {not_deleted("change.user_id")}
        WHERE {not_deleted("messages.room_id")}
            AND messages.room_id = {{room_id}}
        """
    _PERMISSIONS = Statement(
        "messages.change_permissions",
        lambda *row: (Message.of_row(*row[:-2]), row[-2], row[-1]),
        _PERMISSIONS_SQL.format(room_id="messages.room_id"),
        distributed=_PERMISSIONS_SQL.format(room_id="messages.room_id") + OLDEST_LAST,
    )
    _PERMISSIONS_IN_ROOM = Statement(
        "messages.change_permissions_in_room", _PERMISSIONS.model, _PERMISSIONS_SQL.format(room_id="$3")
    )

    async def _permissions(
        self, users: Mapping[UUID, UUID], room_id: UUID | None, deadline: float
    ) -> list[tuple[Message, bool, bool]]:
        """The messages with these ids, and whether the user of each is a member and may change it.

        Of several messages with one id, the last one counts.
        """
        ids, by = list(users), list(users.values())
        if room_id is None:
            return await self._executor.fetch_all(self._PERMISSIONS, ids, by, deadline=deadline)
        return await self._executor.fetch_all(self._PERMISSIONS_IN_ROOM, ids, by, room_id, deadline=deadline)

    async def _outcomes(
        self, changes: Sequence[_MessageChange], changed: Sequence[Message], deadline: float
    ) -> list[Message | Exception]:
        """The messages: as they were changed, or as a change left them, or the error of a user who may not change
        one.

        A change may find its own result, because a change with a lost answer is run again.
        """
        outcomes: dict[UUID, Message | Exception] = {message.id: message for message in changed}
        rest = [change for change in changes if change.message_id not in outcomes]
        if rest:
            by = {change.message_id: change.user_id for change in rest}
            rooms = {change.message_id: change.room_id for change in rest}
            [room_id, *others] = set(rooms.values())
            try:
                permissions = await self._permissions(by, None if others else room_id, deadline)
            except Unavailable as failure:
                unknown = failure.with_unknown_outcome()
                unknown.__cause__ = failure
                outcomes.update((id, unknown.for_another()) for id in by)
                permissions = []
            for message, is_member, may_change in permissions:
                if rooms[message.id] not in (None, message.room_id):
                    continue
                if not is_member:
                    outcomes[message.id] = NotAMember(message.room_id, by[message.id])
                elif not may_change:
                    reason = "only its author, moderators and admins of the room may"
                    outcomes[message.id] = Forbidden("change this message", reason)
                else:
                    outcomes[message.id] = message
        # Also on a retry: the first attempt may not have reported it.
        for room_id in {message.room_id for message in outcomes.values() if isinstance(message, Message)}:
            self._changed(RoomTouched(room_id))
        return [outcomes.get(id) or NotFound("message", id) for id, *_ in changes]

    async def page(
        self,
        room_id: UUID,
        *,
        before: PageAnchor | None = None,
        after: PageAnchor | None = None,
        around: PageAnchor | UUID | None = None,
        limit: int = 50,
        as_user: UUID | None = None,
    ) -> MessagePage:
        """Up to `limit` messages (1 to 200) of a room, the oldest first: by default its newest.

        At most one of `before`, `after` and `around` may be given: a seq or a message, for `around` also the id of
        one. `before` and `after` exclude it, `around` centres the page on it. To open a room at the first unread
        message, use `after` with the member's `last_read_seq`. Deleted messages are on the page as tombstones.

        Raises: NotFound (no such room or message), Invalid (a message of another room), NotAMember (`as_user`).
        """
        return await self._read_page(
            read_page, read_page_on_replica, room_id, (before, after, around), limit=limit, as_user=as_user
        )

    async def page_json(
        self,
        room_id: UUID,
        *,
        before: PageAnchor | None = None,
        after: PageAnchor | None = None,
        around: PageAnchor | UUID | None = None,
        limit: int = 50,
        as_user: UUID | None = None,
    ) -> bytes:
        """As `page`, as the JSON in UTF-8 that PostgreSQL writes, to be sent to a client as it is.

        It has the content of `msgspec.json.encode(page)`, for about a quarter of the processor time of this
        process (docs/decisions.md). Times are as in RFC 3339, in UTC, and through `hub.on` in the time zone of the
        connection.

        Raises: NotFound (no such room or message), Invalid (a message of another room), NotAMember (`as_user`).
        """
        return await self._read_page(
            read_page_json,
            read_page_json_on_replica,
            room_id,
            (before, after, around),
            limit=limit,
            as_user=as_user,
        )

    async def _read_page(
        self,
        read: Callable[[Executor, Span, float, UUID | None], Awaitable[T]],
        read_on_replica: Callable[[Executor, int, Span, float, UUID | None], Awaitable[tuple[int, T] | None]],
        room_id: UUID,
        anchors: tuple[PageAnchor | None, PageAnchor | None, PageAnchor | UUID | None],
        *,
        limit: int,
        as_user: UUID | None,
    ) -> T:
        before, after, around = anchors
        deadline, viewer = self._executor.deadline(), inputs.viewer(as_user)
        room_id, limit = inputs.uuid("room_id", room_id), inputs.limit(limit)
        if sum(anchor is not None for anchor in (before, after, around)) > 1:
            raise Invalid("before", "only one of before, after and around can be given")
        seen = 0  # a seq that the caller has seen
        if after is not None:
            seen = seq_of("after", room_id, after)
            span = Span(room_id, seen + 1, 0, limit)
        elif around is not None:
            if not isinstance(around, int | Message):
                around = await self._anchor(room_id, inputs.uuid("around", around), viewer, deadline)
            seen = seq_of("around", room_id, around)
            span = Span(room_id, seen, limit // 2, limit - limit // 2)
        elif before is not None:
            seen = seq_of("before", room_id, before)
            span = Span(room_id, seen, limit, 0)
        else:
            span = Span(room_id, NEWEST, limit, 0)
        return await self._read_room(
            room_id,
            seen,
            lambda executor, least, deadline: read_on_replica(executor, least, span, deadline, viewer),
            lambda: read(self._executor, span, deadline, viewer),
            deadline,
        )

    async def _anchor(self, room_id: UUID, id: UUID, viewer: UUID | None, deadline: float) -> Message:
        """The message, from this room, or from another one for the error that it means."""
        if viewer is not None:
            found = await self._permissions({id: viewer}, room_id, deadline)
            if found and found[0][1]:
                return found[0][0]
            return await self._get_as_member(id, None, viewer, deadline)
        message = await self._executor.fetch_one(self._GET_IN_ROOM, id, room_id, deadline=deadline)
        message = message or await self._executor.fetch_one(self._GET, id, deadline=deadline)
        return require(message, NotFound, "message", id)

    async def since(
        self, room_id: UUID, cursor: str | None, *, limit: int = 200, as_user: UUID | None = None
    ) -> LogPage:
        """Up to `limit` entries (1 to 1,000) of a room's log after the cursor: messages, edits, deletions, joins,
        leaves, changes of roles and of the room, in the order of their seq. A page also ends after 1 MiB.

        `cursor` is that of an event, of a message or of the previous page; None is the beginning of the log.
        Messages are in their present state. If the log was rewound since, by a restore or a failover that lost
        commits, a `Resync` alone is on the page.

        Raises: NotFound (no such room), Invalid (not a cursor, or that of another room), NotAMember (`as_user`).
        """
        room_id, limit = inputs.uuid("room_id", room_id), inputs.limit(limit, longest=1_000)
        after = START if cursor is None else Position.decode(room_id, cursor, field="cursor")
        deadline, viewer = self._executor.deadline(), inputs.viewer(as_user)
        log_slice = await self._read_room(
            room_id,
            after.seq,
            lambda executor, least, deadline: self._logs.read_on_replica(
                executor, least, room_id, after, limit, viewer=viewer, deadline=deadline
            ),
            lambda: self._logs.read(room_id, after, limit, viewer=viewer, deadline=deadline),
            deadline,
        )
        if log_slice.is_rewound:
            self._changed(RoomRewound(room_id))
            head = (await self._logs.head(room_id, viewer=viewer, deadline=deadline)).encode(room_id)
            return LogPage(room_id, [Resync(room_id, head, "rewound")], head, has_more=False)
        events: list[LogEvent | Resync] = [entry.event for entry in log_slice.entries]
        going_on = log_slice.next_position.encode(room_id) if log_slice.next_position.seq else None
        return LogPage(room_id, events, going_on, has_more=log_slice.complete_up_to < log_slice.last_seq)

    async def _read_room(
        self,
        room_id: UUID,
        seen: int,
        on_replica: Callable[[Executor, int, float], Awaitable[tuple[int, T] | None]],
        on_primary: Callable[[], Awaitable[T]],
        deadline: float,
    ) -> T:
        """As `Replicas.read_room`, if there are replicas."""
        if self._replicas is None:
            return await on_primary()
        return await self._replicas.read_room(room_id, seen, on_replica, on_primary, deadline)

    _BY_AUTHOR_CURSOR = Cursor("messages by author", tuple[datetime, UUID])
    _BY_AUTHOR = Statement(
        "messages.by_author",
        Message,
        f"""
        SELECT {readable(Message)}
        FROM messages
        WHERE user_id = $1
            AND {not_deleted("$1")}
            AND {not_deleted("messages.room_id")}
            AND (created_at, id) < ($2, $3)
            AND deleted_at IS NULL
        ORDER BY messages.created_at DESC, messages.id DESC
        LIMIT $4
        """,
    )

    async def by_author(self, user_id: UUID, *, limit: int = 50, after: str | None = None) -> Page[Message]:
        """The messages of a user in all rooms, the newest first, without deleted ones.

        `limit` is 1 to 200; `after` is the `next` of the previous page. For moderation and export: the caller
        checks who may read them.
        """
        user_id, limit = inputs.uuid("user_id", user_id), inputs.limit(limit)
        cursor = self._BY_AUTHOR_CURSOR
        newest = (datetime.max.replace(tzinfo=UTC), UUID(int=2**128 - 1))
        created_at, message_id = newest if after is None else cursor.decode(user_id, after)
        messages, deadline = None, self._executor.deadline()

        def read(executor: Executor, at: float) -> Awaitable[list[Message]]:
            return executor.fetch_all(
                self._BY_AUTHOR, user_id, created_at, message_id, limit + 1, deadline=min(at, deadline)
            )

        if self._replicas is not None:
            messages = await self._replicas.read(read)
        if messages is None:
            messages = await read(self._executor, deadline)
        return cursor.page(user_id, messages, limit, lambda message: (message.created_at, message.id))
