"""The name, version and figures that Redis or Valkey reports."""

from __future__ import annotations

from typing import NamedTuple

from hubbub.redis import Connection
from hubbub.redis.replies import as_bytes


class ServerInfo(NamedTuple):
    """`name` is Redis or Valkey; `fields` are those of INFO."""

    name: str
    version: str
    fields: dict[str, str]

    def number(self, field: str) -> int:
        return int(self.fields.get(field, 0))


async def server_info(connection: Connection) -> ServerInfo:
    """Raises: Unavailable, ReplyError (the login may not run INFO)."""
    text = as_bytes(await connection.execute("INFO")).decode(errors="replace")
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    name = "Valkey" if "valkey_version" in fields else "Redis"
    return ServerInfo(name, fields.get(f"{name.lower()}_version", ""), fields)
