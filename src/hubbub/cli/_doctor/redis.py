"""Redis or Valkey: what it is, the way to it, and what becomes of its keys."""

from __future__ import annotations

from typing import Final, NamedTuple

from hubbub.cli._doctor.examination import Section, examine
from hubbub.cli._doctor.findings import Check, Finding, Seen, Unseen, error, note, warning
from hubbub.cli._doctor.network import is_this_machine, unencrypted
from hubbub.errors import Unavailable
from hubbub.redis import Connection, ReplyError
from hubbub.redis.replies import Reply, as_bytes
from hubbub.settings import RedisSettings

OLDEST: Final = {"Redis": (6, 2), "Valkey": (7, 2)}

FULL: Final = 0.9
"""The share of maxmemory from which on it is about to refuse writes."""


class Redis(NamedTuple):
    """What the checks look at."""

    connection: Connection
    settings: RedisSettings

    async def told(self) -> dict[str, str]:
        """What INFO says. Raises `Unavailable` and `ReplyError`."""
        text = as_bytes(await self.connection.execute("INFO")).decode(errors="replace")
        return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)

    async def configured(self, name: str) -> str:
        """What CONFIG GET says. Raises `Unseen` where it is forbidden, as hosters and careful people do."""
        try:
            return _of_pairs(await self.connection.execute("CONFIG", "GET", name), name)
        except (Unavailable, ReplyError) as refusal:
            if isinstance(refusal, Unavailable) and refusal.retryable:
                raise
            raise Unseen(f"CONFIG GET is not allowed: {refusal}") from refusal


def _of_pairs(reply: Reply, name: str) -> str:
    """A map under RESP3, a list of names and values under RESP2."""
    if isinstance(reply, dict):
        reply = [part for pair in reply.items() for part in pair]
    if not isinstance(reply, list) or len(reply) != 2:
        raise Unseen(f"the server knows no {name}")
    return as_bytes(reply[1]).decode(errors="replace")


def _name_and_version(told: dict[str, str]) -> tuple[str, str]:
    name = "Valkey" if "valkey_version" in told else "Redis"
    return name, told.get(f"{name.lower()}_version", "")


async def _supported(redis: Redis) -> Seen:
    name, version = _name_and_version(await redis.told())
    oldest = OLDEST[name]
    if tuple(int(part) for part in version.split(".")[:2]) >= oldest:
        return Seen(version)
    wanted = ".".join(map(str, oldest))
    return Seen(version, (error(f"hubbub needs {name} {wanted} or later.", "Upgrade the server."),))


async def _tls(redis: Redis) -> Seen:
    if redis.settings.tls:
        return Seen("on, and the server's name is verified")
    if is_this_machine(redis.settings.host):
        return Seen("none, and the server is on this machine")
    remedy = "Give the server a tls-port, and set REDIS_TLS=true or write rediss:// in REDIS_URL."
    return Seen("none", (unencrypted("Redis", remedy),))


async def _login(redis: Redis) -> Seen:
    if redis.settings.password is not None:
        return Seen(redis.settings.username or "the default user, with a password")
    open_to_all = error(
        "There is no password: whoever reaches the port reads sessions, and forges them.",
        "Set requirepass or an ACL user on the server, and REDIS_PASSWORD here.",
    )
    return Seen("no password", (open_to_all,))


async def _role(redis: Redis) -> Seen:
    role = (await redis.told()).get("role", "")
    if role != "slave":
        return Seen(role)
    return Seen(role, (error("This server is a replica, and takes no changes.", "Connect to its primary."),))


async def _memory(redis: Redis) -> Seen:
    told = await redis.told()
    policy, limit = told.get("maxmemory_policy", ""), int(told.get("maxmemory", 0))
    used, evicted = int(told.get("used_memory", 0)), int(told.get("evicted_keys", 0))
    findings: list[Finding] = []
    if policy != "noeviction":
        meaning = f"maxmemory-policy is {policy}: when memory is short, sessions vanish or hide from revoke_all."
        say = warning if limit else note
        findings.append(say(meaning, "Set maxmemory-policy noeviction."))
    if evicted:
        meaning = (
            f"{evicted:,} keys were evicted since the server started: sessions or presence may be among them."
        )
        findings.append(warning(meaning, "Set maxmemory-policy noeviction, and a larger maxmemory."))
    if limit and used > FULL * limit:
        meaning = f"{used / limit:.0%} of maxmemory is used: at the limit nobody can log in any more."
        findings.append(warning(meaning, "Raise maxmemory, or find what else lives in this server."))
    size = f"{used / 1_000_000:.1f} MB of {f'{limit / 1_000_000:.0f} MB' if limit else 'what there is'}"
    return Seen(f"{policy}, {size}", tuple(findings))


async def _persistence(redis: Redis) -> Seen:
    told = await redis.told()
    findings = []
    if told.get("aof_last_write_status", "ok") != "ok" or told.get("rdb_last_bgsave_status", "ok") != "ok":
        meaning = "The server failed to save the last time: it loses what it has when it stops, or refuses writes."
        findings.append(error(meaning, "Look into its log and at its disk."))
    if told.get("aof_enabled") != "1":
        meaning = "appendonly is off: a restart logs everybody out, or brings back sessions that were revoked."
        findings.append(warning(meaning, "Set appendonly yes, and appendfsync everysec or always."))
        return Seen("appendonly no", tuple(findings))
    return Seen("appendonly yes", tuple(findings))


async def _appendfsync(redis: Redis) -> Seen:
    if (await redis.told()).get("aof_enabled") != "1":
        raise Unseen("appendonly is off")
    setting = await redis.configured("appendfsync")
    lost = {"always": "", "everysec": "the last two seconds"}.get(setting, "the last half minute")
    if not lost:
        return Seen(setting)
    meaning = f"appendfsync is {setting}: a power cut may bring back sessions that were revoked in {lost}."
    say = note if setting == "everysec" else warning
    return Seen(setting, (say(meaning, "Set appendfsync always where that matters, else everysec."),))


CHECKS: Final = (
    Check("redis.version", "version", _supported),
    Check("redis.tls", "encryption", _tls),
    Check("redis.login", "login", _login),
    Check("redis.role", "role", _role),
    Check("redis.memory", "memory", _memory),
    Check("redis.persistence", "persistence", _persistence),
    Check("redis.appendfsync", "appendfsync", _appendfsync),
)


async def look(connection: Connection, settings: RedisSettings) -> Section:
    """Does not raise for a server that cannot be asked."""
    where = f"{settings.host}:{settings.port}"
    redis = Redis(connection, settings)
    if connection.trouble is not None:
        return Section("redis", "Redis", where, connection.trouble.reason, ())
    outcomes, lost = await examine(CHECKS, lambda check: check.look(redis))
    return Section("redis", await _title(redis), where, lost, tuple(outcomes))


async def _title(redis: Redis) -> str:
    try:
        return " ".join(_name_and_version(await redis.told()))
    except (Unavailable, ReplyError):
        return "Redis"
