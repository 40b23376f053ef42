"""Refused values, and the names in their errors."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hubbub.errors import Invalid
from settings.reading import PARTS, read, refusal


@pytest.mark.parametrize(
    ("variable", "values"),
    [
        ("DB_HOST", ["a b", "a\n", "a\0", "a,", "/run/postgresql", "a..b", "x" * 64, "user@h", "h:5432", "é"]),
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
        ("REDIS_PREFIX", ["{a}", "a b", "*", "x" * 65]),
        ("DB_PREPARED_STATEMENTS", ["maybe", "2"]),
        ("DB_DURABLE_SESSIONS", ["maybe", "2"]),
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
def test_unusable_value_is_refused_by_name_of_its_variable(variable: str, values: list[str]) -> None:
    for value in values:
        assert refusal(PARTS | {variable: value}).field == variable, value


def test_settings_in_code_are_refused_by_the_same_names() -> None:
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
