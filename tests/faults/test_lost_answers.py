"""The answer to a change is lost after its commit. hubbub repeats it, or the error has `outcome_unknown`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import pytest

from faults.calls import CHANGES, CHANGES_AFTER_OTHER_WORK, calls_in, world_in
from faults.figures import Figures
from faults.relays import Fate, LostAnswers
from hubbub import Hub, Settings, Unavailable
from hubbub.passwords import MIN_COST, Passwords
from injection.operations import World
from waiting import until_it_answers


class Losing(NamedTuple):
    """A hub behind a relay that passes everything until it is told to lose the next answer to a change."""

    hub: Hub
    fates: list[Fate]

    def lose(self, fate: Fate) -> None:
        self.fates.append(fate)

    async def serves_again(self) -> None:
        """Wait until the hub has a connection."""

        async def answers() -> bool:
            try:
                await self.hub.rooms.public(limit=1)
            except Unavailable:
                return False
            return True

        await until_it_answers(answers)


def fates_of(coming: list[Fate]) -> Iterator[Fate]:
    """The fates in the list, each once. While the list is empty, each answer is delivered."""
    while True:
        yield coming.pop() if coming else Fate.CARRIED


@pytest.fixture
def settings(settings: Settings, servers: Settings) -> Settings:
    """Settings with a prefix in Redis, under which no user of another test is still online."""
    return replace(settings, redis=replace(servers.redis, prefix=f"{uuid4().hex}:"))


@pytest.fixture
async def losing(settings: Settings) -> AsyncIterator[Losing]:
    fates: list[Fate] = []
    postgres = settings.postgres
    async with LostAnswers(postgres.host, postgres.port, fates_of(fates), refuses=2) as relay:
        through = replace(settings, postgres=replace(postgres, port=relay.port))
        async with Hub(through, passwords=Passwords(cost=MIN_COST)) as hub:
            yield Losing(hub, fates)


class Change(NamedTuple):
    """A change, the state that it changes, and the requested state."""

    make: Callable[[Hub, World], Awaitable[object]]
    state: Callable[[Hub, World], Awaitable[object]]
    asked: object


async def content(hub: Hub, world: World) -> str:
    return (await hub.messages.get(world.message.id)).content


async def avatar(hub: Hub, world: World) -> str | None:
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


# hubbub repeats these by itself. The others raise at once, with `outcome_unknown`.
REPEATED = {
    "edit": Change(lambda hub, w: hub.messages.edit(w.message.id, "better", by=w.ada.id), content, "better"),
    "delete": Change(lambda hub, w: hub.messages.delete(w.message.id, by=w.ada.id), content, ""),
    "avatar": Change(lambda hub, w: hub.users.update_profile(w.ada.id, avatar_url="/b.png"), avatar, "/b.png"),
    "password": Change(lambda hub, w: hub.users.change_password_hash(w.ada.id, "new"), password_hash, "new"),
    "reading": Change(lambda hub, w: hub.receipts.mark_read(w.room.id, w.bob.id, up_to=w.message.seq), unread, 0),
}
OTHERS = {
    "room": Change(lambda hub, w: hub.rooms.update(w.room.id, name="news"), name, "news"),
    "role": Change(lambda hub, w: hub.room_users.set_role(w.room.id, w.bob.id, "admin"), role, "admin"),
}


async def entries(hub: Hub, world: World) -> int:
    return (await hub.rooms.get(world.room.id)).last_seq


@pytest.mark.parametrize("change", REPEATED.values(), ids=REPEATED)
async def test_repeated_change_is_made_once_when_its_answer_is_lost(
    hub: Hub, losing: Losing, change: Change
) -> None:
    world = await world_in(hub)
    before = await entries(hub, world)
    assert await change.state(hub, world) != change.asked
    losing.lose(Fate.LOST)
    await change.make(losing.hub, world)
    assert not losing.fates
    assert await change.state(hub, world) == change.asked
    assert await entries(hub, world) <= before + 1


@pytest.mark.parametrize("change", [*REPEATED.values(), *OTHERS.values()], ids=[*REPEATED, *OTHERS])
async def test_change_whose_answer_is_lost_with_all_connections_has_unknown_outcome_and_can_be_repeated(
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
async def test_error_of_every_change_whose_answer_is_lost_has_outcome_unknown(
    hub: Hub, losing: Losing, tmp_path: Path, figures: Figures
) -> None:
    unknown = set()
    changes = CHANGES | CHANGES_AFTER_OTHER_WORK
    for change in sorted(changes):
        world = await world_in(hub)
        world.hub = losing.hub
        call = calls_in(world, tmp_path)[change]
        losing.lose(Fate.LOST_WITH_ALL)
        with pytest.raises(Unavailable) as raised:
            await call()
        if raised.value.outcome_unknown:
            unknown.add(change)
        await losing.serves_again()
    figures.found(f"{len(unknown)} of {len(changes)} kinds of change had an unknown outcome")
    assert unknown == changes
