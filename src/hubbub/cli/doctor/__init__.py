"""`hubbub doctor`: the problems of the servers, and their remedies."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Final

import click
from rich.console import Console

from hubbub.cli.doctor import postgresql, redis, together
from hubbub.cli.doctor.report import Report, as_json, show, summarize
from hubbub.cli.doctor.together import Both
from hubbub.cli.terminal import unreported
from hubbub.hub import find_settings
from hubbub.postgres import Pool
from hubbub.redis import Connection, Subscriptions
from hubbub.settings import Settings

CONNECTIONS: Final = 2
"""To PostgreSQL. The second is for the feed, which reads memberships while a follower enters."""


@click.command()
@click.option("--json", "in_json", is_flag=True, help="Print the report as JSON.")
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes of the application, each with a pool of its own.",
)
@click.pass_context
def doctor(context: click.Context, processes: int, *, in_json: bool) -> None:
    """Check the servers and their settings, and say what to change.

    Checks the servers of DATABASE_URL and REDIS_URL, or of DB_* and REDIS_*. Without these variables it checks
    the servers that `hubbub up` started in this folder. Run it where the application runs, with its settings.

    It changes nothing. A check is skipped if the login is not allowed to look.

    The exit status is 0 without findings, 1 with an error or a warning, and 3 when a server was out of reach.
    Notes do not count.
    """
    with unreported():
        report = asyncio.run(_check(find_settings(), processes))
    if in_json:
        click.echo(as_json(report))
    else:
        show(report, Console())
    context.exit(report.exit_status)


async def _check(settings: Settings, processes: int) -> Report:
    pool = Pool(replace(settings.postgres, pool_size=CONNECTIONS))
    connection, subscriptions = Connection(settings.redis), Subscriptions(settings.redis)
    try:
        await asyncio.gather(connection.start(), subscriptions.start())
        stored = await postgresql.check(pool, settings.postgres, processes)
        live = await redis.check(connection, settings.redis)
        reachable = None if stored.out_of_reach else pool, None if live.out_of_reach else connection
        return summarize([stored, live, await together.check(Both(*reachable, subscriptions))])
    finally:
        await subscriptions.close()
        await connection.close()
        await pool.close()
