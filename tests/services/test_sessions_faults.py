"""Sessions in concurrent calls, in several processes, and when Redis fails."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from hubbub import Settings
from hubbub.errors import Unavailable
from hubbub.redis import Connection, Reply
from hubbub.services.sessions import SessionService, find_ended, index_of, key_of
from impostor import command, handshake, impostor
from redis_server import Server, binaries
from services.keys import all_keys_end
from services.stored_sessions import PHONE, found, unseen_for_years
from waiting import until, until_it_answers


@pytest.fixture
def sessions(connection: Connection) -> SessionService:
    return SessionService(connection)


@pytest.fixture
def ada() -> UUID:
    return uuid4()


async def test_refused_lookup_does_not_count_as_a_living_session() -> None:
    """Nor as an ended one. A server refuses commands while it loads its data."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = await handshake(reader, writer)
        for answer in (b"-LOADING Redis is loading the dataset in memory\r\n", b":-2\r\n"):
            await command(reader, parser)
            writer.write(answer)
        await reader.read()

    async with impostor(talk) as settings:
        connection = Connection(settings)
        await connection.start()
        assert await find_ended(connection, ["session:{a}:1", "session:{a}:2"]) == {"session:{a}:2": True}
        await connection.close()


async def test_exactly_one_token_works_during_a_rotation(sessions: SessionService, ada: UUID) -> None:
    """No reader finds the old token after the new one was returned."""
    token: str = await sessions.create_session(ada)
    dead: list[str] = []
    done = False

    async def reader() -> None:
        while not done:
            for one in dead[-5:]:
                assert await sessions.get_session(one) is None
            await asyncio.sleep(0)

    readers = [asyncio.create_task(reader()) for _ in range(10)]
    for _ in range(100):
        new = await sessions.rotate(token)
        assert new is not None
        dead.append(token)
        token = new
        assert await sessions.get_session(token) is not None
    done = True
    await asyncio.gather(*readers)


async def test_lookup_in_flight_during_a_rotation_does_not_restore_the_old_token(
    connection: Connection, ada: UUID
) -> None:
    """The write of a lookup races with the end of the session. In either order the session stays ended."""
    sessions = SessionService(connection)
    for end in ("delete", "revoke", "revoke_all", "rotate"):
        for _ in range(10):
            token = await sessions.create_session(ada)
            await unseen_for_years(connection, token)
            looking = [asyncio.create_task(sessions.get_session(token)) for _ in range(10)]
            await asyncio.sleep(0)
            if end == "delete":
                await sessions.delete_session(token)
            elif end == "revoke":
                await sessions.revoke(ada, key_of(token).id)
            elif end == "revoke_all":
                await sessions.revoke_all(ada)
            else:
                await sessions.rotate(token)
            await asyncio.gather(*looking)
            assert await sessions.get_session(token) is None
            assert await connection.execute("EXISTS", key_of(token).name) == 0
            assert await connection.execute("ZSCORE", index_of(ada), key_of(token).id) is None


async def test_session_that_ends_during_its_lookup_is_not_accepted(
    sessions: SessionService, connection: Connection, ada: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = await sessions.create_session(ada)
    await unseen_for_years(connection, token)
    execute = connection.execute

    async def look_up_and_revoke(*parts: str, deadline_seconds: float | None = None, writes: bool = True) -> Reply:
        reply = await execute(*parts, deadline_seconds=deadline_seconds, writes=writes)
        if parts[0] == "GET":
            await execute("DEL", parts[1])
        return reply

    monkeypatch.setattr(connection, "execute", look_up_and_revoke)
    assert await sessions.get_session(token) is None


async def test_no_session_is_accepted_after_revoke_all_has_returned(
    sessions: SessionService, servers: Settings, ada: UUID
) -> None:
    tokens = await asyncio.gather(*(sessions.create_session(ada, PHONE) for _ in range(1_000)))
    revoked = done = False
    accepted_before, accepted_after = 0, 0
    # Readers with their own connection, as in another process.
    other = Connection(servers.redis)
    await other.start()

    async def reader(service: SessionService, start: int) -> None:
        nonlocal accepted_before, accepted_after
        position = start
        while not done:
            asked_after = revoked
            session = await service.get_session(tokens[position % 1_000])
            accepted_after += asked_after and session is not None
            accepted_before += session is not None
            position += 7

    services = [sessions, SessionService(other)]
    readers = [asyncio.create_task(reader(services[n % 2], n * 31)) for n in range(100)]
    await until(lambda: accepted_before > 500)
    assert await sessions.revoke_all(ada) == 1_000
    revoked = True
    assert not any(await asyncio.gather(*(sessions.get_session(token) for token in tokens)))
    done = True
    await asyncio.gather(*readers)
    await other.close()
    assert accepted_after == 0


OTHER_PROCESS = """
import asyncio, sys
from hubbub import Settings
from hubbub.redis import Connection, Reply
from hubbub.services.sessions import SessionService

async def main():
    connection = Connection(Settings.from_env().redis)
    await connection.start()
    sessions = SessionService(connection)
    for line in iter(sys.stdin.readline, ""):
        session = await sessions.get_session(line.strip())
        print("nobody" if session is None else session.user_id, flush=True)
    await connection.close()

asyncio.run(main())
"""


async def test_second_process_sees_logins_and_revocations_at_once(
    sessions: SessionService, servers: Settings, ada: UUID
) -> None:
    source = Path(sys.modules[SessionService.__module__].__file__ or "").parents[3]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", OTHER_PROCESS, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        env=servers.to_env() | {"PYTHONPATH": str(source)},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None

    async def ask(token: str) -> str:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(token.encode() + b"\n")
        return (await process.stdout.readline()).decode().strip()

    try:
        for _ in range(20):
            token = await sessions.create_session(ada)
            assert await ask(token) == str(ada)
            rotated = await sessions.rotate(token)
            assert rotated is not None
            assert await ask(token) == "nobody"
            assert await ask(rotated) == str(ada)
            await sessions.revoke_all(ada)
            assert await ask(rotated) == "nobody"
    finally:
        process.stdin.close()
        await process.wait()


# Servers for one test alone.


@pytest.fixture(params=binaries(), ids=lambda binary: binary.name)
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Server]:
    server = Server(request.param, tmp_path, extra=("appendonly yes", "appendfsync no"))
    server.start()
    try:
        yield server
        server.thaw()
        await all_keys_end(server)
    finally:
        server.stop()


