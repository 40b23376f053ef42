"""The variables, what each of them sets, and from which texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from hubbub.errors import Invalid
from hubbub.settings import checks
from hubbub.settings.checks import Reason

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


class Variable(NamedTuple):
    """The attribute that a variable sets, how its text is read, and what the value may be."""

    attribute: str
    read: Callable[[str], object]
    check: Callable[[object], Reason]


Variables = Mapping[str, Variable]

POSTGRES: Variables = {
    "DB_HOST": Variable("host", str, checks.host),
    "DB_PORT": Variable("port", _whole, checks.from_to(1, 65_535)),
    "DB_NAME": Variable("database", str, checks.name),
    "DB_USER": Variable("user", str, checks.name),
    "DB_PASSWORD": Variable("password", str, checks.password),
    "DB_SSLMODE": Variable("sslmode", str, checks.sslmode),
    "DB_SSLROOTCERT": Variable("ssl_root_cert", Path, checks.optional_file),
    "DB_SSLCERT": Variable("ssl_cert", Path, checks.optional_file),
    "DB_SSLKEY": Variable("ssl_key", Path, checks.optional_file),
    "DB_POOL_SIZE": Variable("pool_size", _whole, checks.from_to(1, 1_000)),
    "DB_IDLE_TIMEOUT_SECONDS": Variable("idle_timeout_seconds", _seconds, checks.duration),
    "DB_CONNECT_TIMEOUT_SECONDS": Variable("connect_timeout_seconds", _seconds, checks.duration),
    "DB_DEADLINE_SECONDS": Variable("deadline_seconds", _seconds, checks.duration),
    "DB_PREPARED_STATEMENTS": Variable("prepared_statements", _flag, checks.yes_or_no),
}

REDIS: Variables = {
    "REDIS_HOST": Variable("host", str, checks.host),
    "REDIS_PORT": Variable("port", _whole, checks.from_to(1, 65_535)),
    "REDIS_USERNAME": Variable("username", str, checks.optional_name),
    "REDIS_PASSWORD": Variable("password", str, checks.password),
    "REDIS_DB": Variable("database", _whole, checks.from_to(0, 2**31 - 1)),
    "REDIS_TLS": Variable("tls", _flag, checks.yes_or_no),
    "REDIS_CA_FILE": Variable("ssl_root_cert", Path, checks.optional_file),
    "REDIS_CERT_FILE": Variable("ssl_cert", Path, checks.optional_file),
    "REDIS_KEY_FILE": Variable("ssl_key", Path, checks.optional_file),
    "REDIS_CONNECT_TIMEOUT_SECONDS": Variable("connect_timeout_seconds", _seconds, checks.duration),
    "REDIS_DEADLINE_SECONDS": Variable("deadline_seconds", _seconds, checks.duration),
}

SECRETS = ("DATABASE_URL", "DB_PASSWORD", "REDIS_URL", "REDIS_PASSWORD")
"""What may be given as a file: by the same name with _FILE after it."""

VARIABLES = frozenset({*POSTGRES, *REDIS, *SECRETS, *(f"{secret}_FILE" for secret in SECRETS)})
"""Every variable that `Settings.from_env` reads."""


def check(settings: object, variables: Variables) -> None:
    """Raises Invalid for the first value that is not usable, by the name of its variable."""
    for name, variable in variables.items():
        reason = variable.check(getattr(settings, variable.attribute))
        if reason is not None:
            raise Invalid(name, reason)
