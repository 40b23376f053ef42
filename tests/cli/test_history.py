from __future__ import annotations

import asyncio
import gzip
import os
import pty
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pytest

from history.histories import conversation, line, message_lines, parsed
from hubbub import Hub, Room, Settings, User
from hubbub.cli.history import _written
from hubbub.history import derive_room_id


class Ended(NamedTuple):
    """The exit status of a command, and its output."""

    status: int | None
    out: bytes
    error: bytes


Run = Callable[..., Awaitable[Ended]]


@pytest.fixture
def run(settings: Settings) -> Run:
    """`hubbub ...` in its own process, with the servers of the test."""

    async def run(
        *words: str, given: bytes | None = None, into: int | BinaryIO = asyncio.subprocess.PIPE
    ) -> Ended:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "hubbub", *words, env=os.environ | settings.to_env(),
            stdin=asyncio.subprocess.PIPE, stdout=into, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, error = await process.communicate(given)
        return Ended(process.returncode, out or b"", error)

    return run


async def test_imported_file_can_be_exported_again(run: Run, hub: Hub, tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl.gz"
    file.write_bytes(gzip.compress(message_lines("one", "two")))
    imported = await run("import", str(file))
    assert (imported.status, imported.error) == (0, b"")
    assert b"2 lines: 2 messages and 0 other entries stored, 0 lines changed nothing, 0 refused" in imported.out
    assert b"1 more entries for authors who had not joined" in imported.out
    again = await run("import", str(file))
    assert (again.status, again.error) == (0, b"")
    assert b"the first 2 lines had been imported before" in again.out
    exported = await run("export", "#chat")
    assert (exported.status, exported.error) == (0, b"")
    assert [one["content"] for one in parsed(exported.out) if one["kind"] == "message"] == ["one", "two"]
    for name in ("room.jsonl", "room.jsonl.gz"):
        written = await run("export", str(derive_room_id("#chat")), "--output", str(tmp_path / name))
        assert (written.status, written.out) == (0, b"")
    assert (tmp_path / "room.jsonl").read_bytes() == exported.out
    assert gzip.decompress((tmp_path / "room.jsonl.gz").read_bytes()) == exported.out
    assert sorted(os.listdir(tmp_path)) == [file.name, "room.jsonl", "room.jsonl.gz"]  # noqa: PTH208 - as text


async def test_import_from_a_pipe_reports_refused_lines(run: Run, tmp_path: Path) -> None:
    refused = tmp_path / "refused"
    file = message_lines("one") + b"oops\n" + b"oops\n" * 120 + message_lines("two", user="x" * 51)
    imported = await run("import", "-", "--refused", str(refused), given=file)
    assert (imported.status, imported.error) == (3, b"")
    output = imported.out.decode()
    assert "121 refused" in output
    assert "line 2: line: not JSON" in output
    assert "and 21 more lines were refused" in output
    assert "must have at most 50 characters" in output
    assert [int(one.split("\t")[0]) for one in refused.read_text().splitlines()] == list(range(2, 123))


async def test_import_of_a_file_damaged_at_its_start_reports_line_1(run: Run) -> None:
    imported = await run("import", "-", given=b"\x1f\x8bno gzip")
    assert (imported.status, imported.error) == (3, b"")
    assert b"line 1: the compressed file is damaged from here on" in imported.out


async def test_ctrl_c_ends_an_import_from_a_silent_pipe(settings: Settings) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hubbub", "import", "-", env=os.environ | settings.to_env(),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdin is not None
        process.stdin.write(conversation(9_000))
        await process.stdin.drain()  # far more than a pipe holds, so the import has begun to read
        process.send_signal(signal.SIGINT)
        await process.wait()  # without the signal until the timeout of the suite, as the pipe stays open
        assert process.returncode == 1
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_missing_file_or_room_is_reported_without_a_traceback(
    run: Run, hub: Hub, room: Room, ada: User
) -> None:
    missing = await run("import", "no such file")
    assert missing.status == 2
    await hub.rooms.create(room.name, created_by=ada.id)
    for name, reason in (("nowhere", b"no public room"), (room.name, b"several"), (str(ada.id), b"no room")):
        found = await run("export", name)
        assert (found.status, found.out) == (1, b"")
        assert reason in found.error
        assert b"Traceback" not in found.error


@pytest.fixture
def full_disk() -> Iterator[BinaryIO]:
    with Path("/dev/full").open("wb") as full:
        yield full


async def test_unwritable_export_is_reported_without_a_traceback(
    run: Run, room: Room, tmp_path: Path, full_disk: BinaryIO
) -> None:
    missing = await run("export", str(room.id), "--output", str(tmp_path / "missing" / "room.jsonl"))
    assert (missing.status, missing.out) == (1, b"")
    assert missing.error.startswith(b"Error: ")
    assert b"No such file or directory" in missing.error
    full = await run("export", str(room.id), into=full_disk)
    assert full.status == 1
    assert full.error == b"Error: [Errno 28] No space left on device\n"


async def test_export_into_a_pipe_or_through_a_symlink_replaces_neither(
    run: Run, hub: Hub, room: Room, ada: User, tmp_path: Path
) -> None:
    await hub.messages.send(room.id, ada.id, "hello")
    pipe, link, target = tmp_path / "pipe", tmp_path / "link.jsonl", tmp_path / "target.jsonl"
    os.mkfifo(pipe)
    link.symlink_to(target)
    reading = asyncio.create_task(asyncio.to_thread(pipe.read_bytes))
    assert (await run("export", str(room.id), "-o", str(pipe))).status == 0
    assert b"hello" in await reading
    assert pipe.is_fifo()
    assert (await run("export", str(room.id), "-o", str(link))).status == 0
    assert link.is_symlink()
    assert b"hello" in target.read_bytes()
    assert {"link.jsonl", "pipe", "target.jsonl"} == set(os.listdir(tmp_path))  # noqa: PTH208


def test_two_exports_to_one_file_do_not_write_into_each_other(tmp_path: Path) -> None:
    output = tmp_path / "room.jsonl"
    with _written(output) as first:
        first.write(b"1" * 100_000)
        with _written(output) as second:
            second.write(b"2" * 10)
        assert output.read_bytes() == b"2" * 10
        first.write(b"1" * 100_000)
    assert output.read_bytes() == b"1" * 200_000
    output.chmod(0o600)
    failing = _written(output)
    failing.__enter__().write(b"3")
    assert failing.__exit__(OSError, OSError("full"), None) is False
    with _written(output) as fourth:
        fourth.write(b"4")
    assert output.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [output]


async def test_import_of_a_hostile_file_writes_no_escape_sequence(run: Run, tmp_path: Path) -> None:
    hostile = b'{"kind":"\\u001b]0;pwned\\u0007\\u001b[2J","room":"r","user":"u","at":"2020-01-01T00:00:00Z"}\n'
    ended = await run("import", "-", "--refused", str(tmp_path / "refused"), given=hostile)
    assert ended.status == 3
    assert "pwned" in ended.out.decode()
    for text in (ended.out.decode(), ended.error.decode(), (tmp_path / "refused").read_text()):
        assert all(one.replace("\t", "").isprintable() for one in text.split("\n"))


async def test_terminal_shows_the_progress_of_an_import(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    file.write_bytes(conversation(12_000) + line("oops"))
    ours, theirs = pty.openpty()
    environment = os.environ | settings.to_env() | {"TERM": "xterm"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hubbub", "import", str(file), env=environment,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    drawn = asyncio.create_task(asyncio.to_thread(_all_of, ours))
    out, _ = await process.communicate()
    assert process.returncode == 3
    assert b"12,001 lines" in out
    assert b"12,001 lines" in await drawn


def _all_of(terminal: int) -> bytes:
    """The bytes that a terminal received until its other side was closed, which Linux reports as an error."""
    got = b""
    try:
        while piece := os.read(terminal, 65_536):
            got += piece
    except OSError:
        pass
    os.close(terminal)
    return got
