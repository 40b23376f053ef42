from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from uuid import UUID, uuid4

import pytest

from commands import execute
from hubbub import Hub, PostgresSettings, User
from hubbub.errors import Unavailable
from hubbub.redis import Connection, Subscriptions
from hubbub.services.presence import (
    CHECKED_KEY,
    PRESENCE_ROWS_PER_STATEMENT,
    ColumnCheck,
    Presence,
    PresenceColumn,
)
from reports import reports
from services.presence_events import Table, opened, together_online
from waiting import until, until_it_answers


async def test_users_table_follows_presence(
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


async def test_user_with_many_transitions_is_written_once_per_interval(
    connection: Connection, subscriptions: Subscriptions
) -> None:
    ada, table = uuid4(), Table()
    async with opened(connection, subscriptions, table.write, grace_seconds=0, write_seconds=60) as presence:
        for _ in range(10):
            async with presence.online(ada):
                pass

            async def is_offline() -> bool:
                return not (await presence.is_online([ada]))[ada]

            await until_it_answers(is_offline)
        assert len(table.writes_of(ada)) <= 1  # the second write waits a minute, or for the close
    assert table.users[ada] is False


async def test_three_thousand_users_are_written_in_few_statements(
    connection: Connection, subscriptions: Subscriptions
) -> None:
    users, table = [uuid4() for _ in range(3_000)], Table()
    async with (
        opened(connection, subscriptions, table.write, write_seconds=60) as presence,
        together_online(presence, users),
    ):
        await until(lambda: table.users == dict.fromkeys(users, True))
        assert len(table.writes) < 200
        assert all(len(write) <= 500 for write in table.writes)


async def test_concurrent_writes_of_the_same_users_do_not_deadlock(hub: Hub) -> None:
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
    """The presence in Redis, which the test changes at the worst moment."""

    def __init__(self, ada: UUID, is_online: bool | None) -> None:
        self.users = {ada: is_online}

    async def read(self, user_ids: Collection[UUID]) -> dict[UUID, bool | None]:
        await asyncio.sleep(0)
        return {user_id: self.users[user_id] for user_id in user_ids}


async def test_slow_writer_corrects_its_outdated_write() -> None:
    """It has read that Ada is online, and writes that after another process has written that she is offline."""
    ada, table = uuid4(), Table()
    truth = Truth(ada, is_online=True)
    reached, proceed = asyncio.Event(), asyncio.Event()

    async def write_late(changes: Mapping[UUID, bool]) -> None:
        reached.set()
        await proceed.wait()
        await table.write(changes)

    slow = PresenceColumn(truth.read, write_late, every_seconds=0.01)
    quick = PresenceColumn(truth.read, table.write, every_seconds=0.01)
    slow.task.start()
    quick.task.start()
    slow.write_soon([ada])
    await reached.wait()
    truth.users[ada] = False
    quick.write_soon([ada])
    await until(lambda: table.users == {ada: False})
    proceed.set()
    await until(lambda: table.writes_of(ada) == [False, True, False])
    await slow.task.close()
    await quick.task.close()


async def test_presence_that_is_unknown_or_cannot_be_written_is_written_later() -> None:
    ada, table = uuid4(), Table()
    truth = Truth(ada, is_online=None)
    reads = tries = 0
    is_down = True

    async def read(user_ids: Collection[UUID]) -> dict[UUID, bool | None]:
        nonlocal reads
        reads += 1
        return await truth.read(user_ids)

    async def write(changes: Mapping[UUID, bool]) -> None:
        nonlocal tries
        tries += 1
        if is_down:
            raise Unavailable("postgresql", "down")
        await table.write(changes)

    column = PresenceColumn(read, write, every_seconds=0.01)
    column.write_soon([ada])
    column.task.start()
    await until(lambda: reads > 0)
    assert (tries, table.users) == (0, {})
    truth.users[ada] = True
    await until(lambda: tries > 0)
    assert table.users == {}
    is_down = False
    await column.task.close()
    assert table.users == {ada: True}


REFUSE = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF OLD.username LIKE 'bad%' THEN RAISE 'of the application''s own'; END IF;
            RETURN NEW;
        END
    $$;
    CREATE TRIGGER refuse BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION refuse();
"""


async def test_rows_that_are_refused_do_not_stop_others_and_are_written_later(
    hub: Hub,
    postgres_settings: PostgresSettings,
    connection: Connection,
    subscriptions: Subscriptions,
) -> None:
    names = [f"{'bad' if n % 20 == 0 else 'good'}{n}" for n in range(60)]
    users = [await hub.users.create(f"{name}@example.org", name, "not a hash") for name in names]

    async def who_is_online() -> set[str]:
        found = await hub.users.get_many([user.id for user in users])
        return {user.username for user in found.values() if user.is_online}

    async def all_are_online() -> bool:
        return await who_is_online() == set(names)

    async def the_others_are_online() -> bool:
        return await who_is_online() == {name for name in names if name.startswith("good")}

    await execute(postgres_settings, REFUSE)
    with reports() as reported:
        async with (
            opened(connection, subscriptions, hub.users.set_online_many) as presence,
            together_online(presence, [user.id for user in users]),
        ):
            await until_it_answers(the_others_are_online)
            await until(lambda: bool(reported))
            await execute(postgres_settings, "DROP TRIGGER refuse ON users")
            await until_it_answers(all_are_online)
    causes = [context["exception"].__cause__ for context in reported]
    assert all("of the application's own" in str(cause) for cause in causes)


async def test_closing_writes_all_rows_that_are_not_refused(
    hub: Hub,
    ada: User,
    postgres_settings: PostgresSettings,
    connection: Connection,
    subscriptions: Subscriptions,
) -> None:
    bad = await hub.users.create("bad@example.org", "bad", "not a hash")
    await execute(postgres_settings, REFUSE)
    with reports():
        async with (
            opened(
                connection,
                subscriptions,
                hub.users.set_online_many,
                grace_seconds=60,
                heartbeat_seconds=30,
                write_seconds=60,
            ) as presence,
            presence.online(bad.id),
            presence.online(ada.id),
        ):
            pass
    assert (await hub.users.get(ada.id)).is_online
    assert not (await hub.users.get(bad.id)).is_online


class Refusing(Table):
    """Refuses any write with one of these users, until `relent` is called."""

    def __init__(self, refused: Collection[UUID]) -> None:
        super().__init__()
        self.refused = set(refused)
        self.statements = 0

    async def write(self, changes: Mapping[UUID, bool]) -> None:
        await asyncio.sleep(0)
        self.statements += 1
        if not self.refused.isdisjoint(changes):
            raise ZeroDivisionError
        await super().write(changes)

    def relent(self) -> None:
        self.refused.clear()


async def all_online(user_ids: Collection[UUID]) -> dict[UUID, bool | None]:
    await asyncio.sleep(0)
    return dict.fromkeys(user_ids, True)


async def test_refused_user_is_found_in_few_statements_and_retried_per_interval() -> None:
    users = [uuid4() for _ in range(PRESENCE_ROWS_PER_STATEMENT)]
    table = Refusing(users[7:8])
    column = PresenceColumn(all_online, table.write, every_seconds=60)
    with reports() as reported:
        column.task.start()
        column.write_soon(users)
        await until(lambda: bool(reported))
        assert set(table.users) == set(users) - table.refused
        assert str(users[7]) in reported[0]["message"]
        column.write_soon([later := uuid4()])
        await until(lambda: later in table.users)
        assert table.statements <= 2 * 9 + 2
        table.relent()
        await column.task.close()
    assert set(table.users) == {*users, later}
    assert len(reported) == 1


async def test_table_that_refuses_all_users_is_not_tried_for_each() -> None:
    users = [uuid4() for _ in range(PRESENCE_ROWS_PER_STATEMENT)]
    table = Refusing(users)
    column = PresenceColumn(all_online, table.write, every_seconds=0.01)
    with reports() as reported:
        column.task.start()
        column.write_soon(users)
        await until(lambda: bool(reported))
        assert table.statements < 30
        table.relent()
        await until(lambda: set(table.users) == set(users))
        await column.task.close()


async def test_users_whose_presence_cannot_be_read_are_written_later() -> None:
    ada, table = uuid4(), Table()
    is_broken = True

    async def read(user_ids: Collection[UUID]) -> dict[UUID, bool | None]:
        if is_broken:
            raise ZeroDivisionError
        return await all_online(user_ids)

    column = PresenceColumn(read, table.write, every_seconds=0.01)
    with reports() as reported:
        column.task.start()
        column.write_soon([ada])
        await until(lambda: bool(reported))
        is_broken = False
        await until(lambda: table.users == {ada: True})
        await column.task.close()
    assert {context["message"] for context in reported} == {"writing presence failed"}


async def test_users_that_were_online_when_all_processes_and_redis_died_are_offline(
    hub: Hub, connection: Connection, subscriptions: Subscriptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are more than a page of users. Ada is back, and stays online."""
    assert hub.presence._check is not None
    await hub.presence._check.task.close()
    monkeypatch.setattr("hubbub.services.presence.USERS_PER_PAGE", 3)
    users = [await hub.users.create(f"{n}@example.org", f"user {n}", "!") for n in range(10)]
    ada, *gone = (user.id for user in users)
    await hub.users.set_online_many(dict.fromkeys((ada, *gone), True))
    await connection.execute("DEL", CHECKED_KEY)
    presence = Presence(
        connection,
        subscriptions,
        hub.users.set_online_many,
        executor=hub._pool,
        heartbeat_seconds=0.5,
        grace_seconds=0.5,
        write_seconds=0.2,
    )
    presence._start()
    async with presence.online(ada):
        for _ in range(2):  # even if Redis loses its data again while the process runs

            async def only_ada_is_online() -> bool:
                found = await hub.users.get_many([ada, *gone])
                return [user_id for user_id, user in found.items() if user.is_online] == [ada]

            await until_it_answers(only_ada_is_online)
            await hub.users.set_online_many(dict.fromkeys(gone, True))
            await connection.execute("DEL", CHECKED_KEY)
        await until_it_answers(only_ada_is_online)
    await presence._close()


async def test_one_process_checks_all_users_once(
    hub: Hub, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hub.presence._check is not None
    await hub.presence._check.task.close()
    checks: list[ColumnCheck] = []

    async def check(self: ColumnCheck) -> None:
        checks.append(self)

    async def is_online(users: Collection[UUID]) -> dict[UUID, bool | None]:
        return dict.fromkeys(users, False)

    monkeypatch.setattr(ColumnCheck, "_check", check)
    processes = [
        ColumnCheck(connection, hub._pool, is_online, lambda _: None, heartbeat_seconds=0.02) for _ in range(5)
    ]
    await connection.execute("DEL", CHECKED_KEY)
    for process in processes:
        process.task.start()
    await until(lambda: bool(checks))
    await asyncio.sleep(0.2)
    for process in processes:
        await process.task.close()
    assert len(checks) == 1
