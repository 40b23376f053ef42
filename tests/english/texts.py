"""The prose of the project, as `(line, text)`.

In the package: docstrings, comments, and strings of four words and more, which are messages, help and labels. In
tests, benchmarks and examples: docstrings and comments, because strings there are mostly data. In JavaScript and
its types: comments. In Markdown: everything except code blocks.
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
# Strings and escapes come first, so that `//` in a URL and `\/` in a regular expression begin no comment.
_JAVASCRIPT = re.compile(
    r"""\\.|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`|(?P<comment>//[^\n]*|/\*.*?\*/)""", re.DOTALL
)
_DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_SQL = re.compile(r"\b(?:SELECT|INSERT|UPDATE|DELETE|CREATE|ALTER|WITH|BEGIN|GRANT|redis\.call)\b")


def documents() -> list[Path]:
    """The pages that people read."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def sources(*folders: str) -> list[Path]:
    """The Python files in these folders of the project."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def scripts(*folders: str) -> list[Path]:
    """The JavaScript files in these folders of the project, and their types."""
    files = (path for folder in folders for path in (ROOT / folder).rglob("*.*s"))
    return sorted(path for path in files if path.suffix in {".js", ".ts"})


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Each paragraph, docstring, message or comment, with the number of its first line."""
    source = path.read_text()
    if path.suffix == ".md":
        yield from _of_markdown(source)
    elif path.suffix == ".py":
        yield from _comments(source)
        yield from _strings(source) if path.is_relative_to(ROOT / "src") else _docstrings(source)
    else:
        yield from of_javascript(source)


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


def of_javascript(source: str) -> Iterator[tuple[int, str]]:
    """The comments. Lines with nothing but a comment that follow each other are one text."""
    first, last, comment = 0, -1, ""
    for match in _JAVASCRIPT.finditer(source):
        if match["comment"] is None:
            continue
        line = source.count("\n", 0, match.start()) + 1
        is_alone = not source[: match.start()].rpartition("\n")[2].strip()
        if comment and not (line == last + 1 and is_alone and match[0].startswith("//")):
            yield first, comment
            comment = ""
        words = [part.strip().strip("/*!").strip() for part in match[0].splitlines()]
        first = first if comment else line
        last, comment = line, " ".join([comment, *words]).strip()
    if comment:
        yield first, comment


def _strings(source: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = node.value.split()
            if len(words) > 3 and not _SQL.search(node.value):
                yield node.lineno, " ".join(words)


def _docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Docstrings, including those below assignments."""
    for node in ast.walk(ast.parse(source)):
        for statement in getattr(node, "body", []) if isinstance(node, _DOCUMENTED) else []:
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                text = statement.value.value
                if isinstance(text, str):
                    yield statement.lineno, " ".join(text.split())


def _comments(source: str) -> Iterator[tuple[int, str]]:
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
