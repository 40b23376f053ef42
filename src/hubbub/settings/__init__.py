"""The settings of both servers, written in code or read from the environment.

The variables are DB_* and REDIS_*, or DATABASE_URL and REDIS_URL; `.env.example` lists them all with their
defaults. DATABASE_URL, DB_PASSWORD, REDIS_URL and REDIS_PASSWORD may be given as a file instead, by the same
name with _FILE after it, as container platforms provide secrets. An empty variable counts as one not given.

If there is a URL, then host, port and database come from it alone, so that a DB_PORT left over from another server
has no effect. User, password and TLS come from the URL as far as it carries them, and otherwise from their
variables, so that a URL without a password can be combined with DB_PASSWORD_FILE. `redis://` leaves TLS open, so
REDIS_TLS=true holds beside it. Limits (DB_POOL_SIZE, DB_DEADLINE_SECONDS, ...) always have their own variable.

An unusable value is refused as `Invalid`, whose field is the name of the variable, also for settings written in
code. The reason never repeats the value: a misplaced password, or the front of one at which a URL was cut, must
not reach a log.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from ssl import SSLContext
from typing import Any, Literal, TypeVar
from urllib.parse import quote

from hubbub.errors import Invalid
from hubbub.settings.tls import Pem, SslMode, Verified, check_files, client_context
from hubbub.settings.variables import (
    POSTGRES,
    REDIS,
    REPLICAS,
    VARIABLES,
    Address,
    Variables,
    addresses_in,
    check,
    from_database_url,
    from_redis_url,
    from_sentinels,
    texts_in,
)

__all__ = ["VARIABLES", "Address", "PostgresSettings", "RedisSettings", "Settings", "SslMode", "postgres_from_env"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresSettings:
    """One PostgreSQL database, its login, and the limits of its pool.

    `host` may be a list of servers, as `db1,db2:5433,[2001:db8::1]:5432`, of which the primary is found at each
    connect. `port` is that of the hosts without one of their own.

    Size, idle time and connect time of the pool default to 20, 30 s and 2 s, as in the original application.
    `deadline_seconds` bounds a whole operation: waiting for a connection, the query and the release. Turn
    `prepared_statements` off behind a pooler that assigns a connection per transaction. With `durable_sessions`
    sessions are rows of PostgreSQL, and Redis has copies of them (docs/redis.md). `sslmode` is that of libpq.
    `schema` is that of hubbub's tables: it does not depend on the search path of a session.
    """

    host: str
    port: int = 5432
    database: str
    schema: str = "public"
    user: str
    password: str | None = field(default=None, repr=False)
    sslmode: SslMode = "prefer"
    ssl_root_cert: Path | None = None
    ssl_cert: Path | None = None
    ssl_key: Path | None = None
    pool_size: int = 20
    idle_timeout_seconds: float = 30
    connect_timeout_seconds: float = 2
    deadline_seconds: float = 10
    prepared_statements: bool = True
    durable_sessions: bool = False

    def __post_init__(self) -> None:
        check(self, POSTGRES)
        # An operator who gives a root certificate expects that the server is verified. These modes do not do that.
        unused = f"is not used under sslmode {self.sslmode}: choose verify-full"
        check_files(*self._pems(), unused=unused if self.sslmode in {"disable", "prefer"} else None)
        if self.sslmode.startswith("verify") and self.ssl_root_cert is None:
            raise Invalid("DB_SSLROOTCERT", f"is missing: {self.sslmode} verifies the server with it")

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The servers of `host`, at least one."""
        return addresses_in(self.host, self.port)

    @property
    def where(self) -> str:
        """Hosts and ports, for people."""
        return ", ".join(map(str, self.addresses))

    def ssl(self) -> SSLContext | Literal["disable", "prefer"]:
        """The argument of `asyncpg.connect(ssl=...)` for this sslmode.

        As in libpq, `require` encrypts without verifying, but verifies as `verify-ca` does if there is a root
        certificate. All connections share the context, so it must not be altered. The first call after a file
        changed reads the files again, from disk and without awaiting: the next connection uses renewed
        certificates, without a restart.
        Raises: Invalid (a file holds no certificate or no key).
        """
        if self.sslmode == "disable" or self.sslmode == "prefer":  # noqa: PLR1714 - mypy narrows by == only
            return self.sslmode
        # Not the context that asyncpg makes of a mode: that one also obeys PGSSLROOTCERT and ~/.postgresql.
        verified: Verified = "nothing" if self.ssl_root_cert is None else "certificate"
        return client_context("certificate and name" if self.sslmode == "verify-full" else verified, *self._pems())

    def _pems(self) -> Iterator[Pem]:
        files = (self.ssl_root_cert, self.ssl_cert, self.ssl_key)
        return map(Pem, ("DB_SSLROOTCERT", "DB_SSLCERT", "DB_SSLKEY"), files)


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisSettings:
    """One Redis or Valkey server and its login. `deadline_seconds` bounds a whole operation.

    With `cluster`, `host` is a list of some nodes of a Redis Cluster, by which the others are found. With the name
    of a `sentinel_master`, `host` is the list of its Sentinels, which may have a login of their own. A list is
    `host,host:port`, and `port` is that of the hosts without one.

    `prefix` is put before the names of all keys and channels, on a server that others use as well.

    With `tls` the certificate and the name of the server are always verified: by `ssl_root_cert`, or without it
    by the authorities that the system trusts.
    """

    host: str
    port: int = 6379
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    cluster: bool = False
    sentinel_master: str | None = None
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    database: int = 0
    prefix: str = ""
    tls: bool = False
    ssl_root_cert: Path | None = None
    ssl_cert: Path | None = None
    ssl_key: Path | None = None
    connect_timeout_seconds: float = 2
    deadline_seconds: float = 5

    def __post_init__(self) -> None:
        check(self, REDIS)
        unused = "is not used without TLS: set REDIS_TLS=true or write rediss://"
        check_files(*self._pems(), unused=None if self.tls else unused)
        if self.username is not None and self.password is None:
            # A URL with the password in the position of the user looks just like this.
            raise Invalid(
                "REDIS_PASSWORD",
                "is missing. A password without a user has a colon before it: redis://:password@host",
            )
        if self.sentinel_username is not None and self.sentinel_password is None:
            raise Invalid("REDIS_SENTINEL_PASSWORD", "is missing")
        if self.sentinel_master is None:
            if self.sentinel_password is not None:
                raise Invalid("REDIS_SENTINEL_PASSWORD", "is not used without REDIS_SENTINEL_MASTER")
            if "," in self.host and not self.cluster:
                raise Invalid(
                    "REDIS_HOST", "must be one host, except with REDIS_CLUSTER=true or REDIS_SENTINEL_MASTER"
                )
        elif self.cluster:
            raise Invalid("REDIS_SENTINEL_MASTER", "cannot be combined with REDIS_CLUSTER: unset one of the two")
        if self.cluster and self.database != 0:
            raise Invalid("REDIS_DB", "must be 0 in a cluster")

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The server, the Sentinels, or the nodes of a cluster that are known from the start."""
        return addresses_in(self.host, self.port)

    @property
    def where(self) -> str:
        """Hosts and ports, for people."""
        hosts = ", ".join(map(str, self.addresses))
        return hosts if self.sentinel_master is None else f"{self.sentinel_master} of {hosts}"

    def ssl(self) -> SSLContext | None:
        """The TLS context to connect with; None without `tls`.

        All connections share it, so it must not be altered. It follows changed files as that of `PostgresSettings`
        does. The authorities that the system trusts are read once per process.
        Raises: Invalid (a file holds no certificate or no key).
        """
        return client_context("certificate and name", *self._pems()) if self.tls else None

    def _pems(self) -> Iterator[Pem]:
        files = (self.ssl_root_cert, self.ssl_cert, self.ssl_key)
        return map(Pem, ("REDIS_CA_FILE", "REDIS_CERT_FILE", "REDIS_KEY_FILE"), files)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Both servers. The passwords are in `to_env` and in no `repr` or error.

    `replicas` are read replicas of the database. They differ from it in host, port, user and password only.
    """

    postgres: PostgresSettings
    redis: RedisSettings
    replicas: tuple[PostgresSettings, ...] = ()

    def __post_init__(self) -> None:
        first = self.postgres
        for one in self.replicas:
            if "," in one.host:
                raise Invalid(REPLICAS, "must have one host in each URL")
            if first != replace(one, host=first.host, port=first.port, user=first.user, password=first.password):
                raise Invalid(REPLICAS, "may only differ from the primary in host, port, user and password")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings | None:
        """The settings that the variables in `environ` give, by default in the environment of the process.

        None when no variable of hubbub's is set at all.
        Raises: Invalid (a variable is missing or unusable).
        """
        environ = os.environ if environ is None else environ
        return _settings(texts_in(environ)) if cls.is_configured(environ) else None

    @staticmethod
    def is_configured(environ: Mapping[str, str] | None = None) -> bool:
        """Whether a variable that is about the servers is set, so that `from_env` returns settings or raises.

        DB_SCHEMA and REDIS_PREFIX alone say where hubbub is in the servers of `hubbub up`.
        """
        environ = os.environ if environ is None else environ
        return any(variable in environ for variable in VARIABLES - _WITHIN_SERVERS)

    def with_env(self, environ: Mapping[str, str] | None = None) -> Settings:
        """These servers, with the schema and the prefix that `environ` names by DB_SCHEMA and REDIS_PREFIX.

        Raises: Invalid.
        """
        environ = os.environ if environ is None else environ
        if not _WITHIN_SERVERS & environ.keys():
            return self
        given = texts_in(environ)
        schema = given.get("DB_SCHEMA", self.postgres.schema)
        return Settings(
            postgres=replace(self.postgres, schema=schema),
            redis=replace(self.redis, prefix=given.get("REDIS_PREFIX", self.redis.prefix)),
            replicas=tuple(replace(one, schema=schema) for one in self.replicas),
        )

    @classmethod
    def from_urls(cls, database_url: str, redis_url: str) -> Settings:
        """The settings that two URLs give, with every default. The environment is not read.

        Raises: Invalid (a URL is unusable).
        """
        return _settings({"DATABASE_URL": database_url, "REDIS_URL": redis_url})

    def to_env(self) -> dict[str, str]:
        """The DB_* and REDIS_* variables from which `from_env` makes these settings again, passwords included."""
        texts = _texts(self.postgres, POSTGRES) | _texts(self.redis, REDIS)
        urls = " ".join(_database_url(one) for one in self.replicas)
        return texts | {REPLICAS: urls} if urls else texts

    def to_urls(self) -> dict[str, str]:
        """DATABASE_URL and REDIS_URL, passwords included, for programs that read no other variables."""
        redis = self.redis
        scheme, path = "rediss" if redis.tls else "redis", str(redis.database)
        if redis.cluster:
            scheme += "+cluster"
        elif redis.sentinel_master is not None:
            scheme, path = f"{scheme}+sentinel", f"{quote(redis.sentinel_master, safe='')}/{path}"
        return {
            "DATABASE_URL": _database_url(self.postgres),
            "REDIS_URL": _url(scheme, redis.username, redis.password, redis.addresses, path),
        }


