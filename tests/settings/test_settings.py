"""The settings of variables, the variables of settings, and hidden passwords."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubbub.errors import Invalid
from hubbub.settings import VARIABLES, PostgresSettings, RedisSettings, Settings, postgres_from_env
from settings.pem import Pem
from settings.reading import (
    DATABASE_URL,
    PARTS,
    REDIS_URL,
    SECRET,
    outcome,
    read,
    refusal,
    shown,
    without_deadline,
)


def test_variables_of_the_original_application_give_its_ports_and_limits() -> None:
    assert read(PARTS) == Settings(
        postgres=PostgresSettings(
            host="db.example.org",
            port=5432,
            database="chatapp",
            user="chatuser",
            password="chatpass",
            pool_size=20,
            idle_timeout_seconds=30,
            connect_timeout_seconds=2,
        ),
        redis=RedisSettings(host="redis.example.org", port=6379, password="redispass", database=0),
    )


def test_database_can_be_given_without_redis() -> None:
    database = {name: text for name, text in PARTS.items() if name.startswith("DB_")}
    assert postgres_from_env(database) == read(PARTS).postgres
    assert postgres_from_env({"REDIS_URL": REDIS_URL}) is None
    with pytest.raises(Invalid, match="DB_NAME"):
        postgres_from_env({"DB_HOST": "db.example.org"})
    assert Settings.is_configured(database)
    assert not Settings.is_configured({"PATH": "/bin"})


def test_schema_and_prefix_alone_name_no_servers_and_count_within_those_that_are_found() -> None:
    within = {"DB_SCHEMA": "chat", "REDIS_PREFIX": "shop:"}
    assert not Settings.is_configured(within)
    assert postgres_from_env(within) is None
    found = read(PARTS).with_env(within)
    assert found == read(PARTS | within)
    assert found.with_env({}) == found
    with pytest.raises(Invalid, match="DB_SCHEMA"):
        found.with_env({"DB_SCHEMA": "Chat"})
    with pytest.raises(Invalid, match="DB_SCHEMA: is a reserved word"):
        found.with_env({"DB_SCHEMA": "order"})


def test_every_variable_has_its_effect(pem: Pem) -> None:
    settings = read(
        PARTS
        | {
            "DB_PORT": "6000",
            "DB_SSLMODE": "verify-full",
            "DB_SSLROOTCERT": str(pem.cert),
            "DB_SSLCERT": str(pem.cert),
            "DB_SSLKEY": str(pem.key),
            "DB_POOL_SIZE": "5",
            "DB_IDLE_TIMEOUT_SECONDS": "60",
            "DB_CONNECT_TIMEOUT_SECONDS": "0.5",
            "DB_DEADLINE_SECONDS": "3",
            "DB_PREPARED_STATEMENTS": "false",
            "DB_DURABLE_SESSIONS": "true",
            "REDIS_PORT": "7000",
            "REDIS_USERNAME": "chat",
            "REDIS_DB": "3",
            "REDIS_PREFIX": "chat:",
            "REDIS_TLS": "Yes",
            "REDIS_CA_FILE": str(pem.cert),
            "REDIS_CERT_FILE": str(pem.cert),
            "REDIS_KEY_FILE": str(pem.key),
            "REDIS_CONNECT_TIMEOUT_SECONDS": "1",
            "REDIS_DEADLINE_SECONDS": "1.5",
        }
    )
    assert settings.postgres == PostgresSettings(
        host="db.example.org",
        port=6000,
        database="chatapp",
        user="chatuser",
        password="chatpass",
        sslmode="verify-full",
        ssl_root_cert=pem.cert,
        ssl_cert=pem.cert,
        ssl_key=pem.key,
        pool_size=5,
        idle_timeout_seconds=60,
        connect_timeout_seconds=0.5,
        deadline_seconds=3,
        prepared_statements=False,
        durable_sessions=True,
    )
    assert settings.redis == RedisSettings(
        host="redis.example.org",
        port=7000,
        username="chat",
        password="redispass",
        database=3,
        prefix="chat:",
        tls=True,
        ssl_root_cert=pem.cert,
        ssl_cert=pem.cert,
        ssl_key=pem.key,
        connect_timeout_seconds=1,
        deadline_seconds=1.5,
    )


def test_environment_without_variables_gives_no_settings() -> None:
    assert Settings.from_env({"HOME": "/home/ada", "DB_COLOUR": "blue"}) is None


def test_environment_of_process_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    assert Settings.from_env() is None
    for variable, value in PARTS.items():
        monkeypatch.setenv(variable, value)
    assert Settings.from_env() == read(PARTS)


@pytest.mark.parametrize("variable", ["DB_HOST", "DB_NAME", "DB_USER", "REDIS_HOST"])
@pytest.mark.parametrize("empty", [True, False])
def test_missing_or_empty_part_is_refused_by_name(variable: str, empty: bool) -> None:
    rest = {name: value for name, value in PARTS.items() if name != variable}
    assert refusal(rest | {variable: ""} if empty else rest).field == variable


def test_one_variable_alone_makes_the_others_required() -> None:
    assert str(refusal({"DB_POOL_SIZE": "5"})) == "DB_HOST: is missing, and so is DATABASE_URL"
    assert refusal({"DATABASE_URL": DATABASE_URL}).field == "REDIS_HOST"
    assert refusal({"DATABASE_URL": ""}).field == "DB_HOST"


def test_empty_optional_variable_counts_as_not_given() -> None:
    optional = VARIABLES - {"DB_HOST", "DB_NAME", "DB_USER", "REDIS_HOST"}
    bare = {"DB_HOST": "db", "DB_NAME": "chat", "DB_USER": "ada", "REDIS_HOST": "redis"}
    assert read(dict.fromkeys(optional, "") | bare) == read(bare)


def test_repr_has_no_password() -> None:
    settings = Settings.from_urls(f"postgres://u:{SECRET}@h/d", f"redis://:{SECRET}@h")
    for one in (settings, settings.postgres, settings.redis):
        assert SECRET not in f"{one!r} {one}"


noise = st.text(max_size=10) | st.text("@:/?#[]%&=,; \n", max_size=5)


@without_deadline
@given(before=noise, after=noise, host=st.sampled_from(["h", "h:x", "h,i", "[::1", "", "h:0"]), tail=noise)
def test_error_has_no_password_however_it_was_mangled(before: str, after: str, host: str, tail: str) -> None:
    login = f"u:{before}{SECRET}{after}@{host}"
    assert SECRET not in shown(outcome(PARTS | {"DATABASE_URL": f"postgres://{login}/d{tail}"}))
    assert SECRET not in shown(outcome(PARTS | {"REDIS_URL": f"redis://{login}{tail}"}))


@pytest.mark.parametrize("variable", sorted(VARIABLES))
@pytest.mark.parametrize("misplaced", [SECRET, f"{SECRET}\n", f"-{SECRET},", f"{SECRET}\0"])
def test_error_has_no_password_from_the_wrong_variable(variable: str, misplaced: str) -> None:
    result = outcome(PARTS | {variable: misplaced})
    assert isinstance(result, Settings) or SECRET not in shown(result)


# Written and read back

names = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=20)
passwords = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40)
dns_names = st.from_regex(r"[a-zA-Z0-9_-]{1,63}(\.[a-z0-9_-]{1,20}){0,3}\.?", fullmatch=True)
hosts = dns_names | st.ip_addresses().map(str)
lists_of_hosts = hosts | st.lists(
    st.tuples(dns_names, st.integers(1, 65_535)).map("{0[0]}:{0[1]}".format), min_size=2, max_size=3, unique=True
).map(",".join)
ports = st.integers(1, 65_535)
seconds = st.floats(0, 86_400, exclude_min=True) | st.integers(1, 86_400)


postgres_settings = st.builds(
    PostgresSettings,
    host=lists_of_hosts,
    port=ports,
    database=names,
    user=names,
    password=st.none() | passwords,
    pool_size=st.integers(1, 1_000),
    idle_timeout_seconds=seconds,
    connect_timeout_seconds=seconds,
    deadline_seconds=seconds,
    prepared_statements=st.booleans(),
    durable_sessions=st.booleans(),
)
redis_settings = st.builds(
    RedisSettings,
    host=hosts,
    port=ports,
    password=passwords,
    username=st.none() | names,
    database=st.integers(0, 2**31 - 1),
    connect_timeout_seconds=seconds,
    deadline_seconds=seconds,
)


@without_deadline
@given(postgres=postgres_settings, redis=redis_settings, data=st.data())
def test_written_variables_read_back_as_the_same_settings(
    pem: Pem, postgres: PostgresSettings, redis: RedisSettings, data: st.DataObject
) -> None:
    pair = {"ssl_cert": pem.cert, "ssl_key": pem.key}
    verified = {"sslmode": "verify-full", "ssl_root_cert": pem.cert}
    modes = [{}, {"sslmode": "disable"}, {"sslmode": "require"} | pair, verified, verified | pair]
    over_tls = [
        {},
        {"tls": True},
        {"tls": True, "ssl_root_cert": pem.cert} | pair,
        {"password": None, "username": None},
    ]
    settings = Settings(
        postgres=replace(postgres, **data.draw(st.sampled_from(modes))),  # type: ignore[arg-type]
        redis=replace(redis, **data.draw(st.sampled_from(over_tls))),  # type: ignore[arg-type]
    )
    environ = settings.to_env()
    assert environ.keys() <= VARIABLES
    assert Settings.from_env(environ) == settings


@without_deadline
@given(user=names, password=passwords, host=hosts, port=ports, database=names)
def test_percent_encoded_url_reads_back_as_its_parts(
    user: str, password: str, host: str, port: int, database: str
) -> None:
    login, address = f"{quote(user, safe='')}:{quote(password, safe='')}", f"[{host}]" if ":" in host else host
    postgres = Settings.from_urls(
        f"postgres://{login}@{address}:{port}/{quote(database, safe='')}", REDIS_URL
    ).postgres
    assert postgres == PostgresSettings(host=host, port=port, database=database, user=user, password=password)
