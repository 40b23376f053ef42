from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from contextlib import AsyncExitStack
from uuid import UUID, uuid4

from hubbub import Hub, User
from hubbub.errors import Unavailable
from hubbub.redis import Connection, Subscriptions
from hubbub.services.presence.projection import Projection
from services.presence_events import Table, opened
from waiting import until, until_it_answers


async def test_the_table_of_users_follows(
    hub: Hub, ada: User, connection: Connection, subscriptions: Subscriptions
) -> None:
    async def is_written(is_online: bool) -> bool:
        return (await hub.users.get(ada.id)).is_online is is_online

    write = hub.users.set_online_many
    async with opened(connection, subscriptions, write), opened(connection, subscriptions, write) as presence:
        async with presence.online(ada.id), presence.online(uuid4()):
            await until_it_answers(lambda: is_written(True))
            came_at = (await hub.users.get(ada.id)).last_seen
        await until_it_answers(lambda: is_written(False))
        went_at = (await hub.users.get(ada.id)).last_seen
    assert came_at is not None
    assert went_at is not None
    assert came_at < went_at


async def test_a_user_who_flickers_is_written_now_and_then(
    connection: Connection, subscriptions: Subscriptions
) -> None:
    ada, table = uuid4(), Table()
    async with opened(connection, subscriptions, table.write, grace_seconds=0, project_seconds=5) as presence:
        for _ in range(10):
            async with presence.online(ada):
                pass

            async def is_offline() -> bool:
                return not (await presence.is_online([ada]))[ada]

            await until_it_answers(is_offline)
        assert len(table.writes_of(ada)) <= 1  # the second one waits for its 5 s, or for the end
    assert table.users[ada] is False


async def test_a_crowd_is_written_in_few_statements(connection: Connection, subscriptions: Subscriptions) -> None:
    users, table = [uuid4() for _ in range(3_000)], Table()
    async with (
        opened(connection, subscriptions, table.write, project_seconds=60) as presence,
        AsyncExitStack() as stack,
    ):
        await asyncio.gather(*[stack.enter_async_context(presence.online(user_id)) for user_id in users])
        await until(lambda: table.users == dict.fromkeys(users, True))
        assert len(table.writes) < 200
        assert all(len(write) <= 500 for write in table.writes)


async def test_two_processes_that_write_the_same_users_do_not_block_each_other(hub: Hub) -> None:
    users = [(await hub.users.create(f"u{n}@example.org", f"u{n}", "not a hash")).id for n in range(30)]

    async def write(order: list[UUID], *, first: bool) -> None:
        for turn in range(20):
            await hub.users.set_online_many(dict.fromkeys(order, (turn % 2 == 0) is first))

    await asyncio.gather(write(users, first=True), write(users[::-1], first=False), write(users, first=False))
    await hub.users.set_online_many(dict.fromkeys([*users, uuid4()], True))
    found = await hub.users.get_many(users)
    assert all(found[user_id].is_online for user_id in users)
    await hub.users.set_online_many(dict.fromkeys(users, True))
    assert await hub.users.get_many(users) == found
    await hub.users.set_online_many({})


class Truth:
    """What Redis says, changed by the test at the worst moment."""

    def __init__(self, ada: UUID, is_online: bool | None) -> None:
        self.users = {ada: is_online}

    async def read(self, user_ids: Collection[UUID]) -> dict[UUID, bool | None]:
        await asyncio.sleep(0)
        return {user_id: self.users[user_id] for user_id in user_ids}


async def test_a_slow_writer_does_not_have_the_last_word() -> None:
    """It read that Ada is online, and writes it after she went and another process wrote that down."""
    ada, table = uuid4(), Table()
    truth = Truth(ada, is_online=True)
    reached, proceed = asyncio.Event(), asyncio.Event()

    async def write_late(changes: Mapping[UUID, bool]) -> None:
        reached.set()
        await proceed.wait()
        await table.write(changes)

    slow = Projection(truth.read, write_late, every_seconds=0.01)
    quick = Projection(truth.read, table.write, every_seconds=0.01)
    slow.start()
    quick.start()
    slow.note([ada])
    await reached.wait()
    truth.users[ada] = False
    quick.note([ada])
    await until(lambda: table.users == {ada: False})
    proceed.set()
    await until(lambda: table.writes_of(ada) == [False, True, False])
    await slow.close()
    await quick.close()


async def test_what_cannot_be_written_is_written_later() -> None:
    ada, table = uuid4(), Table()
    truth = Truth(ada, is_online=None)
    down = True

    async def write(changes: Mapping[UUID, bool]) -> None:
        if down:
            raise Unavailable("postgresql", "down")
        await table.write(changes)

    projection = Projection(truth.read, write, every_seconds=0.01)
    projection.note([ada])
    for is_known, is_down in ((None, True), (True, True), (True, False)):
        truth.users[ada], down = is_known, is_down
        projection.start()
        await projection.close()
        assert table.users == ({} if is_down else {ada: True})
