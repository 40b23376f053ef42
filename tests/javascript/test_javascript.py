"""The unit tests of hubbub.js, run by Node.js."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from waiting import HANGS_AFTER_SECONDS

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "src" / "hubbub" / "web" / "client"


def test_unit_tests_of_the_client_pass() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed")
    run = subprocess.run(
        [node, "--test", f"--test-timeout={HANGS_AFTER_SECONDS * 1000}"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=2 * HANGS_AFTER_SECONDS,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "# fail 0" in run.stdout


def test_package_of_the_client_has_the_version_of_hubbub() -> None:
    package = json.loads((CLIENT / "package.json").read_text())
    assert package["version"] == version("hubbub")
    assert all((CLIENT / name).exists() for name in package["files"])


@pytest.mark.parametrize("document", ["client.md", "decisions.md"])
def test_size_of_the_client_is_as_documented(document: str) -> None:
    text = (ROOT / "docs" / document).read_text()
    stated = re.search(r"(\d+) KB, (\d+) KB\s+compressed", text)
    assert stated is not None
    content = (CLIENT / "hubbub.js").read_bytes()
    sizes = [round(len(content) / 1000), round(len(gzip.compress(content)) / 1000)]
    assert [int(size) for size in stated.groups()] == sizes
