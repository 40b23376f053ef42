from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from types import MappingProxyType
from uuid import UUID, uuid4

import msgspec
import pytest

from hubbub import Settings
from hubbub.errors import Invalid
from hubbub.redis import Connection, Reply
from hubbub.redis.replies import as_int, as_optional_bytes
from hubbub.services.sessions import SessionService, index_of, key_of, tag_of
from services.monitored import monitored
from services.stored_sessions import PHONE, found, unseen_for_years, value_of
from waiting import until_it_answers


@pytest.fixture
def sessions(connection: Connection) -> SessionService:
    return SessionService(connection)


@pytest.fixture
def ada() -> UUID:
    return uuid4()


async def ended(sessions: SessionService, token: str) -> None:
    async def has_ended() -> bool:
        return await sessions.get_session(token) is None

    await until_it_answers(has_ended)


async def test_session_is_found_by_its_token(sessions: SessionService, ada: UUID) -> None:
    token = await sessions.create_session(ada, {"device": "phone", "roles": ["admin"], "theme": None})
    session = await found(sessions, token)
    assert session.user_id == ada
    assert session.data == {"device": "phone", "roles": ["admin"], "theme": None}
    assert session.seen_at == session.created_at
    assert session.expires_at - session.created_at == timedelta(hours=24)
    assert abs(datetime.now(UTC) - session.created_at) < timedelta(minutes=1)


async def test_tokens_differ_and_have_256_random_bits(sessions: SessionService, ada: UUID) -> None:
    tokens = {await sessions.create_session(ada) for _ in range(50)}
    assert len(tokens) == 50
    for token in tokens:
        assert re.fullmatch("[A-Za-z0-9_-]{47}", token)
        assert token.startswith(tag_of(ada))
    assert len({token[4:8] for token in tokens}) > 40


async def test_session_is_stored_as_json_under_the_digest_of_its_token(
    sessions: SessionService, connection: Connection, ada: UUID
) -> None:
    token = await sessions.create_session(ada, PHONE)
    digest = sha256(token.encode()).hexdigest()
    value = as_optional_bytes(await connection.execute("GET", f"session:{{{token[:4]}}}:{digest}"))
    assert value is not None
    held = msgspec.json.decode(value)
    assert held["userId"] == str(ada)
    assert held["data"] == PHONE
    assert held["expiresAt"] == held["createdAt"] + 86_400
    assert (await found(sessions, token)).id == digest


async def test_session_data_cannot_change_the_user_nor_the_end(sessions: SessionService, ada: UUID) -> None:
    mallory = {"userId": str(uuid4()), "user_id": "x", "expiresAt": 9e9, "x": '","userId":"', "y": "}}"}
    token = await sessions.create_session(ada, mallory)
    for _ in range(2):
        session = await found(sessions, token)
        assert session.user_id == ada
        assert session.expires_at - session.created_at == timedelta(hours=24)
        assert session.data == mallory
        await sessions.update_data(token, mallory)


async def test_deleted_session_is_gone_and_can_be_deleted_again(
    sessions: SessionService, connection: Connection, ada: UUID
) -> None:
    token, other = [await sessions.create_session(ada) for _ in range(2)]
    await sessions.delete_session(token)
    await sessions.delete_session(token)
    assert await sessions.get_session(token) is None
    assert await sessions.get_session(other) is not None
    assert await connection.execute("ZCARD", index_of(ada)) == 1


MALFORMED: list[object] = [
    "", "x", "0" * 46, "0" * 48, "0" * 46 + "\n", "0" * 46 + "\u0661", "\ud800" * 47, "\0" * 47, "x" * 1_000_000,
    "session:*", "{}:" + "0" * 44, b"0" * 47, None, 47, ["0"] * 47,
]  # fmt: skip


