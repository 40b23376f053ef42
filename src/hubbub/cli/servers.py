"""`hubbub up`, `hubbub down` and `hubbub status`: the servers of a folder."""

from __future__ import annotations

import asyncio
import json
import shlex
from pathlib import Path

import click

from hubbub import embedded, migrations
from hubbub.embedded import ServerStatus, Status
from hubbub.settings import Settings

NOT_RUNNING = 3

in_folder = click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=embedded.FOLDER,
    show_default=True,
    help="Folder for data, passwords and logs of the servers.",
)


@click.command()
@in_folder
def up(folder: Path) -> None:
    """Start PostgreSQL and Valkey, and migrate the schema to its newest revision.

    The servers only listen on 127.0.0.1, require passwords, and run until `hubbub down`. A running server is left
    unchanged. The first call creates the folder and the databases. DB_SCHEMA names the PostgreSQL schema to use.
    """
    settings = asyncio.run(embedded.up(folder)).with_env()
    found = asyncio.run(embedded.status(folder))
    for server in found.servers:
        click.echo(_line(found, server))
    applied = asyncio.run(migrations.up(settings.postgres))
    done = f"{len(applied)} migration{'' if len(applied) == 1 else 's'} applied" if applied else "up to date"
    click.echo(f"schema           {settings.postgres.schema}: {done}")
    click.echo(_next_steps(found))


@click.command()
@in_folder
@click.option("--delete-data", is_flag=True, help="Also delete data, passwords and logs permanently.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def down(folder: Path, *, delete_data: bool, yes: bool) -> None:
    """Stop the servers. Their data stay for the next `hubbub up`."""
    if yes and not delete_data:
        raise click.UsageError("--yes needs --delete-data")
    if not delete_data:
        stopped = asyncio.run(embedded.down(folder))
        click.echo(f"stopped; the data stay in {folder}" if stopped else f"no servers run in {folder}")
        return
    if not yes:
        click.confirm(f"Permanently delete all data of the servers in {folder}?", abort=True)
    deleted = asyncio.run(embedded.delete_data(folder))
    click.echo(f"deleted all data of the servers in {folder}" if deleted else f"there are no data in {folder}")


@click.command()
@in_folder
@click.option(
    "--output",
    type=click.Choice(["text", "env", "json"]),
    default="text",
    show_default=True,
    help="env and json contain the passwords.",
)
@click.pass_context
def status(ctx: click.Context, folder: Path, output: str) -> None:
    """Show server status and connection settings. The exit status is 3 unless both servers run.

    In a shell, for programs that read DB_HOST, REDIS_HOST and so on:

    \b
        set -a; eval "$(hubbub status --output env)"; set +a
    """
    found = asyncio.run(embedded.status(folder))
    if output == "json":
        click.echo(json.dumps(_figures(found), indent=2))
    elif output == "env":
        settings = found.settings.with_env() if found.settings else None
        variables = settings.to_env() | settings.to_urls() if settings else {}
        for name, value in variables.items():
            click.echo(f"{name}={shlex.quote(value)}")
    else:
        for server in found.servers:
            click.echo(_line(found, server))
        if not found.servers:
            click.echo(f"there are no servers in {folder}; create them: hubbub up")
        elif found.settings is None:
            click.echo("start: hubbub up")
    if found.settings is None:
        if output == "env":
            click.echo(f"no servers run in {folder}: hubbub up", err=True)
        ctx.exit(NOT_RUNNING)


def _line(found: Status, server: ServerStatus) -> str:
    name = f"{server.title} {server.version or ''}"
    if server.port is None:
        state = "does not answer" if server.alive else "does not run"
        return f"{name:16} {state}; its log: {server.log}"
    database = ""
    if found.settings is not None and server.port == found.settings.postgres.port:
        database = f"  database {found.settings.postgres.database}, user {found.settings.postgres.user}"
    return f"{name:16} runs at 127.0.0.1:{server.port}{database}"


def _next_steps(found: Status) -> str:
    folder = "" if found.folder == embedded.FOLDER else f" --folder {shlex.quote(str(found.folder))}"
    log_in = f'set -a; eval "$(hubbub status{folder} --output env)"; set +a'
    if Settings.is_configured():
        finds = "hubbub.open() takes the servers that the environment names; unset DATABASE_URL or DB_* for these"
    elif folder:
        finds = "hubbub.open() finds the servers after the next line"
    else:
        finds = "hubbub.open() finds the servers"
    return f"""
Their data are in {found.folder}. The servers run until: hubbub down{folder}
In Python, here:  {finds}
In a shell:       {log_in}"""


def _figures(found: Status) -> dict[str, object]:
    return {
        "running": found.settings is not None,
        "folder": str(found.folder),
        "servers": [
            {"title": server.title, "version": server.version, "port": server.port, "log": str(server.log)}
            for server in found.servers
        ],
        "env": found.settings.with_env().to_env() if found.settings else {},
    }
