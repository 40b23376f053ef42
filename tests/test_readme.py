"""The examples of the README and of the tour run as programs, and print the output on the pages."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hubbub import Settings

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PRINTED = {
    "README.md": ["a retry gives the same message: True", "member_joined message_sent"],
    "docs/tour.md": [
        "a retry gives the same message: True",
        "engine-room: 1 unread",
        "unread now: 0",
        "bob receives: MessageEdited",
        "online: True",
        "typing: True",
    ],
}


@pytest.mark.parametrize("page", PRINTED)
def test_example_runs_and_prints_its_output(page: str, settings: Settings, tmp_path: Path) -> None:
    programs = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    [program] = [code for code in programs if "asyncio.run(" in code]
    script = tmp_path / "example.py"
    script.write_text(program)
    ran = subprocess.run(
        [sys.executable, "-W", "error", script],
        env={**settings.to_env(), "PATH": "", "PYTHONDEVMODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == PRINTED[page]


def test_example_of_the_readme_is_short() -> None:
    [program] = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len([line for line in program.splitlines() if line.strip()]) <= 15
    assert len(README.read_text().splitlines()) < 120


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", README.read_text()))))
def test_link_names_an_existing_file(link: str) -> None:
    assert (README.parent / link).exists()
