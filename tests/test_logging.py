"""hubbub logs to loggers below `hubbub`, and only the application configures logging."""

from __future__ import annotations

import ast
import logging
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import hubbub

PACKAGE = Path(hubbub.__file__).parent
CONFIGURING = {
    "addHandler",
    "basicConfig",
    "captureWarnings",
    "dictConfig",
    "disable",
    "fileConfig",
    "removeHandler",
    "setLevel",
}
OF_A_TERMINAL = ("cli", "__main__.py")


@cache
def _calls() -> list[tuple[str, str, ast.Call]]:
    """Every call in the package, with its file and the name of the function."""
    calls = []
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                called = node.func
                name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
                calls.append((str(file.relative_to(PACKAGE)), name, node))
    return calls


def _documented() -> set[str]:
    table = (PACKAGE.parents[1] / "docs" / "reference" / "metrics.md").read_text().partition("## Logging")[2]
    return set(re.findall(r"^\| (`hubbub[\w.]*`)", table, re.MULTILINE))


def test_every_logger_is_below_hubbub_and_documented() -> None:
    names = []
    for file, name, call in _calls():
        if name == "getLogger":
            [argument] = call.args
            assert isinstance(argument, ast.Constant), f"{file}: a name that stands there can be found"
            names.append(str(argument.value))
    assert {f"`{name}`" for name in names} - {"`hubbub`"} == _documented()
    assert all(name == "hubbub" or name.startswith("hubbub.") for name in names)


def test_only_the_command_line_prints_or_configures_logging() -> None:
    found = {
        f"{file}: {name}"
        for file, name, _ in _calls()
        if not file.startswith(OF_A_TERMINAL) and name in CONFIGURING | {"print", "echo", "pprint", "secho"}
    }
    assert found == set()


def test_root_logger_is_not_used() -> None:
    levels = {"debug", "info", "warning", "error", "exception", "critical", "log"}
    found = {
        f"{file}: {ast.unparse(call.func)}"
        for file, name, call in _calls()
        if name in levels and isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "logging"
    }
    assert found == set()


IMPORTED = """
import logging, hubbub
root, own = logging.getLogger(), logging.getLogger("hubbub")
print(root.handlers, root.level, own.handlers, own.level, own.propagate)
"""


def test_import_does_not_configure_logging() -> None:
    said = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["[]", str(logging.WARNING), "[]", "0", "True"]
    assert said.stderr == ""
