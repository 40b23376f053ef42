"""`hubbub top`: how a chat and its servers do, live."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

import click
from rich.console import Console
from rich.live import Live

from hubbub.cli._top import postgresql, redis
from hubbub.cli._top.screen import until_left
from hubbub.cli._top.table import Servers, table
from hubbub.cli._top.watched import Watched
from hubbub.cli.quiet import unreported
from hubbub.hub import find_settings
from hubbub.postgres import Pool
from hubbub.redis import Connection

if TYPE_CHECKING:
    from hubbub.settings import Settings

# Who watches wants to see soon that a server does not answer.
DEADLINE_SECONDS: Final = 2
CONNECT_SECONDS: Final = 1.5

NO_ANSWER: Final = 1


@click.command()
@click.option(
    "--interval",
    type=click.FloatRange(0.2, 3600),
    default=2,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option("--once", is_flag=True, help="Look twice, an interval apart, print one table and exit.")
@click.pass_context
def top(context: click.Context, interval: float, *, once: bool) -> None:
    """Watch a chat and its servers, live. Leave with q or Ctrl-C.

    The servers are those that DATABASE_URL and REDIS_URL or DB_* and REDIS_* name, and without any of them
    those of `hubbub up` in this folder. They may come and go meanwhile.

    It reads no table: figures are those that the servers keep anyway, so that watching costs next to nothing, and
    "about" stands before those that are estimates. Rates are those of the time since the last look.

    With --once the exit status is 1 when a server did not answer.
    """
    console = Console()
    if not once and not console.is_terminal:
        raise click.UsageError("a live table needs a terminal; --once prints one")
    settings = _impatient(find_settings())
    with unreported():
        if not once:
            asyncio.run(_watch(settings, console, interval))
        elif not asyncio.run(_once(settings, console, interval)):
            context.exit(NO_ANSWER)


async def _once(settings: Settings, console: Console, interval: float) -> bool:
    async with _servers(settings) as servers:
        await asyncio.gather(servers.postgresql.look(), servers.redis.look())
        await asyncio.sleep(interval)
        await asyncio.gather(servers.postgresql.look(), servers.redis.look())
        console.print(table(servers))
        return servers.answer


async def _watch(settings: Settings, console: Console, interval: float) -> None:
    hint = f"every {interval:g} s, q leaves"
    left = asyncio.Event()
    with Live(console=console, screen=True, auto_refresh=False) as screen, until_left(left.set, screen.refresh):
        async with _servers(settings) as servers, asyncio.TaskGroup() as group:

            def draw() -> None:
                screen.update(table(servers, hint), refresh=True)

            draw()
            looking = [
                group.create_task(watched.keep_looking(interval, draw))
                for watched in (servers.postgresql, servers.redis)
            ]
            await left.wait()
            for task in looking:
                task.cancel()


@asynccontextmanager
async def _servers(settings: Settings) -> AsyncIterator[Servers]:
    """Both, watched over one connection each. Neither needs to be there."""
    pool, connection = Pool(settings.postgres), Connection(settings.redis)
    try:
        await connection.start()
        yield Servers(
            settings,
            Watched(partial(postgresql.ask, pool)),
            Watched(partial(redis.ask, connection)),
        )
    finally:
        await connection.close()
        await pool.close()


def _impatient(settings: Settings) -> Settings:
    postgres = replace(
        settings.postgres,
        pool_size=1,
        connect_timeout_seconds=CONNECT_SECONDS,
        deadline_seconds=DEADLINE_SECONDS,
    )
    redis = replace(
        settings.redis,
        connect_timeout_seconds=CONNECT_SECONDS,
        deadline_seconds=DEADLINE_SECONDS,
    )
    return replace(settings, postgres=postgres, redis=redis)
