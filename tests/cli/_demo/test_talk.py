from __future__ import annotations

from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from hubbub import Message, NotAMember, Room
from hubbub.cli._demo.load import load
from hubbub.cli._demo.stage import Stage
from hubbub.cli._demo.talk import talk
from hubbub.repositories import Messages, Rooms


@pytest.mark.parametrize("users", [2, 9])
async def test_people_talk_and_everything_holds(stage: Stage, users: int) -> None:
    stage.users = users
    await load(stage)
    section = await talk(stage)
    assert [check for check in section.checks if not check.ok] == []
    assert sum(check.count for check in section.checks) > 0
    assert stage.ledger.talk


async def test_a_hub_that_doubles_retries_is_caught(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    await load(stage)
    send = Messages.send

    async def forgetful(
        messages: Messages, room_id: UUID, user_id: UUID, content: str, *, id: UUID | None = None
    ) -> Message:
        return await send(messages, room_id, user_id, content, id=uuid7())

    monkeypatch.setattr(Messages, "send", forgetful)
    section = await talk(stage)
    assert {check.what for check in section.checks if not check.ok} == {
        "a retry gives the same message",
        "a reused id or a stranger is refused",
    }


async def test_a_hub_that_opens_two_direct_rooms_is_caught(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    await load(stage)

    async def another(rooms: Rooms, user_id: UUID, partner_id: UUID) -> Room:
        return await rooms.create("direct", created_by=user_id)

    monkeypatch.setattr(Rooms, "direct", another)
    with pytest.raises(NotAMember):
        await talk(stage)
