"""A process that reads a user through its cache, once per line of input.

    cache_reader.py USER_ID

The settings are in the environment. It prints the name of the user.
"""

from __future__ import annotations

import asyncio
import sys
from uuid import UUID

from hubbub import Settings
from services.cached_chat import opened


async def read(user_id: UUID) -> None:
    settings = Settings.from_env()
    assert settings is not None
    async with opened(settings.postgres, settings.redis) as chat:
        print("ready", flush=True)  # noqa: T201 - the test that started this process waits for it
        while await asyncio.to_thread(sys.stdin.readline):
            user = await chat.cache.user(user_id)
            print(user.username, flush=True)  # noqa: T201 - as above


if __name__ == "__main__":
    asyncio.run(read(UUID(sys.argv[1])))
