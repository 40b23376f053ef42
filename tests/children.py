"""Child processes that are forked in the middle of a test, as a preloading server forks its workers."""

from __future__ import annotations

import asyncio
import faulthandler
import json
import logging
import os
import signal
import traceback
from collections.abc import Callable, Coroutine
from typing import Any

from waiting import HANGS_AFTER_SECONDS


async def in_child(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:  # noqa: ANN401 - whatever JSON can hold
    """Run `work` in a child process with its own event loop. Returns its result."""
    reader, writer = os.pipe()
    # The queue of a handler has a lock, which another thread may hold at the fork: the child would wait for ever.
    handlers, logging.root.handlers = logging.root.handlers, []
    child = os.fork()
    if child:
        logging.root.handlers = handlers
    else:
        os.close(reader)
        # A child that hangs prints its stack and ends. Not by `dump_traceback_later`, which waits for its former
        # thread, which the child does not have if the parent has one (`faulthandler_timeout` of pytest).
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        faulthandler.register(signal.SIGALRM, chain=True)
        signal.alarm(HANGS_AFTER_SECONDS)
        try:
            asyncio.events._set_running_loop(None)  # a child of a coroutine is not in a loop
            answer = json.dumps(asyncio.run(work()))
        except BaseException:  # noqa: BLE001 - the parent reports it
            answer = json.dumps(traceback.format_exc())
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answers:
        answer = await asyncio.to_thread(answers.read)
    await asyncio.to_thread(os.waitpid, child, 0)
    return json.loads(answer)
