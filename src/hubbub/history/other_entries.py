"""The entries of rooms that an import has not appended: lines are known from them, or superseded by them.

There may be millions, and each batch looks for its lines among them. So an import reads each of them once, in
pages, and keeps little: the times of each block of entries, which show where to look for a time, and the last one
about each user.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from hubbub.events import MEMBER_KINDS
from hubbub.history.locked_rooms import REMEMBERED_MEMBERSHIPS, Span
from hubbub.postgres import Executor, Statement
from hubbub.sql import representable

SEQS_PER_BLOCK: Final = 10_000
"""A batch with a time between those of a block reads the block, which takes some milliseconds."""
SEQS_PER_PAGE: Final = 1_000_000
"""To read a page takes about a second."""


def of_spans(columns: str) -> str:
    """For FROM: the entries of the rooms $1 from the seqs $2 to the seqs $3."""
    return f"""
        FROM unnest($1::uuid[], $2::bigint[], $3::bigint[]) AS span (room_id, first, last)
        CROSS JOIN LATERAL (
            SELECT {columns}
            FROM room_events
            WHERE room_events.room_id = span.room_id
                AND room_events.seq BETWEEN span.first AND span.last
            OFFSET 0
        ) AS room_events
    """


class Latest(NamedTuple):
    """The last entry of a log about a membership, or about the room itself."""

    seq: int
    created_at: datetime


class Block(NamedTuple):
    """Entries of a part of a log, and the first and the last of their times."""

    span: Span
    earliest: datetime
    latest: datetime


BLOCKS = Statement(
    "history.blocks",
    lambda room_id, first, last, earliest, latest: (room_id, Block(Span(first, last), earliest, latest)),
    f"""
    SELECT
        room_id,
        first,
        last,
        {representable("earliest")} AS earliest,
        {representable("latest")} AS latest
    FROM (
        SELECT
            room_events.room_id,
            min(room_events.seq) AS first,
            max(room_events.seq) AS last,
            min(room_events.created_at) AS earliest,
            max(room_events.created_at) AS latest
        {of_spans("room_id, seq, created_at")}
        GROUP BY room_events.room_id, room_events.seq / $4::bigint
    ) AS block
    """,
)

# NULL is the subject of an entry about the room itself.
_LATEST: Final = """
    SELECT
        room_events.room_id,
        latest.subject,
        room_events.seq,
        {created_at} AS created_at
    FROM (
        SELECT
            room_events.room_id,
            CASE WHEN room_events.kind IN {kinds} THEN room_events.user_id END AS subject,
            max(room_events.seq) AS seq
        {of_spans}
        WHERE room_events.message_id IS NULL
            AND (room_events.kind NOT IN {kinds} OR room_events.user_id {wanted})
        GROUP BY room_events.room_id, subject
        {limit}
    ) AS latest
    JOIN room_events USING (room_id, seq)
