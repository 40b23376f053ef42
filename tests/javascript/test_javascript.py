"""The unit tests of hubbub.js, run by Node.js."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "src" / "hubbub" / "web" / "client"


def test_unit_tests_of_the_client_pass() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed")
    run = subprocess.run(
        [node, "--test"], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=100, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "# fail 0" in run.stdout


def test_package_of_the_client_has_the_version_of_hubbub() -> None:
    package = json.loads((CLIENT / "package.json").read_text())
    assert package["version"] == version("hubbub")
    assert all((CLIENT / name).exists() for name in package["files"])
