from __future__ import annotations

import asyncio
import gc
import logging
import ssl
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import hiredis
import pytest

from hubbub.errors import Unavailable
from hubbub.redis import Connection, Subscriptions
from hubbub.redis.dialling import Dialler
from hubbub.redis.wire import Wire
from hubbub.settings import RedisSettings
from impostor import command, handshake, impostor
from redis_server import PASSWORD, Server
from waiting import until


class Recorder(Wire):
    """Keeps the bytes as they came."""

    def __init__(self) -> None:
        super().__init__(on_writable=lambda: None)
        self.received = b""

    def data_received(self, data: bytes) -> None:
        self.received += data


@asynccontextmanager
async def dialled(settings: RedisSettings) -> AsyncIterator[Recorder]:
    wire = Recorder()
    await Dialler(settings, "test").dial(wire)
    try:
        yield wire
    finally:
        wire.drop("the test is over")
        await wire.lost


async def client_info(connection: Connection) -> dict[str, str]:
    reply = await connection.execute("CLIENT", "LIST", "TYPE", "normal")
    assert isinstance(reply, bytes)
    words = (word.partition("=") for word in reply.decode().split())
    return {name: value for name, _, value in words}


async def test_the_login_the_database_and_the_name_are_those_of_the_settings(server: Server) -> None:
    connection = Connection(replace(server.settings, database=3))
    await connection.start()
    info = await client_info(connection)
    assert info["db"] == "3"
    assert info["name"] == "hubbub-redis-commands"
    await connection.close()


async def test_redis_py_has_no_say_in_an_open_connection(server: Server) -> None:
    connection = Connection(replace(server.settings, connect_timeout_seconds=0.2))
    await connection.start()
    before = await connection.execute("CLIENT", "ID")
    await asyncio.sleep(0.5)  # longer than every timeout that it was given
    gc.collect()  # its destructor would close what it still held
    assert await connection.execute("CLIENT", "ID") == before
    await connection.close()


