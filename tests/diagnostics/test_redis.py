from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from diagnostics.sections import failed, meanings, result_of, severities
from hubbub import RedisSettings
from hubbub.diagnostics import redis
from hubbub.diagnostics.report import Result, Section
from hubbub.redis import Connection
from redis_server import PASSWORD, Server

Start = Callable[..., Server]

SAFE = ("appendonly yes", "appendfsync always", "maxmemory 100mb", "maxmemory-policy noeviction")


async def look(settings: RedisSettings, *, pretended: RedisSettings | None = None) -> Section:
    connection = Connection(settings)
    await connection.start()
    try:
        return await redis.check(connection, pretended or settings)
    finally:
        await connection.close()


async def test_durable_server_passes_all_checks(servers_of: Start) -> None:
    section = await look(servers_of(*SAFE).settings)
    assert section.out_of_reach is None
    assert failed(section) == set()
    assert result_of(section, "redis.memory").summary.startswith("noeviction, ")
    assert section.name.startswith(("Redis ", "Valkey "))


async def test_evicting_policy_is_a_warning(servers_of: Start) -> None:
    section = await look(servers_of("maxmemory 100mb", "maxmemory-policy allkeys-lru").settings)
    assert severities(section, "redis.memory") == ["warning"]
    assert "maxmemory-policy noeviction" in meanings(section, "redis.memory")


async def test_evicting_policy_without_a_memory_limit_is_a_note(servers_of: Start) -> None:
    section = await look(servers_of("maxmemory-policy allkeys-lru").settings)
    assert severities(section, "redis.memory") == ["note"]


async def test_nearly_full_memory_is_a_warning(servers_of: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis, "FULL", 0.001)
    section = await look(servers_of("maxmemory 100mb").settings)
    assert severities(section, "redis.memory") == ["warning"]
    assert "of maxmemory is used" in meanings(section, "redis.memory")


async def test_missing_append_only_file_is_a_warning(servers_of: Start) -> None:
    section = await look(servers_of().settings)
    assert severities(section, "redis.persistence") == ["warning"]
    assert result_of(section, "redis.appendfsync").skipped == "appendonly is off"


@pytest.mark.parametrize(("setting", "expected"), [("everysec", ["note"]), ("no", ["warning"])])
async def test_appendfsync_other_than_always_is_reported_by_its_risk(
    servers_of: Start, setting: str, expected: list[str]
) -> None:
    section = await look(servers_of("appendonly yes", f"appendfsync {setting}").settings)
    assert severities(section, "redis.persistence") == []
    assert severities(section, "redis.appendfsync") == expected


async def test_forbidden_config_skips_the_check(servers_of: Start) -> None:
    server = servers_of(*SAFE, f"user careful on >{PASSWORD} ~* &* +@all -config")
    section = await look(replace(server.settings, username="careful"))
    assert "CONFIG GET is not allowed" in str(result_of(section, "redis.appendfsync").skipped)
    assert severities(section, "redis.persistence") == []


async def test_forbidden_info_skips_its_checks_and_runs_the_others(servers_of: Start) -> None:
    server = servers_of(f"user narrow on >{PASSWORD} ~* &* +@all -info")
    section = await look(replace(server.settings, username="narrow"))
    assert section.out_of_reach is None
    assert len(section.checks) == len(redis.CHECKS)
    unseen = {result.name for result in section.checks if result.skipped}
    assert unseen == {
        "redis.version", "redis.role", "redis.memory", "redis.persistence", "redis.appendfsync",
    }  # fmt: skip


async def test_replica_is_an_error(servers_of: Start) -> None:
    section = await look(servers_of("replicaof 127.0.0.1 1").settings)
    assert severities(section, "redis.role") == ["error"]


async def test_server_without_a_password_is_an_error(servers_of: Start) -> None:
    server = servers_of()
    section = await look(server.settings, pretended=replace(server.settings, password=None))
    assert severities(section, "redis.login") == ["error"]


async def test_remote_server_without_tls_is_an_error(servers_of: Start) -> None:
    server = servers_of()
    section = await look(server.settings, pretended=replace(server.settings, host="redis.example.org"))
    assert severities(section, "redis.tls") == ["error"]
    assert "REDIS_TLS=true" in meanings(section, "redis.tls")


async def test_too_old_version_is_an_error(servers_of: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in redis.OLDEST:
        monkeypatch.setitem(redis.OLDEST, name, (99, 1))
    section = await look(servers_of().settings)
    assert " 99.1 or later" in meanings(section, "redis.version")


async def test_unreachable_server_is_reported_out_of_reach(servers_of: Start) -> None:
    section = await look(replace(servers_of().settings, port=1, connect_timeout_seconds=1))
    assert "127.0.0.1:1" in str(section.out_of_reach)


async def test_wrong_password_is_reported_without_the_password(servers_of: Start) -> None:
    section = await look(replace(servers_of().settings, password="not the word"))
    assert "refuses the login" in str(section.out_of_reach)
    assert "not the word" not in repr(section)


async def test_server_that_dies_during_the_checks_is_reported_out_of_reach(
    servers_of: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = servers_of()
    first, *rest = redis.CHECKS

    async def kill(database: redis.Redis) -> Result:
        seen = await first.run(database)
        server.kill()
        return seen

    monkeypatch.setattr(redis, "CHECKS", (first._replace(run=kill), *rest))
    section = await look(replace(server.settings, connect_timeout_seconds=1))
    assert section.out_of_reach
    assert "redis.version" in {result.name for result in section.checks}
    assert "redis.memory" not in {result.name for result in section.checks}
