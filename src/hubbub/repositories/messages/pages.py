"""Pages of a room's messages, in both directions: as objects, and as the JSON that PostgreSQL writes.

Callers that wait for the same page share the statement that reads it, as when all members open one room. A caller
joins only a statement that was not sent yet, so all that was acknowledged before the call is on the page. Viewers,
who have to be members, share a page too. The statement checks which of them are members.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeAlias, cast
from uuid import UUID

import msgspec

from hubbub import inputs
from hubbub.errors import Invalid, NotAMember, NotFound
from hubbub.models import Message, MessagePage
from hubbub.positions import Position, message_hash
from hubbub.postgres import Executor, Statement
from hubbub.repositories.messages.send import MESSAGE
from hubbub.sql import not_deleted, quickly_readable, readable, require, stored_columns

PageAnchor: TypeAlias = int | Message
"""The position in the log of a room from which a page is read: a seq, or the message that has it."""

NEWEST: Final = 2**63 - 1

_MOST: Final = inputs.PAGE_LIMIT + 1
"""The maximum of a page is a constant in the SQL, and the limit of the call is applied to that. For a bare LIMIT
$3, PostgreSQL expects a tenth of the room, which looks expensive in a large table. It then replans each page for
its own numbers, which takes as long as reading it."""


def _page(selected: str) -> str:
    """The SQL of a page, for every direction: messages before the pivot and from it on.

    One extra row per side shows whether there are more. After the newest message there is nothing to look for,
    which PostgreSQL sees before it descends the index.
    """
    return f"""(
    SELECT {selected}
    FROM (
        SELECT {MESSAGE}
        FROM messages
        WHERE room_id = $1
            AND seq < $2
            AND {not_deleted("$1")}
        ORDER BY seq DESC
        LIMIT {_MOST}
    ) AS older
    ORDER BY seq DESC
    LIMIT $3
) UNION ALL (
    SELECT {selected}
    FROM (
        SELECT {MESSAGE}
        FROM messages
        WHERE room_id = $1
            AND seq >= $2
            AND $2 < {NEWEST}
            AND {not_deleted("$1")}
        ORDER BY seq
        LIMIT {_MOST}
    ) AS newer
    ORDER BY seq
    LIMIT $4
) LIMIT $3 + $4"""


class Span(NamedTuple):
    """The extent of a page: how many messages before the seq `pivot`, and how many from there on."""

    room_id: UUID
    pivot: int
    older: int
    newer: int


def seq_of(field: str, room_id: UUID, anchor: PageAnchor) -> int:
    """The seq of an anchor. Raises: Invalid (also for a message of another room)."""
    if isinstance(anchor, Message):
        if anchor.room_id != room_id:
            raise Invalid(field, "is a message of another room")
        return anchor.seq
    return min(inputs.seq(field, anchor), NEWEST - 1) if field == "after" else inputs.seq(field, anchor)


class _Rows(list[Message]):
    """The rows of a page, and the page that their first caller has made of them for all who share them."""

    page: MessagePage | None = None

    @classmethod
    def build(cls, rows: Sequence[Any]) -> list[Message]:
        return cls(Message.of_rows(rows))


PAGE = Statement("messages.page", Message, _page(quickly_readable(Message)), build=_Rows.build)


def _viewers(ids: str) -> str:
    """A part of a WITH: the ids of those viewers who are members, or no row. With NULL no membership is read."""
    return f"""viewers AS MATERIALIZED (
        SELECT string_agg(user_id::text, ' ') AS ids
        FROM room_users
        WHERE {ids}::uuid[] IS NOT NULL
            AND room_id = $1
            AND user_id = ANY({ids}::uuid[])
            AND {not_deleted("$1", "user_id")}
        HAVING count(*) > 0
    )"""


_NO_MESSAGE: Final = dict.fromkeys(stored_columns(Message), "NULL") | {
    "seq": "0",
    "message_type": "'text'",
    "content": "ids",
}
_ANY_VIEWER: Final = "EXISTS (SELECT 1 FROM viewers)"


def _selected(columns: Mapping[str, str]) -> str:
    return ", ".join(f"{value} AS {column}" for column, value in columns.items())


def _of_viewers(name: str, page: Statement[Message], ids: str) -> Statement[Message]:
    """The page of many viewers, whose `ids` are a parameter. The first row is not a message: its content has the
    ids of those who are members. If none of them is, there is no row at all."""
    sql = f"""
    WITH {_viewers(ids)}
    SELECT {_selected(_NO_MESSAGE)}
    FROM viewers
    UNION ALL
    ({page.sql.replace(not_deleted("$1"), _ANY_VIEWER)})
    """
    return Statement(name, Message, sql, build=_Rows.build)


PAGE_OF_VIEWERS = _of_viewers("messages.page_of_viewers", PAGE, "$5")

# The newest page where rooms are distributed, as the first half of `_page`. Citus plans a statement in each call
# and sends it to the node as text. Half of it takes 0.6 of the time.
NEWEST_PAGE = Statement(
    "messages.newest_page",
    Message,
    f"""
    SELECT {quickly_readable(Message)}
    FROM (
        SELECT {MESSAGE}
        FROM messages
        WHERE room_id = $1
            AND {not_deleted("$1")}
        ORDER BY seq DESC
        LIMIT {_MOST}
    ) AS newest
    ORDER BY seq DESC
    LIMIT $2
    """,
    build=_Rows.build,
)
NEWEST_PAGE_OF_VIEWERS = _of_viewers("messages.newest_page_of_viewers", NEWEST_PAGE, "$3")

ROOM_EXISTS = Statement(
    "messages.room_exists", int, f"SELECT 1 AS found FROM rooms WHERE id = $1 AND {not_deleted('$1')}"
)


# Pages on a replica. There is no row where the log of the room has not reached the seq $5, none on a server that
# was promoted, and none if no member is among the viewers ($6). The first row is not a message: its seq is the end
# of the log.
_REACHED: Final = f"""reached AS MATERIALIZED (
        SELECT last_seq
        FROM rooms
        WHERE id = $1
            AND last_seq >= $5
            AND pg_is_in_recovery()
            AND {not_deleted("$1")}
            AND ($6::uuid[] IS NULL OR {_ANY_VIEWER})
    )"""
_IS_REACHED: Final = "EXISTS (SELECT 1 FROM reached)"
_WITH_REACHED: Final = f"WITH {_viewers('$6')}, {_REACHED}"
PAGE_ON_REPLICA = Statement(
    "messages.page_on_replica",
    Message,
    f"""
    {_WITH_REACHED}
    SELECT {_selected(_NO_MESSAGE | {"seq": "last_seq", "content": "COALESCE((SELECT ids FROM viewers), '')"})}
    FROM reached
    UNION ALL
    ({PAGE.sql.replace(not_deleted("$1"), _IS_REACHED)})
    """,
)


async def read_page_on_replica(
    executor: Executor, least: int, span: Span, deadline: float, viewer: UUID | None
) -> tuple[int, MessagePage] | None:
    """The end of the room's log and the page, if that end is at least `least` and the viewer is a member there."""
    room_id, pivot, older, newer = span
    rows = await executor.fetch_shared_by_each(
        PAGE_ON_REPLICA, room_id, pivot, older + 1, newer + 1, least, viewer, deadline=deadline
    )
    if not rows or (viewer is not None and str(viewer) not in rows[0].content):
        return None
    return rows[0].seq, _page_of(span, rows[1:])