def postgres_from_env(environ: Mapping[str, str] | None = None) -> PostgresSettings | None:
    """The database alone, for a command that needs no Redis, such as a migration. None when no DB variable is set.

    Raises: Invalid (a variable is missing or unusable).
    """
    environ = os.environ if environ is None else environ
    given = {name: environ[name] for name in VARIABLES if name in environ and not name.startswith("REDIS")}
    return _postgres(texts_in(given)) if given.keys() - _WITHIN_SERVERS else None


def _database_url(database: PostgresSettings) -> str:
    rest = f"{quote(database.database, safe='')}?sslmode={database.sslmode}"
    return _url("postgresql", database.user, database.password, database.addresses, rest)


def _url(scheme: str, user: str | None, password: str | None, servers: Iterable[Address], rest: str) -> str:
    login = quote(user or "", safe="") + ("" if password is None else f":{quote(password, safe='')}")
    return f"{scheme}://{login}{'@' if login else ''}{','.join(map(str, servers))}/{rest}"


S = TypeVar("S", PostgresSettings, RedisSettings)

_WITHIN_SERVERS = {"DB_SCHEMA", "REDIS_PREFIX"}
_ADDRESS = {"DB_HOST", "DB_PORT", "DB_NAME", "REDIS_HOST", "REDIS_PORT", "REDIS_SENTINELS", "REDIS_DB"}