@pytest.mark.parametrize("token", MALFORMED, ids=range(len(MALFORMED)))
async def test_malformed_token_is_looked_up_like_any_other_and_not_found(
    sessions: SessionService, connection: Connection, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[object, ...]] = []
    execute = connection.execute

    def noted(*parts: str, deadline_seconds: float | None = None, writes: bool = True) -> object:
        sent.append(parts)
        return execute(*parts, deadline_seconds=deadline_seconds, writes=writes)

    monkeypatch.setattr(connection, "execute", noted)
    assert await sessions.get_session(token) is None
    [(command, key)] = sent
    assert command == "GET"
    assert re.fullmatch(r"session:\{0000\}:[0-9a-f]{64}", str(key))
    assert await sessions.rotate(token) is None
    assert not await sessions.update_data(token, PHONE)
    await sessions.delete_session(token)


async def test_well_formed_token_that_was_never_created_is_not_found(sessions: SessionService, ada: UUID) -> None:
    token = await sessions.create_session(ada)
    assert await sessions.get_session("0000" + token[4:]) is None
    assert await sessions.get_session(token[:-1] + ("A" if token[-1] != "A" else "B")) is None
    assert await sessions.get_session(token.swapcase()) is None


def circular() -> dict[str, object]:
    data: dict[str, object] = {}
    data["x"] = data
    return data


def deep(levels: int) -> dict[str, object]:
    data: dict[str, object] = {}
    for _ in range(levels - 1):
        data = {"x": data}
    return data


REFUSED: dict[str, object] = {
    "4 KiB": {"x": "y" * 4_089},
    "4 KiB in UTF-8": {"x": "\u00e9" * 2_045},
    "deep": deep(100_000),
    "33 levels": deep(33),
    "circular": circular(),
    "set": {"x": {1}},
    "bytes": {"x": b"y"},
    "tuple": {"x": (1, 2)},
    "time": {"x": datetime(2026, 1, 1, tzinfo=UTC)},
    "uuid": {"x": UUID(int=1)},
    "object": {"x": object()},
    "NaN": {"x": math.nan},
    "infinity": {"x": math.inf},
    "number as key": {1: "x"},
    "number as inner key": {"x": {1: "x"}},
    "half of a pair": {"x": "\ud83d"},
    "half of a pair as key": {"\ud83d": 1},
    "list": ["x"],
    "text": "device",
    "number": 7,
}


@pytest.mark.parametrize("name", REFUSED)
async def test_data_that_are_not_json_or_too_large_are_invalid(
    sessions: SessionService, connection: Connection, ada: UUID, name: str
) -> None:
    data = REFUSED[name]
    token = await sessions.create_session(ada, PHONE)
    for refused in (sessions.create_session(ada, data), sessions.update_data(token, data)):  # type: ignore[arg-type]
        with pytest.raises(Invalid) as refusal:
            await refused
        assert refusal.value.field in {"session_data", "data"}
        assert refusal.value.__context__ is None
    assert (await found(sessions, token)).data == PHONE
    assert await connection.execute("ZCARD", index_of(ada)) == 1


TAKEN: list[dict[str, object]] = [
    {}, {"x": "y" * 4_088}, {"": ""}, {"x": "\0\u2028\u202e\U0001f980\"'\\%s%d]]"}, {"x": []}, {"x": {}},
    {"x": [[], {}]}, {"x": 2**53 + 1}, {"x": -(2**63)}, {"x": 0.1}, {"x": 1e308},
    {"x": True, "y": False, "z": None}, deep(32),
]  # fmt: skip


@pytest.mark.parametrize("data", TAKEN, ids=range(len(TAKEN)))
async def test_json_data_are_returned_unchanged(
    sessions: SessionService, ada: UUID, data: dict[str, object]
) -> None:
    token = await sessions.create_session(ada, MappingProxyType(data))
    assert (await found(sessions, token)).data == data
    assert await sessions.update_data(token, {})
    assert await sessions.update_data(token, data)
    assert (await found(sessions, token)).data == data


