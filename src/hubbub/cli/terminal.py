"""Commands on a terminal: logs that stay off it, signals that end them, text without control characters."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

END_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, and the signals that end a program."""


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
