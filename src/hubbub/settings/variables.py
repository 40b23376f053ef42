"""The environment variables: from where their texts come, what each sets, and which values are usable.

A bad variable and a bad argument in code meet the same check and the same words. A check takes any object, because
not every application runs mypy.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Final, NamedTuple, get_args
from urllib.parse import unquote

from hubbub.errors import Invalid
from hubbub.settings.tls import SslMode

Reason = str | None
"""Why a value is refused, or None."""

_MAX_FILE_LENGTH = 10_000  # characters: room for any password or URL, and a wrong file is not read to its end


class Variable(NamedTuple):
    """The attribute that a variable sets, how its text is read, and the check of the value.

    Text that cannot be read stays as it is, for the check to refuse. So no ValueError that quotes the text is
    chained to the error.
    """

    attribute: str
    read: Callable[[str], object]
    check: Callable[[object], Reason]


Variables = Mapping[str, Variable]


# Texts to values.


def _number(kind: Callable[[str], float]) -> Callable[[str], float | str]:
    def read(text: str) -> float | str:
        try:
            return kind(text)
        except ValueError:
            return text

    return read


_whole = _number(int)
_seconds = _number(float)

_FLAGS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _flag(text: str) -> bool | str:
    return _FLAGS.get(text.lower(), text)


# Checks of values.

_DNS_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?", re.IGNORECASE | re.ASCII)


def _host(value: object) -> Reason:
    if not isinstance(value, str) or not value:
        return "is missing"
    if value.startswith("/"):
        return "must be a host name or an IP address: Unix sockets are not supported"
    return None if _DNS_NAME.fullmatch(value) or _is_ip_address(value) else "must be a host name or an IP address"


def _is_ip_address(value: str) -> bool:
    try:
        ip_address(value)
    except ValueError:
        return False
    return value.isascii() and value.isprintable() and " " not in value  # ip_address takes any zone, fe80::1%...


class Address(NamedTuple):
    """A host and its port, as one of the servers of a setting."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


_ONE_OF_LIST = re.compile(
    r"(?: \[ (?P<ipv6> [^\[\]]* ) \] | (?P<host> [^:\[\]]* ) ) (?: : (?P<port> [0-9]+ ) )?", re.VERBOSE
)


def addresses_in(hosts: str, port: int) -> tuple[Address, ...]:
    """The servers of `host`, or of a list as `host:port,[IPv6]:port,host`, where `port` is that of the others.

    Text that is neither becomes an address that the check refuses.
    """
    if "," not in hosts:
        return (Address(hosts, port),)
    found = [(one, _ONE_OF_LIST.fullmatch(one)) for one in hosts.split(",")]
    return tuple(
        Address(one, port)
        if match is None
        else Address(match["ipv6"] or match["host"], int(match["port"] or port))
        for one, match in found
    )


def _hosts(value: object) -> Reason:
    if not isinstance(value, str) or "," not in value:
        return _host(value)
    addresses = addresses_in(value, 5432)
    for address in addresses:
        reason = _host(address.host) or _from_to(1, 65_535)(address.port)
        if reason is not None:
            return f"has a host or a port that cannot be used: one {reason}"
    return None if len(set(addresses)) == len(addresses) else "names a host twice"


def _name(value: object) -> Reason:
    if not isinstance(value, str) or not value.strip():
        return "is missing"
    return None if value.isprintable() else "must be UTF-8 without control characters"


def _optional_name(value: object) -> Reason:
    return None if value is None else _name(value)


def _password(value: object) -> Reason:
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        return "is empty: leave it out where there is none"
    return "must be UTF-8 without NUL" if re.search("[\0\ud800-\udfff]", value) else None


_SCHEMA = re.compile(r"(?!pg_)[a-z_][a-z0-9_]{0,62}")

# Of PostgreSQL 14 to 18: pg_get_keywords() has them.
_RESERVED: Final = frozenset(
    """
    all analyse analyze and any array as asc asymmetric authorization binary both case cast check collate
    collation column concurrently constraint create cross current_catalog current_date current_role
    current_schema current_time current_timestamp current_user default deferrable desc distinct do else end
    except false fetch for foreign freeze from full grant group having ilike in initially inner intersect into
    is isnull join lateral leading left like limit localtime localtimestamp natural not notnull null offset on
    only or order outer overlaps placing primary references returning right select session_user similar some
    symmetric system_user table tablesample then to trailing true union unique user using variadic verbose when
    where window with
    """.split()  # noqa: SIM905 - a hundred lines otherwise
)


