"""The settings of a URL beside other variables, and refused URLs."""

from __future__ import annotations

import re
from dataclasses import replace
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubbub.errors import Invalid
from hubbub.settings import PostgresSettings, RedisSettings, Settings
from settings.pem import Pem
from settings.reading import DATABASE_URL, PARTS, REDIS_URL, SECRET, read, refusal, without_deadline


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "PostgreSQL", "postgresql+asyncpg"])
def test_url_gives_the_same_settings_as_its_parts(scheme: str) -> None:
    url = f"{scheme}://chatuser:chatpass@db.example.org:5432/chatapp"
    assert Settings.from_urls(url, "redis://:redispass@redis.example.org:6379/0") == read(PARTS)


def test_urls_in_code_ignore_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_POOL_SIZE", "7")
    monkeypatch.setenv("REDIS_PASSWORD", "another")
    assert Settings.from_urls(DATABASE_URL, REDIS_URL) == read(PARTS)


def test_url_is_percent_decoded_and_may_have_an_ipv6_address() -> None:
    url = "postgres://a%40b:p%2Fw%3A%25%C3%A9+x@[2001:db8::1]:6000/my%20chat"
    postgres = Settings.from_urls(url, REDIS_URL).postgres
    assert (postgres.user, postgres.password, postgres.host) == ("a@b", "p/w:%é+x", "2001:db8::1")
    assert (postgres.port, postgres.database) == (6000, "my chat")


def test_database_url_carries_tls(pem: Pem) -> None:
    tls = f"sslmode=verify-full&sslrootcert={quote(str(pem.cert))}&sslcert={pem.cert}&sslkey={pem.key}"
    postgres = Settings.from_urls(f"{DATABASE_URL}?{tls}", REDIS_URL).postgres
    assert postgres.sslmode == "verify-full"
    assert (postgres.ssl_root_cert, postgres.ssl_cert, postgres.ssl_key) == (pem.cert, pem.cert, pem.key)


def test_redis_url_carries_user_database_and_tls() -> None:
    redis = Settings.from_urls(DATABASE_URL, "rediss://chat:p%40w@[::1]:7000/3").redis
    assert redis == RedisSettings(host="::1", port=7000, username="chat", password="p@w", database=3, tls=True)


def test_url_overrides_address_in_parts_even_by_a_default() -> None:
    stale = {"DB_HOST": "old", "DB_PORT": "6000", "DB_NAME": "old", "REDIS_HOST": "old", "REDIS_PORT": "1"}
    urls = {"DATABASE_URL": DATABASE_URL, "REDIS_URL": REDIS_URL}
    assert read(PARTS | stale | {"REDIS_DB": "7"} | urls) == read(PARTS)


def test_url_overrides_user_password_and_tls_that_it_carries() -> None:
    url = "postgres://ada:new@db/chat?sslmode=disable"
    environ = PARTS | {"DATABASE_URL": url, "DB_SSLMODE": "require", "DB_POOL_SIZE": "5"}
    postgres = read(environ).postgres
    assert (postgres.user, postgres.password, postgres.sslmode) == ("ada", "new", "disable")
    assert postgres.pool_size == 5


def test_user_password_and_tls_missing_from_url_come_from_variables() -> None:
    urls = {"DATABASE_URL": "postgres://db/chat", "REDIS_URL": "redis://redis/1"}
    settings = read(PARTS | urls | {"DB_SSLMODE": "require", "REDIS_TLS": "true"})
    assert (settings.postgres.user, settings.postgres.password) == ("chatuser", "chatpass")
    assert (settings.postgres.sslmode, settings.redis.password) == ("require", "redispass")
    assert settings.redis.tls


def test_rediss_url_turns_tls_on_despite_the_variable() -> None:
    assert read(PARTS | {"REDIS_URL": "rediss://redis", "REDIS_TLS": "false"}).redis.tls


@pytest.mark.parametrize(
    ("hosts", "addresses"),
    [
        ("a,b", [("a", 5432), ("b", 5432)]),
        ("a:5433,b", [("a", 5433), ("b", 5432)]),
        ("a,b:5433", [("a", 5432), ("b", 5433)]),
        ("[::1]:5433,b,[2001:db8::1]", [("::1", 5433), ("b", 5432), ("2001:db8::1", 5432)]),
    ],
)
def test_url_with_several_hosts(hosts: str, addresses: list[tuple[str, int]]) -> None:
    postgres = read(PARTS | {"DATABASE_URL": f"postgres://u:p@{hosts}/chat?sslmode=require"}).postgres
    assert list(postgres.addresses) == addresses
    assert (postgres.user, postgres.database, postgres.sslmode) == ("u", "chat", "require")


