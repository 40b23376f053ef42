"""Sessions in rows of PostgreSQL. Their copies in Redis may be lost, old or wrong."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from hubbub import Hub, Invalid, NotFound, PostgresSettings, Settings, Unavailable, User
from hubbub.postgres import Executor, Lookup, Pool, Statement, connect
from hubbub.postgres.connection import run
from hubbub.redis import Connection
from hubbub.services.sessions import key_of, new_token, tag_of
from hubbub.services.sessions.durable import COPY_TTL_SECONDS, DurableSessions, _copy_of, _Row
from redis_server import Server
from redis_topologies import REPLICATING, Starter, ask
from waiting import until_it_answers

WAITS = Statement(
    "test.waits",
    bool,
    "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted) AS waits",
)


@pytest.fixture
def sessions(pool: Pool, connection: Connection) -> DurableSessions:
    believe(connection)
    return DurableSessions(pool, connection, life_seconds=3_600)


def believe(connection: Connection) -> None:
    """Make the connection look old, so that its copies count."""
    assert connection._protocol is not None
    connection._protocol.connected_at -= COPY_TTL_SECONDS + 1


async def change_rows(settings: PostgresSettings, sql: str) -> None:
    owner = await connect(settings)
    await owner.execute(sql)
    await owner.close()


async def until_one_waits(executor: Executor) -> None:
    async def waits() -> bool:
        return bool(await executor.fetch_one(WAITS))

    await until_it_answers(waits)


async def copy_of(connection: Connection, token: str) -> object:
    return await connection.execute("GET", _copy_of(key_of(token)), writes=False)


async def test_session_is_found_changed_listed_rotated_and_ended(sessions: DurableSessions, ada: User) -> None:
    data = {"device": "phone", "text": "\0é", "list": []}
    token, other = await sessions.create_session(ada.id, data), await sessions.create_session(ada.id)
    first = await sessions.get_session(token)
    assert first is not None
    assert (first.user_id, first.data) == (ada.id, data)
    assert (first.expires_at - first.created_at).total_seconds() == 3_600
    assert await sessions.get_session(token) == first  # from the copy
    assert await sessions.update_data(token, {"device": "tablet"})
    changed = await sessions.get_session(token)
    assert changed is not None
    assert changed.data == {"device": "tablet"}
    assert {session.id for session in await sessions.list(ada.id)} == {first.id, key_of(other).id}
    assert len(await sessions.list(ada.id, limit=1)) == 1

    newer = await sessions.rotate(token)
    assert newer is not None
    assert await sessions.get_session(token) is None
    assert await sessions.get_session(newer) is not None
    await sessions.delete_session(newer)
    await sessions.delete_session(newer)
    assert await sessions.get_session(newer) is None
    assert not await sessions.revoke(uuid4(), key_of(other).id)
    assert not await sessions.revoke(ada.id, "other")
    assert await sessions.revoke(ada.id, key_of(other).id)
    assert await sessions.get_session(other) is None

    tokens = [await sessions.create_session(ada.id) for _ in range(3)]
    assert await sessions.revoke_all(ada.id, except_token=tokens[0]) == 2
    assert [await sessions.get_session(token) is not None for token in tokens] == [True, False, False]
    assert await sessions.revoke_all(ada.id) == 1


async def test_unknown_tokens_and_users_have_no_session(sessions: DurableSessions) -> None:
    for token in ("", "0" * 47, "a" * 47):
        assert await sessions.get_session(token) is None
        assert await sessions.rotate(token) is None
        assert not await sessions.update_data(token, {})
    with pytest.raises(NotFound):
        await sessions.create_session(uuid4())
    with pytest.raises(Invalid):
        await sessions.create_session(uuid4(), {"x": "x" * 5_000})


async def test_lookup_asks_postgresql_only_where_no_copy_is_believed(
    sessions: DurableSessions, connection: Connection, postgres_settings: PostgresSettings, ada: User
) -> None:
    token = await sessions.create_session(ada.id)
    assert await sessions.get_session(token) is not None
    await change_rows(postgres_settings, "DELETE FROM hubbub_sessions")  # hubbub would empty the copy
    assert await sessions.get_session(token) is not None
    connection._protocol.connected_at += COPY_TTL_SECONDS + 1  # type: ignore[union-attr]
    assert await sessions.get_session(token) is None
    believe(connection)
    await connection.execute("DEL", _copy_of(key_of(token)))
    assert await sessions.get_session(token) is None


async def test_lookup_that_read_the_row_before_the_revocation_leaves_no_copy(
    sessions: DurableSessions, connection: Connection, pool: Pool, ada: User
) -> None:
    token = await sessions.create_session(ada.id)
    row = await pool.look_up(DurableSessions._GET, bytes.fromhex(key_of(token).id))
    assert row is not None
    await sessions.delete_session(token)
    await sessions._copy(_copy_of(key_of(token)), row, 0.0)
    assert await copy_of(connection, token) == b""
    assert await sessions.get_session(token) is None


@pytest.mark.parametrize("ends", ["delete_session", "revoke_all"])
async def test_repeated_revocation_empties_the_copy_that_the_first_left_when_its_answer_was_lost(
    sessions: DurableSessions, pool: Pool, ada: User, ends: str
) -> None:
    token = await sessions.create_session(ada.id)
    assert await sessions.get_session(token) is not None
    if ends == "delete_session":
        await pool.fetch_one(DurableSessions._END_ROW, bytes.fromhex(key_of(token).id), None)
        assert await sessions.get_session(token) is not None  # the copy
        await sessions.delete_session(token)
    else:
        assert len(await pool.fetch_all(DurableSessions._END_ALL_ROWS, ada.id, b"")) == 1
        assert await sessions.get_session(token) is not None
        assert await sessions.revoke_all(ada.id) == 0  # it had ended
    assert await sessions.get_session(token) is None


async def test_revocation_ends_the_session_that_is_rotated_meanwhile(
    sessions: DurableSessions, pool: Pool, ada: User
) -> None:
    token, newer = await sessions.create_session(ada.id), new_token(tag_of(ada.id))
    ids = [bytes.fromhex(key_of(one).id) for one in (token, newer)]
    async with pool.transaction() as rotating:
        await rotating.fetch_one(DurableSessions._SET_ID, *ids)
        revoking = asyncio.create_task(sessions.revoke_all(ada.id))
        await until_one_waits(rotating)
    assert await revoking == 1
    assert await sessions.get_session(newer) is None


async def test_revocation_that_waits_for_another_counts_no_session_twice(
    sessions: DurableSessions, pool: Pool, ada: User
) -> None:
    await sessions.create_session(ada.id)
    async with pool.transaction() as first:
        assert [lived for _, lived in await first.fetch_all(DurableSessions._END_ALL_ROWS, ada.id, b"")] == [True]
        second = asyncio.create_task(sessions.revoke_all(ada.id))
        await until_one_waits(first)
    assert await second == 0


async def test_repeated_revocation_after_maintain_empties_the_copy_that_the_first_left(
    settings: Settings, sessions: DurableSessions, pool: Pool, ada: User
) -> None:
    token = await sessions.create_session(ada.id)
    assert await sessions.get_session(token) is not None
    await pool.fetch_one(DurableSessions._END_ROW, bytes.fromhex(key_of(token).id), None)  # its answer was lost
    async with Hub(settings) as hub:
        await hub.maintain()
    assert await sessions.get_session(token) is not None  # the copy
    assert await sessions.revoke(ada.id, key_of(token).id)
    assert await sessions.get_session(token) is None


@pytest.mark.parametrize("is_hidden", [False, True])
async def test_session_of_a_login_that_overlaps_the_deletion_of_the_account_ends_with_it(
    monkeypatch: pytest.MonkeyPatch,
    settings: Settings,
    postgres_settings: PostgresSettings,
    ada: User,
    *,
    is_hidden: bool,
) -> None:
    with_rows = replace(settings, postgres=replace(settings.postgres, durable_sessions=True))
    async with Hub(with_rows) as hub, Hub(with_rows) as elsewhere:
        believe(elsewhere._connection)
        delete, tokens = hub.users._delete, []

        async def log_in_and_delete(user_id: UUID, ended: list[str]) -> None:
            if is_hidden:  # like an account with many rows, which are deleted in steps
                await change_rows(
                    postgres_settings, f"INSERT INTO hubbub_deletions (id, is_room) VALUES ('{user_id}', false)"
                )
            tokens.append(await elsewhere.sessions.create_session(user_id))
            assert await elsewhere.sessions.get_session(tokens[0]) is not None
            await delete(user_id, ended)

        monkeypatch.setattr(hub.users, "_delete", log_in_and_delete)
        await hub.delete_account(ada.id)
        assert await elsewhere.sessions.get_session(tokens[0]) is None


async def test_failure_after_the_session_was_stored_has_an_unknown_outcome(
    monkeypatch: pytest.MonkeyPatch, sessions: DurableSessions, ada: User
) -> None:
    async def refuse(*args: Any, name: str, **options: Any) -> object:  # noqa: ANN401 - passed on
        if name == "sessions.end_surplus":
            raise Unavailable("postgresql", "no connection", retryable=False)
        return await run(*args, name=name, **options)

    monkeypatch.setattr("hubbub.postgres.pool.run", refuse)
    with pytest.raises(Unavailable) as caught:
        await sessions.create_session(ada.id)
    assert caught.value.outcome_unknown
    assert len(await sessions.list(ada.id)) == 1


async def test_lost_answer_to_the_end_of_surplus_sessions_is_not_passed_over(
    monkeypatch: pytest.MonkeyPatch, sessions: DurableSessions, ada: User
) -> None:
    """A repeated statement would find no session, and the copy of the ended session would still be accepted."""
    sessions._max_per_user = 1

    async def answer_lost(*args: Any, name: str, **options: Any) -> object:  # noqa: ANN401 - passed on
        result = await run(*args, name=name, **options)
        if name == "sessions.end_surplus" and result:
            raise Unavailable("postgresql", "lost", outcome_unknown=True) from ConnectionResetError()
        return result

    await sessions.create_session(ada.id)
    monkeypatch.setattr("hubbub.postgres.pool.run", answer_lost)
    with pytest.raises(Unavailable) as caught:
        await sessions.create_session(ada.id)
    assert caught.value.outcome_unknown


async def test_copy_ends_five_seconds_after_the_question_for_its_row(
    monkeypatch: pytest.MonkeyPatch, sessions: DurableSessions, connection: Connection, pool: Pool, ada: User
) -> None:
    token = await sessions.create_session(ada.id)
    loop, look_up, took = asyncio.get_running_loop(), pool.look_up, 0.0
    time = loop.time
    monkeypatch.setattr(loop, "time", lambda: time() + took)

    async def slow(lookup: Lookup[_Row], *key: object) -> _Row | None:
        nonlocal took
        row = await look_up(lookup, *key)
        took = takes
        return row

    monkeypatch.setattr(pool, "look_up", slow)
    for takes, longest_ms in ((0.9, 3_850), (COPY_TTL_SECONDS, 0)):  # noqa: B007 - `slow` uses it
        took = 0.0
        await connection.execute("DEL", _copy_of(key_of(token)))
        assert await sessions.get_session(token) is not None
        left = await connection.execute("PTTL", _copy_of(key_of(token)), writes=False)
        assert isinstance(left, int)
        assert left <= longest_ms


async def test_copy_that_a_newer_connection_answers_is_not_believed(
    monkeypatch: pytest.MonkeyPatch,
    sessions: DurableSessions,
    connection: Connection,
    postgres_settings: PostgresSettings,
    ada: User,
) -> None:
    token = await sessions.create_session(ada.id)
    assert await sessions.get_session(token) is not None
    await change_rows(postgres_settings, "DELETE FROM hubbub_sessions")
    execute = connection.execute

    def reconnected(*parts: str, **options: object) -> object:
        assert connection._protocol is not None
        connection._protocol.connected_at = asyncio.get_running_loop().time()
        return execute(*parts, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(connection, "execute", reconnected)
    assert await sessions.get_session(token) is None


async def test_copy_ends_before_the_row_is_to_note_the_next_lookup(
    connection: Connection, pool: Pool, ada: User
) -> None:
    believe(connection)
    sessions = DurableSessions(pool, connection, life_seconds=3_600, idle_timeout_seconds=40)
    token = await sessions.create_session(ada.id)
    assert await sessions.get_session(token) is not None
    left = await connection.execute("PTTL", _copy_of(key_of(token)), writes=False)
    assert isinstance(left, int)
    assert 0 < left <= sessions._seen_interval_seconds * 1_000 < COPY_TTL_SECONDS * 1_000


@pytest.mark.slow
async def test_hundred_revoked_sessions_stay_so_on_a_replica_that_missed_it(
    tmp_path: Path, pool: Pool, ada: User
) -> None:
    with Starter(tmp_path) as starter:
        master = starter.server("master", *REPLICATING)
        replica = starter.server("replica", *REPLICATING, f"replicaof 127.0.0.1 {master.port}")

        async def copies() -> int:
            found = await ask(replica, "KEYS", "session:*:row:*")
            assert isinstance(found, list)
            return len(found)

        async def is_ready() -> bool:
            info = await ask(replica, "INFO", "replication")
            return isinstance(info, bytes) and b"master_link_status:up" in info

        await until_it_answers(is_ready)
        before = Connection(master.settings)
        await before.start()
        believe(before)
        sessions = DurableSessions(pool, before, life_seconds=3_600)
        tokens = [await sessions.create_session(ada.id) for _ in range(100)]
        assert all(await asyncio.gather(*map(sessions.get_session, tokens)))
        assert await before.execute("WAIT", 1, 10_000) == 1
        await ask(replica, "REPLICAOF", "NO", "ONE")
        assert await copies()
        assert await sessions.revoke_all(ada.id) == 100
        await before.close()
        master.kill()

        after = Connection(replica.settings)
        await after.start()
        sessions = DurableSessions(pool, after, life_seconds=3_600)
        assert await asyncio.gather(*map(sessions.get_session, tokens)) == [None] * 100

        async def are_gone() -> bool:
            return not await copies()

        await until_it_answers(are_gone)
        believe(after)
        assert await asyncio.gather(*map(sessions.get_session, tokens)) == [None] * 100
        await after.close()


async def test_sessions_work_without_redis_and_a_revocation_outlasts_the_copies(
    monkeypatch: pytest.MonkeyPatch, pool: Pool, own_server: Server, ada: User
) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    connection = Connection(replace(own_server.settings, deadline_seconds=0.1, connect_timeout_seconds=0.1))
    await connection.start()
    sessions = DurableSessions(pool, connection, life_seconds=3_600)
    token = await sessions.create_session(ada.id)
    own_server.kill()
    assert await sessions.get_session(token) is not None
    monkeypatch.setattr("hubbub.services.sessions.durable.asyncio.sleep", sleep)
    await sessions.delete_session(token)
    monkeypatch.undo()
    assert max(waited) >= COPY_TTL_SECONDS
    assert await sessions.get_session(token) is None
    await connection.close()


async def test_idle_session_ends_and_a_lookup_prolongs_it_up_to_its_age(
    pool: Pool, connection: Connection, postgres_settings: PostgresSettings, ada: User
) -> None:
    sessions = DurableSessions(pool, connection, life_seconds=3_600, idle_timeout_seconds=600)
    token, idle = await sessions.create_session(ada.id), await sessions.create_session(ada.id)
    await change_rows(postgres_settings, "UPDATE hubbub_sessions SET seen_at = seen_at - interval '2 minutes'")
    seen = await sessions.get_session(token)
    assert seen is not None
    assert seen.seen_at > seen.created_at
    id = key_of(idle).id
    await change_rows(
        postgres_settings, f"UPDATE hubbub_sessions SET ends_at = now() WHERE id = decode('{id}', 'hex')"
    )
    assert await sessions.get_session(idle) is None
    assert [session.id for session in await sessions.list(ada.id)] == [seen.id]
    names = [key_of(one).name for one in (token, idle)]
    assert await sessions._find_ended(names) == {names[0]: False, names[1]: True}


async def test_one_session_too_many_ends_the_one_that_ends_first(sessions: DurableSessions, ada: User) -> None:
    sessions._max_per_user = 2
    tokens = [await sessions.create_session(ada.id) for _ in range(3)]
    assert [await sessions.get_session(token) is not None for token in tokens] == [False, True, True]


async def test_hub_with_the_setting_ends_feeds_at_once_and_cleans_up(settings: Settings, ada: User) -> None:
    with_rows = replace(settings, postgres=replace(settings.postgres, durable_sessions=True))
    async with Hub(with_rows) as hub, Hub(with_rows) as elsewhere:
        token = await hub.sessions.create_session(ada.id)
        async with elsewhere.follow(ada.id, token=token) as feed:
            await hub.sessions.revoke_all(ada.id)
            async with asyncio.timeout(60):
                assert [event async for event in feed] == []
        ended, living = await hub.sessions.create_session(ada.id), await hub.sessions.create_session(ada.id)
        await change_rows(
            settings.postgres,
            "UPDATE hubbub_sessions SET ends_at = now(), seen_at = now() - interval '2 minutes' "
            f"WHERE id = decode('{key_of(ended).id}', 'hex')",
        )
        await hub.maintain()
        found = await connect(settings.postgres)
        ids = await found.fetch("SELECT encode(id, 'hex') FROM hubbub_sessions")
        assert {id for (id,) in ids} == {key_of(token).id, key_of(living).id}  # the first was only just revoked
        await found.close()
        await hub.delete_account(ada.id)
        assert await elsewhere.sessions.get_session(living) is None
