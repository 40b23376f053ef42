"""Redis or Valkey: version, encryption, login, memory and persistence."""

from __future__ import annotations

from contextlib import suppress
from typing import Final, NamedTuple

from hubbub.diagnostics.figures import fields_of, server_info
from hubbub.diagnostics.report import (
    Check,
    Finding,
    Result,
    Section,
    Skipped,
    error,
    note,
    run_checks,
    unencrypted,
    warning,
)
from hubbub.errors import Unavailable
from hubbub.redis import Connection, ReplyError
from hubbub.redis.connector import SLOTS
from hubbub.redis.replies import as_bytes
from hubbub.settings import RedisSettings

OLDEST: Final = {"Redis": (6, 2), "Valkey": (7, 2)}

FULL: Final = 0.9
"""The share of maxmemory from which on it is about to refuse writes."""


class Redis(NamedTuple):
    """The subject of the checks of Redis."""

    connection: Connection
    settings: RedisSettings

    async def info(self) -> dict[str, str]:
        return (await server_info(self.connection)).fields

    async def config(self, name: str) -> str:
        """A setting by CONFIG GET. Raises: Skipped (the login may not, as with many hosters)."""
        try:
            reply = await self.connection.execute("CONFIG", "GET", name)
        except (Unavailable, ReplyError) as refusal:
            if isinstance(refusal, Unavailable) and refusal.retryable:
                raise
            raise Skipped(f"CONFIG GET is not allowed: {refusal}") from refusal
        if isinstance(reply, dict):  # a map under RESP3, a list of names and values under RESP2
            reply = [part for pair in reply.items() for part in pair]
        if not isinstance(reply, list) or len(reply) != 2:
            raise Skipped(f"the server has no setting {name}")
        return as_bytes(reply[1]).decode(errors="replace")


async def _version(redis: Redis) -> Result:
    name, version, *_ = await server_info(redis.connection)
    if tuple(int(part) for part in version.split(".")[:2]) >= OLDEST[name]:
        return Result(version)
    wanted = ".".join(map(str, OLDEST[name]))
    return Result(version, [error(f"hubbub needs {name} {wanted} or later.", "Upgrade the server.")])


async def _tls(redis: Redis) -> Result:
    if redis.settings.tls:
        return Result("on, and the server's name is verified")
    remedy = "Give the server a tls-port, and set REDIS_TLS=true or write rediss:// in REDIS_URL."
    return unencrypted("Redis", redis.settings.addresses, remedy)


async def _login(redis: Redis) -> Result:
    if redis.settings.password is not None:
        return Result(redis.settings.username or "the default user, with a password")
    meaning = "There is no password: any client that reaches the port can read and forge sessions."
    remedy = "Set requirepass or an ACL user on the server, and REDIS_PASSWORD here."
    return Result("no password", [error(meaning, remedy)])


async def _role(redis: Redis) -> Result:
    role = (await redis.info()).get("role", "")
    if role != "slave":
        return Result(role)
    return Result(role, [error("This server is a replica and refuses writes.", "Connect to its primary.")])


async def _topology(redis: Redis) -> Result:
    settings, findings = redis.settings, []
    if settings.sentinel_master is None and not settings.cluster:
        return Result("one server")
    replicas = int((await redis.info()).get("connected_slaves", 0))
    summary = f"{replicas} {'replica' if replicas == 1 else 'replicas'}"
    if not replicas:
        meaning = "It has no replica, so nothing takes its place when it is lost."
        findings.append(warning(meaning, "Start a replica of it."))
    if settings.sentinel_master is not None:
        if replicas and await redis.config("min-replicas-to-write") == "0":
            meaning = "A master that is cut off goes on taking writes, which the failover then loses."
            findings.append(note(meaning, "Set min-replicas-to-write 1 and min-replicas-max-lag 2."))
        return Result(f"master of Sentinels, {summary}", findings)
    reply = as_bytes(await redis.connection.execute("CLUSTER", "INFO")).decode(errors="replace")
    fields = fields_of(reply)
    state, slots = fields.get("cluster_state", ""), int(fields.get("cluster_slots_ok", 0))
    if state != "ok" or slots != SLOTS:
        meaning = "Some slots have no primary: sessions, presence and limits there are unavailable."
        findings.append(error(meaning, "Look at CLUSTER NODES on this server."))
    return Result(f"cluster {state}, {slots:,} of {SLOTS:,} slots, {summary}", findings)


