"""Clients of a gateway on real sockets: deliveries to those in one room, their memory, and their return.

Each contender serves the clients from one process, and another process sends. Rates are per second of the
processor of the serving process, so the clients, which share the machine, count for nothing.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, urlsplit

import socketio

from benchmarks.context import ROOMS, USERS, Context
from benchmarks.measuring import Comparison, Figures, Load, Pace, Target, compare
from benchmarks.peers.socket_io import ROOM
from hubbub import Hub, RedisSettings

CLIENTS = 500
"""Of the thousand members of the first room."""
PER_SECOND = (50, 200)
SAMPLED = 10
"""Clients whose latencies are taken. To look at every message would cost as much as to deliver it."""
LATE_SECONDS = 60.0
WHEN = re.compile(rb"sent at (\d+\.\d+)")


async def gateway(context: Context, pace: Pace) -> AsyncIterator[Comparison]:
    """500 clients in one room: messages, memory, and all of them back at once."""
    async with AsyncExitStack() as stack:
        crowds: dict[str, Crowd] = {
            "hubbub": await stack.enter_async_context(_hubbub(context)),
            "python-socketio": await stack.enter_async_context(_socketio(context.settings.redis)),
        }
        yield Comparison(
            "gateway-memory",
            f"memory of {CLIENTS} connected clients",
            [{name: await crowd.connect() for name, crowd in crowds.items()}],
            [Target("KiB a client", at_most=34), Target("KiB a client", 1, "python-socketio")],
        )
        for per_second in PER_SECOND:
            yield await compare(
                f"gateway-{per_second}",
                f"deliveries per second of processor, {per_second} messages a second to {CLIENTS} clients",
                {name: crowd.delivery(per_second) for name, crowd in crowds.items()},
                pace,
                targets=[Target("rate", 3, "python-socketio"), Target("p99_ms", 1, "python-socketio")],
            )
        yield await compare(
            "gateway-return",
            f"{CLIENTS} clients connect again at once; those of hubbub resume",
            {name: crowd.reconnect for name, crowd in crowds.items()},
            pace,
            targets=[Target("cpu_us", at_most=1_500)],
            warm_up=False,
        )


Send = Callable[[str], Awaitable[object]]


class Dialect(Protocol):
    """What a client of one contender says and hears."""

    path: str

    def first(self, number: int) -> Sequence[str]:
        """What client `number` sends when it is connected."""

    def answer(self, payload: bytes) -> str | None:
        """The answer to what came, if it needs one."""

    def is_ready(self, payload: bytes) -> bool:
        """Whether the client is connected with this."""

    def messages_in(self, payload: bytes) -> int:
        """How many messages came."""


class OfHubbub:
    """docs/protocol.md."""

    def __init__(self, path: str, tokens: Sequence[str]) -> None:
        self.path = path
        self._tokens = tokens
        self.positions: dict[str, str] | None = None

    def first(self, number: int) -> Sequence[str]:
        return [json.dumps({"type": "hello", "token": self._tokens[number], "positions": self.positions})]

    def answer(self, payload: bytes) -> str | None:
        return None

    def is_ready(self, payload: bytes) -> bool:
        return payload.startswith(b'{"type":"ready"')

    def messages_in(self, payload: bytes) -> int:
        return payload.count(b'"type":"message_sent"')


class OfSocketIO:
    """Version 5 of the protocol of Socket.IO, by WebSocket alone."""

    def __init__(self, path: str) -> None:
        self.path = f"{path}?EIO=4&transport=websocket"

    def first(self, number: int) -> Sequence[str]:
        return ["40"]

    def answer(self, payload: bytes) -> str | None:
        return "3" if payload == b"2" else None

    def is_ready(self, payload: bytes) -> bool:
        return payload.startswith(b"40")

    def messages_in(self, payload: bytes) -> int:
        return payload.startswith(b"42")


class Client(asyncio.Protocol):
    """A WebSocket client that does as little as it can."""

    def __init__(self, crowd: Crowd, number: int) -> None:
        self._crowd = crowd
        self._number = number
        self._received = bytearray()
        self._is_open = False
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        key = base64.b64encode(os.urandom(16)).decode()
        lines = (
            f"GET {self._crowd.dialect.path} HTTP/1.1",
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
            for text in self._crowd.dialect.first(self._number):
                self._send(0x81, text.encode())
        while (payload := self._next_frame()) is not None:
            self._take(payload)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ready.done():
            self.ready.set_exception(ConnectionResetError(f"client {self._number} was refused"))

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
        if opcode == 9:
            self._send(0x8A, payload)
        return payload if opcode == 1 else b""

    def _take(self, payload: bytes) -> None:
        dialect = self._crowd.dialect
        if answer := dialect.answer(payload):
            self._send(0x81, answer.encode())
        if not self.ready.done() and dialect.is_ready(payload):
            self._crowd.ready_frame = payload
            self.ready.set_result(None)
        elif messages := dialect.messages_in(payload):
            self._crowd.take(messages, payload if self._number < SAMPLED else b"")

    def _send(self, first: int, payload: bytes) -> None:
        """A frame, masked with zeros, which leave it as it is."""
        length = len(payload)
        size = bytes([0x80 | length]) if length < 126 else bytes([0x80 | 126]) + length.to_bytes(2)
        self.transport.write(bytes([first]) + size + bytes(4) + payload)


class Crowd:
    """The clients of one contender, and the process that serves them."""

    def __init__(self, pid: int, port: int, dialect: Dialect, send: Send) -> None:
        self.dialect = dialect
        self.ready_frame = b""
        self._pid = pid
        self._port = port
        self._send = send
        self._clients: list[Client] = []
        self._delivered = 0
        self._expected = 0
        self._all_delivered = asyncio.Event()
        self._latencies: list[float] = []

    def take(self, messages: int, sampled: bytes) -> None:
        self._delivered += messages
        if sampled:
            now = time.perf_counter()
            self._latencies += [now - float(when) for when in WHEN.findall(sampled)]
        if self._delivered >= self._expected:
            self._all_delivered.set()

    async def connect(self) -> Figures:
        """Connect all clients."""
        before = self._kibibytes()
        await self._connect()
        return {"KiB a client": (self._kibibytes() - before) / CLIENTS}

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        self._clients = []
        for number in range(CLIENTS):
            client = Client(self, number)
            await loop.create_connection(lambda client=client: client, "127.0.0.1", self._port)
            self._clients.append(client)
        await asyncio.gather(*(client.ready for client in self._clients))

    def delivery(self, per_second: int) -> Load:
        """Messages at this rate. Ends when all clients have got all of them."""

        async def load(seconds: float) -> Figures:
            number = max(round(per_second * seconds), 10)
            self._latencies = []
            self._delivered, self._expected = 0, number * CLIENTS
            self._all_delivered.clear()
            cpu, began = self._cpu_seconds(), time.perf_counter()
            sends = []
            for n in range(number):
                sends.append(asyncio.create_task(_sent(self._send)))
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

    async def reconnect(self, _: float) -> Figures:
        """Cut all connections, and connect again from where each client was."""
        if isinstance(self.dialect, OfHubbub):
            self.dialect.positions = json.loads(self.ready_frame)["positions"]
        for client in self._clients:
            client.transport.abort()
        cpu, began = self._cpu_seconds(), time.perf_counter()
        await self._connect()
        elapsed, used = time.perf_counter() - began, self._cpu_seconds() - cpu
        return {"rate": CLIENTS / elapsed, "cpu_us": used * 1_000_000 / CLIENTS}

    def _cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self._pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _kibibytes(self) -> float:
        pages = int(Path(f"/proc/{self._pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1_024


async def _sent(send: Send) -> None:
    await send(f"sent at {time.perf_counter():.6f}")


@asynccontextmanager
async def _process(*arguments: str, environment: dict[str, str] | None = None) -> AsyncIterator[tuple[int, str]]:
    """A server of this run: its process id and the address that it prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *arguments, stdout=PIPE, env={**os.environ, **(environment or {})}
    )
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        if not line:
            raise RuntimeError(f"{arguments[0]} did not start: see its error above")
        yield process.pid, line.split()[-1]
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


@asynccontextmanager
async def _hubbub(context: Context) -> AsyncIterator[Crowd]:
    command = ("hubbub", "serve", "--port", "0")
    async with (
        Hub(context.settings) as hub,
        _process(*command, environment=context.settings.to_env()) as (pid, address),
    ):
        parts = urlsplit(address)
        tokens = [await hub.sessions.create_session(user_id) for user_id in USERS[:CLIENTS]]
        assert parts.port is not None
        dialect = OfHubbub(parts.path, tokens)
        yield Crowd(pid, parts.port, dialect, lambda text: hub.messages.send(ROOMS[0], USERS[0], text))


@asynccontextmanager
async def _socketio(settings: RedisSettings) -> AsyncIterator[Crowd]:
    password = quote(settings.password or "", safe="")
    url = f"redis://:{password}@{settings.host}:{settings.port}/{settings.database}"
    async with _process("benchmarks.peers.socket_io", url) as (pid, address):
        parts = urlsplit(address)
        assert parts.port is not None
        sender = socketio.AsyncRedisManager(url, write_only=True)
        yield Crowd(pid, parts.port, OfSocketIO(parts.path), lambda text: sender.emit("message", text, room=ROOM))
