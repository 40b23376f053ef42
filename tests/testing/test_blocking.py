from __future__ import annotations

import asyncio
import threading

from hubbub.testing.blocking import run


def test_the_loop_that_was_current_stays_so_and_the_thread_is_the_callers() -> None:
    async def here() -> threading.Thread:
        await asyncio.sleep(0)
        return threading.current_thread()

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        assert run(here()) is threading.current_thread()
        assert asyncio.get_event_loop_policy().get_event_loop() is loop
    finally:
        asyncio.set_event_loop(None)
        loop.close()
