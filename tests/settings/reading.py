"""Functions that read an environment, and that show it as a log could show it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
from hypothesis import settings as hypothesis_settings

from hubbub.errors import Invalid
from hubbub.settings import Settings

PARTS = {
    "DB_HOST": "db.example.org",
    "DB_NAME": "chatapp",
    "DB_USER": "chatuser",
    "DB_PASSWORD": "chatpass",
    "REDIS_HOST": "redis.example.org",
    "REDIS_PASSWORD": "redispass",
}
DATABASE_URL = "postgresql://chatuser:chatpass@db.example.org/chatapp"
REDIS_URL = "redis://:redispass@redis.example.org"
SECRET = "hunter2"

without_deadline = hypothesis_settings(deadline=None)  # the machine may be busy with other tests


def read(environ: Mapping[str, str]) -> Settings:
    settings = Settings.from_env(environ)
    assert settings is not None
    return settings


def refusal(environ: Mapping[str, str]) -> Invalid:
    with pytest.raises(Invalid) as caught:
        Settings.from_env(environ)
    assert caught.value.reason
    return caught.value


def outcome(environ: Mapping[str, str]) -> Settings | Invalid:
    try:
        return read(environ)
    except Invalid as error:
        return error


def shown(result: Settings | Invalid) -> str:
    """Everything of settings, or of an error and its causes, that a log could show."""
    if isinstance(result, Settings):
        return f"{result!r} {result}"
    return " ".join(f"{error!r} {error} {vars(error)}" for error in whole_chain(result))


def whole_chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
