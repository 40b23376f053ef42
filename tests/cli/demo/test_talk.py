from __future__ import annotations

from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from hubbub import Message, NotAMember, Room
from hubbub.cli.demo import talk
from hubbub.cli.demo.context import Context
from hubbub.cli.demo.report import Section
from hubbub.events import FeedEvent
from hubbub.repositories import Messages, Rooms
from hubbub.services.feed import Follower


def failed(section: Section) -> set[str]:
    return {check.what for check in section.checks.values() if not check.ok}


@pytest.mark.parametrize("users", [2, 9])
async def test_every_check_of_a_talk_passes(loaded: Context, users: int) -> None:
    loaded.user_count = users
    section = await talk.run(loaded)
    assert failed(section) == set()
    assert all(check.count for check in section.checks.values()), "a check compared nothing"
    assert loaded.messages


async def test_hub_that_doubles_retries_fails_the_checks(loaded: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    send = Messages.send

    async def forgetful(
        messages: Messages, room_id: UUID, user_id: UUID, content: str, *, id: UUID | None = None
    ) -> Message:
        return await send(messages, room_id, user_id, content, id=uuid7())

    monkeypatch.setattr(Messages, "send", forgetful)
    assert failed(await talk.run(loaded)) == {
        "a retry returns the same message",
        "non-members and reused ids refused",
    }


async def test_hub_that_opens_two_direct_rooms_is_found(loaded: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    async def another(rooms: Rooms, user_id: UUID, partner_id: UUID) -> Room:
        return await rooms.create("direct", created_by=user_id)

    monkeypatch.setattr(Rooms, "direct", another)
    with pytest.raises(NotAMember):
        await talk.run(loaded)


@pytest.mark.parametrize("times", [0, 2])
async def test_event_that_a_follower_misses_or_receives_twice_fails_the_check(
    loaded: Context, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    receive, waiting = Follower.__anext__, list[FeedEvent]()
    count = 0

    async def unreliable(follower: Follower) -> FeedEvent:
        nonlocal count
        if waiting:
            return waiting.pop()
        event = await receive(follower)
        count += 1
        if count == 20:
            if times == 0:
                return await receive(follower)
            waiting.append(event)
        return event

    monkeypatch.setattr(Follower, "__anext__", unreliable)
    loaded.user_count = 4  # who have one follower
    assert failed(await talk.run(loaded)) == {"every event received once, in order"}
