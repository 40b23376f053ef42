from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from hubbub import Message, NotAMember, Room, Session, User
from hubbub.cli.demo import expected, talk
from hubbub.cli.demo.expected import Context
from hubbub.cli.demo.report import Section
from hubbub.cli.demo.talk import PRESENCE, REFUSALS, SESSIONS, TYPING, log_in, publish, read_cached_pages
from hubbub.events import FeedEvent
from hubbub.passwords import Passwords
from hubbub.repositories import Messages, Rooms
from hubbub.services.accounts import Accounts
from hubbub.services.cache import Invalidations
from hubbub.services.feed import Follower
from hubbub.services.presence import Presence
from hubbub.services.realtime import RealtimeService
from hubbub.services.sessions import SessionService
from hubbub.services.typing_indicators import TypingIndicators
from waiting import HANGS_AFTER_SECONDS, until

LOGINS = "only the right password logs in"
DELIVERY = "subscribers get each message in order"
CACHED = "cached pages equal stored pages"
CHECKS = 13


@pytest.fixture
def section() -> Section:
    return Section("of this test")


def failed(section: Section) -> set[str]:
    return {check.what for check in section.checks.values() if not check.ok}


def counts(section: Section) -> dict[str, int]:
    return {figure.what: figure.count for figure in section.figures}


@pytest.mark.parametrize("users", [2, 9])
async def test_every_check_of_a_talk_and_of_the_comparison_passes(loaded: Context, users: int) -> None:
    loaded.user_count = users
    section = await talk.run(loaded)
    assert failed(section) == set()
    assert len(section.checks) == CHECKS
    frequencies = [figure.count for figure in section.figures]
    assert frequencies == sorted(frequencies, reverse=True)
    assert loaded.messages
    assert failed(await expected.compare(loaded)) == set()


