"""Where the servers are and how patient to be with them: written in code, or read from the environment.

The variables are DB_* and REDIS_*, or DATABASE_URL and REDIS_URL; `.env.example` lists them all with their
defaults. DATABASE_URL, DB_PASSWORD, REDIS_URL and REDIS_PASSWORD may be given as a file instead, by the same
name with _FILE after it, as container platforms hand out secrets. An empty variable counts as one not given.

Where there is a URL, host, port and database come from it alone, so that a DB_PORT left over from another
server never bends it. User, password and TLS come from the URL as far as it carries them and else from their
variables, so that a URL without a password can go with DB_PASSWORD_FILE; `redis://` says nothing about TLS, and
REDIS_TLS=true holds beside it. Limits (DB_POOL_SIZE, DB_DEADLINE_SECONDS, ...) always have their own variable.

A value that cannot be used is refused as `Invalid`, whose field is the name of the variable, also where the
settings were written in code. The reason never repeats the value: a password in the wrong place, or the front
of one at whose unescaped character a URL was cut, must not reach a log.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields
from ipaddress import ip_address
from pathlib import Path
from ssl import CERT_NONE, PROTOCOL_TLS_CLIENT, SSLContext
from typing import Any, Literal, NamedTuple, TypeVar, get_args
from urllib.parse import unquote

from hubbub.errors import Invalid

SslMode = Literal["disable", "prefer", "require", "verify-ca", "verify-full"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresSettings:
    """One PostgreSQL database, how to log in, and the limits of its pool.

    Size, idle time and connect time of the pool default to the seed's 20, 30 s and 2 s. `deadline_seconds`
    bounds a whole operation: waiting for a connection, the query and the release. Turn `prepared_statements`
    off behind a pooler that hands out connections by the transaction. `sslmode` is that of libpq.
    """

    host: str
    port: int = 5432
    database: str
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

    def __post_init__(self) -> None:
        _check(self, _POSTGRES)
        _check_pair("DB_SSLCERT", self.ssl_cert, "DB_SSLKEY", self.ssl_key)
        if self.sslmode.startswith("verify") and self.ssl_root_cert is None:
            raise Invalid("DB_SSLROOTCERT", f"is missing: {self.sslmode} checks the server's certificate by it")
        if self.sslmode in {"disable", "prefer"}:
            # Whoever gives a root certificate believes that the server is verified. Under these it is not.
            files = {"DB_SSLROOTCERT": self.ssl_root_cert, "DB_SSLCERT": self.ssl_cert}
            _check_absent(files, f"is not used under sslmode {self.sslmode}: choose verify-full")

    def ssl(self) -> SSLContext | Literal["disable", "prefer"]:
        """What `asyncpg.connect(ssl=...)` takes for this sslmode.

        As in libpq, `require` encrypts without verifying, but verifies as `verify-ca` does where there is a root
        certificate. Reads the files anew on each call, from disk and without awaiting: make one context for a
        pool, not one for a connection. Raises Invalid for a file that holds no certificate or no key.
        """
        if self.sslmode == "disable" or self.sslmode == "prefer":  # noqa: PLR1714 - mypy narrows by == only
            return self.sslmode
        # Not the context that asyncpg makes of a mode: that one also obeys PGSSLROOTCERT and ~/.postgresql.
        context = _client_context("DB_SSLROOTCERT", self.ssl_root_cert, "DB_SSLCERT", self.ssl_cert, self.ssl_key)
        context.check_hostname = self.sslmode == "verify-full"
        if self.ssl_root_cert is None:
            context.verify_mode = CERT_NONE
        return context


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisSettings:
    """One Redis or Valkey server and how to log in. `deadline_seconds` bounds a whole operation.

    With `tls` the certificate and the name of the server are always verified: by `ssl_root_cert`, or without it
    by the authorities that the system trusts.
    """

    host: str
    port: int = 6379
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    database: int = 0
    tls: bool = False
    ssl_root_cert: Path | None = None
    ssl_cert: Path | None = None
    ssl_key: Path | None = None
    connect_timeout_seconds: float = 2
    deadline_seconds: float = 5

    def __post_init__(self) -> None:
        _check(self, _REDIS)
        _check_pair("REDIS_CERT_FILE", self.ssl_cert, "REDIS_KEY_FILE", self.ssl_key)
        if self.username is not None and self.password is None:
            # The URL of someone who wrote the password where the user stands looks just so.
            raise Invalid("REDIS_PASSWORD", "is missing; one without a user is written redis://:password@host")
        if not self.tls:
            files = {"REDIS_CA_FILE": self.ssl_root_cert, "REDIS_CERT_FILE": self.ssl_cert}
            _check_absent(files, "is not used without TLS: set REDIS_TLS=true or write rediss://")

    def ssl(self) -> SSLContext | None:
        """The TLS context to connect with; None without `tls`.

        Reads the files anew on each call, from disk and without awaiting. Raises Invalid for a file that holds
        no certificate or no key.
        """
        if not self.tls:
            return None
        context = _client_context(
            "REDIS_CA_FILE", self.ssl_root_cert, "REDIS_CERT_FILE", self.ssl_cert, self.ssl_key
        )
        if self.ssl_root_cert is None:
            context.load_default_certs()
        return context


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Both servers. The passwords are in `to_env` and in no `repr` or error."""

    postgres: PostgresSettings
    redis: RedisSettings

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings | None:
        """What the variables in `environ` say, by default the environment of the process.

        None when no variable of hubbub's is there at all. Raises Invalid for one that is missing or unusable.
        """
        environ = os.environ if environ is None else environ
        if not any(variable in environ for variable in VARIABLES):
            return None
        return _settings(_given(environ))

    @classmethod
    def from_urls(cls, database_url: str, redis_url: str) -> Settings:
        """What two URLs say, with every default; the environment is not looked at. Raises Invalid."""
        return _settings({"DATABASE_URL": database_url, "REDIS_URL": redis_url})

    def to_env(self) -> dict[str, str]:
        """The DB_* and REDIS_* variables of which `from_env` makes these settings again, passwords included."""
        return {**_written(self.postgres, _POSTGRES), **_written(self.redis, _REDIS)}


