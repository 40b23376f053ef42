"""`hubbub demo --serve`: the chat of examples/chat in a browser, in which the end of a log is written again."""

from __future__ import annotations

import asyncio
import importlib
import io
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Final
from uuid import UUID

import msgspec

from hubbub.diagnostics import find_imported_user
from hubbub.errors import Invalid
from hubbub.history import JoinLine, LeaveLine, MessageLine
from hubbub.history.lines import PlainLine, room_id_of
from hubbub.hub import Hub

PLAYED: Final = 200
"""The last lines of the log are played, at most half of it. All before them is history."""
ONLINE: Final = 50
"""Authors who are online meanwhile, as the last ones that wrote."""
TYPING_SECONDS: Final = 1.0
PAUSE_SECONDS: Final = (0.2, 1.5)
VISITORS: Final = {"visitor": "A visitor", "visitor-2": "Another visitor"}
"""The users of the two windows, who are members of all rooms of the log. The numbers keep their names apart."""

PACKAGE: Final = Path(__file__).parents[1]


def serve(lines: Iterable[PlainLine], *, port: int, opens: bool, parent: Path | None) -> None:
    """Serve the chat on servers of its own, until a signal ends it."""
    folders = (PACKAGE / "examples" / "chat", PACKAGE.parents[1] / "examples" / "chat")  # of a wheel, or a clone
    sys.path.insert(0, str(next(folder for folder in folders if folder.exists())))
    chat = importlib.import_module("app")
    player = Player(lines)
    with suppress(KeyboardInterrupt, asyncio.CancelledError):
        asyncio.run(chat.main(port, opens=opens, fill=player.fill, play=player.play, parent=parent))


class Player:
    """The history of a log, and its end, which goes on."""

    def __init__(self, lines: Iterable[PlainLine]) -> None:
        self._history = io.BytesIO()
        self._played: deque[PlainLine] = deque()
        for number, line in enumerate(lines, 1):
            self._played.append(line)
            if len(self._played) > min(PLAYED, (number + 1) // 2):
                self._history.write(msgspec.json.encode(self._played.popleft()) + b"\n")
        self._history.seek(0)
        self._users: dict[str, UUID] = {}
        self._random = Random(0)

    async def fill(self, hub: Hub) -> Sequence[str]:
        """Import the history. Returns the usernames of the users of the windows."""
        await hub.history.load(self._history)
        joins = {
            (line.room, line.user): JoinLine(at=line.at, room=line.room, user=line.user) for line in self._played
        }
        await hub.history.load(io.BytesIO(b"".join(msgspec.json.encode(line) + b"\n" for line in joins.values())))
        for nickname in dict.fromkeys(line.user or "" for line in self._played):
            self._users[nickname] = await find_imported_user(hub, nickname)
        room_ids = dict.fromkeys(map(room_id_of, self._played))
        for number, (username, display_name) in enumerate(VISITORS.items()):
            user = await hub.users.create(f"{number}@example.org", username, "!", display_name=display_name)
            for room_id in room_ids:
                await hub.room_users.add(room_id, user.id)
        return list(VISITORS)

    async def play(self, hub: Hub) -> None:
        """Write what is left of the log, again and again."""
        async with AsyncExitStack() as stack:
            for user_id in list(self._users.values())[-ONLINE:]:
                await stack.enter_async_context(hub.presence.online(user_id))
            for line in cycle(self._played):
                with suppress(Invalid):  # longer than a send may be, or the last admin, who stays
                    await self._write(hub, line)
                await asyncio.sleep(self._random.uniform(*PAUSE_SECONDS))

    async def _write(self, hub: Hub, line: PlainLine) -> None:
        room_id, user_id = room_id_of(line), self._users[line.user or ""]
        if isinstance(line, LeaveLine):
            await hub.room_users.remove(room_id, user_id)
            return
        await hub.room_users.add(room_id, user_id)
        if isinstance(line, MessageLine):
            await hub.typing.start(room_id, user_id)
            await asyncio.sleep(TYPING_SECONDS)
            await hub.messages.send(room_id, user_id, line.content)