async def test_update_data_replaces_the_data_and_nothing_else(
    sessions: SessionService, connection: Connection, ada: UUID
) -> None:
    token = await sessions.create_session(ada, {"device": "phone", "theme": "dark" * 200})
    before = await found(sessions, token)
    await connection.execute("PEXPIRE", key_of(token).name, 50_000_000)
    assert await sessions.update_data(token, {"device": "tablet"})
    assert await found(sessions, token) == msgspec.structs.replace(before, data={"device": "tablet"})
    assert 49_000_000 < as_int(await connection.execute("PTTL", key_of(token).name)) <= 50_000_000


async def test_update_data_of_an_ended_session_does_nothing(sessions: SessionService, ada: UUID) -> None:
    token = await sessions.create_session(ada)
    await sessions.delete_session(token)
    assert not await sessions.update_data(token, PHONE)
    assert await sessions.get_session(token) is None


async def test_session_in_constant_use_ends_at_its_age(connection: Connection, ada: UUID) -> None:
    sessions = SessionService(connection, life_seconds=12, idle_timeout_seconds=10)
    token = await sessions.create_session(ada)
    expires_at = (await found(sessions, token)).expires_at
    seen = set()

    async def has_ended() -> bool:
        session = await sessions.get_session(token)
        if session is None:
            return True
        seen.add(session.seen_at)
        assert session.expires_at == expires_at
        assert as_int(await connection.execute("PTTL", key_of(token).name)) <= 10_000
        return False

    await until_it_answers(has_ended)
    assert len(seen) > 3
    assert datetime.now(UTC) >= expires_at
    assert await sessions.list(ada) == []


async def test_session_without_lookups_ends_after_the_idle_timeout(connection: Connection, ada: UUID) -> None:
    sessions = SessionService(connection, idle_timeout_seconds=0.3)
    token = await sessions.create_session(ada)
    key = key_of(token).name

    async def is_gone() -> bool:
        return await connection.execute("EXISTS", key) == 0

    await until_it_answers(is_gone)
    assert await sessions.get_session(token) is None
    assert await sessions.list(ada) == []


async def test_lookup_writes_the_time_at_most_once_per_interval(connection: Connection, ada: UUID) -> None:
    sessions = SessionService(connection, idle_timeout_seconds=600)
    token = await sessions.create_session(ada)
    key = key_of(token).name
    before = await value_of(connection, token)
    for _ in range(20):
        await found(sessions, token)
    assert await value_of(connection, token) == before
    await unseen_for_years(connection, token)
    await connection.execute("PEXPIRE", key, 500_000)
    await asyncio.gather(*(found(sessions, token) for _ in range(20)))
    after = await value_of(connection, token)
    assert len(after) == len(before)
    assert msgspec.json.decode(after)["seenAt"] >= msgspec.json.decode(before)["seenAt"]
    assert 590_000 < as_int(await connection.execute("PTTL", key)) <= 600_000
    assert await connection.execute("ZSCORE", index_of(ada), key_of(token).id) is not None


