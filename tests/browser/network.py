"""The network between a browser and the chat. It can be cut, and it can delay data."""

from __future__ import annotations

import asyncio
import random

from faults.relays import End, Pump, Relay, pass_on


class Network(Relay):
    """Carries all connections until it is cut. `delay_seconds` is the longest delay of each piece of data.

    When a slow network disconnects, data in flight to the server arrive up to ten times as late, followed by the
    end of the connection. So the server accepts a client's next connection before it sees the end of the last one.
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
