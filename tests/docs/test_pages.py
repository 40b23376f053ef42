"""Every block of code of README and docs is run, or checked and named below with the reason why it is not run.

One test per page runs its blocks in order, because later blocks use the results of earlier ones. A block with a
title is a file. A fragment in Python may await, and can use the names of `world` and those of its page.
"""

from __future__ import annotations

import ast
import asyncio
import atexit
import configparser
import functools
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import msgspec
import pytest
import sqlparse
import yaml  # type: ignore[import-untyped]
from fastapi import Depends, FastAPI, Request, Response
from litestar import Litestar
from prometheus_client import REGISTRY
from pydantic import BaseModel
from sqlalchemy import Column, Integer, Table, Uuid
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import registry
from sqlalchemy.pool import NullPool
from starlette.types import Scope

import hubbub
import hubbub.sync
from commands import execute
from docs.blocks import ROOT, Block, blocks, check_shell, pages, run_python, run_shell
from hubbub import Hub, PostgresSettings, Settings, web
from hubbub.postgres import connect
from rights import ROLE

Names = dict[str, Any]


class Enough(Exception):
    """Raised by a name of the page to end a loop that would not end by itself."""


def enough(*_: object, **__: object) -> Any:  # noqa: ANN401
    raise Enough


async def enough_soon(*_: object) -> Any:  # noqa: ANN401
    raise Enough


RUN_ELSEWHERE = {
    "README.md": {"python": "test_readme runs it, as a program"},
    "docs/tutorial.md": {"python": "test_tutorial", "sh": "test_tutorial", "html": "test_tutorial"},
    "docs/client.md": {"js": "tests/javascript"},
    "docs/protocol.md": {"json": "tests/web/test_protocol.py sends and compares them"},
    "docs/testing.md": {"python": "tests/test_pytest_hubbub.py has them in projects of their own"},
    "docs/migrations.md": {
        "python": "tests/migrations/test_beside_an_application.py",
        "sql": "tests/migrations/test_rows.py",
    },
}
"""Blocks that are run by other tests."""

NOT_RUN = {
    "README.md": {"sh": "test_tutorial runs these commands, in a virtual environment of its own"},
    "CONTRIBUTING.md": {"sh": "the targets of make, which take minutes"},
    "docs/howto/backup.md": {"sh": "tests/backup runs these commands"},
    "docs/howto/docker-compose.md": {"sh": "needs Docker; tests/tls runs the servers of compose.yaml without it"},
    "docs/howto/pgbouncer.md": {"sh": "needs a PgBouncer; `make pooled` runs the tests through one"},
    "docs/howto/systemd.md": {"sh": "needs systemd as the first process"},
    "docs/migrations.md": {"sh": "tests/cli/test_migrate.py runs each command; one here undoes all"},
    "docs/operations.md": {"sh": "tests/cli runs them; some serve until they are stopped"},
    "docs/performance.md": {"sh": "a measurement of twenty minutes"},
    "docs/production.md": {
        "sh": "their roles and passwords are an example; tests/cli/test_migrate.py runs them",
    },
    "docs/scale.md": {"sh": "the addresses of servers; tests/citus runs `hubbub distribute`"},
    "docs/testing.md": {"sh": "tests/test_pytest_hubbub.py runs such a project in this environment"},
    "docs/tour.md": {"js": "fragments of examples/chat, which tests/browser runs"},
    "docs/web.md": {
        "sh": "serves until it is stopped",
        "python import hubbub.sync": "its feed goes on for ever; tests/test_sync.py has each operation",
    },
}
"""Blocks that are only checked: shell by bash and against the options of `hubbub`, JavaScript by Node.js."""


