"""The reference has every public name, every part of a hub, and every setting with its default and range."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType

import pytest

import hubbub
from hubbub import Hub, PostgresSettings, RedisSettings, web
from hubbub.migrations.revisions import REVISIONS
from hubbub.settings.variables import POSTGRES, REDIS, VARIABLES, Variables

REFERENCE = Path(__file__).parents[2] / "docs/reference"
OBJECTS = re.findall(
    r"^::: ([\w.]+)$", "\n".join(path.read_text() for path in REFERENCE.glob("*.md")), re.MULTILINE
)
WHOLE_MODULES = {"hubbub.models", "hubbub.events", "hubbub.errors"}
ALIASES = {"FeedEvent", "LogEvent"}  # unions of events, which the page of the events lists
FUNCTIONS_OF_OTHERS = {"new_id"}  # from uuid-utils


@pytest.mark.parametrize("module", [hubbub, web], ids=lambda module: module.__name__)
def test_reference_has_every_public_name(module: ModuleType) -> None:
    documented = {id(resolve_name(name)) for name in OBJECTS}
    missing = {
        name
        for name in set(module.__all__) - ALIASES - FUNCTIONS_OF_OTHERS
        if getattr(getattr(module, name), "__module__", None) not in WHOLE_MODULES
        and callable(getattr(module, name))
        and id(getattr(module, name)) not in documented
    }
    assert missing == set()


def test_index_of_the_reference_has_every_part_of_a_hub() -> None:
    parts = {name for name in dir(Hub) if isinstance(getattr(Hub, name), property)} - {"settings"}
    listed = set(re.findall(r"^\| \[`hub\.(\w+)`\]", (REFERENCE / "index.md").read_text(), re.MULTILINE))
    assert parts <= listed


def rows() -> dict[str, list[str]]:
    lines = re.findall(r"^\| `(\w+)` \|(.*)\|$", (REFERENCE / "settings.md").read_text(), re.MULTILINE)
    return {name: [cell.strip() for cell in rest.split(" | ")] for name, rest in lines}


def test_settings_page_has_every_variable() -> None:
    assert rows().keys() == VARIABLES


@pytest.mark.parametrize(("kind", "variables"), [(PostgresSettings, POSTGRES), (RedisSettings, REDIS)])
def test_settings_page_has_the_defaults_of_the_code(
    kind: type[PostgresSettings | RedisSettings], variables: Variables
) -> None:
    defaults = {attribute.name: attribute.default for attribute in fields(kind)}
    for name, variable in variables.items():
        default = defaults[variable.attribute]
        written = "required" if default is MISSING else "" if default is None else str(default)
        written = written.lower() if isinstance(default, bool) else written
        assert rows()[name][0] == written, name


@pytest.mark.parametrize(("variables"), [POSTGRES, REDIS], ids=["postgresql", "redis"])
def test_settings_page_has_the_ranges_of_the_code(variables: Variables) -> None:
    for name, variable in variables.items():
        if (found := re.fullmatch(r"(\d+) to (\d+)", rows()[name][1])) is not None:
            assert variable.check(int(found[1])) is None, name
            assert variable.check(int(found[2])) is None, name
            assert variable.check(int(found[2]) + 1) is not None, name


def test_page_of_migrations_has_the_effects_of_every_revision() -> None:
    page = (REFERENCE.parent / "migrations.md").read_text()
    spans = re.findall(r"^\| (\d{4})(?: to (\d{4}))?", page, re.MULTILINE)
    listed = [number for first, last in spans for number in range(int(first), int(last or first) + 1)]
    assert [f"{number:04}" for number in listed] == list(REVISIONS)
