"""TCP relays in front of a server that drop everything, announcements, or answers to writes."""

from __future__ import annotations

import asyncio
import random
import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from enum import Enum, auto
from itertools import count
from typing import NamedTuple, Self

from faults.frames import Answers, Replies, Rounds

Pump = Coroutine[None, None, None]


class End(NamedTuple):
    """One end of a relayed connection: the client, or the server."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class Relay(ABC):
    """A relay to a server. Connect to its `port` on the loopback interface."""

    def __init__(self, host: str, port: int) -> None:
        self._server = host, port
        self._connections: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self._is_over = asyncio.Event()
        self.port = 0

    async def __aenter__(self) -> Self:
        self._listener = await self._listen(0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._listener is not None
        self._listener.close()
        self.hang_up()
        await asyncio.gather(*self._connections)
        await self._listener.wait_closed()

    def hang_up(self) -> None:
        """End all connections. Each task closes its own, so that no connection stays half closed."""
        self._is_over.set()
        self._is_over = asyncio.Event()

    @abstractmethod
    def pumps(self, client: End, server: End) -> tuple[Pump, Pump]:
        """The coroutines that carry requests and answers. The connection ends when one of them returns."""

    async def _listen(self, port: int) -> asyncio.Server:
        return await asyncio.start_server(self._accept, "127.0.0.1", port)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._carry(End(reader, writer), self._is_over))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _carry(self, client: End, is_over: asyncio.Event) -> None:
        try:
            server = End(*await asyncio.open_connection(*self._server))
        except OSError:
            client.writer.close()  # as the server itself would refuse
            return
        pumps = [asyncio.create_task(pump) for pump in (*self.pumps(client, server), _until(is_over))]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        for end in (client, server):
            end.writer.close()
            with suppress(OSError):
                await end.writer.wait_closed()


async def _until(event: asyncio.Event) -> None:
    await event.wait()


async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """A pump that drops nothing."""
    while data := await source.read(65536):
        target.write(data)
        await target.drain()


class Blackhole(Relay):
    """In front of either server. It carries everything, and drops everything within `swallowing`."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self._is_passable = asyncio.Event()
        self._is_passable.set()

    @asynccontextmanager
    async def swallowing(self) -> AsyncIterator[None]:
        """Nothing that is sent arrives, not even on open connections, and new connections are not answered.

        At the end everything is delivered, because TCP retransmits.
        """
        assert self._listener is not None
        self._listener.close()
        self._is_passable.clear()
        with socket.create_server(("127.0.0.1", self.port), backlog=0):
            # The kernel makes one connection, which is not accepted. Later ones are not answered at all.
            yield
        self._listener = await self._listen(self.port)
        self._is_passable.set()

    def pumps(self, client: End, server: End) -> tuple[Pump, Pump]:
        return self._pass(client.reader, server.writer), self._pass(server.reader, client.writer)

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            await self._is_passable.wait()
            target.write(data)


class LostAnnouncements(Relay):
    """In front of Redis. It drops some published messages, delays some, and passes everything else."""

    def __init__(self, host: str, port: int, *, dropped: float, late_seconds: float, seed: int) -> None:
        super().__init__(host, port)
        self._dropped = dropped
        self._late_seconds = late_seconds
        self._random = random.Random(seed)
        self.dropped = 0
        self.delayed = 0

    def pumps(self, client: End, server: End) -> tuple[Pump, Pump]:
        return pass_on(client.reader, server.writer), self._answers(server.reader, client.writer)

    async def _answers(self, server: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        replies = Replies()
        while data := await server.read(65536):
            for frame in replies.feed(data):
                if not frame.is_published:
                    client.write(frame.data)
                elif self._random.random() < self._dropped:
                    self.dropped += 1
                elif self._late_seconds:
                    self.delayed += 1
                    late = self._random.uniform(0, self._late_seconds)
                    asyncio.get_running_loop().call_later(late, _write, client, frame.data)
                else:
                    client.write(frame.data)


def _write(client: asyncio.StreamWriter, data: bytes) -> None:
    if not client.is_closing():
        client.write(data)


class Fate(Enum):
    """The fate of an answer to a write."""

    CARRIED = auto()
    LOST = auto()
    """Lost with its own connection. The client can ask again at once."""
    LOST_WITH_ALL = auto()
    """Lost with all connections, and the next ones are refused. The client cannot ask again."""


def one_in(answers: int) -> Iterator[Fate]:
    """Fates by which one in `answers` is lost, every second of these with all connections."""
    for number in count(1):
        if number % answers:
            yield Fate.CARRIED
        else:
            yield Fate.LOST if number // answers % 2 else Fate.LOST_WITH_ALL


class LostAnswers(Relay):
    """In front of PostgreSQL. It drops answers to writes after their commit, by the fates in their order.

    After a `LOST_WITH_ALL` it refuses this many connections in a row.
    """

    def __init__(self, host: str, port: int, fates: Iterator[Fate], *, refuses: int) -> None:
        super().__init__(host, port)
        self._fates = fates
        self._refuses = refuses
        self._to_refuse = 0
        self.carried = 0
        self.lost = 0
        self.refused = 0

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._to_refuse:
            super()._accept(reader, writer)
            return
        self._to_refuse -= 1
        self.refused += 1
        writer.close()

    def pumps(self, client: End, server: End) -> tuple[Pump, Pump]:
        rounds = Rounds()
        return self._questions(client, server, rounds), self._answers(client, server, rounds)

    async def _questions(self, client: End, server: End, rounds: Rounds) -> None:
        while data := await client.reader.read(65536):
            rounds.feed(data)
            server.writer.write(data)
            await server.writer.drain()

    async def _answers(self, client: End, server: End, rounds: Rounds) -> None:
        answers, fate = Answers(), Fate.CARRIED
        while data := await server.reader.read(65536):
            for frame in answers.feed(data):
                if frame.ends_statement and rounds.writes:
                    fate = next(self._fates)
                    self.carried += fate is Fate.CARRIED
                if fate is Fate.CARRIED:
                    client.writer.write(frame.data)
                # The server is ready for the next query after the commit, not before.
                if frame.is_ready:
                    rounds.is_answered()
                    if fate is not Fate.CARRIED:
                        self._lose(fate)
                        return

    def _lose(self, fate: Fate) -> None:
        self.lost += 1
        if fate is Fate.LOST_WITH_ALL:
            self._to_refuse = self._refuses
            self.hang_up()
