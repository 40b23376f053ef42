"""DATABASE_URL and REDIS_URL, taken apart into the variables that say the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote

from hubbub.errors import Invalid

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
    # As in a secret's file, what is not UTF-8 becomes lone surrogates, which are refused where they are used.
    return {name: unquote(parts[part], errors="surrogateescape") for part, name in names.items() if part in parts}


def from_database_url(url: str) -> dict[str, str]:
    """The DB_* variables that say what the URL says. Raises Invalid for one that cannot be taken apart."""
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


def from_redis_url(url: str) -> dict[str, str]:
    """The REDIS_* variables that say what the URL says. Raises Invalid for one that cannot be taken apart."""
    parts = _parts("REDIS_URL", url, ("redis://", "rediss://"))
    if "query" in parts:
        raise Invalid("REDIS_URL", "has parameters after a ?, hubbub knows none: use the REDIS_ variables")
    names = {"host": "REDIS_HOST", "ipv6": "REDIS_HOST", "port": "REDIS_PORT", "database": "REDIS_DB"}
    found = _decoded(parts, names | {"user": "REDIS_USERNAME", "password": "REDIS_PASSWORD"})
    return found | {"REDIS_TLS": "true"} if url.lower().startswith("rediss") else found
