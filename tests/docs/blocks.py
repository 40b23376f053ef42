"""The code blocks of a page, and functions that run each kind."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
from markdown_it import MarkdownIt

from hubbub.cli import main

ROOT = Path(__file__).parents[2]


TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


class Block(NamedTuple):
    language: str
    title: str | None
    """The name of the file whose content the block is."""
    code: str
    page: Path
    line: int

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page in order, including those in lists."""
    for token in MarkdownIt().parse(page.read_text()):
        if token.type == "fence":
            language, _, rest = token.info.strip().partition(" ")
            title = re.search(r'title="([^"]+)"', rest)
            assert token.map is not None
            yield Block(language, title and title[1], token.content, page, token.map[0] + 1)


async def run_python(block: Block, names: dict[str, Any]) -> None:
    """Run a fragment, which may await. It can use these names, and adds its own to them."""
    code = compile("\n" * block.line + block.code, block.page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, names)
    if inspect.iscoroutine(result):
        await result


async def run_shell(code: str, folder: Path, env: dict[str, str]) -> str:
    """Run the commands until one fails. Returns their output."""
    process = await asyncio.create_subprocess_exec(
        *("bash", "-euo", "pipefail", "-c", code),
        cwd=folder,
        env=env,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await process.communicate()
    assert process.returncode == 0, f"{code}\n{printed.decode()}"
    return printed.decode()


async def check_shell(block: Block) -> None:
    """Check commands that are not run: bash can parse them, and those of hubbub exist with their options."""
    process = await asyncio.create_subprocess_exec(
        "bash", "-n", "-c", block.code, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
    )
    _, refused = await process.communicate()
    assert process.returncode == 0, f"{block}: {refused.decode()}"
    for line in block.code.replace("\\\n", " ").splitlines():
        for command in re.split(r"\|\|?|&&|;", line):
            words = shlex.split(command, comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):
                words = words[1:]
            if words[:1] == ["hubbub"]:
                check_command(words[1:], f"{block}: {line}")
            if words[:1] == ["make"]:
                assert words[1] in TARGETS, f"{block}: {line}"


def check_command(words: list[str], where: str) -> None:
    command: click.Command = main
    context = click.Context(main, info_name="hubbub")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        assert found is not None, where
        command, words = found, words[1:]
        context = click.Context(command, parent=context, info_name=command.name)
    known = {option for parameter in command.params for option in parameter.opts} | {"--help", "-h"}
    given = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert given <= known, f"{where}: {given - known}"


def matches(printed: str, shown: str) -> bool:
    """Whether the output of a command is that on the page, in which `...` stands for any text."""
    pattern = re.escape(textwrap.dedent(shown).strip()).replace(r"\.\.\.", ".*?")
    return re.search(pattern, printed, re.DOTALL) is not None
