"""Finds every statement of the package, and every call that runs a statement."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import hubbub
from hubbub.postgres import Statement


def modules() -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(hubbub.__path__, "hubbub."):
        if found.name != "hubbub.__main__":
            yield importlib.import_module(found.name)


@cache
def statements() -> dict[str, Statement[Any]]:
    """Every `Statement` in a module or a class of the package, by name."""
    found: dict[int, Statement[Any]] = {}
    for module in modules():
        owners = [module, *(value for value in vars(module).values() if inspect.isclass(value))]
        for owner in owners:
            for value in vars(owner).values():
                if isinstance(value, Statement):
                    found[id(value)] = value
    by_name = {statement.name: statement for statement in found.values()}
    assert len(by_name) == len(found), "two statements have one name"
    return by_name


class Call(NamedTuple):
    """A call whose first argument is a statement, and the number of arguments after it."""

    statement: Statement[Any]
    arguments: int
    where: str


@cache
def calls() -> list[Call]:
    return [call for module in modules() for call in _calls_in(module)]


def _calls_in(module: ModuleType) -> Iterator[Call]:
    source = Path(module.__file__ or "").read_text()
    for owner in ast.walk(ast.parse(source)):
        names = vars(module)
        if isinstance(owner, ast.ClassDef):
            names = vars(getattr(module, owner.name))
        elif not isinstance(owner, ast.Module):
            continue
        for node in ast.walk(owner):
            if isinstance(node, ast.Call) and node.args:
                statement = names.get(_name(node.args[0]))
                if isinstance(statement, Statement):
                    yield Call(statement, len(node.args) - 1, f"{module.__name__}:{node.lineno}")


def _name(argument: ast.expr) -> str:
    if isinstance(argument, ast.Attribute):  # self._GET
        return argument.attr
    return argument.id if isinstance(argument, ast.Name) else ""
