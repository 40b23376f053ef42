"""The functions of functions.sql, which a database with distributed rooms has.

The name of a function in the database ends with a digest of its definition. Two versions of hubbub therefore use
separate functions, and no function is replaced.
"""

from __future__ import annotations

import re
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

FILE: Final = Path(__file__).with_name("functions.sql")

DIGITS: Final = 8
"""Of the digest, in the name."""

_DEFINITION: Final = re.compile(
    r"^CREATE OR REPLACE FUNCTION (?P<name>hubbub_\w+)(?P<rest>\(.*?^\$\$);$", re.DOTALL | re.MULTILINE
)
_CALL: Final = re.compile(r"\bhubbub_\w+(?=\()")


class Function(NamedTuple):
    """A function: its name in the database, and the rest of its definition, from the parameters on."""

    name: str
    definition: str


@cache
def functions() -> dict[str, Function]:
    """All functions, by the names that statements call them by."""
    found: dict[str, Function] = {}
    for made in _DEFINITION.finditer(FILE.read_text(encoding="utf-8")):
        digest = sha256(made["rest"].encode()).hexdigest()[:DIGITS]
        found[made["name"]] = Function(f"{made['name']}_{digest}", made["rest"])
    return found


def with_names_in_database(sql: str) -> str:
    """The SQL of a statement, with the names that its functions have in the database."""
    return _CALL.sub(lambda call: functions()[call[0]].name, sql)
