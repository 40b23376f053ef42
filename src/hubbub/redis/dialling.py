"""From settings to an open connection: redis-py does the handshake, then the wire takes over."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from redis.asyncio import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from hubbub.errors import Invalid, Unavailable
from hubbub.redis.refusals import LOCKED_OUT, without_values
from hubbub.settings.tls import failure_in

if TYPE_CHECKING:
    from hubbub.redis.wire import Wire
    from hubbub.settings import RedisSettings


class Dialler:
    """Opens one connection after another to the same server, with RESP3 where it has it, else RESP2."""

    def __init__(self, settings: RedisSettings, client_name: str) -> None:
        self._settings = settings
        self._client_name = client_name
        self._redis = self._handshaker(protocol=3)

    async def dial(self, wire: Wire) -> None:
        """Connect, log in, and give the connection to `wire`.

        Raises Unavailable, not retryable where the login was refused. Ends within the connect timeout.
        """
        try:
            await self._open()
            await self._hand_over(wire)
        except (RedisError, OSError, Invalid, AttributeError, TypeError, ValueError) as error:
            # The last three: redis-py takes the answer to HELLO apart without a look at what it is.
            quotes = without_values(str(error)) != str(error)  # of HELLO or AUTH: the password
            raise self._failure(error) from (None if quotes else error)

    async def _open(self) -> None:
        try:
            async with asyncio.timeout(self._settings.connect_timeout_seconds):
                await self._prepare_tls()
                await self._shake_hands()
        except BaseException:
            await self._redis.disconnect(nowait=True)
            raise

    async def _prepare_tls(self) -> None:
        if isinstance(self._redis, SSLConnection):
            # For every connection, so that renewed certificates are taken up; off the loop, as it may read files.
            self._redis.ssl_context.context = await asyncio.to_thread(self._settings.ssl)

    async def _shake_hands(self) -> None:
        try:
            await self._redis.connect()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
        except (ResponseError, AuthenticationError) as error:
            if self._redis.protocol == 2 or not _knows_no_hello(error):
                raise
        else:
            return
        # Not while that error is handled: it may quote the password, and would be shown with the next one.
        self._redis = self._handshaker(protocol=2)
        await self._prepare_tls()
        await self._redis.connect()  # type: ignore[no-untyped-call]  # as above

    async def _hand_over(self, wire: Wire) -> None:
        stream, reader = self._redis._writer, self._redis._reader
        # Its destructor closes what it still holds, and its next connect() would think itself connected.
        self._redis._writer = self._redis._reader = None
        if stream is None or reader is None:
            raise ConnectionResetError("closed in the handshake")
        if reader.at_eof() or stream.transport.is_closing():
            # The old protocol has been told of the end already; the new one never would be.
            stream.transport.abort()
            raise ConnectionResetError("closed after the handshake")
        wire.take_over(stream)
        # With the end marked, read() gives what arrived before the take-over and cannot wait.
        reader.feed_eof()
        early = await reader.read()
        if early:
            wire.data_received(early)

    def _handshaker(self, protocol: int) -> Connection:
        settings = self._settings
        make = SSLConnection if settings.tls else Connection
        return make(
            host=settings.host,
            port=settings.port,
            db=settings.database,
            username=settings.username,
            password=settings.password,
            client_name=self._client_name,
            protocol=protocol,
            # Both only bound the handshake: once the wire has taken over, redis-py reads no more.
            socket_connect_timeout=settings.connect_timeout_seconds,
            socket_timeout=settings.connect_timeout_seconds,
            # The line redials; redis-py's own default differs between its constructors.
            retry=Retry(NoBackoff(), 0),
            health_check_interval=0,
            socket_keepalive=True,
            # Byte by byte its parser never holds more than the reply it gave: nothing is left behind in it.
            socket_read_size=1,
        )

    def _failure(self, error: Exception) -> Unavailable:
        where = f"{self._settings.host}:{self._settings.port}"
        said = without_values(str(error))
        if isinstance(error, AuthenticationError) or getattr(error, "status_code", None) in LOCKED_OUT:
            return Unavailable("redis", f"{where} refuses the login: {said}", retryable=False)
        if (refused := failure_in(error)) is not None:
            return Unavailable("redis", f"TLS with {where} failed: {refused}", retryable=False)
        if isinstance(error, (TimeoutError, RedisTimeoutError)):
            waited = self._settings.connect_timeout_seconds
            return Unavailable("redis", f"{where} did not answer within {waited:g} s")
        return Unavailable("redis", f"no connection to {where}: {said}")


def _knows_no_hello(error: RedisError) -> bool:
    """A proxy, or a server with HELLO renamed away: it may still speak RESP2."""
    # The last: Valkey says so to a command that it does not know before the login. HELLO would have logged in.
    return any(sign in str(error) for sign in ("NOPROTO", "unknown command", "Authentication required"))
