"""People who type: one stops, one sends, one leaves the room, one walks away from the keyboard."""

from __future__ import annotations

from contextlib import aclosing
from typing import NamedTuple
from uuid import UUID, uuid4

from hubbub.cli._demo.figures import Claim, Scene, Stopwatch
from hubbub.cli._demo.ledger import RoomAccount
from hubbub.cli._demo.stage import Stage
from hubbub.cli._demo.together import together
from hubbub.cli._demo.transitions import Transitions
from hubbub.errors import NotAMember


class Cast(NamedTuple):
    stops: UUID
    sends: UUID
    leaves: UUID
    walks_away: UUID


async def type_in_a_room(stage: Stage, watch: Stopwatch) -> Scene:
    """Each of them starts, and goes on; each ends in another way, and is heard to start and to stop once."""
    hub = stage.hub
    cast = Cast(*(await together(stage.people.meet(f"typist-{number}") for number in range(1, 5))))
    room = await _open(stage, cast)
    events, known = Claim("who types is told of, and fades"), Claim("who types is known")
    async with aclosing(hub.typing.watch(room.id)) as changes:
        watcher = Transitions(changes)
        await watcher.begin()
        for _ in range(2):  # the second one says that they go on, which is no news to anybody
            await together(_type(stage, watch, room, user_id) for user_id in cast)
        await _compare(stage, known, room, set(cast))
        await hub.typing.stop(room.id, cast.stops)
        stage.ledger.sent(await hub.messages.send(room.id, cast.sends, "so that is what I was typing"))
        await hub.room_users.remove(room.id, cast.leaves)
        room.left(cast.leaves)
        events.holds(await _is_refused(stage, room, cast.leaves), "somebody typed in a room that he had left")
        await watcher.until([cast.stops, cast.sends, cast.leaves], 2)
        await _compare(stage, known, room, {cast.walks_away})
        await watcher.until(cast, 2)
        last_word = uuid4()
        await hub.realtime.publish_typing_indicator(room.id, last_word, False)
        await watcher.until([last_word], 1)
    watcher.compare(events, cast)
    await _compare(stage, known, room, set())
    return Scene((events.check(), known.check()))


async def _open(stage: Stage, cast: Cast) -> RoomAccount:
    name, first, *others = "typing", *cast
    room = await stage.hub.rooms.create(name, created_by=first)
    await stage.hub.room_users.add_many(room.id, others)
    return stage.ledger.opened(room.id, name, first, *others)


async def _type(stage: Stage, watch: Stopwatch, room: RoomAccount, user_id: UUID) -> None:
    with watch.time("type"):
        await stage.hub.typing.start(room.id, user_id)


async def _compare(stage: Stage, claim: Claim, room: RoomAccount, wanted: set[UUID]) -> None:
    typing = set(await stage.hub.typing.who_types(room.id))
    claim.holds(typing == wanted, f"{len(wanted)} people type, {len(typing)} are said to")


async def _is_refused(stage: Stage, room: RoomAccount, user_id: UUID) -> bool:
    try:
        await stage.hub.typing.start(room.id, user_id)
    except NotAMember:
        return True
    return False
