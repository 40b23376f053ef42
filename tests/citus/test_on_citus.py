"""Rooms on two workers of Citus, of the installation that CITUS names."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from citus.cluster import Cluster, Node
from citus.stopping import Killed, stop_after
from citus.talk import talk
from commands import execute
from diagnostics.sections import result_of, section_of
from faults import chat as chats
from faults.chat import PAUSE_SECONDS
from faults.figures import SCALE, Figures
from hubbub import (
    Hub,
    Invalid,
    NotAMember,
    NotFound,
    Options,
    PostgresSettings,
    Settings,
    Unavailable,
    migrations,
)
from hubbub.diagnostics import schema
from hubbub.diagnostics.report import CheckResult
from hubbub.events import LogEvent, MessageSent, Resync
from hubbub.migrations import distribution
from hubbub.postgres import connect
from rights import ROLE, as_role
from waiting import until, until_it_answers


@pytest.fixture
async def database(cluster: Cluster) -> PostgresSettings:
    """A migrated database on all nodes, whose rooms are on the coordinator."""
    database = await cluster.make_database(f"chat_{uuid4().hex}")
    await migrations.up(database)
    return database


async def test_chat_on_citus(database: PostgresSettings, settings: Settings) -> None:
    await distribution.distribute(database, shards=8)
    async with Hub(replace(settings, postgres=database)) as hub:
        await talk(hub)


async def test_application_with_least_rights(
    cluster: Cluster, database: PostgresSettings, settings: Settings
) -> None:
    await migrations.grant(replace(database, user="postgres"), ROLE)
    await distribution.distribute(database, shards=8)
    async with Hub(replace(settings, postgres=as_role(database))) as hub:
        await talk(hub)


async def was_killed_after_a_step(settings: Settings) -> bool:
    """Run `hubbub distribute`, and kill -9 it once it has taken a step. False if it ended before that."""
    variables = {name: text for name, text in settings.to_env().items() if name.startswith("DB_")}
    command = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "hubbub", "distribute", "--yes", "--shards", "8"),
        env={**os.environ, **variables},
        stdout=asyncio.subprocess.PIPE,
    )
    assert command.stdout is not None
    async for line in command.stdout:
        if line.startswith(b"done: "):
            command.kill()
            break
    status = await command.wait()
    assert status in {0, -signal.SIGKILL}
    return status != 0


@pytest.mark.timeout(900)  # it starts seventy processes, one by one
async def test_rows_and_revisions_outlive_a_command_that_is_killed_after_each_step(
    database: PostgresSettings, settings: Settings
) -> None:
    """The killed command has sent its next step already, which the server may or may not complete."""
    on_coordinator = replace(settings, postgres=database)
    async with Hub(on_coordinator, options=Options(mark_read_on_send=False)) as hub:
        ada = await hub.users.create("ada@example.org", "ada", "not a hash")
        room = await hub.rooms.create("engine-room", created_by=ada.id)
        sent = [await hub.messages.send(room.id, ada.id, f"message {number}") for number in range(20)]
        await hub.receipts.mark_read(room.id, ada.id, up_to=10)
        await hub.users.set_online_many({ada.id: True})
        online = await hub.users.get(ada.id)

    kills = 0
    while await was_killed_after_a_step(on_coordinator):
        kills += 1
    assert kills > 5  # on a busy machine the command takes several steps before its line is read
    assert (await distribution.plan(database, 8)).left == ()
    assert await migrations.up(database) == []
    async with Hub(on_coordinator) as hub:
        assert (await hub.messages.page(room.id)).items == sent
        assert (await hub.room_users.get(room.id, ada.id)).last_read_seq == 10
        assert await hub.users.get(ada.id) == online
        assert (await hub.messages.send(room.id, ada.id, "here")).seq == 22


async def test_process_that_was_idle_refuses_calls_until_it_is_started_anew(
    database: PostgresSettings, settings: Settings
) -> None:
    soon_idle = replace(database, idle_timeout_seconds=0.05)
    nothing_later = Options(mark_read_on_send=False)
    async with Hub(replace(settings, postgres=soon_idle), options=nothing_later) as hub:
        ada = await hub.users.create("ada@example.org", "ada", "not a hash")
        room = await hub.rooms.create("engine-room", created_by=ada.id)
        sent = await hub.messages.send(room.id, ada.id, "before")
        await until(lambda: hub._pool.size == 0)
        await distribution.distribute(database, shards=8)
        for call in (hub.messages.send(room.id, ada.id, "after"), hub.users.set_online_many({ada.id: True})):
            with pytest.raises(Unavailable, match="restart it") as error:
                await call
            assert not error.value.retryable
        async with Hub(replace(settings, postgres=database)) as started_anew:
            assert (await started_anew.messages.page(room.id)).items == [sent]
            assert not (await started_anew.users.get(ada.id)).is_online
            assert (await started_anew.messages.send(room.id, ada.id, "after")).seq == 3
        with pytest.raises(Unavailable, match="restart it"):
            await hub.users.get(ada.id)


async def test_doctor_reports_a_node_that_is_down_or_hangs(
    cluster: Cluster, database: PostgresSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "NODE_SECONDS", 5)  # a busy machine forks slowly
    await migrations.grant(replace(database, user="postgres"), ROLE)
    await distribution.distribute(database, shards=8)
    role = as_role(database)

    async def nodes() -> CheckResult:
        section = await section_of(role)
        assert section.out_of_reach is None
        return result_of(section, "postgresql.nodes")

    assert await nodes() == CheckResult("postgresql.nodes", "nodes", "2 of 2 answer", None, ())
    down, hanging = cluster.workers
    assert hanging.process is not None
    cluster.kill(down)
    hanging.process.send_signal(signal.SIGSTOP)
    try:
        found = await nodes()
    finally:
        hanging.process.send_signal(signal.SIGCONT)
        await cluster.run(down)
    assert found.summary == "0 of 2 answer"
    assert [str(node.port) in one.meaning for node, one in zip(cluster.workers, found.findings, strict=True)] == [
        True,
        True,
    ]


async def test_doctor_does_not_read_the_plans_of_one_server(cluster: Cluster, database: PostgresSettings) -> None:
    await distribution.distribute(database, shards=8)
    await execute(
        database,
        "INSERT INTO hubbub_presence (user_id, is_online, last_seen) "
        "SELECT gen_random_uuid(), true, now() FROM generate_series(1, 20000)",
        "ANALYZE hubbub_presence",
    )
    section = await section_of(database)
    assert result_of(section, "postgresql.plans").summary == "auto; rooms are distributed"
    assert result_of(section, "postgresql.distribution").summary == "rooms are distributed"
    assert not [one for one in section.checks if one.skipped]


async def node_of(cluster: Cluster, database: PostgresSettings, room_id: UUID) -> Node:
    connection = await connect(database)
    try:
        port = await connection.fetchval(
            """
            SELECT nodeport
            FROM pg_dist_placement
            JOIN pg_dist_node USING (groupid)
            WHERE shardid = get_shard_id_for_distribution_column('rooms', $1::uuid)
            """,
            room_id,
        )
    finally:
        await connection.close()
    [node] = [worker for worker in cluster.workers if worker.port == port]
    return node


async def test_killed_worker_stops_its_rooms_only_and_loses_nothing(
    cluster: Cluster, database: PostgresSettings, settings: Settings
) -> None:
    await distribution.distribute(database, shards=8)
    async with Hub(replace(settings, postgres=database)) as hub:
        ada = await hub.users.create("ada@example.org", "ada", "not a hash")
        rooms: dict[int, UUID] = {}
        while len(rooms) < len(cluster.workers):
            room = await hub.rooms.create("engine-room", created_by=ada.id)
            rooms.setdefault((await node_of(cluster, database, room.id)).port, room.id)
        acknowledged: dict[UUID, list[UUID]] = {room_id: [] for room_id in rooms.values()}
        refused: dict[UUID, int] = dict.fromkeys(rooms.values(), 0)
        ended = asyncio.Event()

        async def send(room_id: UUID) -> None:
            while not ended.is_set():
                id = uuid4()
                try:
                    await hub.messages.send(room_id, ada.id, "hello", id=id)
                    acknowledged[room_id].append(id)
                except Unavailable:
                    refused[room_id] += 1

        async def has_sent(room_id: UUID, more: int) -> None:
            wanted = len(acknowledged[room_id]) + more
            await until(lambda: len(acknowledged[room_id]) >= wanted)

        senders = [asyncio.create_task(send(room_id)) for room_id in rooms.values()]
        killed, other = cluster.workers
        try:
            await has_sent(rooms[killed.port], 50)
            cluster.kill(killed)
            await has_sent(rooms[other.port], 100)
            assert refused[rooms[other.port]] == 0
            await cluster.run(killed)
            await has_sent(rooms[killed.port], 50)
        finally:
            ended.set()
            await asyncio.gather(*senders)
            if killed.process is None or killed.process.poll() is not None:
                await cluster.run(killed)
        assert refused[rooms[killed.port]] > 0
        for room_id, ids in acknowledged.items():
            log = await log_of(hub, room_id)
            assert [event.seq for event in log if not isinstance(event, Resync)] == list(range(1, len(log) + 1))
            sent = [event.message.id for event in log if isinstance(event, MessageSent)]
            assert set(ids) <= set(sent)
            assert len(sent) == len(set(sent))


async def test_rooms_of_other_nodes_go_on_while_a_node_is_down(
    cluster: Cluster, database: PostgresSettings, settings: Settings
) -> None:
    await distribution.distribute(database, shards=8)
    killed, other = cluster.workers
    async with Hub(replace(settings, postgres=database)) as hub:
        ada = await hub.users.create("ada@example.org", "ada", "not a hash")
        bob = await hub.users.create("bob@example.org", "bob", "not a hash")
        rooms: list[UUID] = []
        while len(rooms) < 3:
            room = await hub.rooms.create("engine-room", created_by=ada.id)
            if await node_of(cluster, database, room.id) is other:
                rooms.append(room.id)
        first = rooms[0]
        sent = [await hub.messages.send(room_id, ada.id, "hello") for room_id in rooms]
        async with hub.follow(ada.id) as feed:
            cluster.kill(killed)
            try:
                assert await hub.messages.send(first, ada.id, "hello", id=sent[0].id) == sent[0]
                with pytest.raises(NotAMember):
                    await hub.messages.send(first, bob.id, "let me in")
                with pytest.raises(Invalid, match="reply_to"):
                    await hub.messages.send(first, ada.id, "to what?", reply_to=uuid4())
                lookups = (hub.room_users.is_member(room_id, ada.id) for room_id in rooms * 7)
                assert all(await asyncio.gather(*lookups))
                assert len({(await hub.rooms.get(room_id)).id for room_id in rooms}) == 3
                await asyncio.gather(*map(hub.rooms.get, rooms))
                await hub.room_users.add(first, bob.id)
                assert (await hub.room_users.set_role(first, bob.id, "moderator")).role == "moderator"
                assert await hub.room_users.remove(first, bob.id)
                edited = await hub.messages.edit(sent[0].id, "hello!", by=ada.id, room_id=first)
                assert edited.is_edited
                assert await hub.receipts.mark_read(first, ada.id, up_to=sent[0].seq) == sent[0].seq
                assert (await hub.messages.page(first)).items == [edited]
                await hub.users.set_online_many({ada.id: True})
                assert (await hub.users.get(ada.id)).is_online
                kinds = [type(await anext(feed)).__name__ for _ in range(4)]
                with pytest.raises(Unavailable):
                    await hub.users.create("eve@example.org", "eve", "not a hash")
            finally:
                await cluster.run(killed)
    assert kinds == ["MemberJoined", "RoleChanged", "MemberLeft", "MessageEdited"]


async def test_join_in_flight_of_a_deleted_account_ends_in_the_log(
    cluster: Cluster, database: PostgresSettings, settings: Settings
) -> None:
    await distribution.distribute(database, shards=8)
    async with Hub(replace(settings, postgres=database)) as hub:
        ada = await hub.users.create("ada@example.org", "ada", "not a hash")
        bob = await hub.users.create("bob@example.org", "bob", "not a hash")
        room = await hub.rooms.create("engine-room", created_by=ada.id)
        node = replace(cluster.superuser(await node_of(cluster, database, room.id)), database=database.database)
        has_joined, may_commit = asyncio.Event(), asyncio.Event()

        async def join() -> None:
            async with hub.transaction() as transaction:
                await transaction.room_users.add(room.id, bob.id)
                has_joined.set()
                await may_commit.wait()

        joining = asyncio.create_task(join())
        await has_joined.wait()
        deletion = asyncio.create_task(hub.users.delete(bob.id))
        connection = await connect(node)

        async def waits() -> bool:
            waiting = (
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'DELETE%'"
            )
            return deletion.done() or bool(await connection.fetchval(waiting))

        try:
            await until_it_answers(waits)
        finally:
            may_commit.set()
            await connection.close()
        await asyncio.gather(joining, deletion)
        assert [type(event).__name__ for event in await log_of(hub, room.id)] == [
            "MemberJoined",
            "MemberJoined",
            "MemberLeft",
        ]
        with pytest.raises(NotFound):
            await hub.users.get(bob.id)


@pytest.mark.guarantee("G1", "a node of Citus killed under load")
async def test_checker_finds_nothing_after_the_loss_of_a_worker(
    cluster: Cluster, database: PostgresSettings, settings: Settings, tmp_path: Path, figures: Figures
) -> None:
    await distribution.distribute(database, shards=8)
    killed = cluster.workers[0]
    async with chats.opened(replace(settings, postgres=database), tmp_path, rooms=6) as chat:
        await chat.follower()
        messages = round(10 * (2 * SCALE.fault_seconds + 2) / PAUSE_SECONDS)
        await chat.sender(messages, seed=1, callers=10, pause_seconds=PAUSE_SECONDS)
        await chat.acknowledged(50)
        cluster.kill(killed)
        try:
            await asyncio.sleep(SCALE.fault_seconds)
        finally:
            await cluster.run(killed)
        await chat.all_is_sent()
        await chat.converged()
        found = await chat.violations()
        figures.found(f"{len(found)} violations in {chat.count:,} calls, {chat.errors} failed")
        assert not found
        assert chat.errors > 0


async def test_autovacuum_does_not_count_as_a_writer(cluster: Cluster, database: PostgresSettings) -> None:
    admin = replace(database, user="postgres")
    try:
        await execute(
            admin,
            "ALTER TABLE users SET (autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1)",
            "ALTER TABLE users SET (autovacuum_vacuum_insert_threshold = 1)",
            "ALTER TABLE users SET (autovacuum_vacuum_insert_scale_factor = 0)",
            "INSERT INTO users (email, username, password_hash) "
            "SELECT n || '@example.org', 'user-' || n, '!' FROM generate_series(1, 20000) AS n",
        )
        connection = await connect(admin, server_settings={"application_name": "test"})

        async def is_vacuumed() -> bool:
            vacuumed = "SELECT count(*) FROM pg_stat_progress_vacuum WHERE relid = 'users'::regclass"
            return bool(await connection.fetchval(vacuumed))

        await until_it_answers(is_vacuumed)
        with pytest.raises(Killed):
            await distribution.distribute(database, done=stop_after(1))
        assert await is_vacuumed()
        await connection.close()
    finally:
        await execute(
            admin, "ALTER TABLE users RESET (autovacuum_vacuum_cost_delay, autovacuum_vacuum_cost_limit)"
        )


async def log_of(hub: Hub, room_id: UUID) -> list[LogEvent | Resync]:
    page = await hub.messages.since(room_id, None, limit=1_000)
    log = page.items
    while page.has_more:
        page = await hub.messages.since(room_id, page.cursor, limit=1_000)
        log += page.items
    return log
