"""The table that `hubbub top` shows. It fits into 80 columns and 24 lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeVar

from rich.console import Group, RenderableType
from rich.constrain import Constrain
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from hubbub.cli.server_info import ServerInfo
from hubbub.cli.top.figures import BUSY_SECONDS, Live, Poller, Stored, Typing
from hubbub.errors import Unavailable
from hubbub.settings import Settings

T = TypeVar("T")

WIDEST: Final = 110
UNKNOWN: Final = "-"


@dataclass(frozen=True, slots=True)
class Servers:
    """Both servers of a hub, and the settings that lead to them."""

    settings: Settings
    postgres: Poller[Stored]
    redis: Poller[Live]

    @property
    def answer(self) -> bool:
        """Whether both answered when they were asked last."""
        return self.postgres.error is None and self.redis.error is None


def table(servers: Servers, hint: str = "") -> RenderableType:
    """The servers and whether they answer, and below them their figures in two columns."""
    title = Table.grid(expand=True)
    title.add_column()
    title.add_column(justify="right")
    title.add_row(Text("hubbub top", style="bold"), Text(hint, style="dim"))
    figures = Table.grid(padding=(0, 2), expand=True)
    figures.add_column(ratio=1)
    figures.add_column(ratio=1)
    figures.add_row(
        Group(_chat(servers), Text(), _busiest(servers.postgres.latest)),
        Group(_postgres(servers.postgres), Text(), _redis(servers.redis)),
    )
    return Constrain(Group(title, Text(), _health(servers), *_errors(servers), Text(), figures), WIDEST)


def _health(servers: Servers) -> Table:
    postgres, redis = servers.settings.postgres, servers.settings.redis
    stored, live = servers.postgres.latest, servers.redis.latest
    health = Table.grid(padding=(0, 2))
    health.add_row(
        Text(f"PostgreSQL {stored.server.version}" if stored else "PostgreSQL"),
        Text(f"{postgres.host}:{postgres.port}/{postgres.database}", style="dim"),
        _state(servers.postgres),
    )
    health.add_row(
        Text(f"{live.server.name} {live.server.version}" if live else "Redis"),
        Text(f"{redis.host}:{redis.port}", style="dim"),
        _state(servers.redis),
    )
    return health


def _state(poller: Poller[Stored] | Poller[Live]) -> Text:
    if poller.error is not None:
        return Text("unreachable" if isinstance(poller.error, Unavailable) else "cannot be used", style="bold red")
    return Text("asking", style="dim") if poller.latest is None else Text("ok", style="green")


def _errors(servers: Servers) -> list[Text]:
    """A line for each server with an error, cut off where the terminal ends."""
    errors = [error for error in (servers.postgres.error, servers.redis.error) if error is not None]
    reasons = [error.reason if isinstance(error, Unavailable) else str(error) for error in errors]
    return [Text(_printable(reason), style="red", no_wrap=True, overflow="ellipsis") for reason in reasons]


def _block(title: str, rows: Iterable[tuple[str, str | None]]) -> Table:
    block = Table(box=None, expand=True, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    block.add_column(title, ratio=1, no_wrap=True)
    block.add_column("", justify="right", no_wrap=True)
    for name, value in rows:
        block.add_row(Text(f"  {name}"), Text(UNKNOWN, style="dim") if value is None else Text(value))
    return block


def _rows(answer: T | None, figures: dict[str, Callable[[T], str]]) -> list[tuple[str, str | None]]:
    """The figures of an answer by their names. Without an answer they are unknown."""
    return [(name, None if answer is None else figure(answer)) for name, figure in figures.items()]


def _chat(servers: Servers) -> Table:
    sent = servers.postgres.rate(lambda stored: stored.rows["messages"].inserted)
    totals = _rows(
        servers.postgres.latest,
        {
            "users": lambda stored: f"about {stored.rows['users'].rows:,}",
            "rooms": lambda stored: f"about {stored.rows['rooms'].rows:,}",
            "messages": lambda stored: f"about {stored.rows['messages'].rows:,}",
        },
    )
    live = _rows(
        servers.redis.latest,
        {
            "users online": lambda live: f"{live.online:,}",
            "members typing": lambda live: _typing(live.typing),
            "sessions": lambda live: f"{'' if live.sessions.is_exact else 'about '}{live.sessions.number:,}",
        },
    )
    return _block("Chat", [*totals, ("messages per second", _rate(sent)), *live])


def _typing(typing: Typing) -> str:
    if not typing.users:
        return "0"
    rooms = "room" if typing.rooms == 1 else "rooms"
    return f"{'over ' if typing.is_more else ''}{typing.users:,} in {typing.rooms:,} {rooms}"


def _busiest(stored: Stored | None) -> Table:
    """As shares, because only the newest thousand messages are looked at."""
    rooms = [(_printable(room.name), f"{room.share:.0%}") for room in stored.busiest] if stored else []
    return _block(f"Busiest rooms of the last {BUSY_SECONDS} s", rooms or [(UNKNOWN, "")])


def _postgres(poller: Poller[Stored]) -> Table:
    found = poller.growth(lambda stored: stored.server.blocks_found)
    read = poller.growth(lambda stored: stored.server.blocks_read)
    rows = _rows(
        poller.latest and poller.latest.server,
        {
            "connections": lambda server: f"{server.connections:,} of {server.max_connections:,}",
            "in hubbub pools": lambda server: f"{server.pooled:,}",
            "active": lambda server: f"{server.active:,}",
            "waiting for a lock": lambda server: f"{server.waiting:,}",
            "longest transaction": lambda server: f"{server.longest_seconds or 0:.1f} s",
        },
    )
    commits = _rate(poller.rate(lambda stored: stored.server.commits))
    return _block(
        "PostgreSQL", [*rows, ("commits per second", commits), ("block cache hits", _share(found, read))]
    )


def _redis(poller: Poller[Live]) -> Table:
    def growth(field: str) -> int | None:
        return poller.growth(lambda live: live.server.number(field), lambda live: live.afterwards.number(field))

    rows = _rows(
        poller.latest and poller.latest.server,
        {
            "clients": lambda info: f"{info.number('connected_clients') - 1:,}",
            "keys evicted": lambda info: f"{info.number('evicted_keys'):,}",
            "memory": _memory,
        },
    )
    commands = poller.rate(
        lambda live: live.server.number("total_commands_processed"),
        lambda live: live.afterwards.number("total_commands_processed"),
    )
    hits = _share(growth("keyspace_hits"), growth("keyspace_misses"))
    name = poller.latest.server.name if poller.latest else "Redis"
    return _block(name, [*rows, ("commands per second", _rate(commands)), ("key lookup hits", hits)])


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


def _printable(text: str) -> str:
    """Without control characters, which would steer the terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