def test_hosts_of_a_list_without_a_port_have_that_of_the_variable() -> None:
    postgres = read(PARTS | {"DB_HOST": "a,::1,[::1]:1", "DB_PORT": "7"}).postgres
    assert list(postgres.addresses) == [("a", 7), ("::1", 7), ("::1", 1)]
    assert postgres.where == "a:7, [::1]:7, [::1]:1"


@pytest.mark.parametrize(
    "hosts", ["a,", ",a", "a,b:0", "a,b:65536", "a,[::1", "a,b:x", "a,/run/x", "a,a", "a,a:5432"]
)
def test_unusable_list_of_hosts_is_refused(hosts: str) -> None:
    assert refusal(PARTS | {"DB_HOST": hosts}).field == "DB_HOST"
    assert (
        refusal(PARTS | {"DATABASE_URL": f"postgres://u:p@{hosts.replace('/', '%2F')}/chat"}).field
        == "DATABASE_URL"
    )


def test_several_hosts_of_redis_are_refused() -> None:
    assert "one host" in refusal(PARTS | {"REDIS_HOST": "a,b"}).reason


@pytest.mark.parametrize(
    "url",
    [
        "",
        "mysql://u@h/d",
        "postgres:u@h/d",
        "postgres://u@h",
        "postgres://u@/d",
        "postgres://u@h:0/d",
        "postgres://u@h:70000/d",
        "postgres://u@h:abc/d",
        "postgres://u@[::1/d",
        "postgres://u@[nonsense]/d",
        "postgres://u@2001:db8::1/d",
        "postgres://u@%2Frun%2Fpostgresql/d",
        "postgres:///d?host=/run/postgresql",
        "postgres://u@h/d/e",
        "postgres://u@h/d#e",
        "postgres://u@h/d ",
        "postgres://u@h/d\n",
        "\npostgres://u@h/d",
        "postgres://u@h/%00",
        "postgres://u@h/%ff",
        "postgres://u:%zz@h/d",
        "postgres://u@h/d?sslmode=never",
        "postgres://u@h/d?sslmode=",
        "postgres://u@h/d?sslmode=require&sslmode=disable",
        "postgres://u@h/d?sslmode=verify-full&sslrootcert=/nowhere/ca.pem",
    ],
)
def test_unusable_database_url_is_refused(url: str) -> None:
    with pytest.raises(Invalid) as caught:
        Settings.from_urls(url, REDIS_URL)
    assert caught.value.field == "DATABASE_URL"


def test_unknown_url_parameter_is_refused_by_name() -> None:
    error = refusal(PARTS | {"DATABASE_URL": f"{DATABASE_URL}?channel_binding=require"})
    assert "channel_binding" in error.reason


@pytest.mark.parametrize(
    "url",
    ["", "http://h", "redis://", "redis://h/x", "redis://h/-1", "redis://h/1/2", "redis://h:0", "redis://h?db=1"],
)
def test_unusable_redis_url_is_refused(url: str) -> None:
    with pytest.raises(Invalid) as caught:
        Settings.from_urls(DATABASE_URL, url)
    assert caught.value.field == "REDIS_URL"


def test_redis_password_in_position_of_user_is_refused() -> None:
    with pytest.raises(Invalid, match="redis://:password@host") as caught:
        Settings.from_urls(DATABASE_URL, f"redis://{SECRET}@h")
    assert SECRET not in str(caught.value)


@without_deadline
@given(
    username=st.none() | st.text("aé@/:%#? +", min_size=1).filter(str.strip),
    password=st.none() | st.text("aé@/:%#? +", min_size=1),
    host=st.sampled_from(["db.example.org", "127.0.0.1", "2001:db8::1"]),
    tls=st.booleans(),
)
def test_urls_of_settings_give_the_same_settings(
    username: str | None, password: str | None, host: str, tls: bool
) -> None:
    settings = Settings(
        postgres=PostgresSettings(host=host, database="my chat", user=username or "ada", password=password),
        redis=RedisSettings(
            host=host, username=username if password else None, password=password, database=3, tls=tls
        ),
    )
    urls = settings.to_urls()
    assert Settings.from_urls(urls["DATABASE_URL"], urls["REDIS_URL"]) == settings
    assert read(settings.to_env() | urls) == settings


