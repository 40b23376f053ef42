from __future__ import annotations

from uuid import UUID

import pytest

from hubbub import Session, User
from hubbub.cli.demo import live, recount, talk
from hubbub.cli.demo.context import Context
from hubbub.cli.demo.live import (
    CALLERS,
    DEVICES,
    LOGINS,
    LOOKUPS,
    PUBLISHED,
    SUBSCRIBERS,
    come_and_go,
    log_in,
    publish,
    read_cached_pages,
    type_in_a_room,
    use_sessions,
)
from hubbub.cli.demo.report import Section
from hubbub.passwords import Passwords
from hubbub.services.accounts import Accounts
from hubbub.services.cache import Invalidations
from hubbub.services.presence import Presence
from hubbub.services.realtime import RealtimeService
from hubbub.services.sessions import SessionService
from hubbub.services.typing_indicators import TypingIndicators


@pytest.fixture
def section() -> Section:
    return Section("of this test", live.CHECKS)


@pytest.fixture
async def users(context: Context) -> list[UUID]:
    return await context.create_users("visitor", 6)


def counts(section: Section) -> dict[str, int]:
    return {figure.what: figure.count for figure in section.figures}


@pytest.mark.parametrize("count", [2, 9])
async def test_every_check_of_the_live_section_passes(loaded: Context, count: int) -> None:
    loaded.user_count = count
    await talk.run(loaded)
    section = await live.run(loaded)
    assert [check for check in section.checks.values() if not check.ok] == []
    assert all(check.count for check in section.checks.values()), "a check compared nothing"
    frequencies = [figure.count for figure in section.figures]
    assert frequencies == sorted(frequencies, reverse=True)
    assert [check for check in (await recount.run(loaded)).checks.values() if not check.ok] == []


