"""Pages of a room's messages, in both directions: as objects, and as the JSON that PostgreSQL writes."""

from __future__ import annotations

from typing import Final, NamedTuple
from uuid import UUID

from hubbub import inputs
from hubbub.errors import Invalid, NotFound
from hubbub.models import Message, MessagePage
from hubbub.postgres import Executor, Statement
from hubbub.repositories.messages.sending import MESSAGE

# A place in the log of a room: a seq, or the message that has it.
Place = int | Message

NEWEST: Final = 2**63 - 1

# What a page reads at most stands in the SQL, around it what was asked for. Of a bare LIMIT $3 PostgreSQL expects
# a tenth of the room, finds that dear in a large table, and plans each page anew for its own numbers, which takes
# as long as to read it.
_MOST: Final = inputs.PAGE_LIMIT + 1
_OLDER: Final = f"""
    SELECT {MESSAGE}
    FROM (
        SELECT {MESSAGE}
        FROM messages
        WHERE room_id = $1
            AND seq < $2
        ORDER BY seq DESC
        LIMIT {_MOST}
    ) AS older
    ORDER BY seq DESC
"""
_NEWER: Final = f"""
    SELECT {MESSAGE}
    FROM (
        SELECT {MESSAGE}
        FROM messages
        WHERE room_id = $1
            AND seq >= $2
            AND $2 < {NEWEST}
        ORDER BY seq
        LIMIT {_MOST}
    ) AS newer
    ORDER BY seq
"""


class Span(NamedTuple):
    """What a page shows: so many messages before the pivot, a seq, and so many from it on."""

    room_id: UUID
    pivot: int
    older: int
    newer: int


def seq_of(field: str, room_id: UUID, place: Place) -> int:
    """The seq of a place. Raises `Invalid`, also for a message of another room."""
    if isinstance(place, Message):
        if place.room_id != room_id:
            raise Invalid(field, "is a message of another room")
        return place.seq
    return min(inputs.seq(field, place), NEWEST - 1) if field == "after" else inputs.seq(field, place)


def _as_it_is(page: bytes) -> bytes:
    return page


class Pages:
    """Reads pages. Who may read them is the caller's to ask.

    Those who wait for the same page share the statement that reads it, as when everybody opens one room. A caller
    joins only one that has not been sent: what was acknowledged before the call is on the page.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    # One statement for every direction: so many before the pivot, so many from it on. One row more than asked for
    # on a side, or one row of the side that was not asked for, says whether there is more. After the newest there
    # is nothing to look for: PostgreSQL sees that before it goes down the index.
    _PAGE = Statement(
        "messages.page",
        Message,
        f"({_OLDER} LIMIT $3) UNION ALL ({_NEWER} LIMIT $4) LIMIT $3 + $4",
    )

    async def read(self, span: Span, deadline: float) -> MessagePage:
        """The page. Raises `NotFound` for an unknown room."""
        room_id, pivot, older, newer = span
        rows = await self._executor.fetch_shared(
            self._PAGE, room_id, pivot, older + 1, newer + 1, deadline=deadline
        )
        if not rows:
            await self._check_room(room_id, deadline)
        before = [message for message in rows if message.seq < pivot]  # the newest first
        after = [message for message in rows if message.seq >= pivot]
        return MessagePage(
            room_id,
            before[:older][::-1] + after[:newer],
            has_older=len(before) > older,
            has_newer=len(after) > newer,
        )

    # As _PAGE, cut to what was asked for. The keys are the fields of the models, in their order.
    _PAGE_JSON = Statement(
        "messages.page_json",
        _as_it_is,
        f"""
        WITH older AS MATERIALIZED (
            {_OLDER}
            LIMIT $3 + 1
        ), newer AS MATERIALIZED (
            {_NEWER}
            LIMIT $4 + 1
        ), page AS (
            (
                SELECT {MESSAGE}
                FROM older
                ORDER BY seq DESC
                LIMIT $3
            )
            UNION ALL
            (
                SELECT {MESSAGE}
                FROM newer
                ORDER BY seq
                LIMIT $4
            )
        )
        SELECT convert_to(
            json_build_object(
                'room_id', rooms.id,
                'items', COALESCE((SELECT json_agg(page ORDER BY page.seq) FROM page), '[]'),
                'has_older', (SELECT count(*) > $3 FROM older),
                'has_newer', (SELECT count(*) > $4 FROM newer)
            )::text,
            'UTF8'
        ) AS page
        FROM rooms
        WHERE rooms.id = $1
        """,
    )

    async def read_json(self, span: Span, deadline: float) -> bytes:
        """The page as JSON. Raises `NotFound` for an unknown room."""
        room_id, pivot, older, newer = span
        for page in await self._executor.fetch_shared(
            self._PAGE_JSON, room_id, pivot, older, newer, deadline=deadline
        ):
            return page
        raise NotFound("room", room_id)

    _ROOM_EXISTS = Statement(
        "messages.room_exists", bool, "SELECT EXISTS (SELECT 1 FROM rooms WHERE id = $1) AS room_exists"
    )

    async def _check_room(self, room_id: UUID, deadline: float) -> None:
        if not await self._executor.fetch_one(self._ROOM_EXISTS, room_id, deadline=deadline):
            raise NotFound("room", room_id)