# What a value may be. A check gives the reason to refuse it, or None. It takes any object, because settings that
# are written in code are checked as well, and not everybody runs mypy.

_Reason = str | None

_DNS_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?", re.IGNORECASE | re.ASCII)


def _host(value: object) -> _Reason:
    if not isinstance(value, str) or not value:
        return "is missing"
    if "," in value:
        return "must be one host: a client that knows several never gets past one that hangs"
    if value.startswith("/"):
        return "must be a host name or an IP address: Unix sockets are not supported"
    return None if _DNS_NAME.fullmatch(value) or _is_ip_address(value) else "must be a host name or an IP address"


def _is_ip_address(value: str) -> bool:
    try:
        ip_address(value)
    except ValueError:
        return False
    return value.isascii() and value.isprintable() and " " not in value  # ip_address takes any zone, fe80::1%...


def _name(value: object) -> _Reason:
    if not isinstance(value, str) or not value.strip():
        return "is missing"
    return None if value.isprintable() else "must be UTF-8 without control characters"


def _optional_name(value: object) -> _Reason:
    return None if value is None else _name(value)


def _password(value: object) -> _Reason:
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        return "is empty: leave it out where there is none"
    return "must be UTF-8 without NUL" if re.search("[\0\ud800-\udfff]", value) else None


def _sslmode(value: object) -> _Reason:
    return None if value in get_args(SslMode) else f"must be one of {', '.join(get_args(SslMode))}"


def _optional_file(value: object) -> _Reason:
    if value is None or (isinstance(value, Path) and _is_readable(value)):
        return None
    return "does not name a file that can be read"


