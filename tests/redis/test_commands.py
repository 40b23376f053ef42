from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from hubbub.errors import Unavailable
from hubbub.redis import Connection, ReplyError, Script
from hubbub.redis.commands import MAX_UNWRITTEN_BYTES
from hubbub.redis.replies import as_bytes, as_int, as_list
from impostor import command, handshake, impostor
from redis_server import Server
from waiting import HANGS_AFTER_SECONDS, until


async def echo(connection: Connection, word: str, deadline_seconds: float | None = None) -> str:
    """Echo a word that no other call sends, so that the reply to another call would be noticed."""
    reply = await connection.execute("ECHO", word, deadline_seconds=deadline_seconds)
    assert reply == word.encode(), "this is the reply of another call"
    return word


async def test_words_of_every_type_are_sent_and_return_as_bytes(connection: Connection) -> None:
    assert await connection.execute("SET", "name", "Zoë") == b"OK"
    assert await connection.execute("GET", b"name") == "Zoë".encode()
    assert await connection.execute("INCRBY", "count", 41) == 41
    assert await connection.execute("INCRBYFLOAT", "count", 0.5) == b"41.5"
    assert await connection.execute("GET", "nobody") is None
    assert await connection.execute("ECHO", b"\x00\r\n\xff") == b"\x00\r\n\xff"


async def test_word_that_cannot_be_encoded_raises_and_does_not_affect_other_calls(connection: Connection) -> None:
    beside = asyncio.ensure_future(connection.execute("ECHO", "beside"))
    with pytest.raises(TypeError):
        await connection.execute("SET", "key", None)  # type: ignore[arg-type]
    with pytest.raises(UnicodeEncodeError):
        await connection.execute("SET", "key", "\ud800")
    assert await beside == b"beside"


async def test_concurrent_callers_get_their_own_replies(connection: Connection) -> None:
    async def caller(number: int) -> None:
        for turn in range(50):
            await echo(connection, f"{number}:{turn}")

    await asyncio.gather(*(caller(number) for number in range(200)))
    assert connection.waiting == 0


async def test_commands_of_one_turn_of_the_loop_are_sent_in_one_write(connection: Connection) -> None:
    before = as_int(await _commands_read_at_once(connection))
    await asyncio.gather(*(connection.execute("PING") for _ in range(500)))
    after = as_int(await _commands_read_at_once(connection))
    assert after - before < 20  # 500 PINGs in one or two writes


async def _commands_read_at_once(connection: Connection) -> int:
    info = await connection.execute("INFO", "stats")
    assert isinstance(info, bytes)
    stats = dict(line.split(b":", 1) for line in info.splitlines() if b":" in line)
    return int(stats[b"total_reads_processed"])


async def test_pipeline_returns_the_outcome_of_each_command(connection: Connection) -> None:
    wrong, *others = await connection.execute_many(
        [("LPUSH", "line", 1), ("GET", "line"), ("SET", "key", "value"), ("GET", "key")]
    )
    assert wrong == 1
    assert isinstance(others[0], ReplyError)
    assert others[0].code == "WRONGTYPE"
    assert others[1:] == [b"OK", b"value"]
    assert await connection.execute_many([]) == []


async def test_commands_of_a_transaction_are_not_interleaved_with_others(connection: Connection) -> None:
    async def transaction(number: int) -> None:
        commands = [("MULTI",), ("SET", "owner", number), ("GET", "owner"), ("EXEC",)]
        outcomes = await connection.execute_many(commands)
        assert outcomes[-1] == [b"OK", str(number).encode()]

    noise = [connection.execute("SET", "owner", "noise") for _ in range(100)]
    await asyncio.gather(*noise, *(transaction(number) for number in range(100)))


async def test_unknown_command_raises_reply_error_without_its_values(connection: Connection) -> None:
    with pytest.raises(ReplyError) as caught:
        await connection.execute("NOSUCHCOMMAND", "a secret")
    assert caught.value.code == "ERR"
    assert "secret" not in str(caught.value)


