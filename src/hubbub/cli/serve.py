"""`hubbub serve`: the gateway alone."""

from __future__ import annotations

import asyncio
import os
import socket

import click

from hubbub import hub


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65_535), default=8_000, show_default=True, help="0: any free port.")
@click.option("--path", default="/chat", show_default=True, help="Where the paths of docs/protocol.md begin.")
@click.option(
    "--origin", "origins", multiple=True, help="Of pages on another host, such as https://app.example.org."
)
def serve(host: str, port: int, path: str, origins: tuple[str, ...]) -> None:
    """Serve clients by WebSocket and HTTP (docs/protocol.md), until a signal ends it.

    The clients have sessions that the application creates, by `hub.sessions.create_session`. With a HUBBUB_SECRET
    of at least 32 bytes in the environment they may also have signed tokens. GET /health says whether the servers
    answer. Run one process per core behind a proxy that ends TLS.
    """
    from hubbub.web.serving import new_event_loop  # noqa: PLC0415 - with the extra `web` only

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_serve(host, port, path, origins))


async def _serve(host: str, port: int, path: str, origins: tuple[str, ...]) -> None:
    from hubbub.web import serving  # noqa: PLC0415

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, reuse_port=False) as listening:
        name = f"[{host}]" if ":" in host else host
        address = f"ws://{name}:{listening.getsockname()[1]}{path}/socket"
        secret = os.environ.get("HUBBUB_SECRET")
        async with hub.open() as chat:
            await serving.serve(
                chat,
                listening,
                path=path,
                origins=origins,
                secret=None if secret is None else secret.encode(),
                on_start=lambda: click.echo(f"clients connect to {address}"),
            )