class World:
    """The names for the fragments of all pages: a hub, two users, and a room with both."""

    def __init__(self, hub: Hub, settings: Settings, owner: PostgresSettings, folder: Path) -> None:
        self.hub = hub
        self.settings = settings
        self.owner = owner
        self.folder = folder

    async def names(self) -> Names:
        hub = self.hub
        ada = await hub.register("ada@example.org", "ada", "correct horse")
        bob = await hub.register("bob@example.org", "bob", "battery staple")
        room = await hub.rooms.create("lounge", created_by=ada.id)
        return {
            "hub": hub,
            "hubbub": hubbub,
            "ada": ada,
            "bob": bob,
            "room": room,
            "room_id": room.id,
            "ada_id": ada.id,
            "user_id": ada.id,
            "asyncio": asyncio,
            "logging": logging,
            "msgspec": msgspec,
            "UUID": UUID,
        }


async def with_members(world: World, names: Names) -> Names:
    carol = await world.hub.users.upsert(external_id="carol", username="carol")
    for member in (names["bob"], carol):
        await world.hub.room_users.add(names["room_id"], member.id)
    return {"carol": carol}


async def orders(world: World, names: Names) -> Names:
    """Tables of an application, and its connections."""
    await execute(
        world.owner,
        "CREATE SCHEMA shop",
        "CREATE TABLE shop.orders (id serial PRIMARY KEY, message_id uuid, price int, paid_at timestamptz)",
        *granted("shop"),
    )
    mapper = registry()
    table = Table(
        *("orders", mapper.metadata, Column("id", Integer, primary_key=True), Column("message_id", Uuid)),
        schema="shop",
    )

    @mapper.mapped
    class Order:
        __table__ = table

        def __init__(self, message_id: UUID) -> None:
            self.message_id = message_id

    url = world.settings.to_urls()["DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://")
    engine = create_async_engine(url.partition("?")[0], poolclass=NullPool)
    connection = await connect(world.settings.postgres)
    return {"AsyncSession": AsyncSession, "engine": engine, "Order": Order, "price": 3, "connection": connection}


def granted(schema: str) -> list[str]:
    role = '"' + ROLE.replace('"', '""') + '"'
    return [
        f"GRANT USAGE ON SCHEMA {schema} TO {role}",
        f"GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {role}",
        f"GRANT ALL ON ALL SEQUENCES IN SCHEMA {schema} TO {role}",
    ]


async def of_changes(world: World, names: Names) -> Names:
    await world.hub.messages.send(names["room_id"], names["ada"].id, "hello")
    return {"index": enough_soon, "save": enough_soon, "position": None}


