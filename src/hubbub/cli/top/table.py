"""The table that `hubbub top` shows. It fits into 80 columns and 24 lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from rich.console import Group, RenderableType
from rich.constrain import Constrain
from rich.filesize import decimal
from rich.table import Column, Table
from rich.text import Text

from hubbub.cli.terminal import printable
from hubbub.diagnostics.figures import BUSY_SECONDS, Live, Poller, Stored, Typing
from hubbub.diagnostics.server_info import ServerInfo
from hubbub.errors import Unavailable
from hubbub.settings import Settings

WIDEST: Final = 110
BUSIEST: Final = 5
"""Rooms, so that the table fits."""
UNKNOWN: Final = "-"


class Servers(NamedTuple):
    """Both servers of a hub, and the settings that lead to them."""

    settings: Settings
    postgres: Poller[Stored]
    redis: Poller[Live]


def table(servers: Servers, hint: str = "") -> RenderableType:
    title = Table.grid(Column(), Column(justify="right"), expand=True)
    title.add_row(Text("hubbub top", style="bold"), Text(hint, style="dim"))
    figures = Table.grid(Column(ratio=1), Column(ratio=1), padding=(0, 2), expand=True)
    figures.add_row(
        Group(_chat(servers), Text(), _busiest(servers.postgres.latest)),
        Group(_postgres(servers.postgres), Text(), _redis(servers.redis)),
    )
    return Constrain(Group(title, Text(), _health(servers), *_errors(servers), Text(), figures), WIDEST)


def _health(servers: Servers) -> Table:
    postgres, redis = servers.settings.postgres, servers.settings.redis
    stored, live = servers.postgres.latest, servers.redis.latest
    health = Table.grid(padding=(0, 2))
    version = f"PostgreSQL {stored.server.version}" if stored else "PostgreSQL"
    where = Text(f"{postgres.where}/{postgres.database}", style="dim")
    health.add_row(version, where, _state(servers.postgres))
    version = f"{live.server.name} {live.server.version}" if live else "Redis"
    health.add_row(version, Text(redis.where, style="dim"), _state(servers.redis))
    return health


def _state(poller: Poller[Stored] | Poller[Live]) -> Text:
    if poller.error is not None:
        return Text("unreachable" if isinstance(poller.error, Unavailable) else "cannot be used", style="bold red")
    return Text("asking", style="dim") if poller.latest is None else Text("ok", style="green")


def _errors(servers: Servers) -> list[Text]:
    """A line for each server with an error, cut off where the terminal ends."""
    errors = [error for error in (servers.postgres.error, servers.redis.error) if error is not None]
    reasons = [error.reason if isinstance(error, Unavailable) else str(error) for error in errors]
    return [Text(printable(reason), style="red", no_wrap=True, overflow="ellipsis") for reason in reasons]


def _block(title: str, rows: Iterable[tuple[str, str | None]]) -> Table:
    columns = Column(title, ratio=1, no_wrap=True), Column("", justify="right", no_wrap=True)
    block = Table(*columns, box=None, expand=True, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for name, value in rows:
        block.add_row(Text(f"  {name}"), Text(UNKNOWN, style="dim") if value is None else Text(value))
    return block


def _chat(servers: Servers) -> Table:
    stored, live = servers.postgres.latest, servers.redis.latest
    sent = servers.postgres.rate(lambda stored: stored.rows["messages"].inserted)
    rows = [(name, stored and f"about {stored.rows[name].rows:,}") for name in ("users", "rooms", "messages")]
    about = "about " if live and not live.sessions.is_exact else ""
    rows += [
        ("messages per second", _rate(sent)),
        ("users online", live and f"{live.online:,}"),
        ("members typing", live and _typing(live.typing)),
        ("sessions", live and f"{about}{live.sessions.number:,}"),
    ]
    return _block("Chat", rows)


def _typing(typing: Typing) -> str:
    if not typing.users:
        return "0"
    rooms = "room" if typing.rooms == 1 else "rooms"
    return f"{'over ' if typing.is_more else ''}{typing.users:,} in {typing.rooms:,} {rooms}"


def _busiest(stored: Stored | None) -> Table:
    """As shares, because only the newest thousand messages are looked at."""
    rooms = [(printable(room.name), f"{room.share:.0%}") for room in stored.busiest[:BUSIEST]] if stored else []
    return _block(f"Busiest rooms of the last {BUSY_SECONDS} s", rooms or [(UNKNOWN, "")])


def _postgres(poller: Poller[Stored]) -> Table:
    found = poller.growth(lambda stored: stored.server.blocks_found)
    read = poller.growth(lambda stored: stored.server.blocks_read)
    server = poller.latest and poller.latest.server
    rows = [
        ("connections", server and f"{server.connections:,} of {server.max_connections:,}"),
        ("in hubbub pools", server and f"{server.pooled:,}"),
        ("active", server and f"{server.active:,}"),
        ("waiting for a lock", server and f"{server.waiting:,}"),
        ("longest transaction", server and f"{server.longest_seconds or 0:.1f} s"),
        ("commits per second", _rate(poller.rate(lambda stored: stored.server.commits))),
        ("block cache hits", _share(found, read)),
    ]
    return _block("PostgreSQL", rows)


def _redis(poller: Poller[Live]) -> Table:
    def number(field: str) -> tuple[Callable[[Live], int], Callable[[Live], int]]:
        return lambda live: live.server.number(field), lambda live: live.afterwards.number(field)

    info = poller.latest and poller.latest.server
    hits = _share(poller.growth(*number("keyspace_hits")), poller.growth(*number("keyspace_misses")))
    rows = [
        ("clients", info and f"{info.number('connected_clients') - 1:,}"),
        ("keys evicted", info and f"{info.number('evicted_keys'):,}"),
        ("memory", info and _memory(info)),
        ("commands per second", _rate(poller.rate(*number("total_commands_processed")))),
        ("key lookup hits", hits),
    ]
    return _block(info.name if info else "Redis", rows)


def _memory(info: ServerInfo) -> str:
    limit = info.number("maxmemory")
    return decimal(info.number("used_memory")) + (f" of {decimal(limit)}" if limit else "")


def _rate(per_second: float | None) -> str | None:
    return None if per_second is None else f"{per_second:,.0f}"


def _share(found: int | None, missed: int | None) -> str | None:
    """Of all lookups since the last poll."""
    if found is None or missed is None or not found + missed:
        return None
    return f"{found / (found + missed):.1%}"
