from __future__ import annotations

import asyncio
import gc
import logging
import socket
import ssl
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import hiredis
import pytest

from hubbub.errors import Unavailable
from hubbub.redis import Connection, Subscriptions, connector
from hubbub.redis.connection import INCOMPLETE, Opened, RespProtocol, connect, pause_seconds
from hubbub.redis.connector import ServerConnector
from hubbub.settings import RedisSettings
from impostor import HELLO, command, handshake, impostor
from redis_server import PASSWORD, Server, check_usable
from reports import reports
from waiting import until


class Recorder(RespProtocol):
    """A protocol that keeps the replies as they were received."""

    def __init__(self, transport: asyncio.Transport, reader: hiredis.Reader) -> None:
        super().__init__(transport, reader, on_writable=lambda: None)
        self.replies: list[object] = []

    def parse(self) -> None:
        while (reply := self.reader.gets()) is not INCOMPLETE:
            self.replies.append(reply)


@asynccontextmanager
async def connected(settings: RedisSettings) -> AsyncIterator[Recorder]:
    transport, reader = await connect(settings, settings.host, settings.port, "test")
    protocol = Recorder(transport, reader)
    transport.set_protocol(protocol)
    protocol.parse()
    try:
        yield protocol
    finally:
        protocol.drop("the test is over")
        await protocol.lost


def open_sockets() -> int:
    return sum(entry.is_socket() for entry in Path("/proc/self/fd").iterdir())


