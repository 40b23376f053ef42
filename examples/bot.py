"""A bot that answers each message that begins with `!echo`. It misses no message, and answers none twice.

    python examples/bot.py FOLDER     # where it keeps its cursors; ends with Ctrl-C

It follows the rooms of which it is a member. Invite it like any other user. Its name is `echo`.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from pathlib import Path
from uuid import UUID, uuid5

import msgspec

import hubbub
from hubbub import Hub, MessageSent, NotAMember, User

NAME = "echo"
ANSWERS = UUID("5b0c2a53-0b0e-4cf5-a0f1-9d3c6a3a5e5f")


async def account(hub: Hub) -> User:
    user = await hub.users.find_by_username(NAME)
    return user or await hub.users.create("echo@bots.example.org", NAME, "!")  # no password has this hash


async def answer(hub: Hub, bot: User, event: MessageSent) -> None:
    message = event.message
    if message.user_id != bot.id and message.content.startswith("!echo "):
        # The id is derived from the question, so an answer that is repeated after a crash is the same message.
        text, own = message.content.removeprefix("!echo "), uuid5(ANSWERS, str(message.id))
        with suppress(NotAMember):  # it was removed in the meantime
            await hub.messages.send(message.room_id, bot.id, text, id=own, reply_to=message.id)


async def run(folder: Path) -> None:
    async with hubbub.open() as hub:
        bot = await account(hub)
        kept = folder / "cursors.json"
        cursors: dict[UUID, str | None] = {}
        if kept.exists():
            cursors |= msgspec.json.decode(kept.read_bytes(), type=dict[UUID, str])
        # In this order the bot is online only once it follows, so it misses no question while it is online.
        async with hub.follow(bot.id, after=cursors) as feed, hub.presence.online(bot.id):
            keep(kept, feed.cursors)
            async for event in feed:
                if isinstance(event, MessageSent):
                    await answer(hub, bot, event)
                keep(kept, feed.cursors)  # after the answer, so that a crash in between repeats it


def keep(path: Path, cursors: dict[UUID, str]) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(msgspec.json.encode(cursors))
    new.replace(path)  # atomic, so that no crash leaves half a file


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(run(Path(sys.argv[1])))
