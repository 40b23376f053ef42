"""The prose of the project, as `(line, text)`.

In Python: docstrings, comments, and string literals of four words and more, which are messages, help and labels.
In Markdown: all but blocks of code.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
_CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_SQL = re.compile(r"\b(?:SELECT|INSERT|UPDATE|DELETE|CREATE|ALTER|WITH|BEGIN|GRANT|redis\.call)\b")


def documents() -> list[Path]:
    """The pages that people read."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def sources(*folders: str) -> list[Path]:
    """The Python files in these folders of the project."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Each paragraph, docstring or comment, with the number of its first line."""
    source = path.read_text()
    yield from _of_markdown(source) if path.suffix == ".md" else _of_python(source)


def _of_markdown(source: str) -> Iterator[tuple[int, str]]:
    # The lines of a block of code stay, empty, so that those after it keep their numbers.
    text = _CODE.sub(lambda block: "\n" * block[0].count("\n"), source)
    first, paragraph = 1, ""
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if line.strip():
            first = first if paragraph else number
            paragraph += f"{line.strip()} "
        elif paragraph:
            yield first, paragraph.strip()
            paragraph = ""


def _of_python(source: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = node.value.split()
            if len(words) > 3 and not _SQL.search(node.value):
                yield node.lineno, " ".join(words)
    # Lines of comments that follow each other are one text.
    first, last, comment = 0, -1, ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        number, text = token.start[0], token.string.lstrip("#: ")
        if number != last + 1 and comment:
            yield first, comment
            comment = ""
        first = first if comment else number
        last, comment = number, f"{comment} {text}".strip()
    if comment:
        yield first, comment
