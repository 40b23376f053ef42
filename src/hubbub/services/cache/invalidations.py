"""Telling Redis what is out of date, until it has understood."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hubbub.redis import Connection, Outcome
    from hubbub.services.cache.counts import Counts

TOGETHER: Final = 1_000
DEADLINE_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 0.25

MOST_REMEMBERED: Final = 50_000
"""Keys that wait for Redis to come back; about 10 MB."""


class Invalidations:
    """The keys whose entries are out of date, each until Redis has acknowledged that the entry is gone.

    While a key is in here, this process uses no entry of it. What is added in one turn of the event loop goes out
    together, and one DELETE is under way at a time and takes all that wait: so a room in which many write costs
    one key a round trip, not one a message. What fails is tried again, four times a second, for as long as it
    takes. When too many wait, all entries are out of use for `longest_life_seconds` instead: after that time no
    entry from before is left in Redis.
    """

    def __init__(self, connection: Connection, counts: Counts, *, longest_life_seconds: float) -> None:
        self._connection = connection
        self._counts = counts
        self._longest_life_seconds = longest_life_seconds
        self._waiting: dict[str, None] = {}
        self._sent: dict[str, None] = {}
        self._deleting: asyncio.Future[list[Outcome]] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._is_due = False
        self._nothing_until = 0.0
        self._closed = False

    def __contains__(self, key: str) -> bool:
        return key in self._waiting or key in self._sent or self._has_forgotten()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._sent)

    def _has_forgotten(self) -> bool:
        return self._nothing_until > 0 and asyncio.get_running_loop().time() < self._nothing_until

    def add(self, key: str) -> None:
        """Neither waits nor raises. From here on the key is in, and on its way."""
        if len(self._waiting) >= MOST_REMEMBERED:
            self._nothing_until = asyncio.get_running_loop().time() + self._longest_life_seconds
            self._waiting.clear()
        self._waiting[key] = None
        if not self._is_due and self._deleting is None and self._retry is None:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._send)

    async def close(self) -> None:
        """Tell Redis what is left, for up to a second. What it does not acknowledge ends with its time to live."""
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._send()
        while self._deleting is not None:
            await asyncio.wait([self._deleting])

    def _send(self) -> None:
        self._is_due = False
        if self._deleting is not None or self._retry is not None or not self._waiting:
            return
        self._sent = dict.fromkeys(islice(self._waiting, TOGETHER))
        for key in self._sent:
            del self._waiting[key]
        # One DEL a key, because the keys of one DEL have to be in one slot of a cluster.
        self._deleting = self._connection.execute_many(
            [("DEL", key) for key in self._sent], deadline_seconds=DEADLINE_SECONDS
        )
        self._deleting.add_done_callback(self._answered)

    def _answered(self, deleting: asyncio.Future[list[Outcome]]) -> None:
        sent, self._sent, self._deleting = self._sent, {}, None
        failed: Iterable[str] = sent
        if deleting.exception() is None:
            outcomes = zip(sent, deleting.result(), strict=True)
            failed = [key for key, outcome in outcomes if isinstance(outcome, Exception)]
        if failed:
            self._counts.failed_invalidations += 1
            self._waiting |= dict.fromkeys(failed)
            self._try_again_later()
        else:
            self._send()

    def _try_again_later(self) -> None:
        if not self._closed:
            self._retry = asyncio.get_running_loop().call_later(RETRY_SECONDS, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self._send()
