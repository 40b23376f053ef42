"""Both servers, out of variables and URLs and back into variables."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar

from hubbub.errors import Invalid
from hubbub.settings.environment import given_in
from hubbub.settings.postgres import PostgresSettings
from hubbub.settings.redis import RedisSettings
from hubbub.settings.urls import from_database_url, from_redis_url
from hubbub.settings.variables import POSTGRES, REDIS, VARIABLES, Variables


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
        return _settings(given_in(environ)) if cls.is_given(environ) else None

    @staticmethod
    def is_given(environ: Mapping[str, str] | None = None) -> bool:
        """Whether any variable of hubbub's is there, so that `from_env` gives settings or raises."""
        environ = os.environ if environ is None else environ
        return any(variable in environ for variable in VARIABLES)

    @classmethod
    def from_urls(cls, database_url: str, redis_url: str) -> Settings:
        """What two URLs say, with every default; the environment is not looked at. Raises Invalid."""
        return _settings({"DATABASE_URL": database_url, "REDIS_URL": redis_url})

    def to_env(self) -> dict[str, str]:
        """The DB_* and REDIS_* variables of which `from_env` makes these settings again, passwords included."""
        return {**_written(self.postgres, POSTGRES), **_written(self.redis, REDIS)}


def postgres_from_env(environ: Mapping[str, str] | None = None) -> PostgresSettings | None:
    """The database alone, for what needs no Redis, such as a migration. None when no variable of it is there.

    Raises Invalid as `Settings.from_env` does.
    """
    environ = os.environ if environ is None else environ
    given = {name: environ[name] for name in VARIABLES if name in environ and not name.startswith("REDIS")}
    if not given:
        return None
    return _build(PostgresSettings, POSTGRES, "DATABASE_URL", from_database_url, given_in(given))


S = TypeVar("S", PostgresSettings, RedisSettings)

_ADDRESS = {"DB_HOST", "DB_PORT", "DB_NAME", "REDIS_HOST", "REDIS_PORT", "REDIS_DB"}


def _settings(given: Mapping[str, str]) -> Settings:
    return Settings(
        postgres=_build(PostgresSettings, POSTGRES, "DATABASE_URL", from_database_url, given),
        redis=_build(RedisSettings, REDIS, "REDIS_URL", from_redis_url, given),
    )


def _build(
    kind: type[S],
    variables: Variables,
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


def _values(kind: type[S], variables: Variables, texts: Mapping[str, str], *, missing: str) -> dict[str, Any]:
    required = {attribute.name for attribute in fields(kind) if attribute.default is MISSING}
    for name, variable in variables.items():
        if variable.attribute in required and name not in texts:
            raise Invalid(name, missing)
    return {row.attribute: row.read(texts[name]) for name, row in variables.items() if name in texts}


def _written(settings: PostgresSettings | RedisSettings, variables: Variables) -> dict[str, str]:
    values = {name: getattr(settings, variable.attribute) for name, variable in variables.items()}
    texts = {name: str(value) for name, value in values.items() if value is not None}
    return texts | {name: str(value).lower() for name, value in values.items() if isinstance(value, bool)}
