"""Settings without a server: what is read, what is refused and by which name, and that no password gets out."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from hubbub.errors import Invalid
from hubbub.settings import VARIABLES, PostgresSettings, RedisSettings, Settings

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

patient = hypothesis_settings(deadline=None)  # the machine may be busy with other tests

# A key that serves nothing but these tests; the certificate of localhost signs itself and holds until 2120.
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBcDCCARegAwIBAgIBATAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAlsb2NhbGhv
c3QwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBQxEjAQBgNVBAMM
CWxvY2FsaG9zdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABP+EWLDdWOQu2iTD
ZW4OdO4uTuR8sbkxV1gCPRbiM+qJgKLgMo4o5lzgQOs270CsToqWwHhkWJj93Kyn
wL9mEbyjWDBWMA8GA1UdEwEB/wQFMAMBAf8wDgYDVR0PAQH/BAQDAgKEMB0GA1Ud
DgQWBBSiCEZXufCRRL3b7EMNO3S87VgIcTAUBgNVHREEDTALgglsb2NhbGhvc3Qw
CgYIKoZIzj0EAwIDRwAwRAIgOuoI66aCtwjpyXE2aScJySBGcrrwi69S0wgiOfnP
tLUCIGeWGoFD3XCJNjWPQRIFaim69600F5lokjrc0YaM+n0A
-----END CERTIFICATE-----
"""
KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg37kWNcHDVWjWEcGM
7bBAvprM7iSIpURxqBKlygV5j6+hRANCAAT/hFiw3VjkLtokw2VuDnTuLk7kfLG5
MVdYAj0W4jPqiYCi4DKOKOZc4EDrNu9ArE6KlsB4ZFiY/dysp8C/ZhG8
-----END PRIVATE KEY-----
"""
ENCRYPTED_KEY = """\
-----BEGIN ENCRYPTED PRIVATE KEY-----
MIHrMFYGCSqGSIb3DQEFDTBJMCgGCSqGSIb3DQEFDDAbBAiuHoTNgPdlWAIBATAM
BggqhkiG9w0CCQUAMB0GCWCGSAFlAwQBAgQQiYuIWvx2oAHgrHnToNvV1QSBkFJK
mSh5f7M4fi1A8HciE8PLO1GIerHv4waIz9KpkjshhKE6yjRc3nK9Y51k4Fi2f+jB
gX3pApZkG/KCoUzj3hJeNGPg0hl87lF1gVRKsh/HWdsKSQ5g6BUM4iM/s7YXb0Q8
LBGJy1nhqCb1LJRQjYS+Hm/gkcngxGaj6hSd/qAzhO9KPGt3ri5BDK0RCbxgwQ==
-----END ENCRYPTED PRIVATE KEY-----
"""


class Pem(NamedTuple):
    cert: Path
    key: Path
    encrypted_key: Path
    rubbish: Path


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Pem:
    folder = tmp_path_factory.mktemp("pem")
    files = Pem(folder / "cert.pem", folder / "key.pem", folder / "encrypted.pem", folder / "rubbish.pem")
    for file, content in zip(files, (CERTIFICATE, KEY, ENCRYPTED_KEY, "no certificate"), strict=True):
        file.write_text(content)
    return files


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
    """All that a log could show of settings, or of an error with what it was raised from."""
    if isinstance(result, Settings):
        return f"{result!r} {result}"
    return " ".join(f"{error!r} {error} {vars(error)}" for error in whole_chain(result))


def whole_chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


# The variables of the seed


def test_the_variables_of_the_seed_give_its_ports_and_limits() -> None:
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
            "REDIS_PORT": "7000",
            "REDIS_USERNAME": "chat",
            "REDIS_DB": "3",
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
    )
    assert settings.redis == RedisSettings(
        host="redis.example.org",
        port=7000,
        username="chat",
        password="redispass",
        database=3,
        tls=True,
        ssl_root_cert=pem.cert,
        ssl_cert=pem.cert,
        ssl_key=pem.key,
        connect_timeout_seconds=1,
        deadline_seconds=1.5,
    )


def test_without_any_variable_of_hubbub_there_are_no_settings() -> None:
    assert Settings.from_env({"HOME": "/home/ada", "DB_COLOUR": "blue"}) is None


def test_by_default_the_environment_of_the_process_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    assert Settings.from_env() is None
    for variable, value in PARTS.items():
        monkeypatch.setenv(variable, value)
    assert Settings.from_env() == read(PARTS)


@pytest.mark.parametrize("variable", ["DB_HOST", "DB_NAME", "DB_USER", "REDIS_HOST"])
@pytest.mark.parametrize("empty", [True, False])
def test_a_missing_or_empty_part_is_refused_by_name(variable: str, empty: bool) -> None:
    rest = {name: value for name, value in PARTS.items() if name != variable}
    assert refusal(rest | {variable: ""} if empty else rest).field == variable


def test_one_variable_alone_asks_for_the_others() -> None:
    assert str(refusal({"DB_POOL_SIZE": "5"})) == "DB_HOST: is missing, and so is DATABASE_URL"
    assert refusal({"DATABASE_URL": DATABASE_URL}).field == "REDIS_HOST"
    assert refusal({"DATABASE_URL": ""}).field == "DB_HOST"


def test_an_empty_optional_variable_counts_as_not_given() -> None:
    optional = VARIABLES - {"DB_HOST", "DB_NAME", "DB_USER", "REDIS_HOST"}
    bare = {"DB_HOST": "db", "DB_NAME": "chat", "DB_USER": "ada", "REDIS_HOST": "redis"}
    assert read(dict.fromkeys(optional, "") | bare) == read(bare)


# URLs


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "PostgreSQL"])
def test_a_url_gives_what_the_parts_give(scheme: str) -> None:
    url = f"{scheme}://chatuser:chatpass@db.example.org:5432/chatapp"
    assert Settings.from_urls(url, "redis://:redispass@redis.example.org:6379/0") == read(PARTS)


def test_urls_in_code_do_not_look_at_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_POOL_SIZE", "7")
    monkeypatch.setenv("REDIS_PASSWORD", "another")
    assert Settings.from_urls(DATABASE_URL, REDIS_URL) == read(PARTS)


def test_a_url_is_percent_decoded_and_takes_an_ipv6_address() -> None:
    url = "postgres://a%40b:p%2Fw%3A%25%C3%A9+x@[2001:db8::1]:6000/my%20chat"
    postgres = Settings.from_urls(url, REDIS_URL).postgres
    assert (postgres.user, postgres.password, postgres.host) == ("a@b", "p/w:%é+x", "2001:db8::1")
    assert (postgres.port, postgres.database) == (6000, "my chat")


def test_a_database_url_carries_tls(pem: Pem) -> None:
    tls = f"sslmode=verify-full&sslrootcert={quote(str(pem.cert))}&sslcert={pem.cert}&sslkey={pem.key}"
    postgres = Settings.from_urls(f"{DATABASE_URL}?{tls}", REDIS_URL).postgres
    assert postgres.sslmode == "verify-full"
    assert (postgres.ssl_root_cert, postgres.ssl_cert, postgres.ssl_key) == (pem.cert, pem.cert, pem.key)


def test_a_redis_url_carries_user_database_and_tls() -> None:
    redis = Settings.from_urls(DATABASE_URL, "rediss://chat:p%40w@[::1]:7000/3").redis
    assert redis == RedisSettings(host="::1", port=7000, username="chat", password="p@w", database=3, tls=True)


def test_a_url_wins_over_the_address_in_the_parts_even_where_it_leaves_a_default() -> None:
    stale = {"DB_HOST": "old", "DB_PORT": "6000", "DB_NAME": "old", "REDIS_HOST": "old", "REDIS_PORT": "1"}
    urls = {"DATABASE_URL": DATABASE_URL, "REDIS_URL": REDIS_URL}
    assert read(PARTS | stale | {"REDIS_DB": "7"} | urls) == read(PARTS)


def test_a_url_wins_over_the_user_the_password_and_the_tls_that_it_carries() -> None:
    url = "postgres://ada:new@db/chat?sslmode=disable"
    environ = PARTS | {"DATABASE_URL": url, "DB_SSLMODE": "require", "DB_POOL_SIZE": "5"}
    postgres = read(environ).postgres
    assert (postgres.user, postgres.password, postgres.sslmode) == ("ada", "new", "disable")
    assert postgres.pool_size == 5


def test_user_password_and_tls_that_a_url_lacks_come_from_the_variables() -> None:
    urls = {"DATABASE_URL": "postgres://db/chat", "REDIS_URL": "redis://redis/1"}
    settings = read(PARTS | urls | {"DB_SSLMODE": "require", "REDIS_TLS": "true"})
    assert (settings.postgres.user, settings.postgres.password) == ("chatuser", "chatpass")
    assert (settings.postgres.sslmode, settings.redis.password) == ("require", "redispass")
    assert settings.redis.tls


def test_rediss_turns_tls_on_whatever_the_variable_says() -> None:
    assert read(PARTS | {"REDIS_URL": "rediss://redis", "REDIS_TLS": "false"}).redis.tls


@pytest.mark.parametrize("hosts", ["a,b", "a:5432,b:5433", "[::1]:5432,b", "a,"])
def test_several_hosts_are_refused_with_the_reason(hosts: str) -> None:
    error = refusal(PARTS | {"DATABASE_URL": f"postgres://u:p@{hosts}/chat"})
    assert error.field == "DATABASE_URL"
    assert "one host" in error.reason
    assert "hangs" in error.reason


@pytest.mark.parametrize(
    "url",
    [
        "",
        "mysql://u@h/d",
        "postgresql+asyncpg://u@h/d",
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
def test_an_unusable_database_url_is_refused(url: str) -> None:
    with pytest.raises(Invalid) as caught:
        Settings.from_urls(url, REDIS_URL)
    assert caught.value.field == "DATABASE_URL"


def test_an_unknown_parameter_is_refused_by_name() -> None:
    error = refusal(PARTS | {"DATABASE_URL": f"{DATABASE_URL}?channel_binding=require"})
    assert "channel_binding" in error.reason


@pytest.mark.parametrize(
    "url",
    ["", "http://h", "redis://", "redis://h/x", "redis://h/-1", "redis://h/1/2", "redis://h:0", "redis://h?db=1"],
)
def test_an_unusable_redis_url_is_refused(url: str) -> None:
    with pytest.raises(Invalid) as caught:
        Settings.from_urls(DATABASE_URL, url)
    assert caught.value.field == "REDIS_URL"


def test_a_redis_password_in_the_place_of_the_user_is_noticed() -> None:
    with pytest.raises(Invalid, match="redis://:password@host") as caught:
        Settings.from_urls(DATABASE_URL, f"redis://{SECRET}@h")
    assert SECRET not in str(caught.value)


# Unusable values


@pytest.mark.parametrize(
    ("variable", "values"),
    [
        ("DB_HOST", ["a b", "a\n", "a\0", "a,b", "/run/postgresql", "a..b", "x" * 64, "user@h", "h:5432", "é"]),
        ("REDIS_HOST", ["a b", " a", "a,b", "/run/redis.sock", "[::1]", "::1%\n", "redis://h"]),
        ("DB_PORT", ["0", "-1", "65536", "70000", "abc", "5432.0", "9" * 5000]),
        ("REDIS_PORT", ["0", "70000", "abc"]),
        ("DB_NAME", [" ", "a\nb", "\udcff"]),
        ("DB_USER", ["\t", "a\0"]),
        ("DB_PASSWORD", ["a\0b", "\udcff"]),
        ("REDIS_PASSWORD", ["a\0b", "\udcff"]),
        ("REDIS_USERNAME", ["a\nb"]),
        ("DB_SSLMODE", ["never", "allow", "VERIFY-FULL"]),
        ("DB_SSLROOTCERT", ["/nowhere/ca.pem", "/"]),
        ("DB_SSLCERT", ["/nowhere/cert.pem"]),
        ("DB_SSLKEY", ["/nowhere/key.pem", "a\0"]),
        ("REDIS_CA_FILE", ["/nowhere/ca.pem", "x" * 5000]),
        ("REDIS_CERT_FILE", ["/nowhere/cert.pem"]),
        ("REDIS_KEY_FILE", ["/nowhere/key.pem"]),
        ("DB_POOL_SIZE", ["0", "-5", "many", "1001"]),
        ("REDIS_DB", ["-1", "x", "2147483648"]),
        ("DB_PREPARED_STATEMENTS", ["maybe", "2"]),
        ("REDIS_TLS", ["maybe", "2"]),
        *(
            (f"{limit}_SECONDS", ["0", "-1", "nan", "inf", "-inf", "1e9", "soon"])
            for limit in ("DB_IDLE_TIMEOUT", "DB_CONNECT_TIMEOUT", "DB_DEADLINE")
        ),
        *(
            (f"{limit}_SECONDS", ["0", "-1", "nan", "inf", "soon"])
            for limit in ("REDIS_CONNECT_TIMEOUT", "REDIS_DEADLINE")
        ),
    ],
)
def test_an_unusable_value_is_refused_by_the_name_of_its_variable(variable: str, values: list[str]) -> None:
    for value in values:
        assert refusal(PARTS | {variable: value}).field == variable, value


def test_settings_in_code_are_checked_by_the_same_names() -> None:
    postgres = read(PARTS).postgres
    with pytest.raises(Invalid, match=r"^DB_POOL_SIZE: "):
        replace(postgres, pool_size=0)
    with pytest.raises(Invalid, match=r"^DB_PORT: "):
        replace(postgres, port=True)
    with pytest.raises(Invalid, match=r"^DB_PORT: "):
        replace(postgres, port="5432")  # type: ignore[arg-type]
    with pytest.raises(Invalid, match=r"^DB_DEADLINE_SECONDS: "):
        replace(postgres, deadline_seconds=float("nan"))
    with pytest.raises(Invalid, match=r"^DB_PASSWORD: "):
        replace(postgres, password="")
    with pytest.raises(Invalid, match=r"^DB_HOST: "):
        replace(postgres, host=None)  # type: ignore[arg-type]
    with pytest.raises(Invalid, match=r"^DB_SSLROOTCERT: "):
        replace(postgres, ssl_root_cert=__file__)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["verify-ca", "verify-full"])
def test_verifying_without_a_root_certificate_is_refused(mode: str) -> None:
    assert refusal(PARTS | {"DB_SSLMODE": mode}).field == "DB_SSLROOTCERT"
    assert refusal(PARTS | {"DATABASE_URL": f"{DATABASE_URL}?sslmode={mode}"}).field == "DB_SSLROOTCERT"


def test_a_certificate_and_its_key_go_together(pem: Pem) -> None:
    cert, key = str(pem.cert), str(pem.key)
    assert refusal(PARTS | {"DB_SSLMODE": "require", "DB_SSLCERT": cert}).field == "DB_SSLKEY"
    assert refusal(PARTS | {"DB_SSLMODE": "require", "DB_SSLKEY": key}).field == "DB_SSLCERT"
    assert refusal(PARTS | {"REDIS_TLS": "1", "REDIS_CERT_FILE": cert}).field == "REDIS_KEY_FILE"
    assert refusal(PARTS | {"REDIS_TLS": "1", "REDIS_KEY_FILE": key}).field == "REDIS_CERT_FILE"


def test_a_certificate_that_would_go_unused_is_refused(pem: Pem) -> None:
    cert, pair = str(pem.cert), {"DB_SSLCERT": str(pem.cert), "DB_SSLKEY": str(pem.key)}
    assert refusal(PARTS | {"DB_SSLROOTCERT": cert}).field == "DB_SSLROOTCERT"
    assert refusal(PARTS | {"DB_SSLMODE": "disable"} | pair).field == "DB_SSLCERT"
    assert refusal(PARTS | {"REDIS_CA_FILE": cert}).field == "REDIS_CA_FILE"


# Secrets


def test_a_secret_comes_from_a_file_without_its_last_newline(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("DB_PASSWORD", "REDIS_URL")}
    files["DB_PASSWORD"].write_bytes(b" p\xc3\xa9 \n\n")
    files["REDIS_URL"].write_bytes(b"redis://:fromfile@redis\r\n")
    rest = {name: PARTS[name] for name in ("DB_HOST", "DB_NAME", "DB_USER")}
    settings = read(rest | {f"{name}_FILE": str(file) for name, file in files.items()})
    assert settings.postgres.password == " pé \n"
    assert settings.redis == RedisSettings(host="redis", password="fromfile")


def test_a_url_without_a_password_goes_with_the_file_of_one(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("postgres://ada@db/chat\n")
    (tmp_path / "password").write_text(SECRET)
    files = {"DATABASE_URL_FILE": str(tmp_path / "url"), "DB_PASSWORD_FILE": str(tmp_path / "password")}
    postgres = read(files | {"REDIS_HOST": "redis"}).postgres
    assert (postgres.user, postgres.password) == ("ada", SECRET)


@pytest.mark.parametrize("secret", ["DB_PASSWORD", "REDIS_PASSWORD", "DATABASE_URL", "REDIS_URL"])
def test_a_secret_given_twice_is_refused(secret: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    error = refusal(PARTS | {secret: "plain", f"{secret}_FILE": str(tmp_path / "secret")})
    assert error.field == f"{secret}_FILE"
    assert SECRET not in str(error)


@pytest.mark.parametrize("content", [None, b"", b"\n", b"x" * 10_001])
def test_a_secret_file_that_is_absent_empty_or_far_too_long_is_refused(
    content: bytes | None, tmp_path: Path
) -> None:
    file = tmp_path / SECRET
    if content is not None:
        file.write_bytes(content)
    for path in (file, tmp_path, Path("/nowhere") / ("x" * 5000)):
        error = refusal({"DB_PASSWORD_FILE": str(path)})
        assert error.field == "DB_PASSWORD_FILE"
        assert SECRET not in str(error)


def test_a_secret_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"hunter2\xff")
    rest = {name: value for name, value in PARTS.items() if name != "DB_PASSWORD"}
    error = refusal(rest | {"DB_PASSWORD_FILE": str(tmp_path / "secret")})
    assert error.field == "DB_PASSWORD"
    assert SECRET not in shown(error)


def test_no_password_shows_in_a_repr() -> None:
    settings = Settings.from_urls(f"postgres://u:{SECRET}@h/d", f"redis://:{SECRET}@h")
    for one in (settings, settings.postgres, settings.redis):
        assert SECRET not in f"{one!r} {one}"


noise = st.text(max_size=10) | st.text("@:/?#[]%&=,; \n", max_size=5)


@patient
@given(before=noise, after=noise, host=st.sampled_from(["h", "h:x", "h,i", "[::1", "", "h:0"]), tail=noise)
def test_no_error_shows_a_password_however_it_was_mangled(before: str, after: str, host: str, tail: str) -> None:
    login = f"u:{before}{SECRET}{after}@{host}"
    assert SECRET not in shown(outcome(PARTS | {"DATABASE_URL": f"postgres://{login}/d{tail}"}))
    assert SECRET not in shown(outcome(PARTS | {"REDIS_URL": f"redis://{login}{tail}"}))


@pytest.mark.parametrize("variable", sorted(VARIABLES))
@pytest.mark.parametrize("misplaced", [SECRET, f"{SECRET}\n", f"-{SECRET},", f"{SECRET}\0"])
def test_no_error_shows_a_password_that_stands_in_the_wrong_variable(variable: str, misplaced: str) -> None:
    result = outcome(PARTS | {variable: misplaced})
    assert isinstance(result, Settings) or SECRET not in shown(result)


# There and back

names = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=20)
passwords = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40)
dns_names = st.from_regex(r"[a-zA-Z0-9_-]{1,63}(\.[a-z0-9_-]{1,20}){0,3}\.?", fullmatch=True)
hosts = dns_names | st.ip_addresses().map(str)
ports = st.integers(1, 65_535)
seconds = st.floats(0, 86_400, exclude_min=True) | st.integers(1, 86_400)


postgres_settings = st.builds(
    PostgresSettings,
    host=hosts,
    port=ports,
    database=names,
    user=names,
    password=st.none() | passwords,
    pool_size=st.integers(1, 1_000),
    idle_timeout_seconds=seconds,
    connect_timeout_seconds=seconds,
    deadline_seconds=seconds,
    prepared_statements=st.booleans(),
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


@patient
@given(postgres=postgres_settings, redis=redis_settings, data=st.data())
def test_the_variables_written_read_back_as_the_same_settings(
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


@patient
@given(user=names, password=passwords, host=hosts, port=ports, database=names)
def test_a_percent_encoded_url_reads_back_as_its_parts(
    user: str, password: str, host: str, port: int, database: str
) -> None:
    login, address = f"{quote(user, safe='')}:{quote(password, safe='')}", f"[{host}]" if ":" in host else host
    postgres = Settings.from_urls(
        f"postgres://{login}@{address}:{port}/{quote(database, safe='')}", REDIS_URL
    ).postgres
    assert postgres == PostgresSettings(host=host, port=port, database=database, user=user, password=password)


# TLS


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> None:
    """A whole handshake in memory; raises what the side that refuses raises."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(5):
        waiting = [side for side in sides if not is_done(side)]
        if not waiting:
            return
    pytest.fail("the handshake does not end")