def _settings(given: Mapping[str, str]) -> Settings:
    postgres = _postgres(given)
    if (sentinels := given.get("REDIS_SENTINELS")) is not None and "REDIS_URL" not in given:
        if "REDIS_HOST" in given:
            raise Invalid("REDIS_SENTINELS", "is set and REDIS_HOST is too: set one of them")
        if "REDIS_SENTINEL_MASTER" not in given:
            raise Invalid("REDIS_SENTINEL_MASTER", "is missing")
        given = {**given, **from_sentinels(sentinels)}
    try:
        redis = _build(RedisSettings, REDIS, "REDIS_URL", from_redis_url, given)
    except Invalid as error:
        if sentinels is None or error.field not in {"REDIS_HOST", "REDIS_PORT"}:
            raise
        raise Invalid("REDIS_SENTINELS", error.reason) from None
    replicas = tuple(_replica(url, postgres) for url in given.get(REPLICAS, "").split())
    return Settings(postgres=postgres, redis=redis, replicas=replicas)


def _postgres(given: Mapping[str, str]) -> PostgresSettings:
    return _build(PostgresSettings, POSTGRES, "DATABASE_URL", from_database_url, given)


def _replica(url: str, primary: PostgresSettings) -> PostgresSettings:
    """The settings of the primary, except for what the URL has."""
    parts = from_database_url(url, REPLICAS)
    try:
        values = _values(
            PostgresSettings, POSTGRES, {**_texts(primary, POSTGRES), "DB_PORT": "5432", **parts}, missing=""
        )
        return PostgresSettings(**values)
    except Invalid as error:
        raise Invalid(REPLICAS, f"{POSTGRES[error.field].attribute.replace('_', ' ')} {error.reason}") from None


