"""A server of django-channels with channels_redis, on uvicorn with the settings of `hubbub serve`.

python -m benchmarks.peers.django_channels REDIS_URL
"""

from __future__ import annotations

import socket
import sys
from urllib.parse import parse_qs

import django
import uvicorn
from channels.generic.websocket import AsyncWebsocketConsumer
from channels_redis.pubsub import RedisPubSubChannelLayer
from django.conf import settings


class Consumer(AsyncWebsocketConsumer):  # type: ignore[misc]  # it has no types
    """A client in the group that its path names."""

    async def connect(self) -> None:
        self.group = parse_qs(self.scope["query_string"].decode())["room"][0]
        await self.channel_layer.group_add(self.group, self.channel_name)
        await self.accept()
        await self.send(text_data="ready")

    async def disconnect(self, code: int) -> None:
        await self.channel_layer.group_discard(self.group, self.channel_name)

    async def chat_message(self, event: dict[str, str]) -> None:
        await self.send(text_data=event["text"])


def layer_of(redis_url: str) -> dict[str, object]:
    """The fastest layer of channels_redis, by PUBLISH and SUBSCRIBE."""
    return {"BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer", "CONFIG": {"hosts": [redis_url]}}


def configure(redis_url: str) -> None:
    settings.configure(CHANNEL_LAYERS={"default": layer_of(redis_url)}, SECRET_KEY="none", INSTALLED_APPS=[])
    django.setup()


def sender(redis_url: str) -> RedisPubSubChannelLayer:
    """A function that sends to groups from another process."""
    return RedisPubSubChannelLayer(hosts=[redis_url])


def main(redis_url: str) -> None:
    configure(redis_url)
    config = uvicorn.Config(
        Consumer.as_asgi(),
        loop="uvloop",
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        ws_ping_interval=60,
        ws_ping_timeout=20,
        lifespan="off",
        log_level="warning",
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(f"clients connect to ws://127.0.0.1:{listening.getsockname()[1]}/", flush=True)
        uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main(*sys.argv[1:])
