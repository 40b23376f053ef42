"""TCP relays before a server: one loses doorbells of Redis, and one everything."""

from __future__ import annotations

import asyncio
import random
import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple, Self

from faults.frames import Pushes

Pump = Coroutine[None, None, None]


class End(NamedTuple):
    """What a relay hears and says to one of the two that it connects."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class Relay(ABC):
    """Connect to `port` on the loopback instead of to the server."""

    def __init__(self, host: str, port: int) -> None:
        self._server = host, port
        self._calls: set[asyncio.Task[None]] = set()
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
        await asyncio.gather(*self._calls)
        await self._listener.wait_closed()

    def hang_up(self) -> None:
        """End all connections that there are. Each ends by itself, so that none is left half closed."""
        self._is_over.set()
        self._is_over = asyncio.Event()

    @abstractmethod
    def pumps(self, client: End, server: End) -> tuple[Pump, Pump]:
        """What carries the questions, and what the answers. When one of them returns the connection ends."""

    async def _listen(self, port: int) -> asyncio.Server:
        return await asyncio.start_server(self._accept, "127.0.0.1", port)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        call = asyncio.create_task(self._carry(End(reader, writer), self._is_over))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

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


async def passed_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """A pump that loses nothing."""
    while data := await source.read(65536):
        target.write(data)
        await target.drain()


class Blackhole(Relay):
    """Before either server: carries everything, until the network swallows everything and says nothing of it."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self._is_passable = asyncio.Event()
        self._is_passable.set()

    @asynccontextmanager
    async def swallowing(self) -> AsyncIterator[None]:
        """What is sent does not arrive, on open connections either, and nobody answers who connects.

        At the end all of it is delivered, as TCP does, which has tried again meanwhile.
        """
        assert self._listener is not None
        self._listener.close()
        self._is_passable.clear()
        with socket.create_server(("127.0.0.1", self.port), backlog=0):
            # One connection is made by the kernel, and nobody accepts it. What comes then is not answered at all.
            yield
        self._listener = await self._listen(self.port)
        self._is_passable.set()

    def pumps(self, client: End, server: End) -> tuple[Pump, Pump]:
        return self._pass(client.reader, server.writer), self._pass(server.reader, client.writer)

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            await self._is_passable.wait()
            target.write(data)


class Doorbells(Relay):
    """Before Redis: everything passes but what is published, of which some is dropped and some comes late."""

    def __init__(self, host: str, port: int, *, dropped: float, late_seconds: float, seed: int) -> None:
        super().__init__(host, port)
        self._dropped = dropped
        self._late_seconds = late_seconds
        self._random = random.Random(seed)
        self.dropped = 0
        self.delayed = 0

    def pumps(self, client: End, server: End) -> tuple[Pump, Pump]:
        return passed_on(client.reader, server.writer), self._answers(server.reader, client.writer)

    async def _answers(self, server: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        pushes = Pushes()
        while data := await server.read(65536):
            for frame in pushes.feed(data):
                if not frame.is_published:
                    client.write(frame.data)
                elif self._random.random() < self._dropped:
                    self.dropped += 1
                elif self._late_seconds:
                    self.delayed += 1
                    late = self._random.uniform(0, self._late_seconds)
                    asyncio.get_running_loop().call_later(late, _ring, client, frame.data)
                else:
                    client.write(frame.data)


def _ring(client: asyncio.StreamWriter, data: bytes) -> None:
    if not client.is_closing():
        client.write(data)
