"""A server of python-socketio with its Redis manager, on uvicorn with the settings of `hubbub serve`.

python -m benchmarks.peers.socket_io REDIS_URL
"""

from __future__ import annotations

import socket
import sys
from urllib.parse import parse_qs

import socketio
import uvicorn


def main(redis_url: str) -> None:
    manager = socketio.AsyncRedisManager(redis_url)
    server = socketio.AsyncServer(async_mode="asgi", client_manager=manager, cors_allowed_origins="*")

    @server.event
    async def connect(sid: str, environ: dict[str, object]) -> None:
        await server.enter_room(sid, parse_qs(str(environ["QUERY_STRING"]))["room"][0])

    config = uvicorn.Config(
        socketio.ASGIApp(server),
        loop="uvloop",
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        ws_ping_interval=60,
        ws_ping_timeout=20,
        log_level="warning",
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(f"clients connect to ws://127.0.0.1:{listening.getsockname()[1]}/socket.io/", flush=True)
        uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main(*sys.argv[1:])
