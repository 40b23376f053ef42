"""`hubbub distribute`: rooms over several nodes."""

from __future__ import annotations

import asyncio

import click

from hubbub.cli.migrate import find_database
from hubbub.migrations import distribution

SOMETHING_LEFT = 3


@click.command()
@click.option(
    "--shards", type=int, metavar="NUMBER", help="Parts into which rooms are divided. Default: that of Citus."
)
@click.option(
    "--check", is_flag=True, help="Show what is left and change nothing. The status is 3 if something is."
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.pass_context
def distribute(context: click.Context, shards: int | None, *, check: bool, yes: bool) -> None:
    """Distribute rooms over the nodes of Citus, in the database of `hubbub migrate`.

    It shows the steps and asks. Each is committed by itself, and a second call goes on where the first was
    interrupted. Stop the application before. There is no way back but a backup.
    """
    found = asyncio.run(distribution.plan(find_database(), shards))
    if not found.left:
        click.echo(f"rooms are distributed over {found.nodes} nodes, nothing left to do")
        return
    click.echo(f"{len(found.left)} of {found.steps} steps are left, for rooms on {found.nodes} nodes:")
    for step in found.left:
        click.echo(f"  {step.title}  (locks {step.locks})")
    if check:
        context.exit(SOMETHING_LEFT)
    if not yes:
        click.echo("A step locks its tables to the end of the step, and copies their rows. Nothing undoes it.")
        click.confirm("Continue?", abort=True)
    asyncio.run(
        distribution.distribute(
            find_database(), shards=shards, done=lambda step: click.echo(f"done: {step.title}")
        )
    )
    click.echo(f"rooms are distributed over {found.nodes} nodes: start the application")