async def test_cancelled_callers_do_not_disturb_the_order_of_replies(connection: Connection) -> None:
    chance = random.Random(7)  # the same sequence every time

    async def impatient(number: int) -> None:
        async with asyncio.timeout(chance.random() * 0.01):
            await echo(connection, f"impatient {number}")

    for storm in range(10):
        patient = [asyncio.create_task(echo(connection, f"patient {storm}:{n}")) for n in range(200)]
        hasty = [asyncio.create_task(impatient(number)) for number in range(200)]
        cancelled = [asyncio.create_task(echo(connection, f"cancelled {n}")) for n in range(200)]
        await asyncio.sleep(chance.random() * 0.005)
        for task in cancelled:
            task.cancel()
        await asyncio.wait([*hasty, *cancelled])
        assert await asyncio.gather(*patient) == [f"patient {storm}:{n}" for n in range(200)]
        assert {type(task.exception()) for task in hasty} <= {type(None), TimeoutError}
    assert await echo(connection, "after the storms")


async def test_call_cancelled_before_it_is_written_never_runs(connection: Connection) -> None:
    first = connection.execute("PING")  # in flight, so that the next command is not written at once
    unwritten = connection.execute("SET", "key", "value")
    unwritten.cancel()
    await first
    assert await connection.execute("GET", "key") is None


async def test_frozen_server_fails_each_call_at_its_own_deadline(server: Server, connection: Connection) -> None:
    loop = asyncio.get_running_loop()
    server.freeze()
    began = loop.time()
    patient = asyncio.create_task(echo(connection, "patient"))
    with pytest.raises(Unavailable) as caught:
        await connection.execute("INCR", "count", deadline_seconds=0.2)
    assert loop.time() - began >= 0.2
    assert not patient.done()
    assert caught.value.outcome_unknown
    assert caught.value.retryable
    server.thaw()
    assert await patient == "patient"
    assert await connection.execute("GET", "count") == b"1"  # it was executed, though its outcome was unknown


async def test_connection_to_a_frozen_server_is_dropped_and_made_again(server: Server) -> None:
    connection = Connection(replace(server.settings, deadline_seconds=0.3, connect_timeout_seconds=0.3))
    await connection.start()
    server.freeze()
    with pytest.raises(Unavailable):
        await echo(connection, "into the ice")
    await until(lambda: not connection.connected)
    server.thaw()
    await until(lambda: connection.connected)
    assert await echo(connection, "hello again", deadline_seconds=5)
    await connection.close()


class Echoes:
    """The replies and failures of callers that send one command after another."""

    def __init__(self) -> None:
        self.answered = 0
        self.failures: list[Unavailable] = []

    async def more(self, answers: int) -> None:
        """Wait for this many further replies."""
        seen = self.answered
        await until(lambda: self.answered > seen + answers)


@asynccontextmanager
async def echoing(connection: Connection, *, callers: int) -> AsyncIterator[Echoes]:
    echoes, is_over = Echoes(), False

    async def call(number: int) -> None:
        turn = 0
        while not is_over:
            turn += 1
            try:
                await echo(connection, f"{number}:{turn}")
                echoes.answered += 1
            except Unavailable as error:
                echoes.failures.append(error)

    async with asyncio.TaskGroup() as group:
        for number in range(callers):
            group.create_task(call(number))
        yield echoes
        is_over = True


async def test_killed_server_fails_written_calls_and_serves_again_after_a_restart(
    server: Server, connection: Connection
) -> None:
    async with echoing(connection, callers=50) as echoes:
        for _ in range(3):
            await echoes.more(500)
            server.kill()
            server.start()
            await echoes.more(500)
    assert echoes.failures
    assert all(error.retryable for error in echoes.failures)


async def test_reads_without_a_reply_do_not_have_an_unknown_outcome(
    server: Server, connection: Connection
) -> None:
    reading = Script(source="return 1", reply=as_int, writes=False)
    await reading(connection)
    server.freeze()
    asked: list[asyncio.Future[Any]] = [
        connection.execute("GET", "key", deadline_seconds=0.2, writes=False),
        connection.execute_many([("GET", "key"), ("TTL", "key")], deadline_seconds=0.2, writes=False),
        asyncio.create_task(reading(connection, deadline_seconds=0.2)),
    ]
    for refusal in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(refusal, Unavailable)
        assert not refusal.outcome_unknown
        assert "unknown" not in str(refusal)


async def test_write_sent_to_a_killed_server_has_an_unknown_outcome(
    server: Server, connection: Connection
) -> None:
    server.freeze()
    written = connection.execute("SET", "key", "value")
    await until(lambda: connection.waiting == 1)
    await asyncio.sleep(0)  # the flush was scheduled before this turn
    await asyncio.sleep(0)
    server.kill()
    with pytest.raises(Unavailable) as caught:
        await written
    assert caught.value.outcome_unknown


