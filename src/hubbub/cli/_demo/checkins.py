"""Sessions that many requests ask for, while some of them end."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from time import perf_counter
from typing import Final
from uuid import UUID

from hubbub.cli._demo.figures import Claim, Figure, Scene, Stopwatch
from hubbub.cli._demo.stage import Stage
from hubbub.cli._demo.together import together
from hubbub.hub import Hub

CALLERS: Final = 100
LOOKUPS: Final = 40
DEVICES: Final = ("phone", "laptop", "tablet")


class Visitors:
    """The tokens of everybody, and which of them have been ended."""

    def __init__(self, hub: Hub, watch: Stopwatch) -> None:
        self._hub = hub
        self._watch = watch
        self._owners: dict[str, UUID] = {}
        self._ending: set[str] = set()
        self._ended: set[str] = set()
        self.right = Claim("a session is that of its user")
        self.over = Claim("an ended session is never accepted")

    async def enter(self, user_id: UUID) -> None:
        for device in DEVICES:
            with self._watch.time("begin a session"):
                token = await self._hub.sessions.create_session(user_id, {"device": device})
            self._owners[token] = user_id

    async def come_back(self, chance: Random) -> None:
        """Send requests with any of the tokens that are known, one after the other."""
        for token in chance.choices(list(self._owners), k=LOOKUPS):
            await self.look_up(token)

    async def look_up(self, token: str) -> None:
        """What was ended before this began must not be accepted; of what is being ended, either may be true."""
        was_ended = token in self._ended
        with self._watch.time("look up a session"):
            session = await self._hub.sessions.get_session(token)
        if was_ended:
            self.over.holds(session is None, "a session that had ended was accepted")
        elif token not in self._ending:
            found = None if session is None else session.user_id
            self.right.holds(found == self._owners[token], f"the session of {self._owners[token]} is {found}'s")

    async def log_out(self, user_id: UUID) -> None:
        """One device gets a new token, another one is logged out, and then all of the user's are."""
        first, second, *_ = mine = [token for token, owner in self._owners.items() if owner == user_id]
        self._ending |= set(mine)
        with self._watch.time("change a token"):
            new_one = await self._hub.sessions.rotate(first)
        self._ended.add(first)
        with self._watch.time("end a session, or all of a user"):
            await self._hub.sessions.delete_session(second)
        self._ended.add(second)
        self.right.holds(new_one is not None, f"a session of {user_id} got no new token")
        with self._watch.time("end a session, or all of a user"):
            ended = await self._hub.sessions.revoke_all(user_id)
        self._ended |= set(mine)
        self.over.holds(ended == len(mine) - 1, f"{user_id} had {len(mine) - 1} sessions, {ended} were ended")
        for token in mine if new_one is None else [*mine, new_one]:
            session = await self._hub.sessions.get_session(token)
            self.over.holds(session is None, f"{user_id} was logged out everywhere and is still let in")


async def check_in(stage: Stage, watch: Stopwatch, people: Sequence[UUID]) -> Scene:
    """Many requests at the same time, and halfway through every other user logs out everywhere."""
    visitors = Visitors(stage.hub, watch)
    await together(visitors.enter(user_id) for user_id in people)
    begin = perf_counter()
    requests = (visitors.come_back(Random(number)) for number in range(CALLERS))  # noqa: S311 - no secret
    await together([*requests, *(visitors.log_out(user_id) for user_id in people[::2])])
    seconds = perf_counter() - begin
    lookups = Figure(what=f"lookups by {CALLERS} callers at once", count=CALLERS * LOOKUPS, seconds=seconds)
    return Scene((visitors.right.check(), visitors.over.check()), (lookups,))
