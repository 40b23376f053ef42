"""The example of an application with its own tables, run as a user would run it."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace

import pytest

from examples.test_examples import EXAMPLES
from hubbub import Hub, MessageSent, PostgresSettings, Settings
from hubbub.postgres import connect


@pytest.fixture
def owner(settings: Settings, postgres_settings: PostgresSettings) -> Settings:
    return replace(settings, postgres=postgres_settings)


async def shop(settings: Settings, *arguments: str, status: int = 0) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        EXAMPLES / "own_tables.py",
        *arguments,
        env={**settings.to_env(), "PATH": "", "PYTHONDEVMODE": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode == status, errors.decode()
    return output.decode() + (errors.decode() if status else "")


async def test_order_and_its_message_are_committed_together_or_not_at_all(owner: Settings, hub: Hub) -> None:
    await shop(owner, "migrate")
    await shop(owner, "check")
    assert await shop(owner, "order", "ada", "tea", "2") == "order 1\n"
    ada = await hub.users.find_by_username("ada")
    assert ada is not None
    async with hub.follow(ada.id) as feed:
        assert await shop(owner, "order", "ada", "coffee", "1") == "order 2\n"
        event = await anext(feed)
        assert isinstance(event, MessageSent)
        assert event.message.content == "Order 2: 1 x coffee"
    refused = await shop(owner, "order", "ada", "tea", "0", status=1)
    assert refused == "There is no such order, and no message of it.\n"
    assert await shop(owner, "orders", "ada") == "1 2 x tea\n2 1 x coffee\n"
    contents = [message.content for message in (await hub.messages.page(event.room_id)).items]
    assert contents == ["Order 1: 2 x tea", "Order 2: 1 x coffee"]


async def test_rows_of_the_shop_follow_the_account(owner: Settings, hub: Hub) -> None:
    await shop(owner, "migrate")
    await shop(owner, "order", "ada", "tea", "2")
    ada = await hub.users.find_by_username("ada")
    assert ada is not None
    await hub.delete_account(ada.id)
    connection = await connect(owner.postgres)
    assert await connection.fetchval("SELECT count(*) FROM orders") == 0
    await connection.close()
