"""Feeds end with their session, in every process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack

import pytest

from hubbub import FeedEvent, Hub, MemberJoined, MessageSent, Options, Room, Settings, User
from hubbub.redis import Connection
from hubbub.services.feed import Follower, followers
from hubbub.services.sessions import key_of
from services.feed.reading import seqs, take
from waiting import HANGS_AFTER_SECONDS, until


async def read_to_end(feed: Follower) -> list[FeedEvent]:
    async with asyncio.timeout(HANGS_AFTER_SECONDS):
        return [event async for event in feed]


async def revoke(hub: Hub, user: User, token: str) -> None:
    assert await hub.sessions.revoke(user.id, key_of(token).id)


async def revoke_all(hub: Hub, user: User, token: str) -> None:
    assert await hub.sessions.revoke_all(user.id)


async def log_out(hub: Hub, user: User, token: str) -> None:
    await hub.sessions.delete_session(token)


async def rotate(hub: Hub, user: User, token: str) -> None:
    assert await hub.sessions.rotate(token)


async def delete_account(hub: Hub, user: User, token: str) -> None:
    await hub.delete_account(user.id)


@pytest.mark.parametrize("end", [revoke, revoke_all, log_out, rotate, delete_account])
async def test_announced_end_of_a_session_ends_its_feeds_in_every_process(
    hub: Hub, elsewhere: Hub, ada: User, bob: User, end: Callable[[Hub, User, str], Awaitable[None]]
) -> None:
    """The processes compare no heads, so the end was announced."""
    token = await hub.sessions.create_session(bob.id)
    other = await hub.sessions.create_session(ada.id)
    async with (
        hub.follow(bob.id, token=token) as here,
        elsewhere.follow(bob.id, token=token, rooms=[]) as there,
        hub.follow(ada.id, token=other) as others,
    ):
        reading = [asyncio.create_task(read_to_end(feed)) for feed in (here, there)]
        await end(hub, bob, token)
        assert await asyncio.gather(*reading) == [[], []]
        assert not others.is_closed


async def test_session_that_a_new_one_displaces_ends_its_feed(hub: Hub, elsewhere: Hub, ada: User) -> None:
    hub.sessions._max_per_user = 1
    first = await hub.sessions.create_session(ada.id)
    async with elsewhere.follow(ada.id, token=first) as feed:
        second = await hub.sessions.create_session(ada.id)
        assert await read_to_end(feed) == []
        async with elsewhere.follow(ada.id, token=second) as other:
            assert not other.is_closed


async def test_kept_session_keeps_its_feed(hub: Hub, room: Room, ada: User) -> None:
    kept, ended = [await hub.sessions.create_session(ada.id) for _ in range(2)]
    async with hub.follow(ada.id, token=kept) as keeping, hub.follow(ada.id, token=ended) as ending:
        await hub.sessions.revoke_all(ada.id, except_token=kept)
        assert await read_to_end(ending) == []
        sent = await hub.messages.send(room.id, ada.id, "hello")
        assert seqs(await take(keeping)) == [sent.seq]


@pytest.mark.parametrize("token", ["", "x" * 47, "not a token"])
async def test_feed_of_a_session_that_does_not_exist_is_at_its_end(
    hub: Hub, room: Room, ada: User, token: str
) -> None:
    async with hub.follow(ada.id, after={room.id: None}, token=token) as feed:
        assert await read_to_end(feed) == []


async def test_session_that_expires_or_was_lost_ends_its_feed_at_a_heartbeat(
    settings: Settings, comparing: Hub, connection: Connection, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if sessions are looked up one by one."""
    monkeypatch.setattr(followers, "SESSIONS_PER_WRITE", 1)
    async with Hub(settings, options=Options(session_life_seconds=1)) as short:
        expiring = await short.sessions.create_session(ada.id)
    lost, kept = [await comparing.sessions.create_session(ada.id) for _ in range(2)]
    async with (
        comparing.follow(ada.id, token=kept) as keeping,
        comparing.follow(ada.id, token=expiring) as first,
        comparing.follow(ada.id, token=lost) as second,
    ):
        await connection.execute("DEL", key_of(lost).name)
        assert await read_to_end(second) == []
        assert await read_to_end(first) == []
        assert not keeping.is_closed


