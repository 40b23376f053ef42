"""What `hubbub doctor` says of the way to servers that speak TLS."""

from __future__ import annotations

from dataclasses import replace

from cli._doctor.saying import meanings, of, severities
from hubbub.cli._doctor import postgresql as doctor
from hubbub.postgres import Pool
from tls.conftest import TlsPostgreSQL


async def test_a_verified_server_is_well(postgresql: TlsPostgreSQL) -> None:
    pool = Pool(postgresql.settings)
    section = await doctor.look(pool, postgresql.settings, 1)
    elsewhere = await doctor.look(pool, replace(postgresql.settings, host="db.example.org"), 1)
    await pool.close()
    for said in (section, elsewhere):
        assert of(said, "postgresql.tls").findings == ()
        assert of(said, "postgresql.tls").remark.startswith("TLSv1.")


async def test_a_server_elsewhere_whose_name_nobody_verified_is_told(postgresql: TlsPostgreSQL) -> None:
    pool = Pool(postgresql.settings)
    unverified = replace(postgresql.settings, host="db.example.org", sslmode="require")
    section = await doctor.look(pool, unverified, 1)
    await pool.close()
    assert severities(section, "postgresql.tls") == ["warning"]
    assert "DB_SSLMODE=verify-full" in meanings(section, "postgresql.tls")
