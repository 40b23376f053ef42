"""Build the site: collect the pages, generate pages from the code, and run Zensical on them.

The site is in `.venv/docs/site`. Pages are Markdown that also reads well in the repository, so a link may lead to
a source file. Such a file becomes a page of the site, which thus works without the repository.
"""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from hubbub.cli import main

ROOT: Final = Path(__file__).parents[1]
BUILT: Final = ROOT / ".venv/docs"
PAGES: Final = BUILT / "pages"
SITE: Final = BUILT / "site"

MERMAID: Final = "12.3.0"
"""The version of the npm package `mermaid`, which draws the diagrams. Zensical would load it from another host."""

_LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
_CODE = re.compile(r"^(```.*?^```)", re.DOTALL | re.MULTILINE)
_IMAGES: Final = {".svg", ".png", ".jpg"}
_LANGUAGES: Final = {
    ".py": "python",
    ".js": "js",
    ".ts": "ts",
    ".sql": "sql",
    ".json": "json",
    ".yaml": "yaml",
    ".html": "html",
    ".css": "css",
    ".toml": "toml",
    ".ini": "ini",
    ".conf": "ini",
    ".service": "ini",
    "": "sh",
}


def build() -> None:
    """Raises: CalledProcessError (such as for a broken link), FileNotFoundError (a link, or npm)."""
    shutil.rmtree(PAGES, ignore_errors=True)
    PAGES.mkdir(parents=True)
    pages = {ROOT / "README.md": "index.md"}
    pages |= {path: f"{path.stem.lower()}.md" for path in ROOT.glob("*.md") if path not in pages}
    pages |= {path: path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    generated = {"reference/commands.md": commands(), "reference/statements.md": statements()}
    collected = Collected(pages, {ROOT / "docs" / name: name for name in generated})
    while collected.waiting:
        collected.stage(collected.waiting.pop())
    for name, parts in generated.items():
        (PAGES / name).write_text("".join(parts))
    (PAGES / "assets").mkdir(exist_ok=True)
    shutil.copy(diagrams(), PAGES / "assets/mermaid.min.js")
    zensical = Path(sys.executable).with_name("zensical")
    subprocess.run([zensical, "build", "--clean", "--strict"], cwd=ROOT, check=True)


class Collected:
    """The files that are pages or pictures of the site, with their paths in it."""

    def __init__(self, pages: dict[Path, str], generated: dict[Path, str]) -> None:
        self.places = pages | generated
        self.waiting = list(pages)

    def place(self, path: Path) -> str:
        """The path of this file or folder in the site.

        Raises: FileNotFoundError.
        """
        if path not in self.places:
            if not path.exists():
                raise FileNotFoundError(path)
            name = path.relative_to(ROOT).as_posix()
            self.places[path] = name if path.suffix in _IMAGES else f"sources/{name.lstrip('.')}.md"
            self.waiting.append(path)
        return self.places[path]

    def stage(self, path: Path) -> None:
        """Write one page or picture of the site."""
        target = PAGES / self.place(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in _IMAGES:
            shutil.copy(path, target)
        elif path.suffix == ".md":
            target.write_text(self._page(path))
        else:
            target.write_text(self._source(path))

    def _page(self, path: Path) -> str:
        # The odd parts are code blocks, which have no links.
        parts = _CODE.split(path.read_text())
        parts[::2] = [_LINK.sub(lambda link: self._link(path, link), part) for part in parts[::2]]
        # A word after the language is for the tests.
        text = re.sub(r"^```(\w+) (?:client|server)$", r"```\1", "".join(parts), flags=re.MULTILINE)
        if "```mermaid" in text:
            up = "../" * (self.place(path).count("/") + (path.name != "README.md"))
            text += f'\n<script src="{up}assets/mermaid.min.js"></script>\n'
        return text

    def _link(self, path: Path, link: re.Match[str]) -> str:
        if "://" in link[2] or link[2].startswith("mailto:"):
            return link[0]
        place = self.place((path.parent / link[2]).resolve())
        depth = self.place(path).count("/")
        return f"{link[1]}{'../' * depth}{place}{link[3]}"

    def _source(self, path: Path) -> str:
        title = f"# {path.relative_to(ROOT)}\n\n"
        if path.is_dir():
            files = [file for file in sorted(path.iterdir()) if not file.name.startswith(("_", "."))]
            files = [file for file in files if file.is_dir() or file.suffix in _LANGUAGES.keys() | {".md"}]
            up = "../" * self.place(path).count("/")
            return title + "\n".join(f"- [{file.name}]({up}{self.place(file)})" for file in files) + "\n"
        return f"{title}~~~{_LANGUAGES.get(path.suffix, 'text')}\n{path.read_text()}~~~\n"


def commands() -> Iterator[str]:
    """The page of the commands, from the output of `--help`."""
    yield "# Commands\n\nAs `--help` prints it.\n"
    yield from _helps(main, click.Context(main, info_name="hubbub", max_content_width=100))


def _helps(command: click.Command, context: click.Context) -> Iterator[str]:
    yield f"\n## {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            if (part := command.get_command(context, name)) is not None and not part.hidden:
                yield from _helps(part, click.Context(part, parent=context, info_name=name))


def statements() -> Iterator[str]:
    """The page of the SQL, with the names under which instrumentation reports it."""
    sys.path.insert(0, str(ROOT / "tests"))  # sql.package finds every statement
    from sql.package import statements as by_name  # noqa: PLC0415

    yield "# SQL statements\n\nEach has the name under which [metrics and traces](metrics.md) report it. "
    yield "`current_schema()` and the tables get the schema of `DB_SCHEMA`.\n"
    for name, statement in sorted(by_name().items()):
        yield f"\n## {name}\n\n```sql\n{inspect.cleandoc(statement.sql)}\n```\n"


def diagrams() -> Path:
    """The script that draws the diagrams, fetched once.

    Raises: FileNotFoundError (there is no npm), CalledProcessError.
    """
    folder = BUILT / f"mermaid-{MERMAID}"
    script = folder / "package/dist/mermaid.min.js"
    if not script.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pack = ["npm", "pack", "--silent", f"mermaid@{MERMAID}"]
        packed = subprocess.run(pack, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
        with tarfile.open(folder / packed) as package:
            package.extract("package/dist/mermaid.min.js", folder, filter="data")
        (folder / packed).unlink()
    return script


if __name__ == "__main__":
    build()
