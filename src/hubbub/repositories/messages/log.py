"""The log of a room: the rows of messages and of room_events, in the order of their seq."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec

from hubbub import events
from hubbub.errors import NotAMember, NotFound
from hubbub.events import DECODING_ERRORS, LogEvent
from hubbub.models import Message
from hubbub.positions import NO_ENTRY, Position, event_hash, message_hash
from hubbub.postgres import Executor, Statement
from hubbub.sql import columns, has_member, message_bytes, not_deleted, readable, representable

logger = logging.getLogger("hubbub.feed")

UNREADABLE: Final = (ValueError, *DECODING_ERRORS)
"""The errors of decoding a value that another program wrote."""


PAGE_BYTES: Final = 1024 * 1024
"""After this much content no further entry is read. It bounds what is decoded in one step of the event loop."""

_COLUMNS: Final = f"""head,
            of_room,
            at_seq,
            kind,
            about,
            by,
            payload,
            at,
            {columns(Message)}"""


class Entry(NamedTuple):
    """An entry of a log: an event and its position."""

    position: Position
    event: LogEvent


class LogSlice(NamedTuple):
    """A part of the log of a room, after a position.

    `last_seq` is that of the log. `complete_up_to` is the seq up to which the part is complete: beyond its last
    entry if rows were purged by other means than hubbub's. `is_rewound` means that the log does not have at the
    position what the reader has seen there. Then there are no entries, and `complete_up_to` is 0.
    """

    entries: list[Entry]
    last_seq: int
    complete_up_to: int
    next_position: Position
    """The position to go on from."""
    is_rewound: bool


class LogCheck(NamedTuple):
    """The `last_seq` of a room, and the position at the seq that the caller asked for; None beyond `last_seq`."""

    room_id: UUID
    last_seq: int
    position: Position | None

    def holds(self, seen: Position) -> bool:
        """Whether the log still has the entry that a reader has seen at this seq."""
        return self.position is not None and self.position.matches(seen)


def entry_of(message: Message) -> Entry:
    """The entry of a message that was sent."""
    position = Position(message.seq, message_hash(message.id, message.created_at))
    cursor = position.encode(message.room_id)
    event = events.MessageSent(message.room_id, message.seq, cursor, message.created_at, message)
    return Entry(position, event)


_payload = msgspec.json.Decoder(events.Payload).decode

# The fields of each kind of event, without those that all entries have.
_OWN_FIELDS = {
    kind: event.__struct_fields__[len(events.LoggedEvent.__struct_fields__) :]
    for kind, event in events.KINDS.items()
}


def _entry(*row: Any) -> tuple[int, int, Position, LogEvent | None]:  # noqa: ANN401 - each column has its type
    """How many rows were found, the head of the log, and the position and event of an entry. The last columns are
    those of its message.

    There is no event if that was purged or cannot be read, or for a kind that a newer version added.
    """
    found, head, room_id, seq, kind, about, user_id, payload, at, *values = row
    is_sent = kind == "sent"
    try:
        if is_sent:
            return found, head, *entry_of(Message.of_row(*values))
        position = Position(seq, event_hash(kind, about, user_id, at))
        if kind not in events.KINDS or (about is not None and values[0] is None):
            return found, head, position, None
        own = _own_values(kind, user_id, payload, values)
    except UNREADABLE as error:
        logger.error("passed over entry %s of room %s, which cannot be read: %s", seq, room_id, error)  # noqa: TRY400
        return found, head, Position(seq, message_hash(values[0], at) if is_sent else position.entry_hash), None
    event: Callable[..., LogEvent] = events.KINDS[kind]
    return found, head, position, event(room_id, seq, position.encode(room_id), at, *own)


def event_of(room_id: UUID, seq: int, kind: str | None, about: UUID | None, *rest: Any) -> LogEvent | None:  # noqa: ANN401
    """The event of an entry, of the columns that `Logs` reads. None as there, or if the room is being deleted."""
    if kind is None or (kind == "sent" and rest[3] is None):
        return None
    return _entry(1, 0, room_id, seq, kind, about, *rest)[3]


def _own_values(kind: str, user_id: UUID, payload: str, columns: list[Any]) -> list[Any]:
    """The values of the fields that not all entries have."""
    values: list[Any] = []
    decoded: events.Payload | None = None
    for field in _OWN_FIELDS[kind]:
        match field:
            case "user_id" | "by":
                values.append(user_id)
            case "message":
                values.append(Message.of_row(*columns))
            case _:
                decoded = decoded or _payload(payload)
                values.append(getattr(decoded, field))
    return values


def _check_of(*row: Any) -> LogCheck:  # noqa: ANN401 - each column has a type of its own
    """The `last_seq` of a log, and the position of the entry at a seq: a message, or a row of room_events."""
    room_id, last_seq, seq, sent_id, sent_at, kind, message_id, user_id, at = row
    if sent_id is not None:
        return LogCheck(room_id, last_seq, Position(seq, message_hash(sent_id, sent_at)))
    if kind is not None:
        return LogCheck(room_id, last_seq, Position(seq, event_hash(kind, message_id, user_id, at)))
    return LogCheck(room_id, last_seq, _without_entry(seq, last_seq))


def _without_entry(seq: int, last_seq: int) -> Position | None:
    """The position of seq 0 or of a purged message. None beyond the end."""
    return Position(seq, NO_ENTRY) if seq <= last_seq else None


def _slice_of(
    rows: Sequence[tuple[int, int, Position, LogEvent | None]],
    room_id: UUID,
    after: Position,
    limit: int,
    head: int,
) -> LogSlice:
    """The slice of rows, which were read from the position on. `head` is the end of the log if there are none."""
    found, head, first, _ = rows[0] if rows else (0, head, None, None)
    there = first if first is not None and first.seq == after.seq else _without_entry(after.seq, head)
    if not LogCheck(room_id, head, there).holds(after):
        return LogSlice([], head, 0, after, is_rewound=True)
    entries = [Entry(at, event) for _, _, at, event in rows if event is not None and at.seq > after.seq]
    last = rows[-1][2] if rows and not entries else after
    if entries:
        last = entries[:limit][-1].position
    end = head if found == len(rows) <= limit else last.seq
    return LogSlice(entries[:limit], head, end, last, is_rewound=False)


class Logs:
    """The logs of rooms. With a `viewer`, who has to be a member, a call is checked."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    # It reads from the position on, including it: the entry there shows whether the log was rewound since. One
    # statement sees one state of the database, and the order of seq is the order of the commits, so the result has
    # no holes. Events of a purged message are left out, except at the position.
    #
    # Rows after the bound in bytes ($4) are left out before their content is fetched: octet_length of a stored
    # text does not read it. The first entry always comes. `found` counts the rows without that bound.
    _VISIBLE: Final = f"""{not_deleted("$1")}
                        AND ($5::uuid IS NULL OR {has_member("$1", "$5")})"""
    _READ = Statement(
        "log.read",
        _entry,
        f"""
        SELECT
            found,
            {_COLUMNS}
        FROM (
            SELECT
                {_COLUMNS},
                count(*) OVER () AS found,
                sum(bytes) OVER (ORDER BY at_seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS earlier_bytes
            FROM (
                (
                    SELECT
                        (SELECT last_seq FROM rooms WHERE id = $1) AS head,
                        messages.room_id AS of_room,
                        messages.seq AS at_seq,
                        'sent' AS kind,
                        NULL::uuid AS about,
                        NULL::uuid AS by,
                        NULL::jsonb AS payload,
                        {representable("messages.created_at")} AS at,
                        CASE WHEN messages.seq > $2 THEN {message_bytes("messages")} ELSE 0 END AS bytes,
                        {readable(Message, "messages")}
                    FROM messages
                    WHERE messages.room_id = $1
                        AND messages.seq >= $2
                        AND {_VISIBLE}
                    ORDER BY messages.seq
                    LIMIT $3
                )
                UNION ALL
                (
                    SELECT
                        (SELECT last_seq FROM rooms WHERE id = $1) AS head,
                        room_events.room_id,
                        room_events.seq,
                        room_events.kind,
                        room_events.message_id,
                        room_events.user_id,
                        room_events.payload,
                        {representable("room_events.created_at")},
                        CASE WHEN room_events.seq > $2 THEN {message_bytes("messages")} ELSE 0 END,
                        {readable(Message, "messages")}
                    FROM room_events
                    LEFT JOIN messages
                        ON messages.id = room_events.message_id
                        AND messages.room_id = $1
                    WHERE room_events.room_id = $1
                        AND room_events.seq >= $2
                        AND {_VISIBLE}
                        AND (room_events.message_id IS NULL OR messages.id IS NOT NULL OR room_events.seq = $2)
                    ORDER BY room_events.seq
                    LIMIT $3
                )
                ORDER BY at_seq
                LIMIT $3
            ) AS entries
        ) AS counted
        WHERE earlier_bytes IS NULL
            OR earlier_bytes <= $4
        ORDER BY at_seq
        """,
    )

    async def read(
        self,
        room_id: UUID,
        after: Position,
        limit: int,
        most_bytes: int = PAGE_BYTES,
        *,
        viewer: UUID | None = None,
        deadline: float | None = None,
    ) -> LogSlice:
        """Up to `limit` entries after the position, in their order, and no further one after `most_bytes`.

        Raises: NotFound (no such room), NotAMember.
        """
        head, deadline = 0, self._executor.deadline() if deadline is None else deadline
        rows = await self._executor.fetch_all(
            self._READ, room_id, after.seq, limit + 1, most_bytes, viewer, deadline=deadline
        )
        if not rows:  # purged, or no room; read again, for entries that came before the head was known
            head = (await self.head(room_id, viewer=viewer, deadline=deadline)).seq
            rows = await self._executor.fetch_all(
                self._READ, room_id, after.seq, limit + 1, most_bytes, viewer, deadline=deadline
            )
        return _slice_of(rows, room_id, after, limit, head)

    _READ_ON_REPLICA = Statement(
        "log.read_on_replica", _entry, _READ.sql.replace(_VISIBLE, f"{_VISIBLE} AND pg_is_in_recovery()")
    )

    @classmethod
    async def read_on_replica(
        cls,
        executor: Executor,
        least: int,
        room_id: UUID,
        after: Position,
        limit: int,
        *,
        viewer: UUID | None,
        deadline: float,
    ) -> tuple[int, LogSlice] | None:
        """As `read`, with the end of the log. None where it is less than `least`, or the position is not there."""
        rows = await executor.fetch_all(
            cls._READ_ON_REPLICA, room_id, after.seq, limit + 1, PAGE_BYTES, viewer, deadline=deadline
        )
        if not rows or rows[0][1] < least:
            return None
        found = _slice_of(rows, room_id, after, limit, rows[0][1])
        return None if found.is_rewound else (found.last_seq, found)

    _HEAD_COLUMNS = f"""
        SELECT
            rooms.id,
            rooms.last_seq,
            {{seq}} AS seq,
            messages.id AS sent_id,
            {representable("messages.created_at")} AS sent_at,
            room_events.kind,
            room_events.message_id,
            room_events.user_id,
            {representable("room_events.created_at")} AS happened_at
        """
    _HEADS = Statement(
        "log.heads",
        _check_of,
        f"""
        {_HEAD_COLUMNS.format(seq="known.seq")}
        FROM unnest($1::uuid[], $2::bigint[]) AS known (room_id, seq)
        JOIN rooms ON rooms.id = known.room_id
        LEFT JOIN messages
            ON messages.room_id = rooms.id
            AND messages.seq = known.seq
        LEFT JOIN room_events
            ON room_events.room_id = rooms.id
            AND room_events.seq = known.seq
        WHERE {not_deleted("rooms.id")}
        """,
    )
    _HEAD = Statement(
        "log.head",
        _check_of,
        f"""
        {_HEAD_COLUMNS.format(seq="rooms.last_seq")}
        FROM rooms
        LEFT JOIN messages
            ON messages.room_id = $1
            AND messages.seq = rooms.last_seq
        LEFT JOIN room_events
            ON room_events.room_id = $1
            AND room_events.seq = rooms.last_seq
        WHERE rooms.id = $1
            AND {not_deleted("$1")}
            AND ($2::uuid IS NULL OR {has_member("$1", "$2")})
        """,
    )

    async def check(self, seqs: Mapping[UUID, int], *, deadline: float | None = None) -> list[LogCheck]:
        """The `last_seq` of each room that exists, with the position at the given seq."""
        return await self._executor.fetch_all(self._HEADS, list(seqs), list(seqs.values()), deadline=deadline)

    async def head(self, room_id: UUID, *, viewer: UUID | None = None, deadline: float | None = None) -> Position:
        """The position of the newest entry of a room. Raises: NotFound, NotAMember (the `viewer`)."""
        head = await self._executor.fetch_one(self._HEAD, room_id, viewer, deadline=deadline)
        if head is not None and head.position is not None:  # it always has one, because it is not beyond the end
            return head.position
        raise NotFound("room", room_id) if viewer is None else NotAMember(room_id, viewer)
