from __future__ import annotations

import asyncio
import logging

import pytest

from hubbub.cli import demo
from hubbub.cli.demo import ask_servers
from hubbub.cli.demo.context import Context, gather
from hubbub.cli.demo.report import Section
from redis_server import title


@pytest.fixture
def section() -> Section:
    return Section("servers", {"passwords": "wrong passwords are refused"})


async def test_both_servers_refuse_a_wrong_password_and_report_their_version(
    context: Context, section: Section, capsys: pytest.CaptureFixture[str]
) -> None:
    versions = await ask_servers(context, section)
    assert list(versions) == ["PostgreSQL", title()]
    assert all(version[0].isdigit() for version in versions.values())
    assert {figure.what for figure in section.figures} == {"round trips to PostgreSQL", "round trips to Valkey"}
    check = section.checks["passwords"]
    assert check.ok
    assert check.count == 2
    assert capsys.readouterr().err == "", "the refusals were logged"
    assert not logging.getLogger("hubbub").handlers


async def test_servers_that_accept_the_password_fail_the_check(
    context: Context, section: Section, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "WRONG", context.settings.postgres.password)
    await ask_servers(context, section)
    assert "PostgreSQL took a wrong password" in section.checks["passwords"].wrong


async def test_message_is_expected_once_however_often_it_is_sent_and_changed(context: Context) -> None:
    author, reader = await context.create_users("user", 2)
    room = await context.create_room("room", [author, reader])
    message = await context.hub.messages.send(room.id, author, "hello")
    for _ in range(2):
        context.expect_message(message)
    for content in ("hello there", "hello there"):
        context.expect_message(await context.hub.messages.edit(message.id, content, by=author))
    for _ in range(2):
        context.expect_message(await context.hub.messages.delete(message.id, by=author))
    assert room.entries == {"joined": 2, "message": 1, "edited": 1, "deleted": 1}
    assert context.messages[message.id].deleted_at is not None


async def test_members_are_counted_only_when_they_change(context: Context) -> None:
    author, reader = await context.create_users("user", 2)
    room = await context.create_room("room", [author])
    for _ in range(2):
        room.join(reader)
    for _ in range(2):
        room.leave(author)
    assert room.members == {reader}
    assert room.entries == {"joined": 2, "left": 1}


async def test_first_error_cancels_the_other_calls_and_is_raised() -> None:
    cancelled = asyncio.Event()

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def fail() -> None:
        await asyncio.sleep(0)
        raise KeyError("the first error")

    with pytest.raises(KeyError, match="the first error"):
        await gather([wait(), fail()])
    assert cancelled.is_set()
