"""A terminal that is borrowed: one key is read at a time, and everything is as before when it is given back."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
QUIT: Final = frozenset(b"qQ\x04")  # the last: Ctrl-D


@contextmanager
def until_left(leave: Callable[[], None], redraw: Callable[[], None]) -> Iterator[None]:
    """Call `leave` for q, Ctrl-D, Ctrl-C and signals that end a program, `redraw` for a window of another size."""
    loop = asyncio.get_running_loop()
    for one in SIGNALS:
        loop.add_signal_handler(one, leave)
    loop.add_signal_handler(signal.SIGWINCH, redraw)
    try:
        with _keys(loop, leave):
            yield
    finally:
        for one in (*SIGNALS, signal.SIGWINCH):
            loop.remove_signal_handler(one)


@contextmanager
def _keys(loop: asyncio.AbstractEventLoop, leave: Callable[[], None]) -> Iterator[None]:
    if not sys.stdin.isatty():
        yield
        return
    terminal = sys.stdin.fileno()

    def read() -> None:
        keys = os.read(terminal, 100)
        if not keys:
            loop.remove_reader(terminal)  # the terminal is gone
        if not keys or QUIT & set(keys):
            leave()

    before = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal)
        _keep_the_screen(terminal)
        loop.add_reader(terminal, read)
        yield
    finally:
        loop.remove_reader(terminal)
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _keep_the_screen(terminal: int) -> None:
    """Ctrl-Z would leave the shell on the alternate screen. So could Ctrl-C: a terminal that has sent the signal
    throws away what waits to be shown, which may be the return from that screen already."""
    modes = termios.tcgetattr(terminal)
    modes[3] |= termios.NOFLSH
    modes[6][termios.VSUSP] = os.fpathconf(terminal, "PC_VDISABLE").to_bytes()
    termios.tcsetattr(terminal, termios.TCSADRAIN, modes)