async def test_hub_that_doubles_retries_fails_the_checks(loaded: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    send = Messages.send

    async def forgetful(
        messages: Messages, room_id: UUID, user_id: UUID, content: str, *, id: UUID | None = None
    ) -> Message:
        return await send(messages, room_id, user_id, content, id=uuid7())

    monkeypatch.setattr(Messages, "send", forgetful)
    assert failed(await talk.run(loaded)) == {"a retry returns the same message", REFUSALS}


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
    receive, waiting, rooms = Follower.__anext__, list[FeedEvent](), set[object]()
    count, is_done = 0, False

    async def unreliable(follower: Follower) -> FeedEvent:
        nonlocal count, is_done
        if waiting:
            return waiting.pop()
        event = await receive(follower)
        count += 1
        room_id = getattr(event, "room_id", None)
        is_first_of_room = room_id not in rooms  # the check starts with this event
        rooms.add(room_id)
        if count >= 20 and not is_done and not is_first_of_room:
            is_done = True
            if times == 0:
                return await receive(follower)
            waiting.append(event)
        return event

    monkeypatch.setattr(Follower, "__anext__", unreliable)
    loaded.user_count = 4  # together they have one follower
    assert failed(await talk.run(loaded)) == {"every event received once, in order"}


async def test_presence_that_is_published_twice_fails_the_check(
    loaded: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = RealtimeService.publish_user_presence

    async def twice(realtime: RealtimeService, user_id: UUID, is_online: bool) -> None:
        await publish(realtime, loaded.users[-8], False)  # a talker: typists and guests come first
        await publish(realtime, user_id, is_online)

    monkeypatch.setattr(RealtimeService, "publish_user_presence", twice)
    assert failed(await talk.run(loaded)) == {PRESENCE}


async def test_user_who_stays_online_for_ever_fails_the_check(
    loaded: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def all_of_them(presence: Presence, user_ids: Sequence[UUID]) -> dict[UUID, bool]:
        return dict.fromkeys(user_ids, True)

    monkeypatch.setattr(Presence, "is_online", all_of_them)
    assert failed(await talk.run(loaded)) == {PRESENCE}


async def test_presence_that_is_not_published_in_time_fails_the_check(
    context: Context, section: Section, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = await context.create_users("visitor", 3)
    watch = context.hub.presence.watch(), context.hub.realtime.publish_user_presence
    async with talk.expect_changes(section, PRESENCE, *watch, users) as changes:
        for user in users:
            async with context.hub.presence.online(user, "phone"):
                pass
        await until(lambda: all(changes[user] for user in users))
        monkeypatch.setattr(talk, "WAIT_SECONDS", 0.5)  # less than the grace time: no user goes in time
    assert section.checks[PRESENCE].wrong == [
        f"changes of {user}: [True] instead of [True, False]" for user in users
    ]


async def test_typing_that_ends_in_each_way_passes_the_check(context: Context, section: Section) -> None:
    async with talk.type_in_a_room(context, section):
        pass
    assert section.checks[TYPING].wrong == []
    assert counts(section) == {"typing reports": 8}
    assert len(context.messages) == 1


async def test_message_that_does_not_stop_its_author_fails_the_check(
    context: Context, section: Section, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(typing: TypingIndicators, room_id: UUID, user_id: UUID) -> None:
        """Stops no typing."""

    monkeypatch.setattr(TypingIndicators, "stop_soon", forgetful)
    async with talk.type_in_a_room(context, section):
        pass
    [wrong] = section.checks[TYPING].wrong
    assert wrong.startswith("users who type: set() instead of {")


async def test_users_with_passwords_pass_the_check(context: Context, section: Section) -> None:
    await log_in(context, section)
    assert section.checks[LOGINS].ok
    assert counts(section) == {"accounts with a password": 3, "logins": 12}
    assert len(context.users) == 3


async def test_hub_that_accepts_any_password_fails_the_check(
    context: Context, section: Section, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def trusting(passwords: Passwords, password: str, password_hash: str | None, **_: object) -> bool:
        return True

    monkeypatch.setattr(Passwords, "verify", trusting)
    await log_in(context, section)
    assert len(section.checks[LOGINS].wrong) == 3
    assert all("with 'the password of guest" in wrong for wrong in section.checks[LOGINS].wrong)


async def test_hub_that_accepts_no_password_fails_the_check(
    context: Context, section: Section, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def locked(accounts: Accounts, login: str, password: str, **_: object) -> User | None:
        return None

    monkeypatch.setattr(Accounts, "authenticate", locked)
    await log_in(context, section)
    assert failed(section) == {LOGINS}


async def test_users_who_log_out_have_no_sessions_left(loaded: Context) -> None:
    section = await talk.run(loaded)
    assert counts(section)["session lookups"] == talk.VISITS * loaded.user_count
    for user_id in loaded.users:
        assert await loaded.hub.sessions.list(user_id) == []


async def test_hub_that_remembers_ended_sessions_fails_the_check(
    loaded: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    get, remembered = SessionService.get_session, dict[str, Session]()

    async def remembering(sessions: SessionService, token: str) -> Session | None:
        found = await get(sessions, token)
        if found is not None:
            remembered[token] = found
        return remembered.get(token)

    monkeypatch.setattr(SessionService, "get_session", remembering)
    section = await talk.run(loaded)
    assert failed(section) == {SESSIONS}
    assert section.checks[SESSIONS].wrong[0].startswith("session that had ended: ")


async def test_hub_that_mixes_sessions_up_fails_the_check(
    loaded: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    get, seen = SessionService.get_session, list[str]()

    async def mixing(sessions: SessionService, token: str) -> Session | None:
        seen.append(token)
        return await get(sessions, seen[0])

    monkeypatch.setattr(SessionService, "get_session", mixing)
    section = await talk.run(loaded)
    assert failed(section) == {SESSIONS}
    assert section.checks[SESSIONS].wrong[0].startswith("user of a token: ")


async def test_every_subscriber_gets_every_message(context: Context, section: Section) -> None:
    await publish(context, section)
    assert section.checks[DELIVERY].ok
    assert section.checks[DELIVERY].count == 20
    assert counts(section) == {"messages published": 500}


@pytest.mark.parametrize("times", [0, 2])
async def test_message_that_is_lost_or_doubled_fails_the_check(
    context: Context, section: Section, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    publish_once = RealtimeService.publish

    async def unreliable(realtime: RealtimeService, channel: str, message: str) -> int:
        for _ in range(times if message == "7" else 1):
            await publish_once(realtime, channel, message)
        return 1

    monkeypatch.setattr(RealtimeService, "publish", unreliable)
    await publish(context, section)
    assert failed(section) == {DELIVERY}


async def test_subscribers_without_messages_fail_the_check_in_time(
    context: Context, section: Section, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(realtime: RealtimeService, channel: str, message: str) -> int:
        return 0

    monkeypatch.setattr(RealtimeService, "publish", silent)
    monkeypatch.setattr(talk, "WAIT_SECONDS", 0.5)
    await publish(context, section)
    assert failed(section) == {DELIVERY}


@pytest.fixture
def long_cache_deadline(loaded: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an answer past the deadline, as on a busy machine, the cache is not used for a second."""
    monkeypatch.setattr(loaded.hub.cache, "_deadline_seconds", HANGS_AFTER_SECONDS)


@pytest.mark.usefixtures("long_cache_deadline")
async def test_most_pages_come_from_the_cache_and_equal_the_stored_ones(loaded: Context, section: Section) -> None:
    await read_cached_pages(loaded, section)
    assert section.checks[CACHED].ok
    read = counts(section)
    assert read["newest pages read"] / 2 < read["newest pages from the cache"] < read["newest pages read"]


@pytest.mark.usefixtures("long_cache_deadline")
async def test_cache_that_misses_changes_fails_the_check(
    loaded: Context, section: Section, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ignore(invalidations: Invalidations, key: str) -> None:
        """Delete nothing."""

    monkeypatch.setattr(Invalidations, "add", ignore)
    await read_cached_pages(loaded, section)
    assert failed(section) == {CACHED}
