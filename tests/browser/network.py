"""The network between a browser and the chat: it can be cut, and slow."""

from __future__ import annotations

import asyncio
import random

from faults.relays import End, Pump, Relay, pass_on


class Network(Relay):
    """Carries all connections, until it is cut. `delay_seconds` is the most that each piece is held back."""

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
        return self._pass(client.reader, server.writer), self._pass(server.reader, client.writer)

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        if not self.delay_seconds:
            await pass_on(source, target)
            return
        while data := await source.read(random.randint(1, 2_000)):
            await asyncio.sleep(random.uniform(0, self.delay_seconds))
            target.write(data)
            await target.drain()
