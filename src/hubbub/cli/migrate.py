"""`hubbub migrate` and `hubbub distribute`: the schema of a database, and its rooms over several nodes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial

import click

from hubbub import migrations
from hubbub.hub import find_settings
from hubbub.migrations import distribution, revisions
from hubbub.settings import PostgresSettings, postgres_from_env

SOMETHING_PENDING = 3
"""The exit status of the checks, where something is left to be done."""

seconds = partial(click.option, type=float, show_default=True, help="Seconds.")


@click.group()
@click.option(
    "--schema", metavar="NAME", envvar="DB_SCHEMA", help="The PostgreSQL schema of the tables. Default: public."
)
@click.pass_context
def migrate(context: click.Context, schema: str | None) -> None:
    """Show and change the schema of a database.

    The database is that of DATABASE_URL, or of DB_HOST and the other DB_ variables. Without any of them it is that
    of the servers that `hubbub up` started in this folder.
    """
    context.obj = schema


@migrate.command()
@click.argument("revision", default="head")
def up(revision: str) -> None:
    """Apply missing revisions, up to REVISION or the newest. Safe to run from many processes at once."""
    applied = asyncio.run(migrations.up(find_database(), revision))
    for one in applied:
        click.echo(f"{one}  applied  {_title(one)}")
    if not applied:
        click.echo("nothing to do")


# Otherwise -1 would be taken for an option.
@migrate.command(context_settings={"ignore_unknown_options": True})
@click.argument("revision", default="-1")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def down(revision: str, *, yes: bool) -> None:
    """Undo the newest revision, or all revisions after REVISION.

    REVISION is an id, base, or -1. Asks for confirmation, because data may be lost.
    """
    database = find_database()
    undone = revisions.to_undo(asyncio.run(migrations.status(database)).current, revision)
    if not undone:
        click.echo("nothing to do")
        return
    if not yes:
        click.echo("Undoing these revisions deletes:")
        for one in undone:
            click.echo(f"  {one}  {migrations.describe(one).loss}")
        click.confirm("Continue?", abort=True)
    # Not REVISION: if another process goes down meanwhile, -1 would be a revision that was not confirmed.
    for one in asyncio.run(migrations.down(database, revisions.previous(undone[-1]))):
        click.echo(f"{one}  undone  {_title(one)}")


@migrate.command()
def status() -> None:
    """Show which revisions the database has. Changes nothing."""
    found = asyncio.run(migrations.status(find_database()))
    click.echo(f"the database is at {found.current or 'no revision'}, this hubbub at {found.head}")
    for one in (*found.applied, *found.pending):
        click.echo(f"{one}  {'applied' if one in found.applied else 'pending'}  {_title(one)}")
    if found.unknown:
        click.echo(revisions.mismatch(found.current).hint)


@migrate.command()
@click.option("--down", "direction", flag_value="down", help="Print the SQL that undoes revisions.")
@click.option(
    "--from", "start", metavar="REVISION", help="Current revision. Default: none, or with --down the newest."
)
@click.option(
    "--to", "revision", metavar="REVISION", help="Revision to reach. Default: the newest, or with --down base."
)
def sql(direction: str | None, start: str | None, revision: str | None) -> None:
    """Print the SQL, for an administrator to run. Connects to no server.

    \b
        hubbub migrate sql --from 0005 | psql -v ON_ERROR_STOP=1 chat
    """
    sql = migrations.sql(
        "down" if direction else "up", start=start, revision=revision, schema=_schema() or "public"
    )
    click.echo(sql, nl=False)


@migrate.command()
@click.argument("schema")
def move(schema: str) -> None:
    """Move the tables to the PostgreSQL schema SCHEMA, all or none.

    The processes of the application need DB_SCHEMA=SCHEMA afterwards, and their role a new `hubbub migrate grant`.
    """
    database = find_database()
    asyncio.run(migrations.move(database, schema))
    click.echo(
        f"the tables of hubbub are in {schema} now, and no longer in {database.schema}: set DB_SCHEMA={schema}"
    )


@migrate.command()
def restored() -> None:
    """Let the feed of changes continue after a restore by pg_restore. Run it before the application starts.

    New entries then get larger transaction ids than all restored entries.
    """
    is_changed = asyncio.run(migrations.restored(find_database()))
    click.echo("new entries follow the restored ones" if is_changed else "nothing to do")


@migrate.command()
@click.argument("role")
@click.option("--print", "only_plan", is_flag=True, help="Print the SQL for psql and change nothing.")
@seconds("--statement-timeout", "statement_seconds", default=30)
@seconds("--lock-timeout", "lock_seconds", default=15)
@seconds("--idle-in-transaction-timeout", "idle_in_transaction_seconds", default=60)
def grant(role: str, *, only_plan: bool, **limits: float) -> None:
    """Let ROLE use the tables and nothing else, with its own timeouts and search path.

    ROLE is the login role of the application. Create it with CREATE ROLE first. Run this command as the owner of
    the tables or as a superuser, after every `up`, because there may be new tables. In this database PUBLIC
    loses the right to create temporary tables, and to create objects in the schema of the tables.
    """
    granting = migrations.grant(find_database(), role, limits=migrations.Limits(**limits), only_plan=only_plan)
    statements = asyncio.run(granting)
    if only_plan:
        click.echo("\n".join(["BEGIN;", *(f"{sql};" for sql in statements), "COMMIT;"]))
    else:
        click.echo(f"{role} may use the tables of hubbub; only their owner may change them")


@migrate.command()
@click.pass_context
def check(context: click.Context) -> None:
    """Report by the exit status whether a revision is pending.

    The status is 0 at the newest revision, 3 if revisions are missing, and 1 on any error.
    """
    found = asyncio.run(migrations.status(find_database()))
    if found.unknown:
        raise revisions.mismatch(found.current)
    if found.pending:
        click.echo(f"{len(found.pending)} pending: {', '.join(found.pending)} (run `hubbub migrate up`)")
        context.exit(SOMETHING_PENDING)
    click.echo(f"at {found.head}, nothing pending")


@click.command()
@click.option(
    "--shards",
    type=int,
    metavar="NUMBER",
    help="Number of shards for rooms that are not distributed yet. Default: 4 per node, at least 8.",
)
@click.option(
    "--check",
    is_flag=True,
    help="Show the remaining steps and change nothing. The exit status is 3 if there are any. Waits up to "
    "DB_DEADLINE_SECONDS for another run.",
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option(
    "--drop-former-functions",
    is_flag=True,
    help="Drop the functions of other versions of hubbub. First stop all processes of these versions.",
)
@click.pass_context
def distribute(
    context: click.Context, shards: int | None, *, check: bool, yes: bool, drop_former_functions: bool
) -> None:
    """Distribute rooms over the nodes of Citus, in the database of `hubbub migrate`.

    Shows the steps and asks for confirmation. Each step is one transaction, and another call continues after an
    interruption. Stop the application first, unless the remaining steps only show shards and create functions.
    Only the restore of a backup undoes it.
    """
    database = find_database()
    if drop_former_functions:
        for function in asyncio.run(distribution.drop_former_functions(database)):
            click.echo(f"dropped: {function}")
        return
    timeouts = migrations.Timeouts(migration_lock_seconds=database.deadline_seconds) if check else None
    found = asyncio.run(distribution.plan(database, shards, timeouts=timeouts))
    if not found.left:
        click.echo(f"rooms are distributed over {found.nodes} nodes, nothing left to do")
        return
    click.echo(f"{len(found.left)} of {found.steps} steps are left, for rooms on {found.nodes} nodes:")
    for step in found.left:
        click.echo(f"  {step.title}  (locks {step.locks})")
    if check:
        context.exit(SOMETHING_PENDING)
    if not yes:
        click.echo("A step locks its tables until it ends, and copies their rows. It cannot be undone.")
        click.confirm("Continue?", abort=True)
    asyncio.run(
        distribution.distribute(database, shards=shards, done=lambda step: click.echo(f"done: {step.title}"))
    )
    click.echo(f"rooms are distributed over {found.nodes} nodes: start the application")


def find_database() -> PostgresSettings:
    """The settings of PostgreSQL alone: a migration does not need Redis."""
    found = postgres_from_env() or find_settings().postgres
    schema = _schema()
    return found if schema is None else replace(found, schema=schema)


def _schema() -> str | None:
    """The one that was named after `hubbub migrate`."""
    schema: str | None = click.get_current_context().find_object(str)
    return schema


def _title(revision: str) -> str:
    return migrations.describe(revision).title
