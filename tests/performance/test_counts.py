"""The cost of an operation does not grow unnoticed: no count exceeds that in counts.json.

Counts are the same on every machine. Buffers depend on the version of PostgreSQL and allocations on that of
Python, so they are only compared on the versions in the file. After a change that is worth its cost, run
`COUNTS=record make test ARGS=tests/performance/test_counts.py`, and commit counts.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hubbub import PostgresSettings, Settings

RECORDED = Path(__file__).parent / "counts.json"
PROGRAM = Path(__file__).parent / "counting.py"
SLACK = {"allocated": 1.15, "buffers": 1.1}
"""Tolerances: memory depends on the length of paths and addresses, and a table may have one more block."""


@pytest.mark.counts_pages
def test_operations_take_no_more_than_recorded(servers: Settings, postgres_settings: PostgresSettings) -> None:
    owner = replace(servers, postgres=postgres_settings)
    ran = subprocess.run(
        [sys.executable, PROGRAM],
        env=owner.to_env() | {"PATH": "", "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    if os.environ.get("COUNTS") == "record":
        RECORDED.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    compared = {"statements", "commands"}
    compared |= {"buffers"} if recorded["postgresql"] == found["postgresql"] else set()
    compared |= {"allocated"} if recorded["python"] == found["python"] else set()
    before, now = recorded["operations"], found["operations"]
    assert now.keys() == before.keys()
    grown = {
        f"{operation}: {name}": (before[operation][name], number)
        for operation, counts in now.items()
        for name, number in counts.items()
        if name in compared and number > before[operation][name] * SLACK.get(name, 1)
    }
    assert not grown, f"{grown} (recorded, now): the docstring of this file says how to record anew"
