"""The example of the README runs and prints what the README claims."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hubbub import Settings

README = Path(__file__).parents[1] / "README.md"


def example() -> str:
    [code] = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    return str(code)


def test_example_runs_and_prints_its_output(settings: Settings, tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(example())
    ran = subprocess.run(
        [sys.executable, "-W", "error", script],
        env={**settings.to_env(), "PATH": "", "PYTHONDEVMODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [
        "a retry gives the same message: True",
        "engine-room: 1 unread",
        "unread now: 0",
        "bob receives: MessageEdited",
        "online: True",
        "typing: True",
    ]


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", README.read_text()))))
def test_link_names_an_existing_file(link: str) -> None:
    assert (README.parent / link).exists()