def _is_readable(file: Path) -> bool:
    try:
        return file.is_file() and os.access(file, os.R_OK)
    except OSError:  # from is_file, where a folder on the way may not be searched
        return False


def _from_to(lowest: int, highest: int) -> Callable[[object], _Reason]:
    def check(value: object) -> _Reason:
        if isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest:
            return None
        return f"must be a whole number from {lowest} to {highest}"

    return check


def _duration(value: object) -> _Reason:
    # The comparison also refuses NaN and infinity.
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 86_400:
        return None
    return "must be a number of seconds above 0 and up to 86400, a day"


def _yes_or_no(value: object) -> _Reason:
    return None if isinstance(value, bool) else "must be true or false"


# From text to value. Text that is no such value stays as it is, for the check to refuse: so a bad variable and a
# bad argument meet the same words, and no ValueError that quotes the text comes along as a cause.


def _whole(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text


def _seconds(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


_FLAGS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _flag(text: str) -> bool | str:
    return _FLAGS.get(text.lower(), text)


class _Variable(NamedTuple):
    attribute: str
    read: Callable[[str], object]
    check: Callable[[object], _Reason]


_Variables = Mapping[str, _Variable]

_POSTGRES: _Variables = {
    "DB_HOST": _Variable("host", str, _host),
    "DB_PORT": _Variable("port", _whole, _from_to(1, 65_535)),
    "DB_NAME": _Variable("database", str, _name),
    "DB_USER": _Variable("user", str, _name),
    "DB_PASSWORD": _Variable("password", str, _password),
    "DB_SSLMODE": _Variable("sslmode", str, _sslmode),
    "DB_SSLROOTCERT": _Variable("ssl_root_cert", Path, _optional_file),
    "DB_SSLCERT": _Variable("ssl_cert", Path, _optional_file),
    "DB_SSLKEY": _Variable("ssl_key", Path, _optional_file),
    "DB_POOL_SIZE": _Variable("pool_size", _whole, _from_to(1, 1_000)),
    "DB_IDLE_TIMEOUT_SECONDS": _Variable("idle_timeout_seconds", _seconds, _duration),
    "DB_CONNECT_TIMEOUT_SECONDS": _Variable("connect_timeout_seconds", _seconds, _duration),
    "DB_DEADLINE_SECONDS": _Variable("deadline_seconds", _seconds, _duration),
    "DB_PREPARED_STATEMENTS": _Variable("prepared_statements", _flag, _yes_or_no),
}

_REDIS: _Variables = {
    "REDIS_HOST": _Variable("host", str, _host),
    "REDIS_PORT": _Variable("port", _whole, _from_to(1, 65_535)),
    "REDIS_USERNAME": _Variable("username", str, _optional_name),
    "REDIS_PASSWORD": _Variable("password", str, _password),
    "REDIS_DB": _Variable("database", _whole, _from_to(0, 2**31 - 1)),
    "REDIS_TLS": _Variable("tls", _flag, _yes_or_no),
    "REDIS_CA_FILE": _Variable("ssl_root_cert", Path, _optional_file),
    "REDIS_CERT_FILE": _Variable("ssl_cert", Path, _optional_file),
    "REDIS_KEY_FILE": _Variable("ssl_key", Path, _optional_file),
    "REDIS_CONNECT_TIMEOUT_SECONDS": _Variable("connect_timeout_seconds", _seconds, _duration),
    "REDIS_DEADLINE_SECONDS": _Variable("deadline_seconds", _seconds, _duration),
}

_LONGEST_FILE = 10_000
_SECRETS = ("DATABASE_URL", "DB_PASSWORD", "REDIS_URL", "REDIS_PASSWORD")

VARIABLES = frozenset({*_POSTGRES, *_REDIS, *_SECRETS, *(f"{secret}_FILE" for secret in _SECRETS)})
"""Every variable that `Settings.from_env` reads."""


def _check(settings: PostgresSettings | RedisSettings, variables: _Variables) -> None:
    for name, variable in variables.items():
        reason = variable.check(getattr(settings, variable.attribute))
        if reason is not None:
            raise Invalid(name, reason)


def _check_pair(cert_variable: str, cert: Path | None, key_variable: str, key: Path | None) -> None:
    if (cert is None) != (key is None):
        absent = cert_variable if cert is None else key_variable
        raise Invalid(absent, "is missing: a client certificate and its key go together")


def _check_absent(files: Mapping[str, Path | None], reason: str) -> None:
    for name, file in files.items():
        if file is not None:
            raise Invalid(name, reason)


def _client_context(
    root_variable: str, root: Path | None, cert_variable: str, cert: Path | None, key: Path | None
) -> SSLContext:
    """A context that verifies certificate and host name, as PROTOCOL_TLS_CLIENT has it."""
    context = SSLContext(PROTOCOL_TLS_CLIENT)
    try:
        if root is not None:
            context.load_verify_locations(cafile=root)
    except OSError as error:  # ssl.SSLError is one
        raise Invalid(root_variable, "holds no certificate that OpenSSL can read") from error
    try:
        if cert is not None:
            # Without a password OpenSSL would ask the terminal for that of an encrypted key, and wait.
            context.load_cert_chain(cert, key, password="")
    except OSError as error:
        raise Invalid(cert_variable, "and its key are no pair that OpenSSL can read without a password") from error
    return context


def _given(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that are not empty; what a secret's file holds stands under the secret's own name."""
    given = {name: environ[name] for name in VARIABLES if environ.get(name)}
    for secret in _SECRETS:
        file = given.pop(f"{secret}_FILE", None)
        if file is not None and secret in given:
            raise Invalid(f"{secret}_FILE", f"is set and {secret} is too: set one of them")
        if file is not None:
            given[secret] = _content(f"{secret}_FILE", Path(file))
    return given


def _content(name: str, file: Path) -> str:
    text = ""
    # Bytes that are not UTF-8 become lone surrogates, which are refused where they are used.
    with suppress(OSError):
        if file.is_file():
            with file.open(encoding="utf-8", errors="surrogateescape", newline="") as opened:
                text = opened.read(_LONGEST_FILE + 1).removesuffix("\n").removesuffix("\r")
    if not 1 <= len(text) <= _LONGEST_FILE:
        raise Invalid(name, f"must name a readable file of 1 to {_LONGEST_FILE} characters")
    return text


S = TypeVar("S", PostgresSettings, RedisSettings)

_ADDRESS = {"DB_HOST", "DB_PORT", "DB_NAME", "REDIS_HOST", "REDIS_PORT", "REDIS_DB"}


def _settings(given: Mapping[str, str]) -> Settings:
    return Settings(
        postgres=_build(PostgresSettings, _POSTGRES, "DATABASE_URL", _database_url, given),
        redis=_build(RedisSettings, _REDIS, "REDIS_URL", _redis_url, given),
    )


def _build(
    kind: type[S],
    variables: _Variables,
    url: str,
    parts_of: Callable[[str], dict[str, str]],
    given: Mapping[str, str],
) -> S:
    """The settings of one server. What is wrong with a part of the URL is said of the URL."""
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


def _values(kind: type[S], variables: _Variables, texts: Mapping[str, str], *, missing: str) -> dict[str, Any]:
    required = {attribute.name for attribute in fields(kind) if attribute.default is MISSING}
    for name, variable in variables.items():
        if variable.attribute in required and name not in texts:
            raise Invalid(name, missing)
    return {row.attribute: row.read(texts[name]) for name, row in variables.items() if name in texts}


def _written(settings: PostgresSettings | RedisSettings, variables: _Variables) -> dict[str, str]:
    values = {name: getattr(settings, variable.attribute) for name, variable in variables.items()}
    texts = {name: str(value) for name, value in values.items() if value is not None}
    return texts | {name: str(value).lower() for name, value in values.items() if isinstance(value, bool)}


# Not urllib.parse.urlsplit: it drops tabs and newlines without a word, and at an unescaped / ? or # in a password
# it takes the front of the password for the port and quotes it in its error. Here no @ may stand behind the one
# before the host, so a URL that would be cut at the wrong place does not match at all.
_URL = re.compile(
    r"""
    [a-z]+://
    (?: (?P<user> [^:@/?\#]* ) (?: : (?P<password> [^@/?\#]* ) )? @ )?
    (?: \[ (?P<ipv6> [^@/?\#\[\]]*:[^@/?\#\[\]]* ) \] | (?P<host> [^:@/?\#\[\]]* | [^@/?\#]*,[^@/?\#]* ) )
    (?: : (?P<port> [^:@/?\#,]* ) )?
    (?: / (?P<database> [^@/?\#]* ) )?
    (?: \? (?P<query> [^@?\#]* ) )?
    """,
    re.VERBOSE | re.IGNORECASE,
)
_STRAY_PERCENT = re.compile("%(?![0-9a-f]{2})", re.IGNORECASE)


def _parts(variable: str, url: str, schemes: tuple[str, ...]) -> dict[str, str]:
    """The parts of a URL that are not empty, still percent-encoded."""
    if not url.lower().startswith(schemes):
        raise Invalid(variable, f"must start with {' or '.join(schemes)}")
    match = _URL.fullmatch(url)
    if match is None or _STRAY_PERCENT.search(url) or " " in url or not url.isprintable():
        how = "write what is special in a user or password as %40 (@), %2F (/), %3A (:), %23 (#), %3F (?), %25 (%)"
        raise Invalid(variable, f"cannot be read: {how}, and an IPv6 address in brackets")
    return {part: text for part, text in match.groupdict().items() if text}


def _decoded(parts: Mapping[str, str], names: Mapping[str, str]) -> dict[str, str]:
    # As in _content: what is not UTF-8 becomes lone surrogates, which are refused where they are used.
    return {name: unquote(parts[part], errors="surrogateescape") for part, name in names.items() if part in parts}


def _database_url(url: str) -> dict[str, str]:
    parts = _parts("DATABASE_URL", url, ("postgresql://", "postgres://"))
    names = {"host": "DB_HOST", "ipv6": "DB_HOST", "port": "DB_PORT", "database": "DB_NAME"}
    found = _decoded(parts, names | {"user": "DB_USER", "password": "DB_PASSWORD"})
    return found | _decoded(_parameters(parts.get("query", "")), _PARAMETERS)


_PARAMETERS = {
    "sslmode": "DB_SSLMODE",
    "sslrootcert": "DB_SSLROOTCERT",
    "sslcert": "DB_SSLCERT",
    "sslkey": "DB_SSLKEY",
}


def _parameters(query: str) -> dict[str, str]:
    parameters: dict[str, str] = {}
    for name, _, value in (pair.partition("=") for pair in query.split("&") if pair):
        if name not in _PARAMETERS:
            raise Invalid("DATABASE_URL", f"has the parameter {name}, hubbub knows {', '.join(_PARAMETERS)}")
        if name in parameters or not value:
            raise Invalid("DATABASE_URL", f"must give {name} one value")
        parameters[name] = value
    return parameters


def _redis_url(url: str) -> dict[str, str]:
    parts = _parts("REDIS_URL", url, ("redis://", "rediss://"))
    if "query" in parts:
        raise Invalid("REDIS_URL", "has parameters after a ?, hubbub knows none: use the REDIS_ variables")
    names = {"host": "REDIS_HOST", "ipv6": "REDIS_HOST", "port": "REDIS_PORT", "database": "REDIS_DB"}
    found = _decoded(parts, names | {"user": "REDIS_USERNAME", "password": "REDIS_PASSWORD"})
    return found | {"REDIS_TLS": "true"} if url.lower().startswith("rediss") else found