def is_done(side: ssl.SSLObject) -> bool:
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def server_context(pem: Pem, *, asks_for_a_certificate: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem.cert, pem.key)
    if asks_for_a_certificate:
        context.load_verify_locations(pem.cert)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def postgres_context(**tls: object) -> ssl.SSLContext:
    context = replace(read(PARTS).postgres, **tls).ssl()  # type: ignore[arg-type]
    assert isinstance(context, ssl.SSLContext)
    return context


def redis_context(**tls: object) -> ssl.SSLContext:
    context = replace(read(PARTS).redis, tls=True, **tls).ssl()  # type: ignore[arg-type]
    assert context is not None
    return context


def test_without_verification_the_driver_gets_the_mode_itself() -> None:
    postgres = read(PARTS).postgres
    assert postgres.ssl() == "prefer"
    assert replace(postgres, sslmode="disable").ssl() == "disable"
    assert read(PARTS).redis.ssl() is None


def test_require_accepts_any_certificate_as_in_libpq(pem: Pem) -> None:
    handshake(postgres_context(sslmode="require"), server_context(pem), "elsewhere.example.org")


def test_require_with_a_root_certificate_verifies_as_in_libpq(pem: Pem) -> None:
    assert postgres_context(sslmode="require", ssl_root_cert=pem.cert).verify_mode is ssl.CERT_REQUIRED


