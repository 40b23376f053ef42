"""Habits that make English hard to read for a stranger, counted per 1,000 words."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from english.texts import ROOT, documents, of_javascript, prose, scripts, sources

_VERB = r"(?:is|are|was|were|has|have|had|does|do|did|can|cannot|may|must|will|came|went|left|wants?|\w+s)"
# "Who comes then waits", "what is refused costs nothing": name the subject. Questions are left alone.
BARE_SUBJECT = re.compile(rf"(?:^|[.;:,(] ?)(?:who|whoever|what) {_VERB} [^.;?]*(?:[.;?]|$)", re.IGNORECASE)
# "Nobody is told": say which caller, client, process or row.
INDEFINITE_PERSON = re.compile(r"\b(?:no|some|any|every)body\b|\bwhoever\b", re.IGNORECASE)
# "The index says which", "a process knows the seq": things have, return, report, store. Only people speak.
_PERSONS = ("user", "caller", "client", "operator", "member", "reader", "author", "she", "he")
SPEAKING_THING = re.compile(
    "".join(rf"(?<!\b{person} )" for person in _PERSONS) + r"\b(?:tells|says|hears|knows|believes)\b",
    re.IGNORECASE,
)
# "Read anew", "in rounds of so many heartbeats": again, replaced; this many, `seconds`.
OLD_WORDS = re.compile(r"\banew\b|\bso (?:many|long)\b(?! (?:as|that))", re.IGNORECASE)
# "What the checks look at.": a docstring, comment or label begins with a noun or a verb.
CLAUSE_FOR_A_NOUN = re.compile(r"^(?:What|Who|Which|That of|Those of|Those that)\b[^.:?]*(?:[.:?]|$)")
# The schema that was asked for at first is explained on these pages, and is "the original schema" elsewhere.
ORIGINAL = re.compile(r"\bthe seed\b(?! of)|\bseed's\b", re.IGNORECASE)
PAGES_ABOUT_THE_ORIGINAL = {"schema.md", "decisions.md"}


def matches(pattern: re.Pattern[str], text: str) -> list[re.Match[str]]:
    return [match for match in pattern.finditer(text) if not match[0].rstrip().endswith("?")]


def found(pattern: re.Pattern[str], paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        for line, text in prose(path):
            for match in matches(pattern, text):
                yield f"{path.relative_to(ROOT)}:{line}: {text[max(0, match.start() - 30) : match.end() + 30]}"


AREAS = {
    "product": [*sources("src"), *documents()],
    "tests": [path for path in sources("tests", "benchmarks", "examples") if path != Path(__file__)],
    "javascript": scripts("src", "tests", "benchmarks", "examples"),
}


def words_in(paths: Iterable[Path]) -> int:
    return sum(len(text.split()) for path in paths for _, text in prose(path))


HABITS = [BARE_SUBJECT, INDEFINITE_PERSON, SPEAKING_THING, OLD_WORDS, CLAUSE_FOR_A_NOUN]


@pytest.mark.parametrize(
    ("area", "pattern", "most"),
    [
        pytest.param("product", BARE_SUBJECT, 0.15, id="bare_subject"),
        pytest.param("product", INDEFINITE_PERSON, 0.1, id="indefinite_person"),
        pytest.param("product", SPEAKING_THING, 0.05, id="speaking_thing"),
        pytest.param("product", OLD_WORDS, 0.02, id="old_words"),
        pytest.param("product", CLAUSE_FOR_A_NOUN, 0.02, id="clause_for_a_noun"),
        pytest.param("tests", BARE_SUBJECT, 0.15, id="bare_subject_in_tests"),
        pytest.param("tests", INDEFINITE_PERSON, 0.1, id="indefinite_person_in_tests"),
        pytest.param("tests", SPEAKING_THING, 0.05, id="speaking_thing_in_tests"),
        pytest.param("tests", OLD_WORDS, 0.02, id="old_words_in_tests"),
        pytest.param("tests", CLAUSE_FOR_A_NOUN, 0.02, id="clause_for_a_noun_in_tests"),
        pytest.param("javascript", BARE_SUBJECT, 0.15, id="bare_subject_in_javascript"),
        pytest.param("javascript", INDEFINITE_PERSON, 0.1, id="indefinite_person_in_javascript"),
        pytest.param("javascript", SPEAKING_THING, 0.05, id="speaking_thing_in_javascript"),
        pytest.param("javascript", OLD_WORDS, 0.02, id="old_words_in_javascript"),
        pytest.param("javascript", CLAUSE_FOR_A_NOUN, 0.02, id="clause_for_a_noun_in_javascript"),
    ],
)
def test_prose_is_plain(area: str, pattern: re.Pattern[str], most: float) -> None:
    paths = AREAS[area]
    places = list(found(pattern, paths))
    rate = 1000 * len(places) / words_in(paths)
    assert rate <= most, f"{rate:.3f} per 1,000 words:\n" + "\n".join(places)


def test_prose_calls_the_first_schema_the_original_one() -> None:
    paths = [path for area in AREAS.values() for path in area if path.name not in PAGES_ABOUT_THE_ORIGINAL]
    assert list(found(ORIGINAL, paths)) == []


def test_comments_of_javascript_are_found_among_strings_and_expressions() -> None:
    source = """/** Calls
 * back. */
