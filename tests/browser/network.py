"""The network between a browser and the chat: it can be cut, slow, and late."""

from __future__ import annotations

import asyncio
import random

from faults.relays import End, Pump, Relay, pass_on


class Network(Relay):
    """Carries all connections, until it is cut. `delay_seconds` is the most that each piece is held back.

    What is under way to the server when a slow network hangs up arrives up to ten times as late, and the server
    learns of the end after that. So it has the next connection of a client before the end of the one before.
    """

    delay_seconds = 0.0

    def cut(self) -> None:
        """End all connections, and refuse new ones."""
        assert self._listener is not None
        self._listener.close()
        self.hang_up()

    async def restore(self) -> None:
        """Carry connections again, on the same port."""
        self._listener = await self._listen(self.port)

    def pumps(self, client: End, server: End) -> tuple[Pump, Pump]:
        return self._to_server(client, server), self._pass(server.reader, client.writer)

    async def _to_server(self, client: End, server: End) -> None:
        under_way = bytearray()
        try:
            await self._pass(client.reader, server.writer, under_way)
        except asyncio.CancelledError:
            client.writer.close()
            await asyncio.sleep(random.uniform(0, 10 * self.delay_seconds))
            server.writer.write(under_way)
            raise

    async def _pass(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, under_way: bytearray | None = None
    ) -> None:
        if not self.delay_seconds:
            await pass_on(source, target)
            return
        under_way = bytearray() if under_way is None else under_way
        while data := await source.read(random.randint(1, 2_000)):
            under_way += data
            await asyncio.sleep(random.uniform(0, self.delay_seconds))
            target.write(data)
            under_way.clear()
            await target.drain()