async def test_calls_wait_for_a_server_that_restarts_in_time(server: Server, connection: Connection) -> None:
    server.kill()
    await until(lambda: not connection.connected)
    waiting = [asyncio.create_task(echo(connection, str(number))) for number in range(10)]
    await asyncio.sleep(0)
    server.start()
    assert await asyncio.gather(*waiting) == [str(number) for number in range(10)]


async def test_call_without_a_server_fails_unsent_within_the_connect_timeout(
    server: Server,
) -> None:
    server.kill()
    # A call that waited for its own deadline would take longer than a test may.
    connection = Connection(replace(server.settings, connect_timeout_seconds=0.3, deadline_seconds=600))
    await connection.start()  # does not raise
    assert not connection.connected
    async with asyncio.timeout(HANGS_AFTER_SECONDS):
        with pytest.raises(Unavailable) as caught:
            await connection.execute("PING")
    assert not caught.value.outcome_unknown
    assert "no connection" in caught.value.reason
    await connection.close()


async def test_commands_beyond_the_limit_are_refused_at_once(server: Server) -> None:
    connection = Connection(server.settings, max_waiting=100)
    await connection.start()
    server.freeze()
    waiting = [asyncio.create_task(echo(connection, str(number))) for number in range(100)]
    await until(lambda: connection.waiting == 100)
    with pytest.raises(Unavailable, match="too many commands are waiting"):
        await connection.execute("PING")
    with pytest.raises(Unavailable, match="too many commands are waiting"):
        await connection.execute_many([("PING",)] * 2)
    server.thaw()
    assert await asyncio.gather(*waiting) == [str(number) for number in range(100)]
    assert await echo(connection, "there is room again")
    await connection.close()


