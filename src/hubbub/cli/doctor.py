"""`hubbub doctor`: what is wrong with the servers, and what to do about it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import click
from rich.console import Console

from hubbub.cli._doctor import postgresql, redis, together
from hubbub.cli._doctor.report import Report, as_json, report, show
from hubbub.cli._doctor.together import Both
from hubbub.cli.quiet import unreported
from hubbub.hub import find_settings
from hubbub.postgres import Pool
from hubbub.redis import Connection, Subscriptions

if TYPE_CHECKING:
    from hubbub.settings import Settings

CONNECTIONS: Final = 2
"""Of PostgreSQL; the second is for the feed, which looks at memberships while somebody enters."""


@click.command()
@click.option("--json", "as_data", is_flag=True, help="Print the report as JSON.")
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How many processes of the application there are, each with a pool.",
)
@click.pass_context
def doctor(context: click.Context, processes: int, *, as_data: bool) -> None:
    """Say what is wrong with the servers, what it means, and what to do about it.

    The servers are those that DATABASE_URL and REDIS_URL or DB_* and REDIS_* name, and without any of them those
    of `hubbub up` in this folder. Run it where the application runs, with the application's settings.

    It changes nothing. What the login may not see it says it could not look at.

    The exit status is 0 when nothing was found, 1 when something was, 3 when a server was out of reach. A note is
    no finding.
    """
    settings = find_settings()
    with unreported():
        told = asyncio.run(_examine(settings, processes))
    if as_data:
        click.echo(as_json(told))
    else:
        show(told, Console())
    context.exit(told.exit_status)


async def _examine(settings: Settings, processes: int) -> Report:
    pool = Pool(replace(settings.postgres, pool_size=CONNECTIONS))
    connection, subscriptions = Connection(settings.redis), Subscriptions(settings.redis)
    try:
        await asyncio.gather(connection.start(), subscriptions.start())
        chat = await postgresql.look(pool, settings.postgres, processes)
        live = await redis.look(connection, settings.redis)
        both = await together.look(
            Both(
                None if chat.out_of_reach else pool,
                None if live.out_of_reach else connection,
                subscriptions,
            )
        )
        return report([chat, live, both])
    finally:
        await subscriptions.close()
        await connection.close()
        await pool.close()