def test_verify_ca_checks_the_certificate_and_not_the_name(pem: Pem) -> None:
    handshake(postgres_context(sslmode="verify-ca", ssl_root_cert=pem.cert), server_context(pem), "127.0.0.1")


def test_verify_full_checks_the_name_as_well(pem: Pem) -> None:
    handshake(postgres_context(sslmode="verify-full", ssl_root_cert=pem.cert), server_context(pem), "localhost")
    with pytest.raises(ssl.SSLCertVerificationError, match=r"127\.0\.0\.1"):
        handshake(
            postgres_context(sslmode="verify-full", ssl_root_cert=pem.cert), server_context(pem), "127.0.0.1"
        )


def test_redis_over_tls_always_checks_certificate_and_name(pem: Pem) -> None:
    handshake(redis_context(ssl_root_cert=pem.cert), server_context(pem), "localhost")
    with pytest.raises(ssl.SSLCertVerificationError, match=r"127\.0\.0\.1"):
        handshake(redis_context(ssl_root_cert=pem.cert), server_context(pem), "127.0.0.1")
    with pytest.raises(ssl.SSLCertVerificationError, match="self-signed"):
        handshake(redis_context(), server_context(pem), "localhost")


def test_a_client_certificate_is_shown_to_the_server(pem: Pem) -> None:
    asking, pair = server_context(pem, asks_for_a_certificate=True), {"ssl_cert": pem.cert, "ssl_key": pem.key}
    handshake(postgres_context(sslmode="verify-full", ssl_root_cert=pem.cert, **pair), asking, "localhost")
    handshake(redis_context(ssl_root_cert=pem.cert, **pair), asking, "localhost")
    with pytest.raises(ssl.SSLError):
        handshake(postgres_context(sslmode="require"), asking, "localhost")


