"""`hubbub top`: the figures of a chat and its servers, live."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import termios
import tty
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Final

import click
from rich.console import Console
from rich.live import Live

from hubbub.cli.terminal import END_SIGNALS, on_signals, unreported
from hubbub.cli.top.table import Servers, table
from hubbub.diagnostics.figures import Poller, ask_postgres, ask_redis
from hubbub.hub import find_settings
from hubbub.postgres import Pool
from hubbub.redis import connection_to
from hubbub.settings import Settings

DEADLINE_SECONDS: Final = 2
CONNECT_SECONDS: Final = 1.5
"""A person who watches wants to see soon that a server does not answer."""

NO_ANSWER: Final = 1
QUIT: Final = frozenset(b"qQ\x04")  # the last: Ctrl-D


@click.command()
@click.option(
    "--interval", type=click.FloatRange(0.2, 3600), default=2, show_default=True, help="Seconds per poll."
)
@click.option("--once", is_flag=True, help="Poll twice, an interval apart, print one table and exit.")
@click.pass_context
def top(context: click.Context, interval: float, *, once: bool) -> None:
    """Show live figures of a chat and its servers. Quit with q or Ctrl-C.

    Shows the servers of DATABASE_URL and REDIS_URL, or of DB_* and REDIS_*. Without these variables it shows the
    servers that `hubbub up` started in this folder. Servers may stop and start meanwhile.

    It reads no table and costs the servers next to nothing, so some figures are estimates and begin with "about".
    Rates are those since the last poll.

    With --once the exit status is 1 when a server did not answer.
    """
    console = Console()
    if not once and not console.is_terminal:
        raise click.UsageError("a live table needs a terminal; --once prints one")
    short: dict[str, Any] = {"connect_timeout_seconds": CONNECT_SECONDS, "deadline_seconds": DEADLINE_SECONDS}
    found = find_settings()
    settings = Settings(
        postgres=replace(found.postgres, **short, pool_size=1), redis=replace(found.redis, **short)
    )
    with unreported():
        if not once:
            asyncio.run(_watch(settings, console, interval))
        elif not asyncio.run(_print_once(settings, console, interval)):
            context.exit(NO_ANSWER)


async def _print_once(settings: Settings, console: Console, interval: float) -> bool:
    async with _connect(settings) as servers:
        for seconds in (interval, 0):
            await asyncio.gather(servers.postgres.poll(), servers.redis.poll())
            await asyncio.sleep(seconds)
        console.print(table(servers))
        return servers.postgres.error is None and servers.redis.error is None


async def _watch(settings: Settings, console: Console, interval: float) -> None:
    hint = f"every {interval:g} s, q quits"
    quits = asyncio.Event()
    screen = Live(console=console, screen=True, auto_refresh=False)
    # The screen is left first: a Ctrl-C or Ctrl-Z after the rest could end this, or drop the return, before it.
    resized = on_signals(lambda _: screen.refresh(), signal.SIGWINCH)
    with resized, on_signals(lambda _: quits.set(), *END_SIGNALS), _keys(quits.set), screen:
        async with _connect(settings) as servers, asyncio.TaskGroup() as group:

            def draw() -> None:
                screen.update(table(servers, hint), refresh=True)

            draw()
            pollers = servers.postgres, servers.redis
            tasks = [group.create_task(poller.run(interval, draw, quits)) for poller in pollers]
            await quits.wait()
            for task in tasks:  # each ends with its next poll anyway
                task.cancel()


@asynccontextmanager
async def _connect(settings: Settings) -> AsyncIterator[Servers]:
    """One connection to each server. Neither needs to be there."""
    pool, connection = Pool(settings.postgres), connection_to(settings.redis)
    try:
        await connection.start()
        yield Servers(settings, Poller(partial(ask_postgres, pool)), Poller(partial(ask_redis, connection)))
    finally:
        await connection.close()
        await pool.close()


@contextmanager
def _keys(leave: Callable[[], None]) -> Iterator[None]:
    """Calls `leave` for q and Ctrl-D. The terminal is as before afterwards."""
    if not sys.stdin.isatty():
        yield
        return
    loop, terminal = asyncio.get_running_loop(), sys.stdin.fileno()

    def read() -> None:
        keys = os.read(terminal, 100)
        if not keys:
            loop.remove_reader(terminal)  # the terminal is gone
        if not keys or QUIT & set(keys):
            leave()

    before = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal)
        # Ctrl-Z would leave the shell on the alternate screen, so it is disabled. Ctrl-C could do the same: after
        # the signal the terminal discards waiting output, possibly with the return from that screen. NOFLSH keeps
        # it.
        modes = termios.tcgetattr(terminal)
        modes[3] |= termios.NOFLSH
        modes[6][termios.VSUSP] = os.fpathconf(terminal, "PC_VDISABLE").to_bytes()
        termios.tcsetattr(terminal, termios.TCSADRAIN, modes)
        loop.add_reader(terminal, read)
        yield
    finally:
        loop.remove_reader(terminal)
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
