"""A gateway alone on uvicorn, with the settings that were measured best (docs/decisions.md)."""

from __future__ import annotations

import resource
import socket
from collections.abc import Callable, Collection
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route, Router

from hubbub.hub import Hub
from hubbub.scheduling import collect_garbage_rarely
from hubbub.web import frames
from hubbub.web.gateway import Gateway

try:
    import uvicorn
    import uvloop
except ImportError as error:
    raise ImportError("hubbub serve needs uvicorn and uvloop: pip install 'hubbub[web]'") from error

PING_SECONDS: Final = 60.0
PONG_SECONDS: Final = 20.0
"""A client that is silent is noticed within the sum of the two. A ping costs more than a frame, so it is rare."""
GRACE_SECONDS: Final = 5
"""How long requests in progress may take at the end."""

new_event_loop = uvloop.new_event_loop


class Server(uvicorn.Server):
    """A server that tells when it has started, and sends the clients of a gateway elsewhere before it ends."""

    def __init__(
        self, config: uvicorn.Config, on_start: Callable[[], None], gateway: Gateway | None = None
    ) -> None:
        super().__init__(config)
        self._on_start = on_start
        self._gateway = gateway

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._gateway is not None:
            await self._gateway.close()
        await super().shutdown(sockets)


def allow_many_connections() -> None:
    """Allow as many open files as the system lets this process have. A soft limit of 1,024 is usual."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def serve(
    hub: Hub,
    listening: socket.socket,
    *,
    path: str,
    origins: Collection[str] = (),
    secret: bytes | None = None,
    on_start: Callable[[], None],
) -> None:
    """Serve clients below `path` until a signal ends the process, and the health of the hub at `/health`."""
    gateway = Gateway(hub, origins=origins, secret=secret)

    async def health(_: Request) -> Response:
        found = await hub.health()
        status = 200 if found.ready else 503
        return Response(frames.encode({"ready": found.ready}), status, media_type="application/json")

    app = Router([Route("/health", health), Mount(path, gateway)])
    config = uvicorn.Config(
        app,
        ws="websockets-sansio",
        ws_max_size=gateway.limits.frame_bytes,
        ws_per_message_deflate=False,
        ws_ping_interval=PING_SECONDS,
        ws_ping_timeout=PONG_SECONDS,
        http="httptools",
        lifespan="off",
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    allow_many_connections()
    collect_garbage_rarely()
    await Server(config, on_start, gateway).serve(sockets=[listening])
