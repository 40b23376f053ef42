"""The name, version and figures that Redis or Valkey reports."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from hubbub.redis import Connection
from hubbub.redis.replies import as_bytes


class ServerInfo(NamedTuple):
    """`name` is Redis or Valkey; `fields` are those of INFO, `others` of the other primaries of a cluster."""

    name: str
    version: str
    fields: dict[str, str]
    others: Sequence[dict[str, str]] = ()

    def number(self, field: str) -> int:
        """Of a cluster, the sum over its primaries."""
        return sum(int(fields.get(field, 0)) for fields in (self.fields, *self.others))


async def server_info(connection: Connection) -> ServerInfo:
    """Raises: Unavailable, ReplyError (the login may not run INFO)."""
    servers = connection.servers or {"": connection}  # no slot of the cluster is known yet
    texts = await asyncio.gather(*[server.execute("INFO") for server in servers.values()])
    fields, *others = [_fields(as_bytes(text).decode(errors="replace")) for text in texts]
    name = "Valkey" if "valkey_version" in fields else "Redis"
    return ServerInfo(name, fields.get(f"{name.lower()}_version", ""), fields, others)


def _fields(text: str) -> dict[str, str]:
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