async def test_sessions_are_looked_up_in_turn_while_others_are_announced(
    comparing: Hub, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Announcements of one user come faster than heartbeats."""
    checks, over = comparing._feed._sessions, set[str]()

    async def ended(sessions: Sequence[str]) -> dict[str, bool]:
        return {session: session in over for session in sessions}

    monkeypatch.setattr(checks, "_ended", ended)
    async with comparing.follow(ada.id, token="x" * 47) as quiet, comparing.follow(ada.id, token="y" * 47) as busy:
        over.add(key_of("x" * 47).name)
        async with asyncio.timeout(HANGS_AFTER_SECONDS):
            while not quiet.is_closed:
                checks.check_soon([busy])
                await asyncio.sleep(0)
        assert not busy.is_closed


async def test_follower_that_enters_has_no_other_sessions_looked_up(
    hub: Hub, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sessions of all are looked up once, after subscribing. The next heartbeat does not come."""
    await until(lambda: hub._feed._followers._is_subscribed)
    asked: list[list[str]] = []

    async def ended(sessions: Sequence[str]) -> dict[str, bool]:
        asked.append(list(sessions))
        return dict.fromkeys(sessions, False)

    monkeypatch.setattr(hub._feed._sessions, "_ended", ended)
    tokens = [letter * 47 for letter in "abcdefghij"]
    async with AsyncExitStack() as stack:
        for token in tokens:
            await stack.enter_async_context(hub.follow(ada.id, token=token))
        assert asked == [[key_of(token).name] for token in tokens]


async def test_session_that_cannot_be_looked_up_holds_up_no_other(
    hub: Hub, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a cluster with a primary that cannot be reached. The session is looked up again in the next round."""
    await until(lambda: hub._feed._followers._is_subscribed)
    checks, known = hub._feed._sessions, dict[str, bool]()

    async def ended(sessions: Sequence[str]) -> dict[str, bool]:
        return {session: known[session] for session in sessions if session in known}

    monkeypatch.setattr(checks, "_ended", ended)
    async with hub.follow(ada.id, token="x" * 47) as unknown, hub.follow(ada.id, token="y" * 47) as over:
        known[key_of("y" * 47).name] = True
        checks.check_soon([unknown, over])
        assert await read_to_end(over) == []
        await until(lambda: unknown in checks._due)
        assert not unknown.is_closed
        known[key_of("x" * 47).name] = True
        checks.task.wake()
        assert await read_to_end(unknown) == []


async def test_feed_with_a_session_goes_on_without_redis(without_redis: Hub, room: Room, ada: User) -> None:
    async with without_redis.follow(ada.id, token="x" * 47) as feed:
        sent = await without_redis.messages.send(room.id, ada.id, "hello")
        assert seqs(await take(feed)) == [sent.seq]


@pytest.mark.parametrize("has_room", [True, False])
async def test_deletion_that_is_not_announced_ends_the_feeds_of_the_user(
    without_redis: Hub, comparing: Hub, room: Room, bob: User, *, has_room: bool
) -> None:
    if has_room:
        await comparing.room_users.add(room.id, bob.id)
    async with comparing.follow(bob.id) as feed:
        await without_redis.users.delete(bob.id)
        events = await read_to_end(feed)
        assert feed.was_disconnected
        assert not [event for event in events if isinstance(event, MessageSent)]


async def test_user_without_rooms_keeps_the_feed(comparing: Hub, ada: User, bob: User) -> None:
    async with comparing.follow(bob.id) as feed, comparing.follow(ada.id) as other:
        await comparing.users.delete(ada.id)
        assert await read_to_end(other) == []
        room = await comparing.rooms.create("first", created_by=bob.id)
        assert [event.room_id for event in await take(feed) if isinstance(event, MemberJoined)] == [room.id]
