from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import aclosing, suppress
from pathlib import Path
from subprocess import run as run_to_its_end

from cli.running import Terminal, run
from hubbub import Hub, Room, Settings, User
from hubbub.cli.rooms import _blocks
from waiting import until_it_answers


async def contents(hub: Hub, room: Room) -> list[str]:
    return [message.content for message in (await hub.messages.page(room.id)).items]


async def test_text_and_lines_of_a_pipe_are_messages(settings: Settings, hub: Hub, room: Room, ada: User) -> None:
    assert await run(settings, "say", "engine-room", "hello", "--as", "ada") == (0, "", "")
    assert await run(settings, "say", str(room.id), "--as", str(ada.id), stdin="one\n\ntwö\nthree") == (0, "", "")
    assert await contents(hub, room) == ["hello", "one", "twö", "three"]


async def test_lines_of_a_file_are_messages(settings: Settings, hub: Hub, room: Room, tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("one\ntwo\n")
    with (tmp_path / "lines").open() as lines:
        ended = await asyncio.to_thread(
            run_to_its_end,
            [sys.executable, "-m", "hubbub", "say", "engine-room", "--as", "ada"], stdin=lines,
            env=settings.to_env(), check=False, capture_output=True,
        )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert await contents(hub, room) == ["one", "two"]


async def test_lines_of_a_file_and_of_a_pipe_are_read_alike(
    settings: Settings, hub: Hub, room: Room, tmp_path: Path
) -> None:
    lines = b"caf\xe9\r\nend"
    (tmp_path / "lines").write_bytes(lines)
    words = [sys.executable, "-m", "hubbub", "say", "engine-room", "--as", "ada"]
    with (tmp_path / "lines").open() as file:
        from_a_file = await asyncio.to_thread(
            run_to_its_end, words, stdin=file, env=settings.to_env(), check=False, capture_output=True
        )
    from_a_pipe = await asyncio.to_thread(
        run_to_its_end, words, input=lines, env=settings.to_env(), check=False, capture_output=True
    )
    for ended in (from_a_file, from_a_pipe):
        assert (ended.returncode, ended.stderr) == (0, b"")
    assert await contents(hub, room) == ["caf\ufffd", "end"] * 2


async def test_pipe_is_read_no_faster_than_its_lines_are_sent() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        async with aclosing(_blocks(reading)) as blocks:
            os.write(writing, b"x")
            assert await anext(blocks) == b"x"
            accepted = 0
            with suppress(BlockingIOError):
                while True:
                    accepted += os.write(writing, b"x" * 4_096)
                    await asyncio.sleep(0)
            assert accepted <= 65_536, "what a pipe holds"
    finally:
        os.close(reading)
        os.close(writing)


async def until_said(hub: Hub, room: Room, content: str) -> None:
    async def it_is_said() -> bool:
        return content in await contents(hub, room)

    await until_it_answers(it_is_said)


async def test_terminal_shows_what_others_say_without_control_characters(
    settings: Settings, hub: Hub, room: Room, ada: User, bob: User
) -> None:
    await hub.room_users.add(room.id, bob.id)
    async with Terminal(settings, "say", "engine-room", "--as", "ada") as terminal:
        terminal.type("hello\n")
        await until_said(hub, room, "hello")
        await hub.messages.send(room.id, bob.id, "hi \x1b[2J")
        await terminal.until("bob: hi ?[2J")
        terminal.type("bye\n\x04")
        assert await terminal.ended() == 0
    assert await contents(hub, room) == ["hello", "hi \x1b[2J", "bye"]


async def test_ctrl_c_ends_the_command_and_removed_member_gets_the_reason(
    settings: Settings, hub: Hub, room: Room, bob: User
) -> None:
    await hub.room_users.add(room.id, bob.id)
    async with Terminal(settings, "say", "engine-room", "--as", "bob") as terminal:
        terminal.type("hello\n")
        await until_said(hub, room, "hello")
        terminal.process.send_signal(signal.SIGINT)
        assert await terminal.ended() == 1
    async with Terminal(settings, "say", "engine-room", "--as", "bob") as terminal:
        terminal.type("here\n")
        await until_said(hub, room, "here")
        await hub.room_users.remove(room.id, bob.id)
        assert await terminal.ended() == 1
        await terminal.until("you are no longer a member of this room")


async def test_author_who_is_not_a_member_is_refused(settings: Settings, hub: Hub, room: Room, bob: User) -> None:
    output = await run(settings, "say", "engine-room", "hello", "--as", "bob")
    assert output.status == 1
    assert "not a member" in output.error
    assert "Traceback" not in output.error
    assert await contents(hub, room) == []
