"""Secrets in files, and the example that names every variable."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hubbub.settings import VARIABLES, RedisSettings
from settings.pem import Pem
from settings.reading import PARTS, SECRET, read, refusal, shown

ROOT = Path(__file__).parents[2]
EXAMPLE = (ROOT / ".env.example").read_text()


def test_secret_is_read_from_file_without_last_newline(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("DB_PASSWORD", "REDIS_URL")}
    files["DB_PASSWORD"].write_bytes(b" p\xc3\xa9 \n\n")
    files["REDIS_URL"].write_bytes(b"redis://:fromfile@redis\r\n")
    rest = {name: PARTS[name] for name in ("DB_HOST", "DB_NAME", "DB_USER")}
    settings = read(rest | {f"{name}_FILE": str(file) for name, file in files.items()})
    assert settings.postgres.password == " pé \n"
    assert settings.redis == RedisSettings(host="redis", password="fromfile")


def test_url_without_password_is_combined_with_password_file(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("postgres://ada@db/chat\n")
    (tmp_path / "password").write_text(SECRET)
    files = {"DATABASE_URL_FILE": str(tmp_path / "url"), "DB_PASSWORD_FILE": str(tmp_path / "password")}
    postgres = read(files | {"REDIS_HOST": "redis"}).postgres
    assert (postgres.user, postgres.password) == ("ada", SECRET)


@pytest.mark.parametrize("secret", ["DB_PASSWORD", "REDIS_PASSWORD", "DATABASE_URL", "REDIS_URL"])
def test_secret_given_twice_is_refused(secret: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    error = refusal(PARTS | {secret: "plain", f"{secret}_FILE": str(tmp_path / "secret")})
    assert error.field == f"{secret}_FILE"
    assert SECRET not in str(error)


@pytest.mark.parametrize("content", [None, b"", b"\n", b"x" * 10_001])
def test_secret_file_absent_empty_or_too_long_is_refused(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / SECRET
    if content is not None:
        file.write_bytes(content)
    for path in (file, tmp_path, Path("/nowhere") / ("x" * 5000)):
        error = refusal({"DB_PASSWORD_FILE": str(path)})
        assert error.field == "DB_PASSWORD_FILE"
        assert SECRET not in str(error)


def test_secret_file_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"hunter2\xff")
    rest = {name: value for name, value in PARTS.items() if name != "DB_PASSWORD"}
    error = refusal(rest | {"DB_PASSWORD_FILE": str(tmp_path / "secret")})
    assert error.field == "DB_PASSWORD"
    assert SECRET not in shown(error)


def example(line_start: str) -> dict[str, str]:
    return dict(re.findall(rf"^{line_start}([A-Z_]+)=(.*)$", EXAMPLE, re.MULTILINE))


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pem: Pem) -> None:
    """The file that `deploy/certificates` makes, and that the example names."""
    made = tmp_path / "deploy" / "tls"
    made.mkdir(parents=True)
    (made / "authority.pem").write_bytes(pem.cert.read_bytes())
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("authority")
def test_example_environment_is_the_original_one() -> None:
    settings = read(example(""))
    of_compose_alone = {"REDIS_ADMIN_PASSWORD": "adminpass"}
    assert settings.to_env() | example("") == settings.to_env() | of_compose_alone
    assert (settings.postgres.database, settings.postgres.user) == ("chatapp", "chatuser")
    assert (settings.postgres.password, settings.redis.password) == ("chatpass", "redispass")


@pytest.mark.usefixtures("authority")
def test_example_environment_names_every_variable_and_its_default() -> None:
    assert example("(?:# )?").keys() == VARIABLES | {"REDIS_ADMIN_PASSWORD"}  # the servers read it, not hubbub
    assert read(example("") | example("# ")) == read(example(""))


def test_compose_has_no_default_for_a_password_and_reads_what_hubbub_reads() -> None:
    compose = (ROOT / "compose.yaml").read_text()
    interpolated = dict(re.findall(r"(?<!\$)\$\{([A-Z_]+):([?-])", compose))
    assert interpolated == {"DB_NAME": "?", "DB_USER": "?", "DB_PORT": "-", "REDIS_PORT": "-"}
    assert re.findall(r"^    environment: (\w+)$", compose, re.MULTILINE) == [
        "DB_PASSWORD",
        "REDIS_PASSWORD",
        "REDIS_ADMIN_PASSWORD",
    ]