class TestPresence:
    async def test_users_who_come_and_go_pass_the_checks(
        self, context: Context, section: Section, users: list[UUID]
    ) -> None:
        await come_and_go(context, section, users)
        assert section.checks["presence"].wrong == section.checks["online"].wrong == []
        assert counts(section) == {"devices that came online": len(DEVICES) * len(users)}

    async def test_change_that_is_published_twice_fails_the_check(
        self, context: Context, section: Section, users: list[UUID], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publish = RealtimeService.publish_user_presence

        async def twice(realtime: RealtimeService, user_id: UUID, is_online: bool) -> None:
            await publish(realtime, users[0], False)
            await publish(realtime, user_id, is_online)

        monkeypatch.setattr(RealtimeService, "publish_user_presence", twice)
        await come_and_go(context, section, users)
        assert section.checks["presence"].wrong == [f"the changes of {users[0]} were [True, False, False]"]

    async def test_user_who_stays_online_for_ever_fails_the_checks(
        self, context: Context, section: Section, users: list[UUID], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def all_of_them(presence: Presence, user_ids: list[UUID]) -> dict[UUID, bool]:
            return dict.fromkeys(user_ids, True)

        monkeypatch.setattr(Presence, "is_online", all_of_them)
        monkeypatch.setattr(live, "WAIT_SECONDS", 0.5)  # less than the grace time: no user goes in time
        await come_and_go(context, section, users)
        assert len(section.checks["presence"].wrong) == len(section.checks["online"].wrong) == len(users)


class TestTyping:
    async def test_typing_that_ends_in_each_way_passes_the_checks(
        self, context: Context, section: Section
    ) -> None:
        await type_in_a_room(context, section)
        assert section.checks["typing"].wrong == section.checks["typists"].wrong == []
        assert counts(section) == {"typing reports": 8}
        assert len(context.messages) == 1

    async def test_message_that_does_not_stop_its_author_fails_the_check(
        self, context: Context, section: Section, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def forgetful(typing: TypingIndicators, room_id: UUID, user_id: UUID) -> None:
            """Stops no typing."""

        monkeypatch.setattr(TypingIndicators, "stop_soon", forgetful)
        await type_in_a_room(context, section)
        assert section.checks["typists"].wrong == ["1 users type, 0 were reported"]


class TestLogins:
    async def test_users_with_passwords_pass_the_check(self, context: Context, section: Section) -> None:
        await log_in(context, section)
        assert section.checks["logins"].ok
        assert counts(section) == {"accounts with a password": LOGINS, "logins": LOGINS}
        assert len(context.users) == LOGINS

    async def test_hub_that_accepts_any_password_fails_the_check(
        self, context: Context, section: Section, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def trusting(passwords: Passwords, password: str, password_hash: str | None) -> bool:
            return True

        monkeypatch.setattr(Passwords, "verify", trusting)
        await log_in(context, section)
        assert section.checks["logins"].wrong == [
            f"guest {number} was let in with a wrong password" for number in (0, 2, 4)
        ]

    async def test_hub_that_accepts_no_password_fails_the_check(
        self, context: Context, section: Section, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def locked(accounts: Accounts, login: str, password: str, **_: object) -> User | None:
            return None

        monkeypatch.setattr(Accounts, "authenticate", locked)
        await log_in(context, section)
        assert len(section.checks["logins"].wrong) == LOGINS


class TestSessions:
    async def test_lookups_while_other_sessions_end_pass_the_checks(
        self, context: Context, section: Section, users: list[UUID]
    ) -> None:
        await use_sessions(context, section, users)
        assert section.checks["sessions"].wrong == section.checks["ended"].wrong == []
        assert section.checks["sessions"].count
        assert section.checks["ended"].count
        assert counts(section)[f"session lookups, {CALLERS} at a time"] == CALLERS * LOOKUPS
        for user_id, left in zip(users, [0, 3] * 3, strict=True):
            assert len(await context.hub.sessions.list_sessions(user_id)) == left

    async def test_hub_that_remembers_ended_sessions_fails_the_check(
        self, context: Context, section: Section, users: list[UUID], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        get, remembered = SessionService.get_session, dict[str, Session]()

        async def remembering(sessions: SessionService, token: str) -> Session | None:
            found = await get(sessions, token)
            if found is not None:
                remembered[token] = found
            return remembered.get(token)

        monkeypatch.setattr(SessionService, "get_session", remembering)
        await use_sessions(context, section, users)
        assert (section.checks["sessions"].ok, section.checks["ended"].ok) == (True, False)

    async def test_hub_that_mixes_sessions_up_fails_the_check(
        self, context: Context, section: Section, users: list[UUID], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        get, seen = SessionService.get_session, list[str]()

        async def mixing(sessions: SessionService, token: str) -> Session | None:
            seen.append(token)
            return await get(sessions, seen[0])

        monkeypatch.setattr(SessionService, "get_session", mixing)
        await use_sessions(context, section, users)
        assert not section.checks["sessions"].ok


class TestPublishing:
    async def test_every_subscriber_gets_every_message(self, context: Context, section: Section) -> None:
        await publish(context, section)
        assert section.checks["delivery"].ok
        assert section.checks["delivery"].count == SUBSCRIBERS * PUBLISHED
        assert counts(section) == {
            "messages published": PUBLISHED,
            "published messages received": SUBSCRIBERS * PUBLISHED,
        }

    @pytest.mark.parametrize(
        ("times", "wrong"), [(0, "a message did not arrive"), (2, "message 8 was due, 7 came")]
    )
    async def test_message_that_is_lost_or_doubled_fails_the_check(
        self, context: Context, section: Section, monkeypatch: pytest.MonkeyPatch, times: int, wrong: str
    ) -> None:
        publish_once = RealtimeService.publish

        async def unreliable(realtime: RealtimeService, channel: str, message: str) -> int:
            for _ in range(times if message == "7" else 1):
                await publish_once(realtime, channel, message)
            return 1

        monkeypatch.setattr(RealtimeService, "publish", unreliable)
        monkeypatch.setattr(live, "WAIT_SECONDS", 3)
        monkeypatch.setattr(live, "SUBSCRIBERS", 1)
        monkeypatch.setattr(live, "PUBLISHED", 9)
        await publish(context, section)
        assert wrong in section.checks["delivery"].wrong


class TestCachedPages:
    async def test_most_pages_come_from_the_cache_and_equal_the_stored_ones(
        self, loaded: Context, section: Section
    ) -> None:
        await read_cached_pages(loaded, section)
        assert section.checks["cached"].ok
        read = counts(section)
        assert read["newest pages read"] / 2 < read["newest pages from the cache"] < read["newest pages read"]

    async def test_cache_that_misses_changes_fails_the_check(
        self, loaded: Context, section: Section, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def ignore(invalidations: Invalidations, key: str) -> None:
            """Delete nothing."""

        monkeypatch.setattr(Invalidations, "add", ignore)
        await read_cached_pages(loaded, section)
        assert not section.checks["cached"].ok