@pytest.mark.parametrize(
    ("url", "settings"),
    [
        (
            "redis+sentinel://chat:p%40w@s1,s2:7000/the%20master/3",
            RedisSettings(
                host="s1,s2:7000",
                port=26379,
                username="chat",
                password="p@w",
                sentinel_master="the master",
                database=3,
            ),
        ),
        ("rediss+sentinel://s1/m", RedisSettings(host="s1", port=26379, sentinel_master="m", tls=True)),
        (
            "redis+cluster://:pw@a:7000,[::1]:7001",
            RedisSettings(host="a:7000,[::1]:7001", password="pw", cluster=True),
        ),
        ("rediss+cluster://a", RedisSettings(host="a", cluster=True, tls=True)),
    ],
)
def test_url_names_sentinels_or_a_cluster_and_is_written_again(url: str, settings: RedisSettings) -> None:
    parts = {name: text for name, text in PARTS.items() if not name.startswith("REDIS")}
    assert read(parts | {"REDIS_URL": url}).redis == settings
    postgres = read(PARTS).postgres
    again = Settings(postgres=postgres, redis=settings).to_urls()["REDIS_URL"]
    addresses = settings.addresses
    assert read(PARTS | {"REDIS_URL": again}).redis.addresses == addresses
    assert read(Settings(postgres=postgres, redis=settings).to_env()).redis == settings


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis+sentinel://s1,s2", "no master"),
        ("redis://a,b", "one host"),
        ("redis://a/1/2", "two names|cannot be read"),
        ("redis+cluster://a,b/1", "must be 0"),
        ("redis+sentinel://s1/m/x", "whole number"),
        ("redis+other://a", "must start with"),
    ],
)
def test_url_of_several_servers_that_says_too_little_or_too_much_is_refused(url: str, reason: str) -> None:
    error = refusal(PARTS | {"REDIS_URL": url})
    assert error.field == "REDIS_URL"
    assert re.search(reason, error.reason)


def test_sentinels_stand_in_place_of_the_host() -> None:
    parts = {name: text for name, text in PARTS.items() if not name.startswith("REDIS")}
    master = {"REDIS_SENTINEL_MASTER": "m"}
    for sentinels, host, port in (
        ("s1", "s1", 26379),
        ("s1:7000", "s1", 7000),
        ("[::1]:7000", "::1", 7000),
        ("s1,s2:7000", "s1,s2:7000", 26379),
    ):
        redis = read(parts | master | {"REDIS_SENTINELS": sentinels}).redis
        assert redis == RedisSettings(host=host, port=port, sentinel_master="m")
    assert refusal(parts | {"REDIS_SENTINELS": "s1"}).field == "REDIS_SENTINEL_MASTER"
    assert refusal(PARTS | master | {"REDIS_SENTINELS": "s1"}).field == "REDIS_SENTINELS"
    assert refusal(parts | master | {"REDIS_SENTINELS": "s1,s1"}).field == "REDIS_SENTINELS"


def test_replicas_have_the_settings_of_the_primary_except_for_what_their_urls_have() -> None:
    urls = "postgresql://r1/chatapp postgres://reader:p%40w@[::1]:5433"
    settings = read(PARTS | {"DATABASE_REPLICA_URLS": urls, "DB_POOL_SIZE": "7", "DB_PORT": "6000"})
    first, second = settings.replicas
    assert first == replace(settings.postgres, host="r1", port=5432)
    assert second == replace(settings.postgres, host="::1", port=5433, user="reader", password="p@w")
    assert Settings.from_env(settings.to_env()) == settings
    assert "p@w" not in repr(settings)


@pytest.mark.parametrize(
    "url",
    [
        "mysql://r",
        "postgres://a,b/chatapp",
        "postgres://r/other",
        "postgres://r:0",
        "postgres://r?sslmode=require",
    ],
)
def test_unusable_replica_is_refused(url: str) -> None:
    assert refusal(PARTS | {"DATABASE_REPLICA_URLS": url}).field == "DATABASE_REPLICA_URLS"
