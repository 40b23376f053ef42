"""The answer to a change is lost after its commit: hubbub asks again, and says so where it cannot."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from faults.everything import CHANGES, CHANGES_AFTER_OTHER_WORK, calls_in, world_in
from faults.figures import Figures
from faults.lost_answers import Fate, LostAnswers
from hubbub import Hub, Settings, Unavailable
from hubbub.passwords import LEAST_COST, Passwords
from injection.operations import World
from waiting import until_it_answers


class Losing(NamedTuple):
    """A hub behind a relay that carries everything until the next answer to a change is to be lost."""

    hub: Hub
    fates: list[Fate]

    def lose(self, fate: Fate) -> None:
        self.fates.append(fate)

    async def serves_again(self) -> None:
        """Wait until it has a connection."""

        async def answers() -> bool:
            try:
                await self.hub.rooms.public(limit=1)
            except Unavailable:
                return False
            return True

        await until_it_answers(answers)


def fates_of(coming: list[Fate]) -> Iterator[Fate]:
    """Those that are in the list, one after the other, and in between each answer is carried."""
    while True:
        yield coming.pop() if coming else Fate.CARRIED


@pytest.fixture
async def losing(settings: Settings) -> AsyncIterator[Losing]:
    fates: list[Fate] = []
    postgres = settings.postgres
    async with LostAnswers(postgres.host, postgres.port, fates_of(fates), refuses=2) as relay:
        through = replace(settings, postgres=replace(postgres, port=relay.port))
        async with Hub(through, passwords=Passwords(cost=LEAST_COST)) as hub:
            yield Losing(hub, fates)


class Change(NamedTuple):
    """A change, what it is about, and what that is to be."""

    make: Callable[[Hub, World], Awaitable[object]]
    state: Callable[[Hub, World], Awaitable[object]]
    asked: object


async def content(hub: Hub, world: World) -> str:
    return (await hub.messages.get(world.message.id)).content


async def picture(hub: Hub, world: World) -> str | None:
    return (await hub.users.get(world.ada.id)).avatar_url


async def password_hash(hub: Hub, world: World) -> str | None:
    credentials = await hub.users.find_credentials(world.ada.username)
    return None if credentials is None else credentials.password_hash


async def name(hub: Hub, world: World) -> str:
    return (await hub.rooms.get(world.room.id)).name


async def role(hub: Hub, world: World) -> str:
    return (await hub.room_users.get(world.room.id, world.bob.id)).role


async def unread(hub: Hub, world: World) -> int:
    return await hub.receipts.unread_count(world.room.id, world.bob.id)


# These hubbub makes again by itself, and of the others it says at once that they may have been made.
MADE_AGAIN = {
    "edit": Change(lambda hub, w: hub.messages.edit(w.message.id, "better", by=w.ada.id), content, "better"),
    "delete": Change(lambda hub, w: hub.messages.delete(w.message.id, by=w.ada.id), content, ""),
    "picture": Change(lambda hub, w: hub.users.update_profile(w.ada.id, avatar_url="/b.png"), picture, "/b.png"),
    "password": Change(lambda hub, w: hub.users.change_password_hash(w.ada.id, "new"), password_hash, "new"),
    "reading": Change(lambda hub, w: hub.receipts.mark_read(w.room.id, w.bob.id, up_to=w.message.seq), unread, 0),
}
OTHERS = {
    "room": Change(lambda hub, w: hub.rooms.update(w.room.id, name="news"), name, "news"),
    "role": Change(lambda hub, w: hub.room_users.set_role(w.room.id, w.bob.id, "admin"), role, "admin"),
}


async def entries(hub: Hub, world: World) -> int:
    return (await hub.rooms.get(world.room.id)).last_seq


@pytest.mark.parametrize("change", MADE_AGAIN.values(), ids=MADE_AGAIN)
async def test_a_change_whose_answer_is_lost_is_made_once(hub: Hub, losing: Losing, change: Change) -> None:
    world = await world_in(hub)
    before = await entries(hub, world)
    assert await change.state(hub, world) != change.asked
    losing.lose(Fate.LOST)
    await change.make(losing.hub, world)
    assert not losing.fates
    assert await change.state(hub, world) == change.asked
    assert await entries(hub, world) <= before + 1


@pytest.mark.parametrize("change", [*MADE_AGAIN.values(), *OTHERS.values()], ids=[*MADE_AGAIN, *OTHERS])
async def test_one_that_cannot_be_asked_for_again_may_have_been_made_and_its_caller_can_repeat_it(
    hub: Hub, losing: Losing, change: Change
) -> None:
    world = await world_in(hub)
    before = await entries(hub, world)
    losing.lose(Fate.LOST_WITH_ALL)
    with pytest.raises(Unavailable) as raised:
        await change.make(losing.hub, world)
    assert raised.value.outcome_unknown
    assert await change.state(hub, world) == change.asked
    assert await entries(hub, world) <= before + 1
    await losing.serves_again()
    await change.make(losing.hub, world)
    assert await change.state(hub, world) == change.asked


@pytest.mark.guarantee("G2", "the answer to each kind of change cut off, and then no connection to ask again")
async def test_every_change_that_may_have_been_made_says_so(
    hub: Hub, losing: Losing, tmp_path: Path, figures: Figures
) -> None:
    told = set()
    changes = CHANGES | CHANGES_AFTER_OTHER_WORK
    for change in sorted(changes):
        world = await world_in(hub)
        world.hub = losing.hub
        call = calls_in(world, tmp_path)[change]
        losing.lose(Fate.LOST_WITH_ALL)
        with pytest.raises(Unavailable) as raised:
            await call()
        if raised.value.outcome_unknown:
            told.add(change)
        await losing.serves_again()
    figures.found(f"{len(told)} of {len(changes)} kinds said that they may have been made")
    assert told == changes
