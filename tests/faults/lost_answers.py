"""A relay before PostgreSQL that loses answers to writes, after their commit."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from enum import Enum, auto
from itertools import count

from faults.frames import Commands
from faults.relay import End, Pump, Relay
from faults.rounds import Rounds


class Fate(Enum):
    """What becomes of an answer to a write."""

    CARRIED = auto()
    LOST = auto()
    """With the connection that it was on: what asked may ask again at once."""
    LOST_WITH_ALL = auto()
    """With all connections, and the next ones are refused: what asked cannot ask again."""


def one_in(answers: int) -> Iterator[Fate]:
    """One in so many is lost, every second of these with all connections."""
    for number in count(1):
        if number % answers:
            yield Fate.CARRIED
        else:
            yield Fate.LOST if number // answers % 2 else Fate.LOST_WITH_ALL


class LostAnswers(Relay):
    """Has a fate for each answer to a write, in the order in which they come.

    After one that was `LOST_WITH_ALL` it refuses so many connections, one after the other.
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
        commands, fate = Commands(), Fate.CARRIED
        while data := await server.reader.read(65536):
            for frame in commands.feed(data):
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
