"""The findings of `hubbub doctor` about connections with TLS."""

from __future__ import annotations

from dataclasses import replace

from diagnostics.sections import meanings, result_of, severities
from hubbub.diagnostics import postgresql as doctor
from hubbub.postgres import Pool
from tls.conftest import TlsPostgreSQL


async def test_verified_server_has_no_finding(postgresql: TlsPostgreSQL) -> None:
    pool = Pool(postgresql.settings)
    section = await doctor.check(pool, postgresql.settings, 1)
    elsewhere = await doctor.check(pool, replace(postgresql.settings, host="db.example.org"), 1)
    await pool.close()
    for said in (section, elsewhere):
        assert result_of(said, "postgresql.tls").findings == ()
        assert result_of(said, "postgresql.tls").summary.startswith("TLSv1.")


async def test_remote_server_without_verified_name_is_a_warning(postgresql: TlsPostgreSQL) -> None:
    pool = Pool(postgresql.settings)
    unverified = replace(postgresql.settings, host="db.example.org", sslmode="require")
    section = await doctor.check(pool, unverified, 1)
    await pool.close()
    assert severities(section, "postgresql.tls") == ["warning"]
    assert "DB_SSLMODE=verify-full" in meanings(section, "postgresql.tls")