async def read_page(executor: Executor, span: Span, deadline: float, viewer: UUID | None = None) -> MessagePage:
    """The page. Raises: NotFound (no such room), NotAMember (the `viewer`, if there is one)."""
    room_id, pivot, older, newer = span
    is_short = executor.is_distributed and pivot == NEWEST
    if viewer is not None:
        if is_short:
            seen = await executor.fetch_shared_by_each(
                NEWEST_PAGE_OF_VIEWERS, room_id, older + 1, viewer, deadline=deadline
            )
        else:
            seen = await executor.fetch_shared_by_each(
                PAGE_OF_VIEWERS, room_id, pivot, older + 1, newer + 1, viewer, deadline=deadline
            )
        if not seen or str(viewer) not in seen[0].content:
            raise NotAMember(room_id, viewer)
    else:
        if is_short:
            seen = await executor.fetch_shared(NEWEST_PAGE, room_id, older + 1, deadline=deadline)
        else:
            seen = await executor.fetch_shared(PAGE, room_id, pivot, older + 1, newer + 1, deadline=deadline)
        if not seen:
            exists = await executor.fetch_one(ROOM_EXISTS, room_id, deadline=deadline)
            require(exists, NotFound, "room", room_id)
    rows = cast(_Rows, seen)
    page = rows.page = rows.page or _page_of(span, rows if viewer is None else rows[1:])
    return MessagePage(page.room_id, page.items.copy(), page.has_older, page.has_newer, page.cursor)