def refused_schema(value: object) -> Reason:
    """Why a value cannot be the schema, whose name stands in statements as it is."""
    if isinstance(value, str) and value in _RESERVED:
        return "is a reserved word of SQL"
    if isinstance(value, str) and _SCHEMA.fullmatch(value):
        return None
    return "must be 1 to 63 of a-z, 0-9 and _, not begin with a digit, and not with pg_, which is PostgreSQL's own"


_PREFIX = re.compile(r"[A-Za-z0-9_.:-]{0,64}")


def _prefix(value: object) -> Reason:
    # No braces: in a cluster they would decide on the slot of a key.
    if isinstance(value, str) and _PREFIX.fullmatch(value):
        return None
    return "must be at most 64 of A-Z, a-z, 0-9 and _ . : -"


def _sslmode(value: object) -> Reason:
    return None if value in get_args(SslMode) else f"must be one of {', '.join(get_args(SslMode))}"


def _optional_file(value: object) -> Reason:
    with suppress(OSError):  # from is_file, if a folder on the way may not be searched
        if value is None or (isinstance(value, Path) and value.is_file() and os.access(value, os.R_OK)):
            return None
    return "does not name a file that can be read"


def _from_to(lowest: int, highest: int) -> Callable[[object], Reason]:
    def check(value: object) -> Reason:
        if isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest:
            return None
        return f"must be a whole number from {lowest} to {highest}"

    return check


def _duration(value: object) -> Reason:
    # The comparison also refuses NaN and infinity.
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 86_400:
        return None
    return "must be a number of seconds above 0 and up to 86400, a day"


def _yes_or_no(value: object) -> Reason:
    return None if isinstance(value, bool) else "must be true or false"


POSTGRES: Variables = {
    "DB_HOST": Variable("host", str, _hosts),
    "DB_PORT": Variable("port", _whole, _from_to(1, 65_535)),
    "DB_NAME": Variable("database", str, _name),
    "DB_SCHEMA": Variable("schema", str, refused_schema),
    "DB_USER": Variable("user", str, _name),
    "DB_PASSWORD": Variable("password", str, _password),
    "DB_SSLMODE": Variable("sslmode", str, _sslmode),
    "DB_SSLROOTCERT": Variable("ssl_root_cert", Path, _optional_file),
    "DB_SSLCERT": Variable("ssl_cert", Path, _optional_file),
    "DB_SSLKEY": Variable("ssl_key", Path, _optional_file),
    "DB_POOL_SIZE": Variable("pool_size", _whole, _from_to(1, 1_000)),
    "DB_IDLE_TIMEOUT_SECONDS": Variable("idle_timeout_seconds", _seconds, _duration),
    "DB_CONNECT_TIMEOUT_SECONDS": Variable("connect_timeout_seconds", _seconds, _duration),
    "DB_DEADLINE_SECONDS": Variable("deadline_seconds", _seconds, _duration),
    "DB_PREPARED_STATEMENTS": Variable("prepared_statements", _flag, _yes_or_no),
    "DB_DURABLE_SESSIONS": Variable("durable_sessions", _flag, _yes_or_no),
}

REDIS: Variables = {
    "REDIS_HOST": Variable("host", str, _hosts),
    "REDIS_PORT": Variable("port", _whole, _from_to(1, 65_535)),
    "REDIS_USERNAME": Variable("username", str, _optional_name),
    "REDIS_PASSWORD": Variable("password", str, _password),
    "REDIS_CLUSTER": Variable("cluster", _flag, _yes_or_no),
    "REDIS_SENTINEL_MASTER": Variable("sentinel_master", str, _optional_name),
    "REDIS_SENTINEL_USERNAME": Variable("sentinel_username", str, _optional_name),
    "REDIS_SENTINEL_PASSWORD": Variable("sentinel_password", str, _password),
    "REDIS_DB": Variable("database", _whole, _from_to(0, 2**31 - 1)),
    "REDIS_PREFIX": Variable("prefix", str, _prefix),
    "REDIS_TLS": Variable("tls", _flag, _yes_or_no),
    "REDIS_CA_FILE": Variable("ssl_root_cert", Path, _optional_file),
    "REDIS_CERT_FILE": Variable("ssl_cert", Path, _optional_file),
    "REDIS_KEY_FILE": Variable("ssl_key", Path, _optional_file),
    "REDIS_CONNECT_TIMEOUT_SECONDS": Variable("connect_timeout_seconds", _seconds, _duration),
    "REDIS_DEADLINE_SECONDS": Variable("deadline_seconds", _seconds, _duration),
}