async def test_connection_that_ends_with_the_login_is_replaced(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect_to, opened = ServerConnector.connect, list[asyncio.Transport]()

    async def lose_the_first(self: ServerConnector, client_name: str) -> Opened:
        transport, reader = await connect_to(self, client_name)
        opened.append(transport)
        if len(opened) == 1:
            transport.abort()
            await asyncio.sleep(0)  # until the protocol of the login is told
        return transport, reader

    monkeypatch.setattr(ServerConnector, "connect", lose_the_first)
    await check_usable(Connection(server.settings))
    assert len(opened) == 2


async def client_info(connection: Connection) -> dict[str, str]:
    reply = await connection.execute("CLIENT", "LIST", "TYPE", "normal")
    assert isinstance(reply, bytes)
    words = (word.partition("=") for word in reply.decode().split())
    return {name: value for name, _, value in words}


async def test_login_database_and_client_name_are_those_of_the_settings(server: Server) -> None:
    connection = Connection(replace(server.settings, database=3))
    await connection.start()
    info = await client_info(connection)
    assert info["db"] == "3"
    assert info["name"] == "hubbub-redis-commands"
    await connection.close()


async def test_connect_timeout_does_not_end_an_open_connection(server: Server) -> None:
    connection = Connection(replace(server.settings, connect_timeout_seconds=0.2))
    await connection.start()
    await until(lambda: connection.connected)  # an attempt that takes longer is repeated
    before = await connection.execute("CLIENT", "ID")
    await asyncio.sleep(0.5)  # longer than the timeout
    gc.collect()  # a transport without references would be closed
    assert await connection.execute("CLIENT", "ID") == before
    await connection.close()


async def test_wrong_password_is_logged_once_without_the_password(
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


async def test_reply_that_quotes_an_unknown_auth_does_not_reveal_the_password(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Redis with HELLO and AUTH renamed replies so, and so do many proxies."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = hiredis.Reader()
        while True:
            name, *values = await command(reader, parser)
            quoted = b" ".join(b"'%s'" % value for value in values)
            writer.write(b"-ERR unknown command '%s', with args beginning with: %s\r\n" % (name, quoted))

    async with impostor(talk) as settings:
        connection = Connection(replace(settings, password=PASSWORD))
        await connection.start()
        failure = connection.failure
        await connection.close()
    assert failure is not None
    assert "unknown command 'AUTH'" in failure.reason
    assert PASSWORD not in "".join(traceback.format_exception(failure))
    assert "unknown command 'AUTH'" in caplog.text
    assert PASSWORD not in caplog.text


async def test_missing_password_is_a_refused_login(server: Server) -> None:
    connection = Connection(replace(server.settings, password=None))
    await connection.start()
    assert connection.failure is not None
    assert not connection.failure.retryable
    await connection.close()


async def test_user_of_the_access_list_logs_in(server: Server, connection: Connection) -> None:
    await connection.execute("ACL", "SETUSER", "chat", "on", ">of-the-chat", "~*", "&*", "+@all")
    chat = Connection(replace(server.settings, username="chat", password="of-the-chat"))
    await chat.start()
    assert await chat.execute("ACL", "WHOAMI") == b"chat"
    await chat.close()


async def test_server_without_hello_is_used_in_resp2(binary: Path, tmp_path: Path) -> None:
    server = Server(binary, tmp_path, extra=('rename-command HELLO ""',)).start()
    try:
        connection = Connection(replace(server.settings, database=2))
        subscriptions = Subscriptions(server.settings, heartbeat_seconds=0.02)
        await asyncio.gather(connection.start(), subscriptions.start())
        assert await connection.execute("SET", "key", "value") == b"OK"
        assert await connection.execute("GET", "key") == b"value"
        async with await subscriptions.subscribe("room") as subscription:
            await asyncio.sleep(0.1)  # a few probes, whose replies differ in RESP2
            await connection.execute("PUBLISH", "room", "hello")
            assert await anext(subscription) == b"hello"
        assert subscriptions.connected
        await asyncio.gather(connection.close(), subscriptions.close())
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("early", "later", "reply"),
    [
        (b">3\r\n$7\r\nmessage\r\n$4\r\nroom\r\n$2\r\nhi\r\n", b"", [b"message", b"room", b"hi"]),
        (b"$5\r\nhel", b"lo\r\n", b"hello"),
        (b"$100000\r\n" + b"x" * 99_999, b"x\r\n", b"x" * 100_000),
    ],
)
async def test_bytes_that_arrive_with_the_last_reply_of_the_handshake_are_not_lost(
    early: bytes, later: bytes, reply: object
) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await handshake(reader, writer, glued=early)
        await asyncio.sleep(0.05)
        writer.write(later)
        await reader.read()

    async with impostor(talk) as settings, connected(settings) as protocol:
        await until(lambda: bool(protocol.replies))
        assert protocol.replies == [reply]


async def test_silent_server_is_given_up_within_the_connect_timeout() -> None:
    async def talk(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with impostor(talk) as settings:
        with pytest.raises(Unavailable, match="did not answer within"):
            async with connected(replace(settings, connect_timeout_seconds=0.2)):
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
async def test_server_that_is_not_redis_gives_a_retryable_error(answer: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)

    async with impostor(talk) as settings:
        with pytest.raises(Unavailable) as caught:
            async with connected(replace(settings, password="secret", connect_timeout_seconds=0.5)):
                pass
    assert caught.value.retryable
    assert "secret" not in str(caught.value)


async def test_server_that_closes_right_after_the_handshake_is_noticed() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await handshake(reader, writer)

    async with impostor(talk) as settings:
        connection = Connection(settings)
        await connection.start()
        await until(lambda: not connection.connected)
        await connection.close()


async def test_handshake_cancelled_while_the_server_is_silent_closes_its_connection() -> None:
    left = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            pass
        left.set()

    async with impostor(talk) as settings:
        task = asyncio.create_task(connect(settings, settings.host, settings.port, "test"))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(10):
            await left.wait()


async def test_handshake_cancelled_at_any_moment_leaves_no_socket_open(server: Server) -> None:
    settings = replace(server.settings, database=1)
    before = open_sockets()
    for turns in range(40):
        task = asyncio.create_task(connect(settings, settings.host, settings.port, "test"))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(outcome, tuple):
            outcome[0].abort()
        del outcome
        await until(lambda: open_sockets() == before)


async def test_open_connection_is_kept_alive_by_the_kernel(server: Server) -> None:
    async with connected(server.settings) as protocol:
        open_socket = protocol._transport.get_extra_info("socket")
        assert open_socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert open_socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30


async def test_login_without_hello_takes_a_user_of_the_access_list(binary: Path, tmp_path: Path) -> None:
    server = Server(binary, tmp_path, extra=('rename-command HELLO ""',)).start()
    try:
        administrator = Connection(server.settings)
        await administrator.start()
        await administrator.execute("ACL", "SETUSER", "chat", "on", ">of-the-chat", "~*", "&*", "+@all")
        chat = Connection(replace(server.settings, username="chat", password="of-the-chat", database=3))
        await chat.start()
        assert await chat.execute("ACL", "WHOAMI") == b"chat"
        assert (await client_info(chat))["db"] == "3"  # the last in the list is the newest
        locked_out = Connection(replace(server.settings, password="wrong-secret"))
        await locked_out.start()
        assert locked_out.failure is not None
        assert not locked_out.failure.retryable
        assert "refuses the login" in locked_out.failure.reason
        assert "wrong-secret" not in str(locked_out.failure)
        await asyncio.gather(administrator.close(), chat.close(), locked_out.close())
    finally:
        server.stop()


@pytest.mark.parametrize(
    "refusal",
    [
        b"-ERR AUTH <password> called without any password configured for the default user.",
        b"-ERR Client sent AUTH, but no password is set",
        b"-ERR invalid password",
        b"-ERR wrong number of arguments for 'auth' command",
        b"-WRONGPASS invalid username-password pair or user is disabled.",
        b"-NOPERM this user has no permissions to run the 'auth' command",
    ],
)
async def test_refusal_of_auth_in_any_words_is_a_refused_login(refusal: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = hiredis.Reader()
        while words := await command(reader, parser):
            hello = words[0] == b"HELLO"
            writer.write(b"-ERR unknown command 'HELLO'\r\n" if hello else refusal + b"\r\n")

    async with impostor(talk) as settings:
        with pytest.raises(Unavailable, match="refuses the login") as caught:
            async with connected(replace(settings, password="secret")):
                pass
    assert not caught.value.retryable
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "refusal", [b"-LOADING it loads", b"-MASTERDOWN no link", b"-ERR DB index is out of range"]
)
async def test_refusal_to_serve_in_the_handshake_may_be_tried_again(refusal: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = await handshake(reader, writer)
        await command(reader, parser)
        writer.write(refusal + b"\r\n")
        await reader.read()

    async with impostor(talk) as settings:
        with pytest.raises(Unavailable, match=refusal.decode()[1:]) as caught:
            async with connected(replace(settings, database=1)):
                pass
    assert caught.value.retryable


async def test_server_that_greets_first_is_not_redis() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.org ESMTP\r\n")
        await reader.read()

    async with impostor(talk) as settings:
        with pytest.raises(Unavailable, match="does not speak the Redis protocol") as caught:
            async with connected(settings):
                pass
    assert caught.value.retryable


@pytest.mark.parametrize("replies", [0, 1])
async def test_server_that_closes_in_the_handshake_is_noticed_before_the_timeout(replies: int) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = hiredis.Reader()
        for _ in range(replies):
            await command(reader, parser)
            writer.write(HELLO)

    async with impostor(talk) as settings:
        async with asyncio.timeout(60):
            with pytest.raises(Unavailable, match=r"closed in the handshake|reset by peer"):
                async with connected(replace(settings, database=1, connect_timeout_seconds=600)):
                    pass


async def test_refused_connection_names_the_server_and_the_reason(server: Server) -> None:
    server.stop()
    with pytest.raises(Unavailable) as caught:
        async with connected(server.settings):
            pass
    assert caught.value.reason == f"no connection to 127.0.0.1:{server.port}: Connection refused"


async def test_tls_towards_a_plain_port_is_an_error_of_tls() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"-ERR Protocol error: too big inline request\r\n")
        await reader.read()

    async with impostor(talk) as settings:
        with pytest.raises(Unavailable, match=r"TLS with .* failed: ") as caught:
            async with connected(replace(settings, tls=True)):
                pass
    assert not caught.value.retryable


async def test_plain_connection_to_a_tls_port_is_not_redis_or_is_closed() -> None:
    trustme = pytest.importorskip("trustme")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)

    async def talk(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with impostor(talk, tls=context) as settings:
        with pytest.raises(Unavailable, match="no connection to") as caught:
            async with connected(replace(settings, password="secret")):
                pass
    assert "secret" not in str(caught.value)


async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


async def test_certificate_of_a_tls_server_is_verified(
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
        assert deceived.failure is not None
        assert "the server's certificate is refused" in deceived.failure.reason
        await deceived.close()


@pytest.mark.parametrize(("attempt", "longest"), [(1, 0.05), (2, 0.1), (10, 0.5), (40, 2), (1_000, 2)])
def test_pause_grows_with_each_failure_up_to_two_seconds(attempt: int, longest: float) -> None:
    pauses = [pause_seconds(attempt) for _ in range(200)]
    assert longest / 2 <= min(pauses)
    assert max(pauses) <= longest
    assert max(pauses) > min(pauses)


async def test_connection_closes_at_any_moment_of_its_handshake(server: Server) -> None:
    for turns in range(120):
        connection = Connection(server.settings)
        starting = asyncio.create_task(connection.start())
        for _ in range(turns):
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await connection.close()
        await asyncio.gather(starting, return_exceptions=True)


async def test_unforeseen_error_in_an_attempt_is_reported_and_the_next_attempt_connects(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = 0

    async def fail_once(*args: Any) -> tuple[asyncio.Transport, hiredis.Reader]:  # noqa: ANN401 - passed on
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise ZeroDivisionError
        return await connect(*args)

    monkeypatch.setattr(connector, "connect", fail_once)
    connection = Connection(server.settings)
    with reports() as reported:
        async with asyncio.timeout(30):
            await connection.start()
            assert not connection.connected
            assert await connection.execute("PING") == b"PONG"
    assert [type(one["exception"]) for one in reported] == [ZeroDivisionError]
    await connection.close()


async def test_close_that_is_cancelled_closes_the_connection_all_the_same(server: Server) -> None:
    before = open_sockets()
    connection = Connection(server.settings)
    await connection.start()
    closing = asyncio.create_task(connection.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    await until(lambda: open_sockets() == before)
    assert connection.failure is not None
    assert "closed" in connection.failure.reason
    await connection.close()


async def test_closed_connection_does_not_connect_again(server: Server) -> None:
    connection = Connection(server.settings)
    await connection.close()
    with pytest.raises(Unavailable, match="closed"):
        await connection.start()
    assert not connection.connected
