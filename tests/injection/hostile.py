"""Texts that have a meaning in SQL, Redis, JSON or a terminal, or that mislead a reader."""

from __future__ import annotations

from hypothesis import strategies

from hubbub import Invalid

SQL = (
    "'",
    '"',
    "\\",
    "\\'",
    "'; DROP TABLE users; --",
    '"; DROP TABLE users; --',
    "$1",
    "$$",
    "%s",
    "{0}",
    ":name",
)
LIKE = ("%", "_", "%_%", "\\%", "a%b")
REDIS = (
    *("*", "?", "[a-z]*", "session:*", "{b0}", "}{", "\r\n", "\r\nFLUSHALL\r\n", "*1\r\n$8\r\nFLUSHALL\r\n"),
    *("x\r\nSET stolen 1\r\n", "' .. redis.call('FLUSHALL') .. '", "]] redis.call('FLUSHALL') --"),
)
UNICODE = (
    *("\0", "a\0b", "\ud800", "a\udfffb", "\u202eadmin", "\u2066a\u2069", "\u200b", "a\u200db", "\ufeffa"),
    *("\u2028", "\x7f", "\x1b[2J", "\x85", "Ada\u0301", "ﷺ" * 60, "İ", "ß", "😀" * 30, "\U0010ffff"),
)
LONG = ("a" * 100_000, "é" * 100_000, "\u0301" * 100_000, "[" * 100_000, '{"a":' * 20_000, "1" * 100_000)
NUMBERS = ("", " ", "\t", "0", "-1", "1e400", "NaN", "null", "true", "9" * 40, "0x10", "١٢٣")
PATHS = (
    "..",
    "../../etc/passwd",
    "/dev/zero",
    "file:///etc/passwd",
    "javascript:alert(1)",
    "a@b",
    "a@[127.0.0.1]",
)
IDS = ("00000000-0000-0000-0000-000000000000", "{00000000-0000-0000-0000-000000000000}", "urn:uuid:" + "0" * 32)

HOSTILE = (*SQL, *LIKE, *REDIS, *UNICODE, *LONG, *NUMBERS, *PATHS, *IDS)

texts = strategies.one_of(
    strategies.sampled_from(HOSTILE),
    strategies.text(max_size=300),
    strategies.text(alphabet=strategies.characters(categories=["Cs", "Cc", "Cf", "Co", "Zs", "Mn"]), max_size=40),
    strategies.lists(strategies.sampled_from([one for one in HOSTILE if len(one) < 100]), max_size=4).map("".join),
)


class or_refused:  # noqa: N801 - it reads as a clause
    """The block may only raise `Invalid`, for one of these fields."""

    def __init__(self, *fields: str) -> None:
        self._fields = fields

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        return isinstance(error, Invalid) and error.field in self._fields