"""


def _latest(wanted: str, limit: str = "") -> str:
    return _LATEST.format(
        created_at=representable("room_events.created_at"),
        of_spans=of_spans("room_id, seq, kind, message_id, user_id"),
        kinds=MEMBER_KINDS,
        wanted=wanted,
        limit=limit,
    )


LATEST = Statement(
    "history.latest_entries",
    lambda room_id, subject, seq, created_at: (room_id, subject, Latest(seq, created_at)),
    _latest("IS NOT NULL", limit="LIMIT $4"),
)
LATEST_OF_USERS = Statement(
    "history.latest_entries_of_users",
    lambda room_id, subject, seq, created_at: (room_id, subject, Latest(seq, created_at)),
    _latest("= ANY($4::uuid[])"),
)


class _Room:
    """The entries of a room that were read, up to the seq `end`.

    `latest` has the last entry about each user. It is None where they are about too many users.
    """

    __slots__ = ("blocks", "end", "latest")

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.end = 0
        self.latest: dict[UUID | None, Latest] | None = {}


Part = tuple[UUID, int, int]
"""A part of the log of a room: the first seq and the last."""


class OtherEntries:
    """The entries of others that an import has read, by room. Each batch reads on."""

    def __init__(self) -> None:
        self._rooms: dict[UUID, _Room] = {}

    async def at(
        self, executor: Executor, others: Mapping[UUID, Sequence[Span]], moments: Iterable[tuple[UUID, datetime]]
    ) -> list[Part]:
        """The parts of the logs in which the entries of these rooms at these times are."""
        times: dict[UUID, set[datetime]] = defaultdict(set)
        for room_id, at in moments:
            times[room_id].add(at)
        await self._read(executor, {room_id: others[room_id] for room_id in times})
        return [
            (room_id, *block.span)
            for room_id, of_room in times.items()
            for block in _with_any(sorted(of_room), self._rooms[room_id].blocks)
        ]

    async def latest(
        self, executor: Executor, others: Mapping[UUID, Sequence[Span]], subjects: Set[tuple[UUID, UUID | None]]
    ) -> dict[tuple[UUID, UUID | None], Latest]:
        """The last entry about each user in a room, and about each room itself, whose user is None."""
        room_ids = {room_id for room_id, _ in subjects}
        await self._read(executor, {room_id: others[room_id] for room_id in room_ids})
        found: dict[tuple[UUID, UUID | None], Latest] = {}
        unknown = [room_id for room_id in room_ids if self._rooms[room_id].latest is None]
        if unknown:
            users = {user_id for _, user_id in subjects if user_id is not None}
            for page in _pages((room_id, *span) for room_id in unknown for span in others[room_id]):
                rooms, firsts, lasts = zip(*page, strict=True)
                rows = await executor.fetch_all(LATEST_OF_USERS, rooms, firsts, lasts, users)
                found |= {(room_id, subject): latest for room_id, subject, latest in rows}
        for room_id, user_id in subjects:
            latest = (self._rooms[room_id].latest or {}).get(user_id)
            if latest is not None:
                found[room_id, user_id] = latest
        return found

    async def _read(self, executor: Executor, others: Mapping[UUID, Sequence[Span]]) -> None:
        """Read what is new among these entries."""
        if sum(len(room.latest or ()) for room in self._rooms.values()) > REMEMBERED_MEMBERSHIPS:
            self._rooms.clear()
        new = []
        for room_id, spans in others.items():
            end = self._rooms.setdefault(room_id, _Room()).end
            if spans and spans[-1].last < end:  # another room has the id by now
                self._rooms[room_id], end = _Room(), 0
            new += [(room_id, max(first, end + 1), last) for first, last in spans if last > end]
        for page in _pages(new):
            room_ids, firsts, lasts = zip(*page, strict=True)
            blocks = await executor.fetch_all(BLOCKS, room_ids, firsts, lasts, SEQS_PER_BLOCK)
            found = await executor.fetch_all(LATEST, room_ids, firsts, lasts, REMEMBERED_MEMBERSHIPS + 1)
            for room_id, block in blocks:
                self._rooms[room_id].blocks.append(block)
            for room_id, subject, latest in found:
                of_room = self._rooms[room_id].latest
                if of_room is not None:
                    of_room[subject] = latest
            for room_id, _, last in page:
                self._rooms[room_id].end = last
                if len(found) > REMEMBERED_MEMBERSHIPS:
                    self._rooms[room_id].latest = None


def _with_any(times: Sequence[datetime], blocks: Iterable[Block]) -> Iterator[Block]:
    """The blocks in which an entry of one of these times may be. The times are sorted."""
    for block in blocks:
        index = bisect_left(times, block.earliest)
        if index < len(times) and times[index] <= block.latest:
            yield block


def _pages(parts: Iterable[Part]) -> Iterator[list[Part]]:
    """The same parts, divided so that each statement reads a bounded number of entries."""
    page: list[Part] = []
    space = SEQS_PER_PAGE
    for room_id, first, last in parts:
        start = first
        while start <= last:
            end = min(last, start + space - 1)
            page.append((room_id, start, end))
            space -= end - start + 1
            start = end + 1
            if not space:
                yield page
                page, space = [], SEQS_PER_PAGE
    if page:
        yield page
