"""Clients of a gateway on real sockets: deliveries to rooms, memory, idle connections, and mass reconnects.

Each contender serves the clients from two processes, and another process sends. Rates are per second of processor
time of the serving processes, so that the clients, which share the machine, do not count.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import re
import sys
import time
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import quote, urlsplit
from uuid import UUID

import msgspec
import socketio
from asyncpg.exceptions import DuplicateDatabaseError

from benchmarks.context import Context, id_of, run
from benchmarks.measuring import Comparison, Figures, Load, Pace, Target, compare
from benchmarks.peers import django_channels
from hubbub import Hub, RedisSettings, Settings
from hubbub.web.serving import allow_many_connections

WORKERS = 2
SAMPLED = 10
"""Clients whose latencies are measured. To read every message would cost as much as its delivery."""
LATE_SECONDS = 20.0
IDLE_SECONDS = 60.0
"""The interval of pings, so that each connection has one ping in it."""
SILENT_SECONDS = 100.0
STORM_PER_SECOND = 20
MAX_ROUNDS = 2
"""A deadline. A round of the slowest peer takes 20 seconds."""
WHEN = re.compile(rb"sent at (\d+\.\d+)")
SENT = re.compile(rb'"type":"message_sent","room_id":"([^"]+)","seq":(\d+),"cursor":"([^"]+)"')

USERS = 5_000


class Group(NamedTuple):
    """Clients. Number n is in the room `first_room + n % rooms`."""

    clients: int
    first_room: int
    rooms: int

    def room_of(self, client: int) -> int:
        return self.first_room + client % self.rooms


LARGE, MIDDLE = Group(1_000, 1, 1), Group(500, 2, 1)
SMALL, QUIET = Group(2_000, 3, 200), Group(USERS, 203, 1_000)
GROUPS = (LARGE, MIDDLE, SMALL, QUIET)

_ID = "('00000000-0000-7000-8000-' || lpad(to_hex({}), 12, '0'))::uuid"
_USER = _ID.format("n")
FILL = (
    f"""
    INSERT INTO users (id, email, username, password_hash)
    SELECT {_USER}, 'user-' || n || '@example.org', 'user-' || n, 'not a hash'
    FROM generate_series(1, {USERS}) AS n
    """,
    f"""
    INSERT INTO rooms (id, name, created_by)
    SELECT {_USER}, 'room-' || n, {_ID.format("1")}
    FROM generate_series(1, {QUIET.first_room + QUIET.rooms - 1}) AS n
    """,
    *(
        f"""
        INSERT INTO room_users (room_id, user_id)
        SELECT {_ID.format(f"{group.first_room} + (n - 1) % {group.rooms}")}, {_USER}
        FROM generate_series(1, {group.clients}) AS n
        """
        for group in GROUPS
    ),
    "ANALYZE",
)


async def gateway(context: Context, pace: Pace) -> AsyncIterator[Comparison]:
    """Messages to rooms of 10, 500 and 1,000 clients, and the memory per client."""
    pace = msgspec.structs.replace(pace, rounds=min(pace.rounds, MAX_ROUNDS))
    async with _contenders(context, WORKERS) as (_, crowds):
        memory = {name: await crowd.connect(MIDDLE) for name, crowd in crowds.items()}
        yield Comparison(
            "gateway-memory",
            f"memory of {MIDDLE.clients} connected clients",
            [memory],
            [Target("KiB a client", at_most=34), *_ahead("KiB a client", 1)],
        )
        for group, per_second, title in (
            (MIDDLE, 50, "50 messages a second to 500 clients in a room"),
            (MIDDLE, 200, "200 messages a second to 500 clients in a room"),
            (LARGE, 50, "50 messages a second to 1,000 clients in a room"),
            (SMALL, 200, "200 messages a second to 2,000 clients in 200 rooms"),
        ):
            for crowd in crowds.values():
                if crowd.group is not group:
                    await crowd.connect(group)
            yield await compare(
                f"gateway-{group.clients}-{per_second}",
                f"deliveries per second of processor, {title}",
                {name: crowd.delivery(per_second) for name, crowd in crowds.items()},
                pace,
                targets=[*_ahead("rate", 1), *_ahead("p99_ms", 1)],
            )


async def gateway_life(context: Context, pace: Pace) -> AsyncIterator[Comparison]:
    """2,000 clients that reconnect at once, 5,000 idle clients in one process, and a silent client."""
    async with _contenders(context, WORKERS) as (hub, crowds):
        for crowd in crowds.values():
            await crowd.connect(SMALL)
        figures = {name: await crowd.storm(hub if name == "hubbub" else None) for name, crowd in crowds.items()}
        yield Comparison(
            "gateway-return",
            f"{SMALL.clients} clients connect again at once; those of hubbub resume",
            [figures],
            [Target("cpu_us", at_most=1_500), Target("lost", at_most=0), *_ahead("cpu_us", 1)],
        )
    async with _contenders(context, 1) as (_, crowds):
        for crowd in crowds.values():
            await crowd.connect(QUIET)
        # At the same time, because idle processes do not disturb each other. Each has its own processor time.
        seconds = 5.0 if pace.quick else IDLE_SECONDS
        silent = None if pace.quick else asyncio.create_task(crowds["hubbub"].silence())
        idle = await asyncio.gather(*(crowd.idle(seconds) for crowd in crowds.values()))
        yield Comparison(
            "gateway-idle",
            f"{QUIET.clients} idle clients of one process",
            [dict(zip(crowds, idle, strict=True))],
            [Target("percent of a core", at_most=2)],
        )
        if silent is not None:
            yield Comparison(
                "gateway-silent",
                "a client that answers no ping is noticed",
                [{"hubbub": await silent}],
                [Target("seconds", at_most=81)],
            )


def _ahead(figure: str, ratio: float) -> list[Target]:
    return [Target(figure, ratio, peer) for peer in ("python-socketio", "channels")]


Send = Callable[[int, str], Awaitable[object]]


class Dialect(Protocol):
    """The protocol of one contender, as its clients speak it."""

    def path(self, room: int) -> str:
        """The path to which a client of this room connects."""

    def first(self, client: Client) -> Sequence[str]:
        """The frames that a client sends first."""

    def answer(self, payload: bytes) -> str | None:
        """The answer to this frame, if it needs one."""

    def is_ready(self, payload: bytes) -> bool:
        """Whether the client is logged in after this frame."""

    def messages_in(self, payload: bytes) -> int:
        """The number of messages in this frame."""


class OfHubbub:
    """The protocol of docs/protocol.md."""

    def __init__(self, path: str, tokens: Sequence[str]) -> None:
        self._path = path
        self._tokens = tokens

    def path(self, room: int) -> str:
        return self._path

    def first(self, client: Client) -> Sequence[str]:
        hello = {"type": "hello", "token": self._tokens[client.number], "positions": client.positions or None}
        return [json.dumps(hello)]

    def answer(self, payload: bytes) -> str | None:
        return None

    def is_ready(self, payload: bytes) -> bool:
        return payload.startswith(b'{"type":"ready"')

    def messages_in(self, payload: bytes) -> int:
        return payload.count(b'"type":"message_sent"')


class OfSocketIO:
    """Version 5 of the protocol of Socket.IO, only by WebSocket."""

    def path(self, room: int) -> str:
        return f"/socket.io/?EIO=4&transport=websocket&room={room}"

    def first(self, client: Client) -> Sequence[str]:
        return ["40"]

    def answer(self, payload: bytes) -> str | None:
        return "3" if payload == b"2" else None

    def is_ready(self, payload: bytes) -> bool:
        return payload.startswith(b"40")

    def messages_in(self, payload: bytes) -> int:
        return payload.startswith(b"42")


class OfChannels:
    """The protocol of an application on django-channels."""

    def path(self, room: int) -> str:
        return f"/?room={room}"

    def first(self, client: Client) -> Sequence[str]:
        return ()

    def answer(self, payload: bytes) -> str | None:
        return None

    def is_ready(self, payload: bytes) -> bool:
        return payload == b"ready"

    def messages_in(self, payload: bytes) -> int:
        return payload.startswith(b"sent at")


class Client(asyncio.Protocol):
    """A WebSocket client that does as little as possible."""

    def __init__(self, crowd: Crowd, number: int, before: Client | None = None) -> None:
        self._crowd = crowd
        self.number = number
        self.positions: dict[str, str] = {} if before is None else before.positions
        self.seen: Counter[tuple[str, int]] = Counter() if before is None else before.seen
        self.answers_pings = True
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._received = bytearray()
        self._is_open = False
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        key = base64.b64encode(os.urandom(16)).decode()
        lines = (
            f"GET {self._crowd.dialect.path(self._crowd.room_of(self.number))} HTTP/1.1",
            "Host: 127.0.0.1",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
        )
        transport.write("\r\n".join((*lines, "", "")).encode())

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._is_open:
            head, found, rest = self._received.partition(b"\r\n\r\n")
            if not found:
                return
            if not head.startswith(b"HTTP/1.1 101"):
                raise RuntimeError(f"no WebSocket: {head[:100]!r}")
            self._is_open, self._received = True, rest
            for text in self._crowd.dialect.first(self):
                self._send(0x81, text.encode())
        while (payload := self._next_frame()) is not None:
            self._take(payload)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)
        if not self.ready.done():
            self.ready.set_exception(ConnectionResetError(f"client {self.number} was refused"))

    def _next_frame(self) -> bytes | None:
        received = self._received
        if len(received) < 2:
            return None
        length, start = received[1] & 0x7F, 2
        if length >= 126:
            start = 4 if length == 126 else 10
            length = int.from_bytes(received[2:start])
        if len(received) < start + length:
            return None
        opcode, payload = received[0] & 0x0F, bytes(received[start : start + length])
        del received[: start + length]
        if opcode == 9 and self.answers_pings:
            self._send(0x8A, payload)
        if opcode == 8:
            self.connection_lost(None)
        return payload if opcode == 1 else b""

    def _take(self, payload: bytes) -> None:
        dialect = self._crowd.dialect
        if answer := dialect.answer(payload):
            self._send(0x81, answer.encode())
        if not self.ready.done() and dialect.is_ready(payload):
            if self._crowd.is_tracking:
                self.positions = json.loads(payload)["positions"]
            self.ready.set_result(None)
        elif messages := dialect.messages_in(payload):
            if self._crowd.is_tracking:
                for room, seq, cursor in SENT.findall(payload):
                    self.positions[room.decode()] = cursor.decode()
                    self.seen[room.decode(), int(seq)] += 1
            self._crowd.take(messages, payload if self.number < SAMPLED else b"")

    def _send(self, first: int, payload: bytes) -> None:
        """Send a frame. It is masked with zeros, which do not change it."""
        length = len(payload)
        size = bytes([0x80 | length]) if length < 126 else bytes([0x80 | 126]) + length.to_bytes(2)
        self.transport.write(bytes([first]) + size + bytes(4) + payload)


class Crowd:
    """The clients of one contender, and the processes that serve them by process id and port."""

    def __init__(self, workers: Sequence[tuple[int, int]], dialect: Dialect, send: Send) -> None:
        self.dialect = dialect
        self.group = MIDDLE
        self.is_tracking = False
        self.refused = 0
        self.kibibytes_a_client = 0.0
        self._workers = workers
        self._send = send
        self._clients: list[Client] = []
        self._delivered = 0
        self._expected = 0
        self._all_delivered = asyncio.Event()
        self._latencies: list[float] = []

    def room_of(self, client: int) -> int:
        return self.group.room_of(client)

    def take(self, messages: int, sampled: bytes) -> None:
        self._delivered += messages
        if sampled:
            now = time.perf_counter()
            self._latencies += [now - float(when) for when in WHEN.findall(sampled)]
        if self._delivered >= self._expected:
            self._all_delivered.set()

    async def connect(self, group: Group) -> Figures:
        """Connect all clients of a group, in place of earlier clients."""
        self._cut()
        self.group, self._clients = group, []
        before = self._kibibytes()
        await self._connect()
        self.kibibytes_a_client = (self._kibibytes() - before) / group.clients
        return {"KiB a client": self.kibibytes_a_client}

    def _cut(self) -> None:
        for client in self._clients:
            client.transport.abort()

    async def _connect(self, at_once: int = 100) -> None:
        slots = asyncio.Semaphore(at_once)
        before = self._clients or [None] * self.group.clients

        async def enter(number: int, one: Client | None) -> Client:
            async with slots:
                while True:
                    try:
                        client = await self._open(number, one)
                        await client.ready
                    except OSError:  # refused temporarily
                        self.refused += 1
                        await asyncio.sleep(random.uniform(0, 1))
                    else:
                        return client

        self._clients = list(await asyncio.gather(*map(enter, range(len(before)), before)))

    async def _open(self, number: int, before: Client | None = None) -> Client:
        port = self._workers[number % len(self._workers)][1]
        _, client = await asyncio.get_running_loop().create_connection(
            lambda: Client(self, number, before), "127.0.0.1", port
        )
        return client

    def delivery(self, per_second: int) -> Load:
        """Send messages at this rate. Ends when all clients have received all of them."""

        async def load(seconds: float) -> Figures:
            number = max(round(per_second * seconds), 10)
            self._latencies = []
            self._delivered, self._expected = 0, number * self.group.clients // self.group.rooms
            self._all_delivered.clear()
            cpu, began = self._cpu_seconds(), time.perf_counter()
            sends = []
            for n in range(number):
                sends.append(asyncio.create_task(self._send_to_room(n)))
                await asyncio.sleep(max(0.0, began + (n + 1) / per_second - time.perf_counter()))
            await asyncio.gather(*sends)
            with suppress(TimeoutError):
                async with asyncio.timeout(LATE_SECONDS):
                    await self._all_delivered.wait()
            used = self._cpu_seconds() - cpu
            latencies = sorted(self._latencies) or [LATE_SECONDS]
            return {
                "rate": self._delivered / used,
                "p50_ms": latencies[len(latencies) // 2] * 1_000,
                "p99_ms": latencies[int(len(latencies) * 0.99)] * 1_000,
                "lost": self._expected - self._delivered,
            }

        return load

    async def _send_to_room(self, number: int) -> None:
        """Send a message to one of the rooms. The rooms of the sampled clients are among the first."""
        await self._send(self.room_of(number % min(self.group.rooms, SAMPLED * 10)), _now())

    async def storm(self, hub: Hub | None) -> Figures:
        """Cut all connections while messages are sent, and reconnect each client from its position.

        With a hub, the received messages are compared with the logs of the rooms.
        """
        self.is_tracking = hub is not None
        starts: dict[str, int] = {}
        if hub is not None:
            self._cut()
            self._clients = []
            starts = {str(id): head for id, head in (await self._heads(hub)).items()}
            await self._connect()
        is_over = asyncio.Event()
        sending = asyncio.create_task(self._keep_sending(is_over))
        await asyncio.sleep(0.5)
        cpu, began = self._cpu_seconds(), time.perf_counter()
        self._cut()
        self.refused = 0
        await self._connect(self.group.clients)
        elapsed, used = time.perf_counter() - began, self._cpu_seconds() - cpu
        is_over.set()
        await sending
        figures = {"rate": self.group.clients / elapsed, "cpu_us": used * 1_000_000 / self.group.clients}
        if hub is None:
            return figures
        with suppress(TimeoutError):
            async with asyncio.timeout(LATE_SECONDS):
                while lost := self._lost(starts, heads := await self._heads(hub)):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
        repeated = sum(count - 1 for client in self._clients for count in client.seen.values())
        self.is_tracking = False
        return {
            **figures,
            "lost": lost,
            "repeated": repeated,
            "sent": sum(heads.values()) - sum(starts.values()),
            "refused": self.refused,
        }

    async def _keep_sending(self, is_over: asyncio.Event) -> None:
        number = 0
        while not is_over.is_set():
            await self._send(self.room_of(number), _now())
            number += 1
            await asyncio.sleep(1 / STORM_PER_SECOND)

    async def _heads(self, hub: Hub) -> dict[UUID, int]:
        rooms = [id_of(self.group.first_room + n) for n in range(self.group.rooms)]
        return {room.id: room.last_seq for room in (await hub.rooms.get_many(rooms)).values()}

    def _lost(self, starts: dict[str, int], heads: dict[UUID, int]) -> int:
        """Entries of the logs that a client has not received. The logs of these rooms have only messages."""
        lost = 0
        for client in self._clients:
            room_id = id_of(self.room_of(client.number))
            room = str(room_id)
            lost += sum((room, seq) not in client.seen for seq in range(starts[room] + 1, heads[room_id] + 1))
        return lost

    async def idle(self, seconds: float) -> Figures:
        await asyncio.sleep(5)  # until the work after a login is done
        cpu, began = self._cpu_seconds(), time.perf_counter()
        await asyncio.sleep(seconds)
        used = self._cpu_seconds() - cpu
        return {
            "percent of a core": 100 * used / (time.perf_counter() - began),
            "KiB a client": self.kibibytes_a_client,
        }

    async def silence(self) -> Figures:
        """The time until the server disconnects a client that reads everything and answers nothing."""
        self._clients[0].transport.abort()
        client = await self._open(0)
        await client.ready
        client.answers_pings = False
        began = time.perf_counter()
        with suppress(TimeoutError):
            async with asyncio.timeout(SILENT_SECONDS):
                await client.closed
        return {"seconds": time.perf_counter() - began}

    def _cpu_seconds(self) -> float:
        return sum(map(_cpu_seconds, (pid for pid, _ in self._workers)))

    def _kibibytes(self) -> float:
        return sum(map(_kibibytes, (pid for pid, _ in self._workers)))


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _kibibytes(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1_024


def _now() -> str:
    return f"sent at {time.perf_counter():.6f}"


@asynccontextmanager
async def _contenders(context: Context, workers: int) -> AsyncIterator[tuple[Hub, dict[str, Crowd]]]:
    allow_many_connections()  # in this process and in those of the contenders
    async with AsyncExitStack() as stack:
        hub, crowd = await stack.enter_async_context(_hubbub(context, workers))
        redis = context.settings.redis
        yield (
            hub,
            {
                "hubbub": crowd,
                "python-socketio": await stack.enter_async_context(_socketio(redis, workers)),
                "channels": await stack.enter_async_context(_channels(redis, workers)),
            },
        )


@asynccontextmanager
async def _processes(
    number: int, *arguments: str, environment: dict[str, str] | None = None
) -> AsyncIterator[list[tuple[int, str]]]:
    """Servers of this run, with their process ids and the addresses that they print."""
    processes = []
    try:
        for _ in range(number):
            started = asyncio.create_subprocess_exec(
                sys.executable, "-m", *arguments, stdout=PIPE, env={**os.environ, **(environment or {})}
            )
            processes.append(await started)
        found = []
        for process in processes:
            assert process.stdout is not None
            line = (await process.stdout.readline()).decode()
            if not line:
                raise RuntimeError(f"{arguments[0]} did not start: see its error above")
            found.append((process.pid, line.split()[-1]))
        yield found
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


def _ports(processes: Sequence[tuple[int, str]]) -> list[tuple[int, int]]:
    return [(pid, urlsplit(address).port or 0) for pid, address in processes]


@asynccontextmanager
async def _hubbub(context: Context, workers: int) -> AsyncIterator[tuple[Hub, Crowd]]:
    settings = await _filled(context)
    command = ("hubbub", "serve", "--port", "0")
    async with (
        Hub(replace(settings, postgres=replace(settings.postgres, deadline_seconds=LATE_SECONDS))) as hub,
        _processes(workers, *command, environment=settings.to_env()) as processes,
    ):
        tokens = []
        for start in range(1, USERS + 1, 500):
            users = [id_of(number) for number in range(start, start + 500)]
            tokens += await asyncio.gather(*(hub.sessions.create_session(user_id) for user_id in users))
        dialect = OfHubbub(urlsplit(processes[0][1]).path, tokens)

        async def send(room: int, text: str) -> None:
            author = next(1 + room - group.first_room for group in GROUPS if room < group.first_room + group.rooms)
            await hub.messages.send(id_of(room), id_of(author), text)

        yield hub, Crowd(_ports(processes), dialect, send)


async def _filled(context: Context) -> Settings:
    """A database with the rooms of all groups."""
    settings = context.database("gateway")
    with suppress(DuplicateDatabaseError):
        settings = await context.new_database("gateway")
        await run(settings.postgres, *FILL)
    return settings


def _url(settings: RedisSettings) -> str:
    password = quote(settings.password or "", safe="")
    return f"redis://:{password}@{settings.host}:{settings.port}/{settings.database}"


@asynccontextmanager
async def _socketio(settings: RedisSettings, workers: int) -> AsyncIterator[Crowd]:
    url = _url(settings)
    async with _processes(workers, "benchmarks.peers.socket_io", url) as processes:
        sender = socketio.AsyncRedisManager(url, write_only=True)
        yield Crowd(
            _ports(processes), OfSocketIO(), lambda room, text: sender.emit("message", text, room=str(room))
        )


@asynccontextmanager
async def _channels(settings: RedisSettings, workers: int) -> AsyncIterator[Crowd]:
    url = _url(settings)
    async with _processes(workers, "benchmarks.peers.django_channels", url) as processes:
        layer = django_channels.sender(url)
        try:
            yield Crowd(
                _ports(processes),
                OfChannels(),
                lambda room, text: layer.group_send(str(room), {"type": "chat.message", "text": text}),
            )
        finally:
            await layer.flush()
