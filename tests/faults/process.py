"""What the processes of the load have in common: a plan, settings, and that none outlives its test."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import closing, suppress
from typing import TypeVar

import msgspec

from hubbub import Settings

P = TypeVar("P", bound=msgspec.Struct)


def plan_of(kind: type[P]) -> P:
    """The plan that this process was started with."""
    return msgspec.json.decode(sys.argv[1], type=kind, dec_hook=lambda type_, text: type_(text))


def settings_of_environment() -> Settings:
    settings = Settings.from_env()
    assert settings is not None
    return settings


def run(work: Callable[[asyncio.Event], Coroutine[None, None, None]]) -> None:
    """Do the work until it is done or SIGTERM comes. Its event is set by a line on standard input.

    When standard input ends, the test has died, and this process ends at once.
    """

    async def until_told() -> None:
        told = asyncio.Event()
        task = asyncio.ensure_future(work(told))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        listening = asyncio.create_task(_listen(told))
        with suppress(asyncio.CancelledError):
            await task
        listening.cancel()
        await asyncio.wait([listening])

    asyncio.run(until_told())


async def _listen(told: asyncio.Event) -> None:
    lines = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    with closing(transport):
        while await lines.readline():
            told.set()
        os._exit(1)