@pytest.fixture
async def own(server: Server) -> AsyncIterator[SessionService]:
    connection = Connection(server.settings)
    await connection.start()
    yield SessionService(connection)
    await connection.close()


async def test_every_operation_works_on_every_server(own: SessionService, ada: UUID) -> None:
    token = await own.create_session(ada, PHONE)
    assert (await found(own, token)).data == PHONE
    rotated = await own.rotate(token)
    assert rotated is not None
    assert await own.update_data(rotated, {"device": "tv"})
    [listed] = await own.list(ada)
    assert listed == await own.get_session(rotated)
    assert await own.revoke(ada, listed.id)
    await own.delete_session(await own.create_session(ada))
    assert await own.revoke_all(ada) == 0


async def test_killed_redis_restores_no_revoked_session_and_loses_no_other(
    own: SessionService, server: Server, ada: UUID
) -> None:
    bob = uuid4()
    revoked = [await own.create_session(ada) for _ in range(50)]
    kept = [await own.create_session(bob) for _ in range(50)]
    assert await own.revoke_all(ada) == 50
    server.kill()
    with pytest.raises(Unavailable):
        await own.get_session(kept[0])
    server.start()

    async def serves() -> bool:
        try:
            return await own.get_session(kept[0]) is not None
        except Unavailable:
            return False

    await until_it_answers(serves)
    assert not any([await own.get_session(token) for token in revoked])
    assert all([await own.get_session(token) for token in kept])
    rotated = await own.rotate(kept[0])  # by a script that the restarted server does not have
    assert rotated is not None
    assert await own.revoke_all(bob) == 50


async def test_session_revoked_while_redis_is_killed_is_not_accepted_after_the_answer(
    own: SessionService, server: Server
) -> None:
    users = [uuid4() for _ in range(200)]
    tokens = await asyncio.gather(*(own.create_session(user) for user in users))
    acknowledged: list[str] = []

    async def revoke(user: UUID, token: str) -> None:
        try:
            await own.revoke_all(user)
        except Unavailable:
            return
        acknowledged.append(token)

    revoking = []
    for user, token in zip(users, tokens, strict=True):
        revoking.append(asyncio.create_task(revoke(user, token)))
        await asyncio.sleep(0)
        if len(revoking) == 100:
            server.kill()
    await asyncio.gather(*revoking)
    server.start()

    async def serves() -> bool:
        try:
            await own.get_session(tokens[0])
        except Unavailable:
            return False
        return True

    await until_it_answers(serves)
    assert not any([await own.get_session(token) for token in acknowledged])


async def test_calls_to_a_frozen_server_end_by_their_deadline(server: Server, ada: UUID) -> None:
    connection = Connection(replace(server.settings, deadline_seconds=0.5))
    await connection.start()
    sessions = SessionService(connection)
    token = await sessions.create_session(ada)
    server.freeze()
    try:
        async with asyncio.timeout(30):
            for call in (sessions.get_session(token), sessions.rotate(token), sessions.revoke_all(ada)):
                with pytest.raises(Unavailable):
                    await call
    finally:
        server.thaw()
    await connection.close()


async def test_lookup_works_on_a_server_that_refuses_writes(server: Server, ada: UUID) -> None:
    """A Redis that is out of memory refuses to write the time of a lookup. That must not log out all users."""
    connection = Connection(server.settings)
    await connection.start()
    sessions = SessionService(connection, idle_timeout_seconds=100)
    token = await sessions.create_session(ada)
    await unseen_for_years(connection, token)
    await connection.execute("CONFIG", "SET", "maxmemory", "1")
    assert (await found(sessions, token)).user_id == ada
    with pytest.raises(Unavailable):
        await sessions.create_session(ada)
    await connection.execute("CONFIG", "SET", "maxmemory", "0")
    await sessions.delete_session(token)
    await connection.close()
