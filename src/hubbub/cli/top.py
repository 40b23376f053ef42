"""`hubbub top`: the figures of a chat and its servers, live. The table fits into 80 columns and 24 lines."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import termios
import tty
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Final, NamedTuple

import click
from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.filesize import decimal
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from hubbub.cli import END_SIGNALS, on_signals, printable, unreported
from hubbub.diagnostics.figures import (
    BUSY_SECONDS,
    LiveFigures,
    Poller,
    ServerInfo,
    StoredFigures,
    Typing,
    ask_postgres,
    ask_redis,
    block_hits,
    commands_per_second,
    commits_per_second,
    key_hits,
    messages_per_second,
)
from hubbub.errors import Unavailable
from hubbub.hub import find_settings
from hubbub.postgres import Pool
from hubbub.redis import connection_to
from hubbub.settings import Settings

DEADLINE_SECONDS: Final = 2
CONNECT_SECONDS: Final = 1.5
"""A person who watches wants to see soon that a server does not answer."""

NO_ANSWER: Final = 1
QUIT: Final = frozenset(b"qQ\x04")  # the last: Ctrl-D

WIDEST: Final = 110
BUSIEST: Final = 5
"""Rooms, so that the table fits."""
UNKNOWN: Final = "-"


class Servers(NamedTuple):
    """Both servers of a hub, and the settings that lead to them."""

    settings: Settings
    postgres: Poller[StoredFigures]
    redis: Poller[LiveFigures]


@click.command()
@click.option(
    "--interval", type=click.FloatRange(0.2, 3600), default=2, show_default=True, help="Seconds per poll."
)
@click.option("--once", is_flag=True, help="Poll twice, an interval apart, print one table and exit.")
@click.pass_context
def top(context: click.Context, interval: float, *, once: bool) -> None:
    """Show live figures of a chat and its servers. Quit with q or Ctrl-C.

    Shows the servers of DATABASE_URL and REDIS_URL, or of DB_* and REDIS_*. Without these variables it shows the
    servers that `hubbub up` started in this folder. Servers may stop and start while it runs.

    It reads no tables and puts almost no load on the servers. So some figures are estimates, which begin with
    "about". Rates are measured since the last poll.

    With --once the exit status is 1 if a server did not answer.
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


def table(servers: Servers, hint: str = "") -> RenderableType:
    title = Table.grid(Column(), Column(justify="right"), expand=True)
    title.add_row(Text("hubbub top", style="bold"), Text(hint, style="dim"))
    figures = Table.grid(Column(ratio=1), Column(ratio=1), padding=(0, 2), expand=True)
    figures.add_row(
        Group(_chat(servers), Text(), _busiest(servers.postgres.latest)),
        Group(_postgres(servers.postgres), Text(), _redis(servers.redis)),
    )
    return Constrain(Group(title, Text(), _health(servers), *_errors(servers), Text(), figures), WIDEST)


def _health(servers: Servers) -> Table:
    postgres, redis = servers.settings.postgres, servers.settings.redis
    stored, live = servers.postgres.latest, servers.redis.latest
    health = Table.grid(padding=(0, 2))
    version = f"PostgreSQL {stored.server.version}" if stored else "PostgreSQL"
    where = Text(f"{postgres.where}/{postgres.database}", style="dim")
    health.add_row(version, where, _state(servers.postgres))
    version = f"{live.server.name} {live.server.version}" if live else "Redis"
    health.add_row(version, Text(redis.where, style="dim"), _state(servers.redis))
    return health


def _state(poller: Poller[StoredFigures] | Poller[LiveFigures]) -> Text:
    if poller.error is not None:
        return Text("unreachable" if isinstance(poller.error, Unavailable) else "cannot be used", style="bold red")
    return Text("asking", style="dim") if poller.latest is None else Text("ok", style="green")


def _errors(servers: Servers) -> list[Text]:
    """A line for each server with an error, cut off where the terminal ends."""
    reasons = [servers.postgres.reason, servers.redis.reason]
    return [
        Text(printable(reason), style="red", no_wrap=True, overflow="ellipsis")
        for reason in reasons
        if reason is not None
    ]


def _block(title: str, rows: Iterable[tuple[str, str | None]]) -> Table:
    columns = Column(title, ratio=1, no_wrap=True), Column("", justify="right", no_wrap=True)
    block = Table(*columns, box=None, expand=True, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for name, value in rows:
        block.add_row(Text(f"  {name}"), Text(UNKNOWN, style="dim") if value is None else Text(value))
    return block


def _chat(servers: Servers) -> Table:
    stored, live = servers.postgres.latest, servers.redis.latest
    rows = [(name, stored and f"about {stored.rows[name].rows:,}") for name in ("users", "rooms", "messages")]
    about = "about " if live and not live.sessions.is_exact else ""
    rows += [
        ("messages per second", _rate(messages_per_second(servers.postgres))),
        ("users online", live and f"{live.online:,}"),
        ("members typing", live and _typing(live.typing)),
        ("sessions", live and f"{about}{live.sessions.number:,}"),
    ]
    return _block("Chat", rows)


def _typing(typing: Typing) -> str:
    if not typing.users:
        return "0"
    rooms = "room" if typing.rooms == 1 else "rooms"
    return f"{'over ' if typing.is_more else ''}{typing.users:,} in {typing.rooms:,} {rooms}"


def _busiest(stored: StoredFigures | None) -> Table:
    """As shares, because only the newest thousand messages are looked at."""
    rooms = [(printable(room.name), f"{room.share:.0%}") for room in stored.busiest[:BUSIEST]] if stored else []
    return _block(f"Busiest rooms of the last {BUSY_SECONDS} s", rooms or [(UNKNOWN, "")])


def _postgres(poller: Poller[StoredFigures]) -> Table:
    server = poller.latest and poller.latest.server
    rows = [
        ("connections", server and f"{server.connections:,} of {server.max_connections:,}"),
        ("in hubbub pools", server and f"{server.pooled:,}"),
        ("active", server and f"{server.active:,}"),
        ("waiting for a lock", server and f"{server.waiting:,}"),
        ("longest transaction", server and f"{server.longest_seconds or 0:.1f} s"),
        ("commits per second", _rate(commits_per_second(poller))),
        ("block cache hits", _share(block_hits(poller))),
    ]
    return _block("PostgreSQL", rows)


def _redis(poller: Poller[LiveFigures]) -> Table:
    info = poller.latest and poller.latest.server
    rows = [
        ("clients", info and f"{info.number('connected_clients') - 1:,}"),
        ("keys evicted", info and f"{info.number('evicted_keys'):,}"),
        ("memory", info and _memory(info)),
        ("commands per second", _rate(commands_per_second(poller))),
        ("key lookup hits", _share(key_hits(poller))),
    ]
    return _block(info.name if info else "Redis", rows)


def _memory(info: ServerInfo) -> str:
    limit = info.number("maxmemory")
    return decimal(info.number("used_memory")) + (f" of {decimal(limit)}" if limit else "")


def _rate(per_second: float | None) -> str | None:
    return None if per_second is None else f"{per_second:,.0f}"


def _share(found: float | None) -> str | None:
    return None if found is None else f"{found:.1%}"