class Brief:
    """A hub whose feeds end after an event."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    @asynccontextmanager
    async def follow(self, *args: Any, **options: Any) -> AsyncIterator[Brief]:  # noqa: ANN401
        async with self._hub.follow(*args, **options) as feed:
            self.cursors = feed.cursors
            self._event = await anext(feed)
            yield self

    async def __aiter__(self) -> AsyncIterator[object]:
        yield self._event


async def of_log(world: World, names: Names) -> Names:
    await world.hub.messages.send(names["room_id"], names["ada"].id, "hello")

    return {"cursors": {names["room_id"]: None}, "hub": Brief(world.hub)}


async def of_tour(world: World, names: Names) -> Names:
    async def send(event: object) -> None:
        if isinstance(event, hubbub.MessageSent):
            raise Enough

    await world.hub.messages.send(names["room_id"], names["ada"].id, "hello")
    token = await world.hub.sessions.create_session(names["ada"].id)
    return {
        "FastAPI": FastAPI,
        "web": web,
        "asynccontextmanager": asynccontextmanager,
        "send": send,
        "token": token,
        "cursors": {names["room_id"]: None},
    }


async def of_permissions(_: World, names: Names) -> Names:
    return {
        "session": await names["hub"].sessions.get_session(
            await names["hub"].sessions.create_session(names["ada"].id)
        )
    }


class Login(BaseModel):
    name: str
    password: str


async def of_frameworks(world: World, names: Names) -> Names:
    class Elsewhere:
        connect = staticmethod(enough)

    return {
        "app": FastAPI(),
        "FastAPI": FastAPI,
        "Litestar": Litestar,
        "web": web,
        "Request": Request,
        "Response": Response,
        "Scope": Scope,
        "Annotated": Annotated,
        "Depends": Depends,
        "Login": Login,
        "RateLimited": hubbub.RateLimited,
        "functools": functools,
        "atexit": atexit,
        "threading": threading,
        "client": Elsewhere,
        "lifespan": None,
        "token": "",
        "stored": {},
        "operators_hub": world.hub,
        "ADMINS": {names["ada"].id},
    }


AFTERWARDS = {
    "docs/howto/own-schema.md": granted("old"),
    "docs/howto/backup.md": ["DROP OWNED BY chat_backup", "DROP ROLE chat_backup"],
    "docs/production.md": ["DROP DATABASE chatapp", "DROP ROLE chat_owner", "DROP ROLE chat"],
}
"""Statements that undo the SQL of a page, because all tests share the roles and databases of the server."""


CONTEXTS: dict[str, Callable[[World, Names], Awaitable[Names]]] = {
    "docs/changes.md": of_changes,
    "docs/log.md": of_log,
    "docs/tour.md": of_tour,
    "docs/permissions.md": of_permissions,
    "docs/transactions.md": orders,
    "docs/web.md": of_frameworks,
    "docs/operations.md": of_frameworks,
    "docs/howto/moderation.md": with_members,
    "docs/howto/push.md": with_members,
    "docs/howto/outages.md": with_members,
}


WITHOUT_AN_EVENT_LOOP = {"docs/howto/flask.md"}
"""Pages about blocking programs."""


@pytest.fixture
def folder(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder of a reader. Modules are imported from it, and the settings are in the environment."""
    for name, value in settings.to_env().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before, collectors = set(sys.modules), set(REGISTRY._collector_to_names)
    yield tmp_path
    for collector in set(REGISTRY._collector_to_names) - collectors:
        REGISTRY.unregister(collector)
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(tmp_path):
            del sys.modules[name]


def first_line(block: Block) -> str:
    return block.code.partition("\n")[0]


def kinds(page: Path) -> set[str]:
    """The languages of the blocks of a page, alone and with the first line of each block."""
    return {kind for block in blocks(page) for kind in (block.language, f"{block.language} {first_line(block)}")}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


