"""The table that `hubbub top` shows: 80 columns and 24 lines are enough for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.constrain import Constrain
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from hubbub.cli._top.postgresql import WINDOW_SECONDS, Chat
from hubbub.cli._top.redis import Live, Sessions, Typing
from hubbub.cli._top.watched import Watched
from hubbub.errors import Unavailable
from hubbub.settings import Settings

WIDEST = 110
UNKNOWN = "-"

Row = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Servers:
    """Both servers of a hub, as they are watched."""

    settings: Settings
    postgresql: Watched[Chat]
    redis: Watched[Live]

    @property
    def answer(self) -> bool:
        """Whether both did when they were asked last."""
        return self.postgresql.trouble is None and self.redis.trouble is None


def table(servers: Servers, hint: str = "") -> RenderableType:
    """Who the servers are and whether they answer, and below it their figures in two columns."""
    figures = Table.grid(padding=(0, 2), expand=True)
    figures.add_column(ratio=1)
    figures.add_column(ratio=1)
    figures.add_row(
        Group(_chat(servers), Text(), _busiest(servers.postgresql.now)),
        Group(_postgresql(servers.postgresql), Text(), _redis(servers.redis)),
    )
    parts: list[RenderableType] = [_title(hint), Text(), _health(servers), *_reasons(servers), Text(), figures]
    return Constrain(Group(*parts), WIDEST)


def _title(hint: str) -> Table:
    title = Table.grid(expand=True)
    title.add_column()
    title.add_column(justify="right")
    title.add_row(Text("hubbub top", style="bold"), Text(hint, style="dim"))
    return title


def _health(servers: Servers) -> Table:
    postgres, redis = servers.settings.postgres, servers.settings.redis
    chat, live = servers.postgresql.now, servers.redis.now
    health = Table.grid(padding=(0, 2))
    health.add_row(
        Text(f"PostgreSQL {chat.server.version}" if chat else "PostgreSQL"),
        Text(f"{postgres.host}:{postgres.port}/{postgres.database}", style="dim"),
        _state(servers.postgresql),
    )
    health.add_row(
        Text(f"{live.server.name} {live.server.version}" if live else "Redis"),
        Text(f"{redis.host}:{redis.port}", style="dim"),
        _state(servers.redis),
    )
    return health


def _state(watched: Watched[Chat] | Watched[Live]) -> Text:
    match watched.trouble:
        case None:
            return Text("asking", style="dim") if watched.now is None else Text("ok", style="green")
        case Unavailable():
            return Text("unreachable", style="bold red")
        case _:
            return Text("cannot be used", style="bold red")


def _reasons(servers: Servers) -> list[Text]:
    """A line for each server that is not well; cut off where the terminal ends."""
    troubles = (servers.postgresql.trouble, servers.redis.trouble)
    reasons = [one.reason if isinstance(one, Unavailable) else str(one) for one in troubles if one is not None]
    return [Text(_printable(reason), style="red", no_wrap=True, overflow="ellipsis") for reason in reasons]


def _block(title: str, rows: Sequence[Row]) -> Table:
    block = Table(box=None, expand=True, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    block.add_column(title, ratio=1, no_wrap=True)
    block.add_column("", justify="right", no_wrap=True)
    for name, value in rows:
        block.add_row(Text(f"  {name}"), Text(value, style="dim" if value == UNKNOWN else ""))
    return block


def _chat(servers: Servers) -> Table:
    chat, live = servers.postgresql.now, servers.redis.now
    rows = {} if chat is None else chat.rows
    stored = [
        (name, f"about {rows[name].rows:,}" if name in rows else UNKNOWN)
        for name in ("users", "rooms", "messages")
    ]
    sent = servers.postgresql.per_second(lambda chat: chat.rows["messages"].inserted)
    now = [
        ("messages a second", _rate(sent)),
        ("users online", UNKNOWN if live is None else f"{live.online:,}"),
        ("members typing", UNKNOWN if live is None else _typing(live.typing)),
        ("sessions", UNKNOWN if live is None else _sessions(live.sessions)),
    ]
    return _block("Chat", [*stored, *now])


def _typing(typing: Typing) -> str:
    if not typing.users:
        return "0"
    rooms = "room" if typing.rooms == 1 else "rooms"
    return f"{'over ' if typing.is_more else ''}{typing.users:,} in {typing.rooms:,} {rooms}"


def _sessions(sessions: Sessions) -> str:
    return f"{'' if sessions.is_exact else 'about '}{sessions.number:,}"


def _busiest(chat: Chat | None) -> Table:
    """Shares, as they hold however many messages there are: only the newest thousand are looked at."""
    rooms = [(_printable(room.name), f"{room.share:.0%}") for room in chat.busiest] if chat else []
    return _block(f"Busiest rooms of the last {WINDOW_SECONDS} s", rooms or [(UNKNOWN, "")])


def _postgresql(watched: Watched[Chat]) -> Table:
    server = watched.now.server if watched.now else None
    commits = watched.per_second(lambda chat: chat.server.commits)
    found = watched.grown(lambda chat: chat.server.blocks_found)
    read = watched.grown(lambda chat: chat.server.blocks_read)
    rows = [
        ("connections", f"{server.connections:,} of {server.max_connections:,}" if server else UNKNOWN),
        ("in pools of hubbub", f"{server.hubs:,}" if server else UNKNOWN),
        ("at work", f"{server.active:,}" if server else UNKNOWN),
        ("waiting for a lock", f"{server.waiting:,}" if server else UNKNOWN),
        ("longest transaction", f"{server.longest_seconds or 0:.1f} s" if server else UNKNOWN),
        ("commits a second", _rate(commits)),
        ("blocks found in memory", _share(found, read)),
    ]
    return _block("PostgreSQL", rows)


def _redis(watched: Watched[Live]) -> Table:
    server = watched.now.server if watched.now else None
    commands = watched.per_second(lambda live: live.server.commands, lambda live: live.afterwards.commands)
    found = watched.grown(lambda live: live.server.found, lambda live: live.afterwards.found)
    missed = watched.grown(lambda live: live.server.missed, lambda live: live.afterwards.missed)
    memory = UNKNOWN
    if server is not None:
        limit = f" of {decimal(server.memory_limit)}" if server.memory_limit else ""
        memory = f"{decimal(server.memory)}{limit}"
    rows = [
        ("clients", f"{server.clients:,}" if server else UNKNOWN),
        ("commands a second", _rate(commands)),
        ("reads that found a key", _share(found, missed)),
        ("memory", memory),
        ("keys evicted", f"{server.evicted:,}" if server else UNKNOWN),
    ]
    return _block(server.name if server else "Redis", rows)


def _rate(per_second: float | None) -> str:
    return UNKNOWN if per_second is None else f"{per_second:,.0f}"


def _share(found: int | None, missed: int | None) -> str:
    """Of what was asked for since the last look."""
    if found is None or missed is None or not found + missed:
        return UNKNOWN
    return f"{found / (found + missed):.1%}"


def _printable(text: str) -> str:
    """What a user named a room, without what would steer a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