def test_a_file_that_holds_no_certificate_or_no_key_is_refused_by_name(pem: Pem) -> None:
    with pytest.raises(Invalid, match=r"^DB_SSLROOTCERT: "):
        postgres_context(sslmode="verify-full", ssl_root_cert=pem.rubbish)
    with pytest.raises(Invalid, match=r"^DB_SSLCERT: "):
        postgres_context(sslmode="require", ssl_cert=pem.cert, ssl_key=pem.rubbish)
    with pytest.raises(Invalid, match=r"^REDIS_CA_FILE: "):
        redis_context(ssl_root_cert=pem.rubbish)
    with pytest.raises(Invalid, match=r"^REDIS_CERT_FILE: "):
        redis_context(ssl_cert=pem.rubbish, ssl_key=pem.key)


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_its_password(pem: Pem) -> None:
    with pytest.raises(Invalid, match="without a password"):
        postgres_context(sslmode="require", ssl_cert=pem.cert, ssl_key=pem.encrypted_key)


# The documentation

EXAMPLE = (Path(__file__).parent.parent / ".env.example").read_text()


def example(line_start: str) -> dict[str, str]:
    return dict(re.findall(rf"^{line_start}([A-Z_]+)=(.*)$", EXAMPLE, re.MULTILINE))


def test_the_example_environment_is_the_one_of_the_seed() -> None:
    settings = read(example(""))
    assert settings.to_env() | example("") == settings.to_env()
    assert (settings.postgres.database, settings.postgres.user) == ("chatapp", "chatuser")
    assert (settings.postgres.password, settings.redis.password) == ("chatpass", "redispass")


def test_the_example_environment_names_every_variable_and_its_default() -> None:
    assert example("(?:# )?").keys() == VARIABLES
    assert read(example("") | example("# ")) == read(example(""))


def test_compose_has_no_default_for_a_password_and_reads_what_hubbub_reads() -> None:
    compose = (Path(__file__).parent.parent / "compose.yaml").read_text()
    interpolated = dict(re.findall(r"(?<!\$)\$\{([A-Z_]+):([?-])", compose))
    assert interpolated == {"DB_NAME": "?", "DB_USER": "?", "DB_PORT": "-", "REDIS_PORT": "-"}
    assert re.findall(r"^    environment: (\w+)$", compose, re.MULTILINE) == ["DB_PASSWORD", "REDIS_PASSWORD"]
