"""The newest page of a room, which everybody who opens the room wants: from the cache."""

from __future__ import annotations

from typing import Final

import msgspec

from hubbub.cli._demo.figures import Claim, Figure, Scene, Stopwatch
from hubbub.cli._demo.ledger import RoomAccount
from hubbub.cli._demo.stage import Stage
from hubbub.cli._demo.together import together
from hubbub.models import Message, MessagePage
from hubbub.services.cache import PAGE_LENGTH

ROOMS: Final = 5
ROUNDS: Final = 4
READERS: Final = 20
READS: Final = 10


async def read_newest(stage: Stage, watch: Stopwatch) -> Scene:
    """In some rooms somebody writes, then many read, again and again."""
    claim = Claim("a cached page is what is stored")
    hits = stage.hub.cache.counts.hits
    inhabited = (room for room in stage.ledger.rooms.values() if room.members)
    busiest = sorted(inhabited, key=lambda room: -room.entries["message"])
    for number in range(ROUNDS):
        for room in busiest[:ROOMS]:
            await _write_and_read(stage, watch, room, f"round {number + 1}", claim)
    cached = Figure(what="newest pages from the cache", count=stage.hub.cache.counts.hits - hits)
    return Scene((claim.check(),), (cached,))


async def _write_and_read(stage: Stage, watch: Stopwatch, room: RoomAccount, content: str, claim: Claim) -> None:
    message = await stage.hub.messages.send(room.id, min(room.members), content)
    stage.ledger.sent(message)
    await together(_read(stage, watch, room, message, claim) for _ in range(READERS))
    stored = await stage.hub.messages.page(room.id, limit=PAGE_LENGTH)
    cached = msgspec.json.decode(await stage.hub.cache.newest_page(room.id), type=MessagePage)
    claim.holds(cached == stored, f"the cached page of room {room.name!a} is not the one that is stored")


async def _read(stage: Stage, watch: Stopwatch, room: RoomAccount, newest: Message, claim: Claim) -> None:
    """Whoever reads after the message was acknowledged has it on his page."""
    for _ in range(READS):
        with watch.time("read the newest page"):
            page = await stage.hub.cache.newest_page(room.id)
        claim.holds(f'"{newest.id}"'.encode() in page, f"the cached page of room {room.name!a} lacks the newest")