async def test_a_wrong_password_is_told_once_and_without_the_password(
    server: Server, connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    locked_out = Connection(replace(server.settings, password="wrong-secret"))
    await locked_out.start()
    assert not locked_out.connected
    with pytest.raises(Unavailable) as caught:
        await locked_out.execute("PING")
    assert not caught.value.retryable
    assert not caught.value.outcome_unknown
    listener = Subscriptions(replace(server.settings, password="wrong-secret"))
    await listener.start()
    with pytest.raises(Unavailable, match="refuses the login"):
        await listener.subscribe("room")
    await listener.close()
    await connection.execute("CONFIG", "SET", "requirepass", "wrong-secret")
    await until(lambda: locked_out.connected)
    assert await locked_out.execute("PING") == b"PONG"
    await locked_out.close()
    complaints = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert [one.args[0] for one in complaints if isinstance(one.args, tuple)] == [
        "hubbub-redis-commands",
        "hubbub-redis-subscriptions",
    ]
    assert "wrong-secret" not in caplog.text
    assert PASSWORD not in caplog.text


async def test_a_server_that_quotes_what_it_does_not_know_gives_no_password_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """So does Redis where HELLO and AUTH were renamed, and many a proxy."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = hiredis.Reader()
        while True:
            name, *values = await command(reader, parser)
            quoted = b" ".join(b"'%s'" % value for value in values)
            writer.write(b"-ERR unknown command '%s', with args beginning with: %s\r\n" % (name, quoted))

    async with impostor(talk) as settings:
        connection = Connection(replace(settings, password=PASSWORD))
        await connection.start()
        trouble = connection.trouble
        await connection.close()
    assert trouble is not None
    assert "unknown command 'AUTH'" in trouble.reason
    assert PASSWORD not in "".join(traceback.format_exception(trouble))
    assert "unknown command 'AUTH'" in caplog.text
    assert PASSWORD not in caplog.text


async def test_a_missing_password_is_told_as_a_refused_login(server: Server) -> None:
    connection = Connection(replace(server.settings, password=None))
    await connection.start()
    assert connection.trouble is not None
    assert not connection.trouble.retryable
    await connection.close()


async def test_a_user_of_the_access_list_logs_in(server: Server, connection: Connection) -> None:
    await connection.execute("ACL", "SETUSER", "chat", "on", ">of-the-chat", "~*", "&*", "+@all")
    chat = Connection(replace(server.settings, username="chat", password="of-the-chat"))
    await chat.start()
    assert await chat.execute("ACL", "WHOAMI") == b"chat"
    await chat.close()


async def test_a_server_without_hello_is_spoken_to_in_the_older_protocol(binary: Path, tmp_path: Path) -> None:
    server = Server(binary, tmp_path, extra=('rename-command HELLO ""',)).start()
    try:
        connection = Connection(replace(server.settings, database=2))
        subscriptions = Subscriptions(server.settings, heartbeat_seconds=0.02)
        await asyncio.gather(connection.start(), subscriptions.start())
        assert await connection.execute("SET", "key", "value") == b"OK"
        assert await connection.execute("GET", "key") == b"value"
        async with await subscriptions.subscribe("room") as subscription:
            await asyncio.sleep(0.1)  # a few probes, whose answers look different here
            await connection.execute("PUBLISH", "room", "hello")
            assert await anext(subscription) == b"hello"
        assert subscriptions.connected
        await asyncio.gather(connection.close(), subscriptions.close())
    finally:
        server.stop()


@pytest.mark.parametrize(
    "early", [b">3\r\n$7\r\nmessage\r\n$4\r\nroom\r\n$2\r\nhi\r\n", b"$5\r\nhal", b"x" * 100_000]
)
async def test_bytes_that_come_with_the_last_answer_of_the_handshake_are_not_lost(early: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await handshake(reader, writer, glued=early)
        await reader.read()

    async with impostor(talk) as settings, dialled(settings) as wire:
        await until(lambda: len(wire.received) >= len(early))
        assert wire.received == early


async def test_a_server_that_says_nothing_is_given_up_within_the_connect_timeout() -> None:
    async def talk(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with impostor(talk) as settings:
        with pytest.raises(Unavailable, match="did not answer within"):
            async with dialled(replace(settings, connect_timeout_seconds=0.2)):
                pass


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"+OK\r\n",
        b":3\r\n",
        b"$-1\r\n",
        b"*1\r\n",
        b"",
        b"-LOADING it\r\n",
    ],
)
async def test_a_server_that_is_none_is_trouble_and_nothing_worse(answer: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)

    async with impostor(talk) as settings:
        with pytest.raises(Unavailable) as caught:
            async with dialled(replace(settings, password="secret", connect_timeout_seconds=0.5)):
                pass
    assert caught.value.retryable
    assert "secret" not in str(caught.value)


async def test_a_server_that_leaves_right_after_the_handshake_is_noticed() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await handshake(reader, writer)

    async with impostor(talk) as settings:
        connection = Connection(settings)
        await connection.start()
        await until(lambda: not connection.connected)
        await connection.close()


async def test_a_dial_that_is_cancelled_leaves_no_connection_open() -> None:
    left = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            pass
        left.set()

    async with impostor(talk) as settings:
        task = asyncio.create_task(Dialler(settings, "test").dial(Recorder()))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(10):
            await left.wait()


async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


async def test_over_tls_the_certificate_is_verified(
    server: Server, connection: Connection, tmp_path: Path
) -> None:
    trustme = pytest.importorskip("trustme")
    authority, stranger = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    for name, one in (("good", authority), ("bad", stranger)):
        one.cert_pem.write_to_path(str(tmp_path / f"{name}.pem"))

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.gather(relay(reader, server_writer), relay(server_reader, writer))

    async with impostor(talk, tls=context) as address:
        settings = replace(server.settings, port=address.port, tls=True, ssl_root_cert=tmp_path / "good.pem")
        secure = Connection(settings)
        subscriptions = Subscriptions(settings)
        await asyncio.gather(secure.start(), subscriptions.start())
        big = b"x" * 1_000_000
        assert await secure.execute("ECHO", big) == big
        async with await subscriptions.subscribe("room") as subscription:
            await secure.execute("PUBLISH", "room", "in secret")
            assert await anext(subscription) == b"in secret"
        await connection.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await until(lambda: not secure.connected)
        await until(lambda: secure.connected)
        assert await secure.execute("PING") == b"PONG"
        await asyncio.gather(secure.close(), subscriptions.close())
        deceived = Connection(replace(settings, ssl_root_cert=tmp_path / "bad.pem"))
        await deceived.start()
        assert deceived.trouble is not None
        assert "the server's certificate is refused" in deceived.trouble.reason
        await deceived.close()