@pytest.mark.parametrize("seconds", [-86_400, -300, 300, 86_400])
async def test_clock_of_the_process_does_not_matter(
    connection: Connection, ada: UUID, seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times come from Redis, even if the clocks of the machines differ or are changed."""
    sessions = SessionService(connection, idle_timeout_seconds=600)
    token = await sessions.create_session(ada)
    before = await value_of(connection, token)
    wrong = datetime.now(UTC).timestamp() + seconds
    monkeypatch.setattr("time.time", lambda: wrong)
    execute = connection.execute
    commands: list[str] = []

    def count(*parts: str, deadline_seconds: float | None = None, writes: bool = True) -> Awaitable[Reply]:
        commands.append(parts[0])
        return execute(*parts, deadline_seconds=deadline_seconds, writes=writes)

    monkeypatch.setattr(connection, "execute", count)
    await found(sessions, token)
    assert commands == ["GET"]
    # A process that has no time from Redis runs the script, which reads the clock of Redis.
    fresh = SessionService(connection, idle_timeout_seconds=600)
    for _ in range(2):
        await found(fresh, token)
    assert [command for command in commands if command != "EVAL"] == ["GET", "GET", "EVALSHA", "GET"]
    assert await value_of(connection, token) == before
    await unseen_for_years(connection, token)
    await found(sessions, token)
    assert (await found(fresh, token)).seen_at.timestamp() >= msgspec.json.decode(before)["seenAt"]


async def test_list_has_devices_and_ids_but_no_token(sessions: SessionService, ada: UUID) -> None:
    tokens = [await sessions.create_session(ada, {"device": device}) for device in ("phone", "laptop", "tv")]
    listed = await sessions.list(ada)
    assert {str(session.data["device"]) for session in listed} == {"phone", "laptop", "tv"}
    assert {session.id for session in listed} == {key_of(token).id for token in tokens}
    assert {session.user_id for session in listed} == {ada}
    for token in tokens:
        assert token not in repr(listed)
        for session in listed:
            assert await sessions.get_session(session.id) is None
    assert await sessions.list(uuid4()) == []


async def test_session_seen_last_is_first_in_the_list(
    sessions: SessionService, connection: Connection, ada: UUID
) -> None:
    old, new = [await sessions.create_session(ada) for _ in range(2)]
    await unseen_for_years(connection, new)
    assert [session.id for session in await sessions.list(ada)] == [key_of(old).id, key_of(new).id]
    assert len(await sessions.list(ada, limit=1)) == 1
    for limit in (0, 201, -1):
        with pytest.raises(Invalid, match="limit"):
            await sessions.list(ada, limit=limit)


async def test_evicted_sessions_do_not_shorten_the_list(
    sessions: SessionService, connection: Connection, ada: UUID
) -> None:
    """A server short of memory evicts values, but not the ids in the index of the user."""
    tokens: list[str] = []
    for _ in range(12):
        tokens.append(await sessions.create_session(ada))
        await asyncio.sleep(0.002)  # two must not end in the same millisecond
    by_end = [session.id for session in await sessions.list(ada)]
    evicted = [key_of(token) for token in (*tokens[2:5], *tokens[7:])]
    for key in evicted:
        await connection.execute("DEL", key.name)
    living = set(by_end) - {key.id for key in evicted}
    assert {session.id for session in await sessions.list(ada, limit=4)} == living
    assert await connection.execute("ZCARD", index_of(ada)) == 4
    assert len(await sessions.list(ada, limit=3)) == 3


async def test_revoke_ends_one_session_by_its_id(sessions: SessionService, ada: UUID) -> None:
    lost, kept = [await sessions.create_session(ada) for _ in range(2)]
    lost_id = (await found(sessions, lost)).id
    assert await sessions.revoke(ada, lost_id)
    assert await sessions.get_session(lost) is None
    assert await sessions.get_session(kept) is not None
    assert not await sessions.revoke(ada, lost_id)


async def test_revoke_ignores_the_session_of_another_user(
    sessions: SessionService, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada, bob = uuid4(), uuid4()
    token = await sessions.create_session(bob)
    session_id = key_of(token).id
    assert not await sessions.revoke(ada, session_id)
    # Not even when both users have the same tag.
    monkeypatch.setattr("hubbub.services.sessions.tag_of", lambda _: token[:4])
    assert not await sessions.revoke(ada, session_id)
    assert await sessions.get_session(token) is not None


@pytest.mark.parametrize("session_id", ["", "*", "0" * 63, "G" * 64, "user:x", None, 7])
async def test_revoke_of_a_malformed_id_does_nothing(sessions: SessionService, ada: UUID, session_id: str) -> None:
    token = await sessions.create_session(ada)
    assert not await sessions.revoke(ada, session_id)
    assert await sessions.get_session(token) is not None


async def test_revoke_all_keeps_the_session_of_the_excepted_token(
    sessions: SessionService, connection: Connection, ada: UUID
) -> None:
    here, *elsewhere = [await sessions.create_session(ada) for _ in range(5)]
    bobs = await sessions.create_session(uuid4())
    assert await sessions.revoke_all(ada, except_token=here) == 4
    assert await sessions.get_session(here) is not None
    assert [await sessions.get_session(token) for token in elsewhere] == [None] * 4
    assert await sessions.get_session(bobs) is not None
    # The token of another user keeps no session.
    assert await sessions.revoke_all(ada, except_token=bobs) == 1
    assert await sessions.get_session(here) is None
    assert await sessions.revoke_all(ada) == 0
    assert await connection.execute("EXISTS", index_of(ada)) == 0


async def test_rotated_session_continues_under_its_new_token(
    sessions: SessionService, connection: Connection, ada: UUID
) -> None:
    old = await sessions.create_session(ada, PHONE)
    await connection.execute("PEXPIRE", key_of(old).name, 50_000_000)
    before = await found(sessions, old)
    new = await sessions.rotate(old)
    assert new is not None
    assert new != old
    assert await sessions.get_session(old) is None
    assert await found(sessions, new) == msgspec.structs.replace(before, id=key_of(new).id)
    assert 49_000_000 < as_int(await connection.execute("PTTL", key_of(new).name)) <= 50_000_000
    assert await connection.execute("ZCARD", index_of(ada)) == 1
    assert [session.id for session in await sessions.list(ada)] == [key_of(new).id]
    assert await sessions.rotate(old) is None
    assert await sessions.revoke_all(ada) == 1
    assert await sessions.get_session(new) is None


async def test_one_of_many_concurrent_rotations_wins(sessions: SessionService, ada: UUID) -> None:
    token = await sessions.create_session(ada)
    won = [new for new in await asyncio.gather(*(sessions.rotate(token) for _ in range(20))) if new is not None]
    assert len(won) == 1
    assert await sessions.get_session(won[0]) is not None
    assert len(await sessions.list(ada)) == 1


async def test_ten_thousand_logins_of_one_user_leave_a_thousand_sessions(
    sessions: SessionService, connection: Connection, ada: UUID
) -> None:
    tokens: list[str] = []
    for _ in range(20):
        tokens += await asyncio.gather(*(sessions.create_session(ada) for _ in range(500)))
    assert await connection.execute("ZCARD", index_of(ada)) == 1_000
    assert as_int(await connection.execute("DBSIZE")) == 1_001
    assert len(await sessions.list(ada)) == 200
    assert all(await asyncio.gather(*(sessions.get_session(token) for token in tokens[-500:])))
    assert not any(await asyncio.gather(*(sessions.get_session(token) for token in tokens[:8_500])))
    assert await sessions.revoke_all(ada) == 1_000


async def test_ended_sessions_do_not_count_towards_the_maximum(connection: Connection, ada: UUID) -> None:
    brief = SessionService(connection, life_seconds=0.05, max_per_user=3)
    for _ in range(3):
        token = await brief.create_session(ada)
    await ended(brief, token)
    lasting = SessionService(connection, max_per_user=3)
    tokens = [await lasting.create_session(ada) for _ in range(3)]
    assert all([await lasting.get_session(token) for token in tokens])
    assert await connection.execute("ZCARD", index_of(ada)) == 3


async def test_index_of_a_user_outlives_their_sessions_and_ends(connection: Connection, ada: UUID) -> None:
    """If an index ended before a session, `revoke_all` would miss that session."""
    lasting, brief = SessionService(connection, life_seconds=100), SessionService(connection, life_seconds=10)
    tokens = [await service.create_session(ada) for service in (lasting, brief)]
    assert 90_000 < as_int(await connection.execute("PTTL", index_of(ada))) <= 100_000
    # If Redis has evicted the index, a session is added again when it is next written as seen.
    await connection.execute("DEL", index_of(ada))
    fresh = SessionService(connection, life_seconds=100, idle_timeout_seconds=50)
    await unseen_for_years(connection, tokens[0])
    await found(fresh, tokens[0])
    assert 90_000 < as_int(await connection.execute("PTTL", index_of(ada))) <= 100_000
    assert await fresh.revoke_all(ada) == 1


async def test_value_written_by_another_program_is_not_a_session(
    sessions: SessionService, connection: Connection, ada: UUID, caplog: pytest.LogCaptureFixture
) -> None:
    token = await sessions.create_session(ada)
    for value in (
        b"",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"{}",
        b'{"userId":"1"}',
        (await value_of(connection, token))[:-1],
        (await value_of(connection, token)).replace(b"{}}", b'{"x":"\xff"}}'),
        (await value_of(connection, token)).replace(b"{}}", b'{"x":1e999}}'),
    ):
        await connection.execute("SET", key_of(token).name, value, "KEEPTTL")
        assert await sessions.get_session(token) is None
        assert await sessions.list(ada) == []
    assert "is not a session" in caplog.text
    await sessions.delete_session(token)


async def test_value_too_deep_to_decode_is_not_a_session(
    sessions: SessionService, connection: Connection, ada: UUID, caplog: pytest.LogCaptureFixture
) -> None:
    """An earlier release accepted data of any depth, which it could decode from a shallow stack only."""
    token = await sessions.create_session(ada)
    value = (await value_of(connection, token)).removesuffix(b"{}}")
    deepest = b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}}"
    await connection.execute("SET", key_of(token).name, value + deepest, "KEEPTTL")
    assert await sessions.get_session(token) is None
    assert await sessions.list(ada) == []
    assert "is not a session" in caplog.text
    assert await sessions.update_data(token, PHONE)
    assert (await found(sessions, token)).data == PHONE


@pytest.mark.parametrize("user_id", ["", "ada", "{x}", "*", None, 7, "0" * 36])
async def test_malformed_user_id_is_invalid(sessions: SessionService, user_id: UUID) -> None:
    for call in (
        sessions.create_session(user_id),
        sessions.list(user_id),
        sessions.revoke(user_id, "0" * 64),
        sessions.revoke_all(user_id),
    ):
        with pytest.raises(Invalid, match="user_id"):
            await call


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("life_seconds", 0), ("life_seconds", -1), ("life_seconds", 1e12), ("life_seconds", math.nan),
        ("idle_timeout_seconds", 0), ("idle_timeout_seconds", 86_401), ("idle_timeout_seconds", math.nan),
        ("max_per_user", 0), ("max_per_user", 1_000_000),
    ],
)  # fmt: skip
def test_impossible_limits_are_invalid(name: str, value: float) -> None:
    connection = Connection(Settings.from_urls("postgresql://a@localhost/a", "redis://localhost").redis)
    with pytest.raises(Invalid, match=name):
        SessionService(connection, **{name: value})  # type: ignore[arg-type]


async def test_flushed_scripts_are_sent_again(sessions: SessionService, connection: Connection, ada: UUID) -> None:
    token: str | None = await sessions.create_session(ada)
    for _ in range(3):
        assert token is not None
        await connection.execute("SCRIPT", "FLUSH")
        token = await sessions.rotate(token)
        assert token is not None
        await connection.execute("SCRIPT", "FLUSH")
        assert await sessions.update_data(token, PHONE)
    await connection.execute("SCRIPT", "FLUSH")
    assert len(await sessions.list(ada)) == 1
    await connection.execute("SCRIPT", "FLUSH")
    assert await sessions.revoke_all(ada) == 1


async def test_token_appears_neither_in_redis_nor_in_a_log_or_error(
    sessions: SessionService,
    connection: Connection,
    servers: Settings,
    ada: UUID,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    malformed = "not-a-token-" * 3
    async with monitored(servers.redis, connection) as commands:
        token = await sessions.create_session(ada, PHONE)
        await sessions.get_session(token)
        await SessionService(connection).get_session(token)
        rotated = await sessions.rotate(token)
        assert rotated is not None
        await sessions.update_data(rotated, PHONE)
        await sessions.list(ada)
        await sessions.revoke(ada, key_of(token).id)
        await sessions.revoke_all(ada, except_token=rotated)
        await sessions.delete_session(rotated)
        await sessions.get_session(malformed)
    assert key_of(token).id.encode() in commands
    for secret in (token, rotated, malformed):
        assert secret[4:].encode() not in commands
        assert secret[4:] not in caplog.text
