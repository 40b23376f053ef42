"""Cursors of keyset pages: opaque strings that only fit the list they come from."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from typing import Generic, TypeVar
from uuid import UUID

import msgspec

from hubbub.errors import Invalid
from hubbub.models import Page

T = TypeVar("T")
K = TypeVar("K")

# The key of a username has up to 1,650 bytes, so a cursor has about 2,300 characters at most. A longer one is
# forged.
LONGEST = 3_000


class Cursor(Generic[K]):
    """The cursors of one list. `name` is that of the list, `key` the type of the columns that order it.

    A cursor contains the name and the scope, which is the room or the user of the list. So a cursor of another
    list or another room is refused instead of giving a wrong page. A cursor grants no access: it does not decide
    which users may see a list.
    """

    def __init__(self, name: str, key: type[K]) -> None:
        self._name = name
        self._decoder = msgspec.json.Decoder(tuple[str, UUID | None, key])  # type: ignore[valid-type]

    def encode(self, scope: UUID | None, key: K) -> str:
        return urlsafe_b64encode(msgspec.json.encode((self._name, scope, key))).rstrip(b"=").decode()

    def decode(self, scope: UUID | None, cursor: str) -> K:
        """The key in `cursor`. Raises: Invalid (it is forged, or belongs to another list)."""
        if not isinstance(cursor, str) or len(cursor) > LONGEST:
            raise Invalid("after", "is not a cursor")
        try:
            name, its_scope, key = self._decoder.decode(urlsafe_b64decode(cursor.encode() + b"=="))
        except (ValueError, msgspec.DecodeError):
            raise Invalid("after", "is not a cursor of this list") from None
        if (name, its_scope) != (self._name, scope):
            raise Invalid("after", "is the cursor of another list")
        return key

    def page(self, scope: UUID | None, rows: list[T], limit: int, key: Callable[[T], K]) -> Page[T]:
        """A page of the up to `limit + 1` rows that were read."""
        if len(rows) <= limit:
            return Page(rows, None)
        items = rows[:limit]
        return Page(items, self.encode(scope, key(items[-1])))
