"""`hubbub maintain`: finish interrupted deletions and delete ended sessions."""

from __future__ import annotations

import asyncio

import click

from hubbub import hub
from hubbub.models import MaintenanceResult

UNFINISHED = 3


@click.command()
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=600, show_default=True)
@click.pass_context
def maintain(context: click.Context, seconds: float) -> None:
    """Finish deletions of accounts and rooms that a deadline or a crash has interrupted.

    They are hidden already. Several processes may run it at once.

    Exit status: 0 if none is left, 3 if some are, because --seconds have passed or another process works on them.
    """
    done = asyncio.run(_maintain(seconds))
    click.echo(f"deleted {done.accounts} accounts and {done.rooms} rooms, {done.unfinished} left")
    if done.unfinished:
        context.exit(UNFINISHED)


async def _maintain(seconds: float) -> MaintenanceResult:
    async with hub.open() as chat:
        return await chat.maintain(deadline_seconds=seconds)