REPLICAS = "DATABASE_REPLICA_URLS"
"""URLs of read replicas, with spaces between them."""

SECRETS = ("DATABASE_URL", "DB_PASSWORD", REPLICAS, "REDIS_URL", "REDIS_PASSWORD", "REDIS_SENTINEL_PASSWORD")
"""Variables whose value may be given as a file, by the same name with _FILE after it."""

VARIABLES = frozenset({*POSTGRES, *REDIS, "REDIS_SENTINELS", *SECRETS, *(f"{secret}_FILE" for secret in SECRETS)})
"""Every variable that `Settings.from_env` reads."""


def check(settings: object, variables: Variables) -> None:
    """Raises: Invalid (with the name of the first variable whose value is unusable)."""
    for name, variable in variables.items():
        reason = variable.check(getattr(settings, variable.attribute))
        if reason is not None:
            raise Invalid(name, reason)


# The environment, and the files of secrets.


def texts_in(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that are not empty. The content of a secret's file stands under the secret's own name.

    Raises: Invalid (a secret that is given twice, or whose file cannot be read).
    """
    given = {name: environ[name] for name in VARIABLES if environ.get(name)}
    for secret in SECRETS:
        if (file := given.pop(f"{secret}_FILE", None)) is not None:
            if secret in given:
                raise Invalid(f"{secret}_FILE", f"is set and {secret} is too: set one of them")
            given[secret] = _content(f"{secret}_FILE", Path(file))
    return given


def _content(name: str, file: Path) -> str:
    text = ""
    # Bytes that are not UTF-8 become lone surrogates, which the check of the value refuses.
    with suppress(OSError):
        if file.is_file():
            with file.open(encoding="utf-8", errors="surrogateescape", newline="") as opened:
                text = opened.read(_MAX_FILE_LENGTH + 1).removesuffix("\n").removesuffix("\r")
    if not 1 <= len(text) <= _MAX_FILE_LENGTH:
        raise Invalid(name, f"must name a readable file of 1 to {_MAX_FILE_LENGTH} characters")
    return text


# URLs.

# Not urllib.parse.urlsplit: it drops tabs and newlines silently, and at an unescaped / ? or # in a password it
# takes the front of the password for the port and quotes it in its error. Here no @ may come after the one
# before the host, so a URL that would be cut in the wrong place does not match at all.
_URL = re.compile(
    r"""
    [a-z+]+://
    (?: (?P<user> [^:@/?\#]* ) (?: : (?P<password> [^@/?\#]* ) )? @ )?
    (?: \[ (?P<ipv6> [^@/?\#\[\]]*:[^@/?\#\[\]]* ) \] | (?P<host> [^:@/?\#\[\],]* | [^@/?\#]*,[^@/?\#]* ) )
    (?: : (?P<port> [^:@/?\#,]* ) )?
    (?: / (?P<database> [^@/?\#]* ) (?: / (?P<number> [^@/?\#]+ ) )? )?
    (?: \? (?P<query> [^@?\#]* ) )?
    """,
    re.VERBOSE | re.IGNORECASE,
)
_STRAY_PERCENT = re.compile("%(?![0-9a-f]{2})", re.IGNORECASE)

_PARAMETERS = {name.removeprefix("DB_").lower(): name for name in POSTGRES if name.startswith("DB_SSL")}


def from_database_url(url: str, variable: str = "DATABASE_URL") -> dict[str, str]:
    """The DB_* variables that are equal to the URL. Raises: Invalid (it cannot be split into its parts)."""
    parts = _parts(variable, url, ("postgresql://", "postgres://", "postgresql+asyncpg://"))
    names = {"host": "DB_HOST", "ipv6": "DB_HOST", "port": "DB_PORT", "database": "DB_NAME"}
    found = _decoded(parts, names | {"user": "DB_USER", "password": "DB_PASSWORD"})
    return found | _decoded(_parameters(variable, parts.get("query", "")), _PARAMETERS)


_REDIS_SCHEMES = tuple(
    f"{name}{kind}://" for kind in ("", "+sentinel", "+cluster") for name in ("redis", "rediss")
)


def from_redis_url(url: str) -> dict[str, str]:
    """The REDIS_* variables that are equal to the URL. Raises: Invalid (it cannot be split into its parts).

    `redis+sentinel://host:port,host:port/master/0` names Sentinels, `redis+cluster://` seeds of a cluster.
    """
    parts = _parts("REDIS_URL", url, _REDIS_SCHEMES, may_have_number=True)
    if "query" in parts:
        raise Invalid("REDIS_URL", "has parameters after ?, which are not supported: use the REDIS_ variables")
    scheme = url.lower().partition("://")[0]
    names = {"host": "REDIS_HOST", "ipv6": "REDIS_HOST", "port": "REDIS_PORT", "database": "REDIS_DB"}
    if scheme.endswith("+sentinel"):
        names |= {"database": "REDIS_SENTINEL_MASTER", "number": "REDIS_DB"}
        parts.setdefault("port", SENTINEL_PORT)
        if "database" not in parts:
            raise Invalid(
                "REDIS_URL", "names no master after its hosts: redis+sentinel://host:port,host:port/master"
            )
    elif "number" in parts:
        raise Invalid("REDIS_URL", "has two names after its hosts")
    found = _decoded(parts, names | {"user": "REDIS_USERNAME", "password": "REDIS_PASSWORD"})
    if scheme.endswith("+cluster"):
        found["REDIS_CLUSTER"] = "true"
    return found | {"REDIS_TLS": "true"} if scheme.startswith("rediss") else found


SENTINEL_PORT = "26379"


def from_sentinels(sentinels: str) -> dict[str, str]:
    """The REDIS_* variables that are equal to REDIS_SENTINELS: `host:port,host`, or one of them."""
    one = None if "," in sentinels else _ONE_OF_LIST.fullmatch(sentinels)
    if one is None:
        return {"REDIS_HOST": sentinels, "REDIS_PORT": SENTINEL_PORT}
    return {"REDIS_HOST": one["ipv6"] or one["host"], "REDIS_PORT": one["port"] or SENTINEL_PORT}


def _parts(variable: str, url: str, schemes: tuple[str, ...], *, may_have_number: bool = False) -> dict[str, str]:
    """The parts of a URL that are not empty, still percent-encoded."""
    if not url.lower().startswith(schemes):
        raise Invalid(variable, f"must start with {' or '.join(schemes)}")
    match = _URL.fullmatch(url)
    if (
        match is None
        or (match["number"] and not may_have_number)
        or _STRAY_PERCENT.search(url)
        or " " in url
        or not url.isprintable()
    ):
        how = "write %40 for @, %2F for /, %3A for :, %23 for #, %3F for ? and %25 for % in a user or password"
        raise Invalid(variable, f"cannot be read: {how}, and an IPv6 address in brackets")
    return {part: text for part, text in match.groupdict().items() if text}


def _decoded(parts: Mapping[str, str], names: Mapping[str, str]) -> dict[str, str]:
    # As in a secret's file, bytes that are not UTF-8 become lone surrogates, which the check of the value refuses.
    return {name: unquote(parts[part], errors="surrogateescape") for part, name in names.items() if part in parts}


def _parameters(variable: str, query: str) -> dict[str, str]:
    parameters: dict[str, str] = {}
    for name, _, value in (pair.partition("=") for pair in query.split("&") if pair):
        if name not in _PARAMETERS:
            supported = ", ".join(_PARAMETERS)
            raise Invalid(variable, f"has the parameter {name}; supported parameters: {supported}")
        if name in parameters or not value:
            raise Invalid(variable, f"must give {name} one value")
        parameters[name] = value
    return parameters