async def test_bytes_beyond_the_limit_are_refused_at_once(connection: Connection) -> None:
    megabyte = b"x" * 1024 * 1024
    calls = [connection.execute("ECHO", megabyte) for _ in range(MAX_UNWRITTEN_BYTES // len(megabyte) + 2)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(outcomes[-1], Unavailable)
    assert outcomes[:-2] == [megabyte] * (len(calls) - 2)


async def test_frozen_server_does_not_let_unwritten_bytes_grow_without_bound(
    server: Server, connection: Connection
) -> None:
    server.freeze()
    megabyte = b"x" * 1024 * 1024
    calls = []
    for _ in range(MAX_UNWRITTEN_BYTES // len(megabyte) * 3):
        calls.append(connection.execute("ECHO", megabyte, deadline_seconds=0.5))
        await asyncio.sleep(0)
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    refused = [one for one in outcomes if isinstance(one, Unavailable) and "too much" in one.reason]
    assert refused
    assert all(isinstance(one, Unavailable) for one in outcomes)
    server.thaw()
    assert await echo(connection, "after the thaw", deadline_seconds=30)


async def test_repeatedly_cut_connection_keeps_replies_in_order(server: Server, connection: Connection) -> None:
    knife = Connection(server.settings)
    await knife.start()
    async with echoing(connection, callers=20) as echoes:
        for _ in range(20):
            await knife.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await echoes.more(50)
    assert all(error.retryable for error in echoes.failures)
    await knife.close()


async def test_server_that_became_a_replica_is_disconnected_and_the_call_is_retryable(
    server: Server, connection: Connection
) -> None:
    script = Script(keys=("key",), source="return redis.call('SET', key, 1)", reply=as_bytes)
    await script(connection, keys=["key"])
    for attempt in ("plain", "script"):
        await connection.execute("REPLICAOF", "127.0.0.1", 1)
        address = await connection.execute("CLIENT", "ID")
        change = (
            connection.execute("SET", "key", "value") if attempt == "plain" else script(connection, keys=["key"])
        )
        with pytest.raises(Unavailable) as caught:
            await change
        assert caught.value.retryable
        assert not caught.value.outcome_unknown
        assert isinstance(caught.value.__cause__, ReplyError)
        assert await connection.execute("CLIENT", "ID") != address
        await connection.execute("REPLICAOF", "NO", "ONE")
        assert await connection.execute("SET", "key", "value") == b"OK"


async def test_server_without_memory_gives_a_retryable_error(connection: Connection) -> None:
    await connection.execute("CONFIG", "SET", "maxmemory", 1)
    with pytest.raises(Unavailable) as caught:
        await connection.execute("SET", "key", "value")
    assert caught.value.retryable
    assert connection.connected


async def test_command_without_permission_gives_an_error_that_is_not_retryable(
    server: Server, connection: Connection
) -> None:
    await connection.execute("ACL", "SETUSER", "reader", "on", ">of-the-reader", "~*", "+@connection", "+@read")
    reader = Connection(replace(server.settings, username="reader", password="of-the-reader"))
    await reader.start()
    assert await reader.execute("GET", "key") is None
    with pytest.raises(Unavailable) as caught:
        await reader.execute("SET", "key", "value")
    assert not caught.value.retryable
    await reader.close()


async def test_close_fails_waiting_calls_and_is_idempotent(server: Server, connection: Connection) -> None:
    server.freeze()
    written = asyncio.create_task(echo(connection, "written"))
    await until(lambda: connection.waiting == 1)
    await asyncio.sleep(0.01)
    unwritten = connection.execute("PING")
    await asyncio.gather(connection.close(), connection.close())
    await connection.close()
    for call in (written, unwritten):
        with pytest.raises(Unavailable, match="closed"):
            await call
    with pytest.raises(Unavailable, match="closed") as caught:
        await connection.execute("PING")
    assert not caught.value.retryable
    with pytest.raises(Unavailable, match="closed"):
        await connection.start()


async def test_connection_that_was_not_started_refuses_calls(server: Server) -> None:
    connection = Connection(server.settings)
    with pytest.raises(Unavailable, match="not started"):
        await connection.execute("PING")
    await connection.close()


async def test_second_start_makes_no_second_connection(server: Server, connection: Connection) -> None:
    await asyncio.gather(connection.start(), connection.start())
    clients = await connection.execute("CLIENT", "LIST")
    assert isinstance(clients, bytes)
    assert clients.count(b"name=hubbub-redis-commands") == 1


async def test_nested_arrays_are_returned_unchanged(connection: Connection) -> None:
    reply = await connection.execute("EVAL", "return {1, {'two', 3}}", 0)
    assert as_list(reply) == [1, [b"two", 3]]


async def test_reply_that_arrives_byte_by_byte_is_one_reply() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = await handshake(reader, writer)
        while await command(reader, parser):
            for byte in b"$5\r\nhello\r\n":
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0)

    async with impostor(talk) as settings:
        connection = Connection(settings)
        await connection.start()
        assert await connection.execute("GET", "greeting") == b"hello"
        await connection.close()


async def test_push_of_the_server_is_not_taken_for_a_reply() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = await handshake(reader, writer)
        while words := await command(reader, parser):
            writer.write(b">2\r\n$10\r\ninvalidate\r\n*1\r\n$3\r\nkey\r\n$1\r\n" + words[1] + b"\r\n")

    async with impostor(talk) as settings:
        connection = Connection(settings)
        await connection.start()
        replies = await asyncio.gather(*(connection.execute("ECHO", digit) for digit in range(10)))
        assert replies == [str(digit).encode() for digit in range(10)]
        await connection.close()


@pytest.mark.parametrize("nonsense", [b"HTTP/1.1 200 OK\r\n", b"+one\r\n+too many\r\n"])
async def test_connection_to_a_server_that_breaks_the_protocol_is_dropped(nonsense: bytes) -> None:
    connections = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        parser = await handshake(reader, writer)
        while await command(reader, parser):
            writer.write(nonsense)

    async with impostor(talk) as settings:
        connection = Connection(settings)
        await connection.start()
        (outcome,) = await asyncio.gather(connection.execute("PING"), return_exceptions=True)
        assert outcome == b"one" or (isinstance(outcome, Unavailable) and outcome.outcome_unknown)
        await until(lambda: connections == 2)
        await connection.close()


async def test_connection_lost_within_a_reply_fails_all_waiting_calls() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = await handshake(reader, writer)
        await command(reader, parser)
        writer.write(b"+first\r\n$100\r\nhalf of")

    async with impostor(talk) as settings:
        connection = Connection(settings)
        await connection.start()
        calls = [connection.execute("ECHO", number) for number in range(5)]
        first, *rest = await asyncio.gather(*calls, return_exceptions=True)
        assert first == b"first"
        assert all(isinstance(one, Unavailable) and one.outcome_unknown for one in rest)
        await connection.close()
