"""What a watcher hears of people who come and go, or who start and stop typing."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable
from typing import Final
from uuid import UUID

from hubbub.cli._demo.figures import Claim
from hubbub.events import PresenceChanged, TypingChanged
from hubbub.redis import Gap

# Far more than anything here takes: what has not been heard by then is lost.
PATIENCE_SECONDS: Final = 30


class Transitions:
    """Listens, and keeps for each user what was said: True for a beginning, False for an end, in order."""

    def __init__(self, changes: AsyncGenerator[PresenceChanged | TypingChanged | Gap, None]) -> None:
        self._changes = changes
        self._heard: defaultdict[UUID, list[bool]] = defaultdict(list)
        self._gaps = 0

    async def begin(self) -> None:
        """From here on nothing is missed: the first thing to be heard is that Redis has confirmed."""
        await anext(self._changes)

    async def until(self, user_ids: Iterable[UUID], times: int) -> None:
        """Listen until each of these users was spoken of so many times, or for as long as patience lasts."""
        missing = {user_id for user_id in user_ids if len(self._heard[user_id]) < times}
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while missing:
                    change = await anext(self._changes)
                    if isinstance(change, Gap):
                        self._gaps += 1
                        continue
                    said = self._heard[change.user_id]
                    said.append(change.is_online if isinstance(change, PresenceChanged) else change.is_typing)
                    if len(said) >= times:
                        missing.discard(change.user_id)
        except (TimeoutError, StopAsyncIteration):
            return  # what is missing is seen in `compare`; a generator that was given up has ended

    def compare(self, claim: Claim, user_ids: Iterable[UUID]) -> None:
        """Each of these users began once and ended once, and nothing was missed meanwhile."""
        for user_id in user_ids:
            said = self._heard[user_id]
            claim.holds(said == [True, False], f"of {user_id} was heard {said}")
        if self._gaps:
            claim.holds(False, f"{self._gaps} times the watcher was told that it may have missed something")