def _page_of(span: Span, rows: list[Message]) -> MessagePage:
    room_id, pivot, older, newer = span
    before = [message for message in rows if message.seq < pivot]  # the newest first
    after = [message for message in rows if message.seq >= pivot]
    items = before[:older][::-1] + after[:newer]
    return MessagePage(
        room_id,
        items,
        has_older=len(before) > older,
        has_newer=len(after) > newer,
        cursor=items[-1].cursor if items else None,
    )


class _Newest(msgspec.Struct):
    id: UUID
    seq: int
    created_at: datetime


_decode_newest = msgspec.json.Decoder(_Newest).decode
_JSON: Final = {True: b"true", False: b"false"}


def _page_json(room_id: UUID, older: int, newer: int, messages: list[bytes] | None, before: int) -> bytes:
    """The JSON of a page, from that of its messages and of one more per side, of which `before` are older."""
    messages = messages or []
    items = messages[max(before - older, 0) : before + newer]
    cursor = b"null"
    if items:
        # Without the metadata, the last field, which may be nested more deeply than a decoder follows.
        newest = _decode_newest(items[-1].partition(b',"metadata":')[0] + b"}")
        position = Position(newest.seq, message_hash(newest.id, newest.created_at))
        cursor = b'"%b"' % position.encode(room_id).encode()
    return b'{"room_id":"%b","items":[%b],"has_older":%b,"has_newer":%b,"cursor":%b}' % (
        str(room_id).encode(),
        b",".join(items),
        _JSON[before > older],
        _JSON[len(messages) - before > newer],
        cursor,
    )


def _as_json(condition: str, before: str = "", more: str = "") -> str:
    """The SQL of a page in JSON. PostgreSQL writes that of each message, as objects of Python cost three times as
    much. There is a row if the condition is met."""
    return f"""
    {before}
    SELECT
        $1::uuid AS room_id,
        $3 - 1 AS older,
        $4 - 1 AS newer,
        array_agg(convert_to(row_to_json(page)::text, 'UTF8') ORDER BY page.seq) AS messages,
        count(*) FILTER (WHERE page.seq < $2) AS before{more}
    FROM ({_page(readable(Message)).replace(not_deleted("$1"), "true")}) AS page
    HAVING {condition}
    """


_AND_VIEWERS: Final = ",\n        (SELECT ids FROM viewers) AS viewers"
PAGE_JSON = Statement(
    "messages.page_json",
    lambda room_id, older, newer, messages, before, viewers: (
        _page_json(room_id, older, newer, messages, before),
        viewers,
    ),
    _as_json(
        f"CASE WHEN $5::uuid[] IS NULL THEN EXISTS ({ROOM_EXISTS.sql}) ELSE {_ANY_VIEWER} END",
        f"WITH {_viewers('$5')}",
        _AND_VIEWERS,
    ),
)
PAGE_JSON_ON_REPLICA = Statement(
    "messages.page_json_on_replica",
    lambda room_id, older, newer, messages, before, viewers, last_seq: (
        _page_json(room_id, older, newer, messages, before),
        viewers,
        last_seq,
    ),
    _as_json(_IS_REACHED, _WITH_REACHED, f"{_AND_VIEWERS},\n        (SELECT last_seq FROM reached) AS last_seq"),
)


async def read_page_json_on_replica(
    executor: Executor, least: int, span: Span, deadline: float, viewer: UUID | None
) -> tuple[int, bytes] | None:
    """As `read_page_on_replica`."""
    room_id, pivot, older, newer = span
    found = await executor.fetch_shared_by_each(
        PAGE_JSON_ON_REPLICA, room_id, pivot, older + 1, newer + 1, least, viewer, deadline=deadline
    )
    if not found or (viewer is not None and str(viewer) not in found[0][1]):
        return None
    page, _, last_seq = found[0]
    return last_seq, page


async def read_page_json(executor: Executor, span: Span, deadline: float, viewer: UUID | None = None) -> bytes:
    """The page as JSON, with the fields of `MessagePage`. Raises: as `read_page`."""
    room_id, pivot, older, newer = span
    found = await executor.fetch_shared_by_each(
        PAGE_JSON, room_id, pivot, older + 1, newer + 1, viewer, deadline=deadline
    )
    if viewer is not None and (not found or str(viewer) not in found[0][1]):
        raise NotAMember(room_id, viewer)
    return require(found[0][0] if found else None, NotFound, "room", room_id)
