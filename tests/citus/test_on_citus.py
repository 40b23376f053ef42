"""Rooms on two workers of Citus, of the installation that CITUS names."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from citus.cluster import Cluster, Node
from citus.stopping import Killed, stop_after
from citus.talk import talk
from hubbub import Hub, PostgresSettings, Settings, Unavailable, migrations
from hubbub.events import LogEvent, MessageSent, Resync
from hubbub.migrations import distribution
from hubbub.postgres import connect
from rights import ROLE, as_role
from waiting import until


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


async def test_rows_and_revisions_outlive_a_run_that_was_stopped_several_times(
    database: PostgresSettings, settings: Settings
) -> None:
    on_coordinator = replace(settings, postgres=database)
    async with Hub(on_coordinator) as hub:
        ada = await hub.users.create("ada@example.org", "ada", "not a hash")
        room = await hub.rooms.create("engine-room", created_by=ada.id)
        sent = [await hub.messages.send(room.id, ada.id, f"message {number}") for number in range(20)]
        await hub.receipts.mark_read(room.id, ada.id, up_to=10)

    stops = 0
    while (await distribution.plan(database, 8)).left:
        try:
            await distribution.distribute(database, shards=8, done=stop_after(6))
        except Killed:
            stops += 1
    assert stops > 5
    assert await migrations.up(database) == []
    async with Hub(on_coordinator) as hub:
        assert (await hub.messages.page(room.id)).items == sent
        assert (await hub.room_users.get(room.id, ada.id)).last_read_seq == 10
        assert (await hub.messages.send(room.id, ada.id, "here")).seq == 22


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


async def log_of(hub: Hub, room_id: UUID) -> list[LogEvent | Resync]:
    page = await hub.messages.since(room_id, None, limit=1_000)
    log = page.items
    while page.has_more:
        page = await hub.messages.since(room_id, page.cursor, limit=1_000)
        log += page.items
    return log
