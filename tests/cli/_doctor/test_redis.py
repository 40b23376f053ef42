from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from cli._doctor.saying import meanings, of, severities, troubled
from hubbub import RedisSettings
from hubbub.cli._doctor import redis
from hubbub.cli._doctor.examination import Section
from hubbub.cli._doctor.findings import Seen
from hubbub.redis import Connection
from redis_server import PASSWORD, Server

Start = Callable[..., Server]

SAFE = ("appendonly yes", "appendfsync always", "maxmemory 100mb", "maxmemory-policy noeviction")


async def look(settings: RedisSettings, *, said: RedisSettings | None = None) -> Section:
    connection = Connection(settings)
    await connection.start()
    try:
        return await redis.look(connection, said or settings)
    finally:
        await connection.close()


async def test_of_a_server_that_keeps_what_it_has_there_is_nothing_to_say(servers_of: Start) -> None:
    section = await look(servers_of(*SAFE).settings)
    assert section.out_of_reach is None
    assert troubled(section) == set()
    assert of(section, "redis.memory").remark.startswith("noeviction, ")
    assert section.name.startswith(("Redis ", "Valkey "))


async def test_a_policy_that_evicts_sessions_is_told(servers_of: Start) -> None:
    section = await look(servers_of("maxmemory 100mb", "maxmemory-policy allkeys-lru").settings)
    assert severities(section, "redis.memory") == ["warning"]
    assert "maxmemory-policy noeviction" in meanings(section, "redis.memory")


async def test_a_policy_that_cannot_come_into_play_is_a_note(servers_of: Start) -> None:
    section = await look(servers_of("maxmemory-policy allkeys-lru").settings)
    assert severities(section, "redis.memory") == ["note"]


async def test_memory_that_is_nearly_full_is_told(servers_of: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis, "FULL", 0.001)
    section = await look(servers_of("maxmemory 100mb").settings)
    assert severities(section, "redis.memory") == ["warning"]
    assert "of maxmemory is used" in meanings(section, "redis.memory")


async def test_without_an_append_only_file_a_restart_forgets_who_is_logged_in(servers_of: Start) -> None:
    section = await look(servers_of().settings)
    assert severities(section, "redis.persistence") == ["warning"]
    assert of(section, "redis.appendfsync").unseen == "appendonly is off"


@pytest.mark.parametrize(("setting", "said"), [("everysec", ["note"]), ("no", ["warning"])])
async def test_what_a_power_cut_may_bring_back_is_said(servers_of: Start, setting: str, said: list[str]) -> None:
    section = await look(servers_of("appendonly yes", f"appendfsync {setting}").settings)
    assert severities(section, "redis.persistence") == []
    assert severities(section, "redis.appendfsync") == said


async def test_where_config_is_forbidden_it_says_that_it_could_not_look(servers_of: Start) -> None:
    server = servers_of(*SAFE, f"user careful on >{PASSWORD} ~* &* +@all -config")
    section = await look(replace(server.settings, username="careful"))
    assert "CONFIG GET is not allowed" in str(of(section, "redis.appendfsync").unseen)
    assert severities(section, "redis.persistence") == []


async def test_where_info_is_forbidden_it_says_so_at_each_check_and_goes_on(servers_of: Start) -> None:
    server = servers_of(f"user narrow on >{PASSWORD} ~* &* +@all -info")
    section = await look(replace(server.settings, username="narrow"))
    assert section.out_of_reach is None
    assert len(section.checks) == len(redis.CHECKS)
    unseen = {outcome.name for outcome in section.checks if outcome.unseen}
    assert unseen == {
        "redis.version", "redis.role", "redis.memory", "redis.persistence", "redis.appendfsync",
    }  # fmt: skip


async def test_a_replica_is_an_error(servers_of: Start) -> None:
    section = await look(servers_of("replicaof 127.0.0.1 1").settings)
    assert severities(section, "redis.role") == ["error"]


async def test_an_open_server_is_an_error(servers_of: Start) -> None:
    server = servers_of()
    section = await look(server.settings, said=replace(server.settings, password=None))
    assert severities(section, "redis.login") == ["error"]


async def test_a_way_over_the_network_without_tls_is_an_error(servers_of: Start) -> None:
    server = servers_of()
    section = await look(server.settings, said=replace(server.settings, host="redis.example.org"))
    assert severities(section, "redis.tls") == ["error"]
    assert "REDIS_TLS=true" in meanings(section, "redis.tls")


async def test_a_version_that_is_too_old_is_an_error(servers_of: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in redis.OLDEST:
        monkeypatch.setitem(redis.OLDEST, name, (99, 1))
    section = await look(servers_of().settings)
    assert " 99.1 or later" in meanings(section, "redis.version")


async def test_a_server_that_is_away_is_said_to_be_out_of_reach(servers_of: Start) -> None:
    section = await look(replace(servers_of().settings, port=1, connect_timeout_seconds=1))
    assert "127.0.0.1:1" in str(section.out_of_reach)


async def test_a_wrong_password_is_said_and_not_shown(servers_of: Start) -> None:
    section = await look(replace(servers_of().settings, password="not the word"))
    assert "refuses the login" in str(section.out_of_reach)
    assert "not the word" not in repr(section)


async def test_a_server_that_goes_away_meanwhile_is_out_of_reach(
    servers_of: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = servers_of()
    first, *rest = redis.CHECKS

    async def kill(patient: redis.Redis) -> Seen:
        seen = await first.look(patient)
        server.kill()
        return seen

    monkeypatch.setattr(redis, "CHECKS", (first._replace(look=kill), *rest))
    section = await look(replace(server.settings, connect_timeout_seconds=1))
    assert section.out_of_reach
    assert "redis.version" in {outcome.name for outcome in section.checks}
    assert "redis.memory" not in {outcome.name for outcome in section.checks}
