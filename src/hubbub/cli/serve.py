"""`hubbub serve` and `hubbub console`: the gateway alone, and live figures of a chat and its servers."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import click

from hubbub import hub
from hubbub.cli import unreported
from hubbub.diagnostics.report import is_this_machine
from hubbub.settings import Settings

CONSOLE_POOL_SIZE: Final = 3
CONSOLE_DEADLINE_SECONDS: Final = 3
"""A person who watches wants to see soon that a server does not answer."""


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65_535), default=8_000, show_default=True, help="0: any free port.")
@click.option("--path", default="/chat", show_default=True, help="Prefix of the paths in docs/protocol.md.")
@click.option(
    "--origin",
    "origins",
    multiple=True,
    help="Origin of pages on another host, such as https://app.example.org. May be repeated.",
)
def serve(host: str, port: int, path: str, origins: tuple[str, ...]) -> None:
    """Serve clients by WebSocket and HTTP (docs/protocol.md) until a signal.

    The clients have sessions that the application creates by `hub.sessions.create_session`. With a HUBBUB_SECRET
    of at least 32 bytes in the environment they may also use signed tokens. GET /health returns 200 while
    PostgreSQL answers, also without Redis, and otherwise 503. Run one process per core behind a proxy that
    terminates TLS.
    """
    from hubbub.web.serving import new_event_loop  # noqa: PLC0415 - with the extra `web` only

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_serve(host, port, path, origins))


async def _serve(host: str, port: int, path: str, origins: tuple[str, ...]) -> None:
    from hubbub.web import serving  # noqa: PLC0415

    secret = os.environ.get("HUBBUB_SECRET")
    with _listen(host, port) as (listening, address):
        async with hub.open() as chat:
            await serving.serve(
                chat,
                listening,
                path=path,
                origins=origins,
                secret=None if secret is None else secret.encode(),
                on_start=lambda: click.echo(f"clients connect to ws://{address}{path}/socket"),
            )


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65_535), default=8_010, show_default=True, help="0: any free port.")
@click.option("--allow-remote", is_flag=True, help="Allow a --host that other machines can reach, without TLS.")
@click.option("--allow-changes", is_flag=True, help="Let the page revoke sessions.")
def console(host: str, port: int, *, allow_remote: bool, allow_changes: bool) -> None:
    """Serve a live page of a chat and its servers until a signal.

    The page shows rates, rooms by activity, people online, both servers, the slowest statements, the findings of
    `hubbub doctor`, the log of a room with the readers of each message, and the sessions of a user. It only reads.

    Open the printed address in a browser. It has a new token for each run.

    Shows the servers of DATABASE_URL and REDIS_URL, or of DB_* and REDIS_*. Without these variables it shows the
    servers that `hubbub up` started in this folder. As with `hubbub top`, some figures need the rights of an
    operator.
    """
    if not allow_remote and not is_this_machine(host):
        advice = "forward the port by ssh -L, put a proxy with TLS in front, or give --allow-remote"
        raise click.UsageError(f"other machines would reach {host} without TLS: {advice}")
    found = hub.find_settings()
    settings = Settings(
        postgres=replace(found.postgres, pool_size=CONSOLE_POOL_SIZE, deadline_seconds=CONSOLE_DEADLINE_SECONDS),
        redis=replace(found.redis, deadline_seconds=CONSOLE_DEADLINE_SECONDS),
    )
    with unreported():
        asyncio.run(_serve_console(settings, host, port, allow_changes=allow_changes))


async def _serve_console(settings: Settings, host: str, port: int, *, allow_changes: bool) -> None:
    from hubbub.web.console_app import TokenLogin  # noqa: PLC0415 - with the extra `web` only
    from hubbub.web.serving import run  # noqa: PLC0415

    with _listen(host, port) as (listening, address):
        async with hub.open(settings) as chat:
            login = TokenLogin(chat, listening.getsockname()[1], allow_changes=allow_changes)
            await run(
                login,
                listening,
                lambda: click.echo(f"open http://{address}/?token={login.token}"),
                ws="none",
                access_log=False,  # it would have the token
            )


@contextmanager
def _listen(host: str, port: int) -> Iterator[tuple[socket.socket, str]]:
    """A listening socket, and its address as in a URL."""
    family, name = (socket.AF_INET6, f"[{host}]") if ":" in host else (socket.AF_INET, host)
    with socket.create_server((host, port), family=family, reuse_port=False) as listening:
        yield listening, f"{name}:{listening.getsockname()[1]}"
