"""A gateway alone on uvicorn, with the settings that were measured best (docs/decisions.md)."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
from collections.abc import Callable, Collection, Iterable
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route, Router
from starlette.types import ASGIApp

from hubbub.hub import Hub
from hubbub.scheduling import collect_garbage_rarely
from hubbub.web import frames
from hubbub.web.gateway import Gateway
from hubbub.web.sockets import LAST_FRAME

try:
    import uvicorn
    import uvloop
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
    from websockets.protocol import State
except ImportError as error:
    raise ImportError("hubbub serve needs uvicorn and uvloop: pip install 'hubbub[web]'") from error

PING_SECONDS: Final = 60.0
PONG_SECONDS: Final = 20.0
"""A client that is silent is noticed within the sum of the two. A ping costs more than a frame, so it is rare."""
SHUTDOWN_SECONDS: Final = 5
"""How long requests in progress may take at the end."""
TCP_USER_TIMEOUT_SECONDS: Final = 40
"""How long a client may read nothing of what was written. The gateway cuts a connection earlier, after 30."""
LINGER_SECONDS: Final = 15.0
"""How long a client may take to read what is left for it at the end. uvicorn waits 10 for its close."""
MAX_FRAGMENTS: Final = 1_000
"""Fragments of one message. uvicorn bounds their bytes alone, and a fragment may be empty."""

if TYPE_CHECKING:
    from websockets.frames import Frame
    from websockets.http11 import Request as Handshake

new_event_loop = uvloop.new_event_loop


class WebSockets(WebSocketsSansIOProtocol):
    """The WebSockets of uvicorn, where no client makes the server hold more than a message and its answers.

    A server that ends sends the clients of a gateway its `bye`, so that they come back spread over some seconds.

    `uvicorn --ws hubbub.web.serving:WebSockets` takes it as well.
    """

    _late_pong = b""
    _last_frame: str | None = None

    def handle_connect(self, event: Handshake) -> None:
        super().handle_connect(event)
        if not self.close_sent:  # its application begins in the next step
            self.scope["extensions"][LAST_FRAME] = self._set_last_frame  # type: ignore[assignment]

    def _set_last_frame(self, frame: str) -> None:
        self._last_frame = frame

    def shutdown(self) -> None:
        if self._last_frame is not None and not self.close_sent and self.conn.state is State.OPEN:
            self.conn.send_text(self._last_frame.encode())
        super().shutdown()

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" and not self.close_sent and not _is_utf8(self.frames):
            self.frames = []
            self.conn.send_close(1007)
            self.handle_parser_exception()  # as uvicorn does after a traceback, which any client may cause
        else:
            super().send_receive_event_to_app()

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:  # the client sends pings and does not read: only the newest one needs an answer (RFC 6455, 5.5.3)
            self._late_pong = (self.conn.data_to_send() or [self._late_pong])[-1]

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._late_pong and not self.close_sent:
            self.transport.write(self._late_pong)
        self._late_pong = b""

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) < MAX_FRAGMENTS:
            super().handle_cont(event)
        else:
            self.frames = []
            self.transport.abort()

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self.transport.abort()  # as it does not read, it would never close

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        super().on_task_complete(task)
        if self in self.connections:
            self.loop.call_later(LINGER_SECONDS, self.transport.abort)


class Server(uvicorn.Server):
    """Calls `on_start` after its start, and closes the gateway before it stops."""

    def __init__(
        self, config: uvicorn.Config, on_start: Callable[[], None], gateway: Gateway | None = None
    ) -> None:
        super().__init__(config)
        self._on_start = on_start
        self._gateway = gateway

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGTERM:  # which uvicorn raises again when it has ended, before the hub is closed
            self.should_exit = True
        else:
            super().handle_exit(sig, frame)

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
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # on Linux, for the connections that it accepts
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, TCP_USER_TIMEOUT_SECONDS * 1_000)
    allow_many_connections()
    collect_garbage_rarely()
    await run(
        app,
        listening,
        on_start,
        gateway,
        ws=WebSockets,
        ws_max_size=gateway.limits.frame_bytes,
        ws_per_message_deflate=False,
        ws_ping_interval=PING_SECONDS,
        ws_ping_timeout=PONG_SECONDS,
    )


async def run(
    app: ASGIApp,
    listening: socket.socket,
    on_start: Callable[[], None],
    gateway: Gateway | None = None,
    **options: Any,  # noqa: ANN401 - of uvicorn
) -> None:
    """Serve until a signal ends the process."""
    config = uvicorn.Config(
        app,
        http="httptools",
        lifespan="off",
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        **options,
    )
    await Server(config, on_start, gateway).serve(sockets=[listening])


def _is_utf8(parts: Iterable[bytes]) -> bool:
    try:
        b"".join(parts).decode()
    except UnicodeDecodeError:
        return False
    return True