async def _memory(redis: Redis) -> Result:
    info = await redis.info()
    policy, limit = info.get("maxmemory_policy", ""), int(info.get("maxmemory", 0))
    used, evicted = int(info.get("used_memory", 0)), int(info.get("evicted_keys", 0))
    findings = []
    if policy != "noeviction":
        meaning = (
            f"maxmemory-policy is {policy}: when memory is short, sessions are evicted, or `revoke_all` misses "
            "them."
        )
        severity = warning if limit else note
        findings.append(severity(meaning, "Set maxmemory-policy noeviction."))
    if evicted:
        meaning = f"{evicted:,} keys were evicted since the server started. They may be sessions."
        findings.append(warning(meaning, "Set maxmemory-policy noeviction, and a larger maxmemory."))
    if limit and used > FULL * limit:
        meaning = f"{used / limit:.0%} of maxmemory is used. At the limit logins fail."
        findings.append(warning(meaning, "Raise maxmemory, or move other data out of this server."))
    available = f" of {limit / 1_000_000:.0f} MB" if limit else ", no limit"
    return Result(f"{policy}, {used / 1_000_000:.1f} MB{available}", findings)


async def _persistence(redis: Redis) -> Result:
    info = await redis.info()
    findings = []
    if info.get("aof_last_write_status", "ok") != "ok" or info.get("rdb_last_bgsave_status", "ok") != "ok":
        meaning = "The last save failed: the server loses its data when it stops, or refuses writes."
        findings.append(error(meaning, "Look at its log and its disk."))
    if info.get("aof_enabled") != "1":
        meaning = "appendonly is off: a restart ends all sessions, or restores sessions that were revoked."
        findings.append(warning(meaning, "Set appendonly yes, and appendfsync everysec or always."))
        return Result("appendonly no", findings)
    return Result("appendonly yes", findings)


async def _appendfsync(redis: Redis) -> Result:
    if (await redis.info()).get("aof_enabled") != "1":
        raise Skipped("appendonly is off")
    setting = await redis.config("appendfsync")
    if setting == "always":
        return Result(setting)
    lost = "two seconds" if setting == "everysec" else "half minute"
    meaning = f"appendfsync is {setting}: a power cut may restore sessions that were revoked in the last {lost}."
    severity = note if setting == "everysec" else warning
    return Result(setting, [severity(meaning, "Set appendfsync always where that matters, else everysec.")])


CHECKS: Final = (
    Check("redis.version", "version", _version),
    Check("redis.tls", "encryption", _tls),
    Check("redis.login", "login", _login),
    Check("redis.role", "role", _role),
    Check("redis.topology", "topology", _topology),
    Check("redis.memory", "memory", _memory),
    Check("redis.persistence", "persistence", _persistence),
    Check("redis.appendfsync", "appendfsync", _appendfsync),
)


async def check(connection: Connection, settings: RedisSettings) -> Section:
    """Does not raise for a server that cannot be asked."""
    where, name = settings.where, "Redis"
    if connection.failure is not None:
        return Section("redis", name, where, connection.failure.reason, ())
    with suppress(Unavailable, ReplyError):
        info = await server_info(connection)
        name = f"{info.name} {info.version}"
    return await run_checks("redis", name, where, CHECKS, lambda check: _run(check, connection, settings))


async def _run(check: Check[Redis], connection: Connection, settings: RedisSettings) -> Result:
    """The result of the server, or what is found on the primaries of a cluster together."""
    servers = connection.servers or {settings.where: connection}
    results = [(where, await check.run(Redis(server, settings))) for where, server in servers.items()]
    summaries = dict.fromkeys(result.summary for _, result in results)
    if len(results) == 1:
        return results[0][1]
    found: dict[Finding, list[str]] = {}
    for where, result in results:
        for finding in result.findings:
            found.setdefault(finding, []).append(where)
    findings = [
        Finding(
            one.severity, one.meaning if len(at) == len(results) else f"{', '.join(at)}: {one.meaning}", one.remedy
        )
        for one, at in found.items()
    ]
    return Result("; ".join(summaries), findings)
