"""`hubbub console`: a live page of a chat and its servers, for a browser."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from typing import Final

import click

from hubbub import hub
from hubbub.cli.terminal import unreported
from hubbub.diagnostics.report import is_this_machine
from hubbub.hub import find_settings
from hubbub.settings import Settings

POOL_SIZE: Final = 3
DEADLINE_SECONDS: Final = 3
"""A person who watches wants to see soon that a server does not answer."""


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65_535), default=8_010, show_default=True, help="0: any free port.")
@click.option("--allow-remote", is_flag=True, help="Allow a --host that other machines reach, without TLS.")
@click.option("--allow-changes", is_flag=True, help="Let the page revoke sessions.")
def console(host: str, port: int, *, allow_remote: bool, allow_changes: bool) -> None:
    """Serve a live page of a chat and its servers, until a signal ends it.

    The page shows rates, rooms by activity, people online, both servers, the slowest statements, the findings of
    `hubbub doctor`, the log of a room with the readers of each message, and the sessions of a user. It only reads.

    It is for the browser that opens the address which is printed. Its token is new each time.

    Shows the servers of DATABASE_URL and REDIS_URL, or of DB_* and REDIS_*. Without these variables it shows the
    servers that `hubbub up` started in this folder. As with `hubbub top`, some figures need the rights of an
    operator.
    """
    if not allow_remote and not is_this_machine(host):
        advice = "forward the port by ssh -L, put a proxy with TLS in front, or give --allow-remote"
        raise click.UsageError(f"other machines would reach {host} without TLS: {advice}")
    found = find_settings()
    settings = Settings(
        postgres=replace(found.postgres, pool_size=POOL_SIZE, deadline_seconds=DEADLINE_SECONDS),
        redis=replace(found.redis, deadline_seconds=DEADLINE_SECONDS),
    )
    with unreported():
        asyncio.run(_serve(settings, host, port, allow_changes=allow_changes))


async def _serve(settings: Settings, host: str, port: int, *, allow_changes: bool) -> None:
    from hubbub.web.console_app import serving  # noqa: PLC0415 - with the extra `web` only

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, reuse_port=False) as listening:
        name = f"[{host}]" if ":" in host else host
        address = f"http://{name}:{listening.getsockname()[1]}"
        async with hub.open(settings) as chat:
            await serving.serve(
                chat,
                listening,
                allow_changes=allow_changes,
                on_start=lambda path: click.echo(f"open {address}{path}"),
            )
