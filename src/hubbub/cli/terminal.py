"""Commands on a terminal: their hub, logs that stay off it, signals that end them, and printable text."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from hubbub import hub
from hubbub.hub import Hub

T = TypeVar("T")

END_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, and the signals that end a program."""


def in_hub(work: Callable[[Hub], Awaitable[T]]) -> T:
    """The result of the work on a hub with the settings of the environment, which is closed afterwards."""

    async def run() -> T:
        async with hub.open() as chat:
            return await work(chat)

    return asyncio.run(run())


@contextmanager
def unreported() -> Iterator[None]:
    """Discard what hubbub logs in the block: Python would write warnings into the table on the terminal."""
    logger, handler = logging.getLogger("hubbub"), logging.NullHandler()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextmanager
def on_signals(act: Callable[[signal.Signals], object], *signals: signal.Signals) -> Iterator[None]:
    """In the block `act` is called for these signals, instead of what they do."""
    loop = asyncio.get_running_loop()
    for one in signals:
        loop.add_signal_handler(one, act, one)
    try:
        yield
    finally:
        for one in signals:
            loop.remove_signal_handler(one)


def printable(text: str) -> str:
    """Without control characters, which would steer the terminal."""
    return "".join(one if one.isprintable() else "?" for one in text)
