"""Live talk: a few dozen people who write, read, change their minds, come and go, all at the same time."""

from __future__ import annotations

from random import Random
from typing import Final

from hubbub.cli._demo.audience import audience
from hubbub.cli._demo.figures import Section, Stopwatch
from hubbub.cli._demo.ledger import RoomAccount
from hubbub.cli._demo.stage import Stage
from hubbub.cli._demo.talker import Claims, Talker
from hubbub.cli._demo.together import together

# How often each of them does something. With 40 people about 2 s on two cores.
TURNS: Final = 30
SMALL_ROOM: Final = 8
# One in so many has somebody who listens for them on another hub, in this same process.
LISTENED_FOR: Final = 4


async def talk(stage: Stage) -> Section:
    """Let them talk in the busiest room of the log, in one for all, and in small ones."""
    watch, claims = Stopwatch(), Claims()
    talkers = await _arrive(stage, watch, claims)
    stage.tell(f"{len(talkers)} people talk at the same time")
    async with audience(stage.settings, watch, [talker.id for talker in talkers[::LISTENED_FOR]]) as listening:
        await together(talker.talk(TURNS) for talker in talkers)
        heard = await listening.compare()
    calls = watch.all_in_all("calls in all", watch.calls)
    return Section(
        title=f"Talk: {stage.users} people at the same time",
        figures=(calls, *watch.figures()),
        checks=(*claims.checks(), heard),
    )


async def _arrive(stage: Stage, watch: Stopwatch, claims: Claims) -> list[Talker]:
    names = [f"talker-{number:02}" for number in range(1, stage.users + 1)]
    ids = await together(stage.people.meet(name) for name in names)
    talkers = [
        # Each one's choices are the same in every run; only how they interleave is not.
        Talker(stage, watch, claims, user_id, Random(number))  # noqa: S311 - no secret
        for number, user_id in enumerate(ids)
    ]
    groups = [talkers, *(talkers[start : start + SMALL_ROOM] for start in range(0, len(talkers), SMALL_ROOM))]
    rooms = [await _open(stage, f"talk {number}", group) for number, group in enumerate(groups, 1)]
    groups.append(talkers)
    rooms.append(await _join_busiest(stage, talkers))
    for group, room in zip(groups, rooms, strict=True):
        for talker in group:
            talker.enters(room, [other.id for other in group if other is not talker])
    return talkers


async def _open(stage: Stage, name: str, group: list[Talker]) -> RoomAccount:
    first, *others = (talker.id for talker in group)
    room = await stage.hub.rooms.create(name, created_by=first)
    await stage.hub.room_users.add_many(room.id, others)
    return stage.ledger.opened(room.id, name, first, *others)


async def _join_busiest(stage: Stage, group: list[Talker]) -> RoomAccount:
    room = max(stage.ledger.rooms.values(), key=lambda room: len(room.loaded))
    await stage.hub.room_users.add_many(room.id, [talker.id for talker in group])
    for talker in group:
        room.joined(talker.id)
    return room
