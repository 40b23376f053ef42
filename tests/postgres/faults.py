"""Faults of a connection: a proxy that loses answers, and server processes that hang."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from signal import SIGCONT, SIGSTOP
from typing import Self

from hubbub import PostgresSettings


class Proxy:
    """A TCP proxy in front of a server. Connect with its `settings`."""

    def __init__(self, server: PostgresSettings) -> None:
        self.settings = server
        self._server = server
        self._listener: asyncio.Server | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self._lost: bytes | None = None
        self._cut = self._last = False

    def lose_answer_to(self, sent: bytes, *, cut: bool, last: bool = False) -> None:
        """Lose the answer to the next message that contains `sent`. The server receives it and acts on it.

        With `cut` the connection then ends, otherwise it stays silent. With `last` the proxy accepts no further
        connection.
        """
        self._lost, self._cut, self._last = sent, cut, last

    @property
    def has_lost_nothing_yet(self) -> bool:
        """Whether the message whose answer is to be lost is still to come."""
        return self._lost is not None

    def lose_nothing(self) -> None:
        self._lost = None

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._listener.sockets[0].getsockname()[1]
        self.settings = replace(self._server, host="127.0.0.1", port=port)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._listener is not None
        self._listener.close()
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        await self._listener.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        call = asyncio.create_task(self._carry(reader, writer))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection(self._server.host, self._server.port)
        losing = asyncio.Event()

        async def questions() -> None:
            while data := await reader.read(65536):
                if self._lost is not None and self._lost in data:
                    self._lost = None
                    losing.set()
                    if self._last and self._listener is not None:
                        self._listener.close()
                to_server.write(data)

        async def answers() -> None:
            while data := await from_server.read(65536):
                if not losing.is_set():
                    writer.write(data)
                elif self._cut:
                    return

        pumps = [asyncio.create_task(questions()), asyncio.create_task(answers())]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for end in (writer, to_server):
                end.close()
                with suppress(OSError):
                    await end.wait_closed()


@asynccontextmanager
async def frozen(*pids: int) -> AsyncIterator[None]:
    """Freeze these processes of the server during the block, as on a machine that hangs."""
    for pid in pids:
        os.kill(pid, SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, SIGCONT)
