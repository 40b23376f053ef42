"""Reading everything back, and comparing it with the ledger and with what hubbub itself says.

The SQL is brute force on purpose: it shares nothing with the statements whose work it looks at.
"""

from __future__ import annotations

from typing import Final, NamedTuple
from uuid import UUID

from hubbub.cli._demo import rules
from hubbub.cli._demo.figures import Check, Claim, Section, Stopwatch
from hubbub.cli._demo.ledger import RoomAccount, fingerprint
from hubbub.cli._demo.stage import Stage
from hubbub.cli._demo.together import together
from hubbub.postgres import Statement

PAGE: Final = 200
KINDS: Final = ("message", "joined", "left", "edited", "deleted")
UNREAD_CAP: Final = 1_000
# Unread messages are counted anew for every talker, and for so many people of the log.
READERS_OF_THE_LOG: Final = 60


async def check(stage: Stage) -> Section:
    """All checks at the end, when nobody writes any more."""
    watch = Stopwatch()
    stage.tell("checking what is stored")
    checks = (
        await _rows(stage),
        await _members(stage),
        await _history(stage),
        await _scroll(stage, watch),
        await _unread(stage, watch),
        await rules.numbering(stage.pool),
        await rules.read_marks(stage.pool),
        await rules.references(stage.pool),
        await rules.constraints(stage.pool),
    )
    return Section(title="Check what is stored", figures=watch.figures(), checks=checks)


class Rows(NamedTuple):
    users: int
    rooms: int
    messages: int
    members: int


_ROWS = Statement(
    "demo.rows",
    Rows,
    """
    SELECT
        (SELECT count(*) FROM users) AS users,
        (SELECT count(*) FROM rooms) AS rooms,
        (SELECT count(*) FROM messages) AS messages,
        (SELECT count(*) FROM room_users) AS members
    """,
)


async def _rows(stage: Stage) -> Check:
    ledger = stage.ledger
    members = sum(len(room.members) for room in ledger.rooms.values())
    expected = Rows(len(stage.people), len(ledger.rooms), ledger.messages, members)
    [found] = await stage.pool.fetch_all(_ROWS)
    claim = Claim("nothing is lost, nothing is twice")
    for what, wanted, stored in zip(Rows._fields, expected, found, strict=True):
        claim.holds(wanted == stored, f"{wanted:,} {what} were acknowledged, {stored:,} are stored")
    return Check(what=claim.what, count=sum(found), wrong=claim.check().wrong)


_MEMBERS = Statement(
    "demo.members", lambda room_id, user_id: (room_id, user_id), "SELECT room_id, user_id FROM room_users"
)


async def _members(stage: Stage) -> Check:
    found: dict[UUID, set[UUID]] = {}
    for room_id, user_id in await stage.pool.fetch_all(_MEMBERS):
        found.setdefault(room_id, set()).add(user_id)
    claim = Claim("who joined and did not leave is in")
    for room in stage.ledger.rooms.values():
        claim.holds(found.get(room.id, set()) == room.members, f"room {room.name!a} has other members")
    return claim.check()


class Entries(NamedTuple):
    room_id: UUID
    kind: str
    entries: int


_HISTORY = Statement(
    "demo.history",
    Entries,
    """
    SELECT room_id, kind, count(*) AS entries
    FROM (
        SELECT room_id, kind
        FROM room_events
        UNION ALL
        SELECT room_id, 'message'
        FROM messages
    ) AS log
    GROUP BY room_id, kind
    """,
)


async def _history(stage: Stage) -> Check:
    rows = await stage.pool.fetch_all(_HISTORY)
    found = {(row.room_id, row.kind): row.entries for row in rows}
    claim = Claim("every change is in the log, once")
    for room in stage.ledger.rooms.values():
        for kind in KINDS:
            wanted, stored = room.entries[kind], found.pop((room.id, kind), 0)
            claim.holds(wanted == stored, f"room {room.name!a}: {wanted:,} times {kind}, the log has {stored:,}")
    for room_id, kind in found:
        claim.holds(False, f"room {room_id} has entries {kind!a} that nobody made")
    return claim.check()


async def _scroll(stage: Stage, watch: Stopwatch) -> Check:
    """Every room, page by page from the newest to the oldest message: the talk and the log as acknowledged."""
    claim = Claim("pages turned back have all messages")
    unseen = set(stage.ledger.talk)
    for room in stage.ledger.rooms.values():
        await _scroll_room(stage, watch, room, claim, unseen)
    for message_id in unseen:
        claim.holds(False, f"message {message_id} was acknowledged and is on no page")
    return claim.check()


async def _scroll_room(stage: Stage, watch: Stopwatch, room: RoomAccount, claim: Claim, unseen: set[UUID]) -> None:
    seen, before = 0, None
    still_loaded = reversed(room.loaded)
    while True:
        with watch.time(f"read a page of {PAGE}"):
            page = await stage.hub.messages.page(room.id, before=before, limit=PAGE)
        for message in reversed(page.items):
            in_order = before is None or message.seq < before
            if message.id in unseen:
                as_sent = stage.ledger.talk[message.id] == message
            else:
                as_sent = next(still_loaded, None) == fingerprint(message.user_id, message.content)
            claim.holds(in_order and as_sent, f"seq {message.seq} of room {room.name!a} is not as it was sent")
            before = message.seq
            unseen.discard(message.id)
        seen += len(page.items)
        if not page.has_older:
            break
    wanted = room.entries["message"]
    if seen != wanted:
        claim.holds(False, f"the pages of room {room.name!a} have {seen:,} of {wanted:,} messages")


class Unread(NamedTuple):
    user_id: UUID
    room_id: UUID
    unread: int


_UNREAD = Statement(
    "demo.unread",
    Unread,
    """
    SELECT
        room_users.user_id,
        room_users.room_id,
        count(messages.id) FILTER (
            WHERE messages.seq > room_users.last_read_seq
                AND messages.user_id IS DISTINCT FROM room_users.user_id
                AND messages.deleted_at IS NULL
        ) AS unread
    FROM room_users
    LEFT JOIN messages ON messages.room_id = room_users.room_id
    WHERE room_users.user_id = ANY($1::uuid[])
    GROUP BY room_users.user_id, room_users.room_id
    """,
)


async def _unread(stage: Stage, watch: Stopwatch) -> Check:
    """What hubbub counts against what is left when all messages are looked at."""
    ids = stage.people.ids
    readers = [*ids[:READERS_OF_THE_LOG], *ids[max(READERS_OF_THE_LOG, len(ids) - stage.users) :]]
    counted = await together(_unread_of(stage, watch, user_id) for user_id in readers)
    hubbubs = dict(zip(readers, counted, strict=True))
    claim = Claim("unread counts match a recount")
    for row in await stage.pool.fetch_all(_UNREAD, readers):
        said, wanted = hubbubs[row.user_id].get(row.room_id), min(row.unread, UNREAD_CAP)
        claim.holds(said == wanted, f"{row.user_id} in room {row.room_id}: {wanted} unread, hubbub says {said}")
    return claim.check()


async def _unread_of(stage: Stage, watch: Stopwatch, user_id: UUID) -> dict[UUID, int]:
    with watch.time("count unread messages"):
        return await stage.hub.receipts.unread_counts(user_id, cap=UNREAD_CAP)