const url = "http://x/*y*/"; // the path
const name = /Edg\\//.test(url) ? 'it"s // no' : `// ${url}`;
// One text
// of two lines.
"""
    assert list(of_javascript(source)) == [(1, "Calls back."), (3, "the path"), (5, "One text of two lines.")]


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (BARE_SUBJECT, "Who comes then waits for a slot."),
        (BARE_SUBJECT, "It is sent at once; what waits goes out together."),
        (INDEFINITE_PERSON, "Nobody waits for a timer."),
        (INDEFINITE_PERSON, "whoever asks next finishes it"),
        (SPEAKING_THING, "A flag says whether it is so."),
        (SPEAKING_THING, "each process knows the newest seq"),
        (OLD_WORDS, "The page is read anew."),
        (OLD_WORDS, "at most so many of each"),
        (CLAUSE_FOR_A_NOUN, "What the checks look at."),
        (CLAUSE_FOR_A_NOUN, "Those of the rooms that are not locked."),
        (ORIGINAL, "as in the seed, with one index more"),
    ],
)
def test_a_pattern_finds_an_example_of_its_habit(pattern: re.Pattern[str], text: str) -> None:
    assert matches(pattern, text)


@pytest.mark.parametrize(
    "text",
    [
        "The caller decides what is sent.",
        "members who are online",
        "A random seed of 7",
        "The client knows its token.",
        "so long that it times out",
        "What does a name cost?",
    ],
)
def test_good_prose_is_left_alone(text: str) -> None:
    assert not any(matches(pattern, text) for pattern in (*HABITS, ORIGINAL))


_WITH_A_DOCSTRING = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def stray_strings(source: str) -> Iterator[int]:
    """The lines of strings that stand alone and document nothing: neither first, nor below an assignment."""
    for node in ast.walk(ast.parse(source)):
        for before, statement in pairwise(
            getattr(node, "body", []) if isinstance(node, _WITH_A_DOCSTRING) else []
        ):
            is_string = isinstance(statement, ast.Expr) and _is_text(statement.value)
            if is_string and not isinstance(before, ast.Assign | ast.AnnAssign):
                yield statement.lineno


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_each_docstring_stands_where_python_and_readers_look_for_it() -> None:
    paths = sources("src", "tests", "benchmarks", "examples")
    found = [f"{path.relative_to(ROOT)}:{line}" for path in paths for line in stray_strings(path.read_text())]
    assert found == []


def test_a_docstring_below_the_first_statement_is_found() -> None:
    assert list(stray_strings('def f():\n    g()\n    """What it does."""\n')) == [3]
    assert list(stray_strings('X = 1\n"""Why 1."""\n')) == []