def _build(
    kind: type[S],
    variables: Variables,
    url: str,
    parts_of: Callable[[str], dict[str, str]],
    given: Mapping[str, str],
) -> S:
    """The settings of one server. An error in a part of the URL names the URL."""
    if url not in given:
        return kind(**_values(kind, variables, given, missing=f"is missing, and so is {url}"))
    parts = parts_of(given[url])
    others = {name: text for name, text in given.items() if name not in _ADDRESS}
    try:
        return kind(**_values(kind, variables, others | parts, missing="is missing"))
    except Invalid as error:
        if error.field not in _ADDRESS | parts.keys():
            raise
        part = variables[error.field].attribute.replace("_", " ")
        raise Invalid(url, f"its {part} {error.reason}") from None


def _values(kind: type[S], variables: Variables, texts: Mapping[str, str], *, missing: str) -> dict[str, Any]:
    required = {attribute.name for attribute in fields(kind) if attribute.default is MISSING}
    for name, variable in variables.items():
        if variable.attribute in required and name not in texts:
            raise Invalid(name, missing)
    return {row.attribute: row.read(texts[name]) for name, row in variables.items() if name in texts}


def _texts(settings: PostgresSettings | RedisSettings, variables: Variables) -> dict[str, str]:
    values = {name: getattr(settings, variable.attribute) for name, variable in variables.items()}
    texts = {name: str(value) for name, value in values.items() if value is not None}
    return texts | {name: str(value).lower() for name, value in values.items() if isinstance(value, bool)}
