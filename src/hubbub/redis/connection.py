"""A connection to Redis that is opened again whenever it is lost.

          start                  logged in
    new --------> connecting ----------------> connected
                    ^    | failed                  | lost
                    |    v                         |
                    pausing <----------------------+

    close, in any state, leads to closed, which is final.

`connect` opens a connection and logs in, by a `Handshake`. A subclass of `RespProtocol` then takes the connection
over, until it is lost. `Reconnector` goes around in the diagram, as a background task.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from math import inf
from threading import get_ident
from typing import Any, Final, Generic, TypeAlias, TypeVar, cast

import hiredis

from hubbub.background import BackgroundTask, ReportErrors, jittered
from hubbub.errors import Invalid, Unavailable, without_frames
from hubbub.forks import abandon_in_child, forked, replace_with_dead_socket
from hubbub.redis.replies import LOCKED_OUT, Part, ReplyError
from hubbub.settings import RedisSettings
from hubbub.settings.tls import failure_in

logger = logging.getLogger("hubbub.redis")

PAUSE_STEP_SECONDS: Final = 0.05
"""Added to the pause by each attempt that failed. After a restart of the server the first attempt is due within
50 ms, as by the default of ioredis."""

MAX_PAUSE_SECONDS: Final = 2.0
"""Bounds how long a server that is back stays unused. A server that is away gets at most one attempt per second
from each connection."""

KEEPALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
"""The kernel probes a connection that was idle for 30 s. Firewalls then do not forget it, and the loss of a host
is noticed after 45 s instead of by the next caller."""

READ_BYTES: Final = 256 * 1024
"""Bounds one read, as asyncio does. The buffer is kept, because asyncio allocates one per read, and glibc may map
and unmap it each time. That took 30 us of processor time per command at one caller instead of 14."""

NOT_REDIS: Final = "the server does not speak the Redis protocol"
CLOSED: Final = "the connection was closed"
UNASKED: Final = "the server sent a reply to no command"

INCOMPLETE: Final = object()
"""Returned by the parser while the next reply is incomplete. Its default, False, is a reply in RESP3."""

pack = cast("Callable[[tuple[Part, ...]], bytes]", hiredis.pack_command)
"""Encodes a command. Raises TypeError for a word that is not a Part."""

# A proxy, or a server with HELLO renamed away, may still speak RESP2. The last is the reply of Valkey to an
# unknown command before the login. A known HELLO would have logged in.
_HELLO_UNKNOWN: Final = re.compile("NOPROTO|unknown command|Authentication required")

# These replies to AUTH have no code of their own: no password is set, it is wrong, or there are no user names.
_LOGIN_REFUSED: Final = re.compile("without any password|no password is set|invalid password|arguments for 'auth'")


Opened: TypeAlias = tuple[asyncio.Transport, hiredis.Reader]
"""A connection that is logged in. The reader holds what arrived after the last reply."""


async def connect(
    settings: RedisSettings,
    host: str,
    port: int,
    client_name: str,
    greet: Callable[[Handshake], Awaitable[None]] | None = None,
) -> Opened:
    """Open a connection to this server and log in, in RESP3 where the server speaks it, else in RESP2.

    `greet` may ask more, or refuse the server. The caller sets a protocol before it awaits anything. Ends within
    the connect timeout. Raises: Unavailable (not retryable where the login or the certificate is refused).
    """
    transport: asyncio.Transport | None = None
    try:
        async with asyncio.timeout(settings.connect_timeout_seconds):
            # For each connection, so that renewed certificates are used. In a thread, as it may read files.
            tls = await asyncio.to_thread(settings.ssl) if settings.tls else None
            loop = asyncio.get_running_loop()
            transport, handshake = await loop.create_connection(Handshake, host, port, ssl=tls)
            await handshake.log_in(settings, client_name)
            if greet is not None:
                await greet(handshake)
    except BaseException as error:
        if transport is not None:
            transport.abort()
        if isinstance(error, (ReplyError, hiredis.HiredisError, OSError, Invalid, ValueError)):
            raise _failure(error, f"{host}:{port}", settings) from without_frames(error)
        raise
    return transport, handshake.reader


def _failure(error: Exception, where: str, settings: RedisSettings) -> Unavailable:
    if isinstance(error, ReplyError) and (error.code in LOCKED_OUT or _LOGIN_REFUSED.search(str(error))):
        return Unavailable("redis", f"{where} refuses the login: {error}", retryable=False)
    if (refused := failure_in(error)) is not None:
        return Unavailable("redis", f"TLS with {where} failed: {refused}", retryable=False)
    if isinstance(error, TimeoutError):
        return Unavailable("redis", f"{where} did not answer within {settings.connect_timeout_seconds:g} s")
    text = str(error)
    if isinstance(error, hiredis.HiredisError):
        text = NOT_REDIS
    elif isinstance(error, OSError) and (error.errno or 0) > 0:
        text = os.strerror(error.errno or 0)  # asyncio's own text repeats the address
    return Unavailable("redis", f"no connection to {where}: {text}")


class Handshake(asyncio.Protocol):
    """The protocol of a connection until the login is done: one command at a time."""

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self.reader = hiredis.Reader(replyError=ReplyError, notEnoughData=INCOMPLETE)
        self._arrived = asyncio.Event()
        self._lost: Exception | None = None
        self.mode = ""
        """standalone, cluster or sentinel. Unknown in RESP2, as is the role."""
        self.role = ""
        """master, or another word."""

    async def log_in(self, settings: RedisSettings, client_name: str) -> None:
        """Agree on RESP3 or RESP2, log in, name the connection and choose the database.

        Raises: ReplyError, HiredisError, OSError, ValueError.
        """
        username, password = settings.username, settings.password
        login = () if password is None else ("AUTH", username or "default", password)
        if not await self._say_hello(*login, "SETNAME", client_name):
            if password is not None:
                await self._set("AUTH", *(() if username is None else (username,)), password)
            await self._set("CLIENT", "SETNAME", client_name)
        if settings.database:
            await self._set("SELECT", settings.database)
        if self._transport.is_closing():
            raise ConnectionResetError("closed after the handshake")

    async def _say_hello(self, *options: Part) -> bool:
        """Choose RESP3, with these options. False where the server does not know HELLO."""
        try:
            reply = await self.ask("HELLO", 3, *options)
        except ReplyError as error:
            if not _HELLO_UNKNOWN.search(str(error)):
                raise
            return False
        if not isinstance(reply, dict) or reply.get(b"proto") != 3:
            raise ValueError(NOT_REDIS)
        self.mode, self.role = (_text(reply.get(field)) for field in (b"mode", b"role"))
        return True

    async def _set(self, *words: Part) -> None:
        if await self.ask(*words) != b"OK":
            raise ValueError(NOT_REDIS)

    async def ask(self, *words: Part) -> object:
        """One command, without the prefix of the settings. Raises: ReplyError, HiredisError, OSError."""
        self._transport.write(pack(words))
        while (reply := self.reader.gets()) is INCOMPLETE:
            if self._lost is not None:
                raise self._lost
            self._arrived.clear()
            await self._arrived.wait()
        if isinstance(reply, ReplyError):
            raise reply
        return reply

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        for level, option, value in KEEPALIVE:
            transport.get_extra_info("socket").setsockopt(level, option, value)

    def data_received(self, data: bytes) -> None:
        self.reader.feed(data)
        self._arrived.set()

    def connection_lost(self, error: Exception | None) -> None:
        # An error may be of TLS: a server refuses the client's certificate this late.
        self._lost = error or ConnectionResetError("closed in the handshake")
        self._arrived.set()


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else ""


class RespProtocol(ABC, asyncio.BufferedProtocol):
    """The protocol of a connection after the login. It is of no further use once the connection is lost."""

    def __init__(
        self, transport: asyncio.Transport, reader: hiredis.Reader, on_writable: Callable[[], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._buffer = memoryview(bytearray(READ_BYTES))  # asyncio slices it, and a slice must not be a copy
        self._on_writable = on_writable
        abandon_in_child(self.abandon)
        self._reason = "the server closed the connection"
        self.reader = reader
        self.writable = True
        """Whether the transport takes more. False while its buffer is full, and once the connection is lost."""
        self.received_at = self.connected_at = self._loop.time()
        self.lost: asyncio.Future[Unavailable] = self._loop.create_future()
        """Done, with the reason, once the connection is lost."""

    def abandon(self) -> None:
        """In a child process nothing is read or written."""
        replace_with_dead_socket(self._transport)

    @property
    def peer(self) -> str:
        """The IP address of the server."""
        return str((self._transport.get_extra_info("peername") or [""])[0])

    @abstractmethod
    def parse(self) -> None:
        """Take what the reader holds."""

    def get_buffer(self, _: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, count: int) -> None:
        self.received_at = self._loop.time()
        self.reader.feed(self._buffer, 0, count)  # type: ignore[arg-type]  # any buffer serves
        self.parse()

    def drop(self, reason: str) -> None:
        """Close the connection at once, whatever is in flight. Does nothing once it is lost."""
        if not self.lost.done():
            self.writable = False
            self._reason = reason
            self._transport.abort()

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        if not self._transport.is_closing():
            self.writable = True
            self._on_writable()

    def connection_lost(self, error: Exception | None) -> None:
        self.writable = False
        reason = f"{self._reason}: {error}" if error is not None else self._reason
        self.lost.set_result(Unavailable("redis", reason))


class Connector(ABC):
    """Chooses the server to connect to."""

    late_publishers_seconds = 0.0
    """How long other processes may publish at the server of the connection before. Zero where that is the same
    server."""

    @abstractmethod
    async def connect(self, client_name: str) -> Opened:
        """Connect to it, as `connect` does. Raises: Unavailable."""

    def watch(self) -> asyncio.Task[str] | None:
        """A task that ends once the new connection has to be given up, with the reason. None if it never has."""
        return None


P = TypeVar("P", bound=RespProtocol)


class Reconnector(ABC, Generic[P]):
    """Keeps one connection open from `start` until `close`. A subclass uses it, by a protocol of its own."""

    def __init__(self, client_name: str, settings: RedisSettings, connector: Connector) -> None:
        self._client_name = client_name
        self._settings = settings
        self._connector = connector
        self._task = BackgroundTask(f"the connection {client_name}", self._connect_once)
        self._failures = 0
        self._first_attempt_ended = asyncio.Event()
        self._logged: str | None = None
        self.is_closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        # Asking asyncio for the loop is a system call on Python 3.11, a third of a command. A caller is in this
        # loop if the loop runs and the thread is the same.
        self._thread = 0
        self.is_abandoned = False
        abandon_in_child(self.abandon)
        self._protocol: P | None = None
        self.failure: Unavailable | None = _lasting("the connection was not started")
        """Why there is no connection, None while there is one. Not retryable: a wrong login, or closed."""

    @property
    def connected(self) -> bool:
        """Whether there is a connection now. One to a frozen server counts until its silence is noticed."""
        return self._protocol is not None

    @property
    def is_starting(self) -> bool:
        """Whether the first attempt to connect is being made."""
        return not self._first_attempt_ended.is_set()

    @property
    def peer(self) -> str:
        """The address of the server, empty while there is no connection."""
        return "" if self._protocol is None else self._protocol.peer

    @property
    def connected_at(self) -> float:
        """When the connection was made, the newest of a cluster, in the time of the loop. `inf` without one."""
        return inf if self._protocol is None else self._protocol.connected_at

    async def start(self) -> None:
        """Connect. Returns after the first attempt and does not raise for its failure: more attempts follow.

        A second start only waits for the first attempt. Raises: Unavailable (it is closed, or was started by the
        parent process).
        """
        if self.is_closed:
            raise forked() if self.is_abandoned else _lasting(CLOSED)
        self.begin()
        await self._first_attempt_ended.wait()

    def begin(self) -> None:
        """As `start`, without waiting for the first attempt."""
        if not self._task.is_running:
            self._loop, self._thread = asyncio.get_running_loop(), get_ident()
            self.failure = Unavailable("redis", "the first connection is being made")
            self._task.start()

    async def close(self) -> None:
        """Close the connection for good. Callers that wait for it get Unavailable. Idempotent."""
        protocol = self._protocol
        self.is_closed = True
        self._set_disconnected(_lasting(CLOSED))
        self._first_attempt_ended.set()
        await self._task.close()
        if protocol is not None:
            await asyncio.wait([protocol.lost])

    def abandon(self) -> None:
        """In a child process there is no connection, and none is made. Does nothing before the start."""
        if self._loop is not None:
            self.is_closed = self.is_abandoned = True
            self._protocol = None
            self.failure = forked()

    @abstractmethod
    def _make_protocol(self, transport: asyncio.Transport, reader: hiredis.Reader) -> P:
        """The protocol of a new connection."""

    @abstractmethod
    def _on_connected(self, protocol: P) -> None:
        """Use a new connection."""

    @abstractmethod
    def _on_disconnected(self, failure: Unavailable) -> None:
        """Take note of a lost connection, of a failed attempt, or of `close`."""

    async def _connect_once(self) -> float:
        try:
            transport, reader = await self._connector.connect(self._client_name)
        except Unavailable as error:
            self._failures += 1
            failure = error
        else:
            self._failures = 1
            failure = await self._use(transport, reader)
        finally:
            self._first_attempt_ended.set()
        if failure.reason != self._logged:  # once per reason, not per attempt
            level = logging.WARNING if failure.retryable else logging.ERROR
            logger.log(level, "%s: %s; reconnecting", self._client_name, failure.reason)
            self._logged = failure.reason
        self._set_disconnected(failure)
        return pause_seconds(self._failures)

    async def _use(self, transport: asyncio.Transport, reader: hiredis.Reader) -> Unavailable:
        if transport.is_closing():  # a new protocol would never be told that the connection is lost
            return Unavailable("redis", "the server closed the connection after the login")
        protocol = self._make_protocol(transport, reader)
        transport.set_protocol(protocol)
        protocol.parse()  # what arrived with the last reply of the handshake
        if self._logged is not None:
            logger.info("%s: connected again", self._client_name)
        self._logged = self.failure = None
        self._protocol = protocol
        with ReportErrors(f"{self._client_name}: using a new connection"):
            self._on_connected(protocol)
        self._first_attempt_ended.set()
        reason, watching = CLOSED, self._connector.watch()
        ends: list[asyncio.Future[Any]] = [protocol.lost] if watching is None else [protocol.lost, watching]
        try:
            # Awaited by itself, the future would be cancelled with the task.
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if watching is not None and watching.done():
                reason = watching.result()
        finally:
            protocol.drop(reason)
            if watching is not None:
                watching.cancel()
        await asyncio.wait([protocol.lost])
        return protocol.lost.result()

    def _set_disconnected(self, failure: Unavailable) -> None:
        if self.is_abandoned:
            return
        self.failure = failure
        self._protocol = None
        with ReportErrors(f"{self._client_name}: giving up a connection"):
            self._on_disconnected(failure)


def _lasting(reason: str) -> Unavailable:
    return Unavailable("redis", reason, retryable=False)


def pause_seconds(failures: int) -> float:
    """The pause before the next attempt, shortened by up to half so that not all processes return at once."""
    return jittered(min(failures * PAUSE_STEP_SECONDS, MAX_PAUSE_SECONDS))