WITH_CODE = [page for page in pages() if kinds(page)]


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
async def test_blocks_of_a_page_run(
    page: Path,
    hub: Hub,
    settings: Settings,
    postgres_settings: PostgresSettings,
    administrator: PostgresSettings,
    folder: Path,
) -> None:
    world = World(hub, settings, postgres_settings, folder)
    excused = {**RUN_ELSEWHERE.get(name_of(page), {}), **NOT_RUN.get(name_of(page), {})}
    owner = replace(settings, postgres=postgres_settings)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**settings.to_env(), "PATH": path, "HOME": str(folder)}
    names: Names = {}
    for block in blocks(page):
        if block.title is not None:
            (folder / block.title).write_text(block.code)
        if block.language in {"text", "mermaid", "dockerfile", "html"}:
            continue
        if block.language == "python" and block.title is not None:
            compile(block.code, str(block), "exec")
        elif block.language == "python" and ("python" in excused or f"python {first_line(block)}" in excused):
            compile(block.code, str(block), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        elif block.language == "python":
            if not names:
                names = await world.names()
                if (context := CONTEXTS.get(name_of(page))) is not None:
                    names |= await context(world, names)
            if "asyncio.run(" in block.code:
                (folder / "program.py").write_text(block.code)
                await run_shell("python program.py", folder, environment)
                continue
            with suppress(Enough):
                if name_of(page) in WITHOUT_AN_EVENT_LOOP:
                    await asyncio.to_thread(exec, compile(block.code, str(block), "exec"), names)
                else:
                    await run_python(block, names)
        elif block.language == "sh":
            await check_shell(block)
            if "sh" not in excused:
                await run_shell(block.code, folder, environment | owner.to_env())
        elif block.language == "sql":
            if "sql" not in excused:
                statements = [*sqlparse.split(block.code), *AFTERWARDS[name_of(page)]]
                statements = [one.replace("chatapp", "chatapp_of_page") for one in statements]  # chatapp exists
                await execute(replace(administrator, database=postgres_settings.database), *statements)
        elif block.language == "js":
            check_javascript(block)
        else:
            check_data(block)
    if (connection := names.get("connection")) is not None:
        await connection.close()


def check_javascript(block: Block) -> None:
    node = shutil.which("node")
    if node is not None:
        checked = subprocess.run(
            [node, "--input-type=module", "--check"], input=block.code, text=True, capture_output=True, check=False
        )
        assert checked.returncode == 0, checked.stderr


def check_data(block: Block) -> None:
    match block.language:
        case "json":
            decoder, rest = json.JSONDecoder(), block.code.strip()
            while rest:  # several values may follow each other
                _, end = decoder.raw_decode(rest)
                rest = rest[end:].strip()
        case "yaml":
            assert [document for document in yaml.safe_load_all(block.code) if document], str(block)
        case "toml":
            tomllib.loads(block.code)
        case "ini":
            parser = configparser.ConfigParser(strict=False, interpolation=None)
            parser.optionxform = str  # type: ignore[assignment, method-assign]
            parser.read_string(block.code)
            assert parser.sections(), str(block)
        case _:
            pytest.fail(f"{block} has no language that is known, but {block.language!r}")


@pytest.mark.parametrize("name", ["docs/howto/flask.md", "docs/howto/django.md"])
def test_threads_that_open_the_hub_of_a_page_at_once_get_one(name: str, folder: Path) -> None:
    [code] = [block.code for block in blocks(ROOT / name) if "hubbub.sync.Hub().start()" in block.code]
    names: Names = {"hubbub": hubbub, "functools": functools, "atexit": atexit, "threading": threading}
    names["__name__"] = "app"
    exec(code, names)
    open_hub = names.get("hub") or names["chat"]
    barrier = threading.Barrier(8)

    def ask(_: int) -> object:
        barrier.wait()
        return open_hub()

    with ThreadPoolExecutor(8) as threads:
        hubs = set(threads.map(ask, range(8)))
    for opened in hubs:
        opened.close()  # type: ignore[attr-defined]
    assert len(hubs) == 1


DJANGO = """
import django
from django.conf import settings

settings.configure(INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"])
django.setup()

import sys

import views
from django.contrib.auth.models import User
from django.test import RequestFactory

request = RequestFactory().get("/")
request.user = User(pk=7)
print(views.messages(request, sys.argv[1]).content.decode())
"""


async def test_view_of_the_page_of_django_answers_a_user_who_is_logged_in(
    hub: Hub, settings: Settings, folder: Path
) -> None:
    for block in blocks(ROOT / "docs/howto/django.md"):
        if block.title is not None:
            (folder / block.title).write_text(block.code)
    (folder / "program.py").write_text(DJANGO)
    user = await hub.users.upsert(external_id=7, username="django-7")
    room = await hub.rooms.create("lounge", created_by=user.id)
    await hub.messages.send(room.id, user.id, "hello")
    environment = {**settings.to_env(), "PATH": os.environ["PATH"], "HOME": str(folder)}
    printed = await run_shell(f"{sys.executable} program.py {room.id}", folder, environment)
    assert json.loads(printed)["items"][-1]["content"] == "hello"


def test_every_listed_exception_has_a_block() -> None:
    for excuses in (RUN_ELSEWHERE, NOT_RUN):
        for page, languages in excuses.items():
            assert languages.keys() <= kinds(ROOT / page), page
