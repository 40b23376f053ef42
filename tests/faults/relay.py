"""TCP relays before a server: one loses answers of PostgreSQL, one doorbells of Redis, and one everything."""

from __future__ import annotations

import asyncio
import random
import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Self

from faults.frames import Commands, Pushes


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
        self._is_over.set()  # each call hangs up by itself, so that none is left half closed
        await asyncio.gather(*self._calls)
        await self._listener.wait_closed()

    @abstractmethod
    async def answers(self, server: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        """Carry what the server says. When it returns the connection ends."""

    async def questions(self, client: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        """Carry what the client says. When it returns the connection ends."""
        while data := await client.read(65536):
            server.write(data)
            await server.drain()

    async def _listen(self, port: int) -> asyncio.Server:
        return await asyncio.start_server(self._accept, "127.0.0.1", port)

    def _accept(self, client: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        call = asyncio.create_task(self._carry(client, writer))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _carry(self, client: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server, to_server = await asyncio.open_connection(*self._server)
        except OSError:
            writer.close()  # as the server itself would refuse
            return
        pumps = [
            asyncio.create_task(self.questions(client, to_server)),
            asyncio.create_task(self.answers(server, writer)),
            asyncio.create_task(self._is_over.wait()),
        ]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        for end in (writer, to_server):
            end.close()
            with suppress(OSError):
                await end.wait_closed()


class LostAnswers(Relay):
    """Before PostgreSQL: now and then the answer to a write is lost, with the connection, after its commit."""

    def __init__(self, host: str, port: int, *, share: float, seed: int) -> None:
        super().__init__(host, port)
        self._share = share
        self._random = random.Random(seed)
        self.lost = 0
        self.carried = 0

    async def answers(self, server: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        commands = Commands()
        is_losing = False
        while data := await server.read(65536):
            for frame in commands.feed(data):
                if frame.ends_write:
                    is_losing = self._random.random() < self._share
                    self.carried += not is_losing
                # The server is ready for the next query after the commit, not before.
                if is_losing and frame.is_ready:
                    self.lost += 1
                    return
                if not is_losing:
                    client.write(frame.data)


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

    async def questions(self, client: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        while data := await client.read(65536):
            await self._is_passable.wait()
            server.write(data)

    async def answers(self, server: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        while data := await server.read(65536):
            await self._is_passable.wait()
            client.write(data)


class Doorbells(Relay):
    """Before Redis: everything passes but what is published, of which some is dropped and some comes late."""

    def __init__(self, host: str, port: int, *, dropped: float, late_seconds: float, seed: int) -> None:
        super().__init__(host, port)
        self._dropped = dropped
        self._late_seconds = late_seconds
        self._random = random.Random(seed)
        self.dropped = 0
        self.delayed = 0

    async def answers(self, server: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
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
