"""Commands on a terminal: logs that stay off it, signals that end them, text without control characters."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
def on_end_signal(act: Callable[[signal.Signals], object]) -> Iterator[None]:
    """In the block `act` is called for Ctrl-C and the signals that end a program, instead of what they do."""
    loop = asyncio.get_running_loop()
    for one in SIGNALS:
        loop.add_signal_handler(one, act, one)
    try:
        yield
    finally:
        for one in SIGNALS:
            loop.remove_signal_handler(one)


def printable(text: str) -> str:
    """Without control characters, which would steer the terminal."""
    return "".join(one if one.isprintable() else "?" for one in text)
