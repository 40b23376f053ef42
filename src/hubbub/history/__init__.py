"""History: import from files, and export to them. docs/history.md has the form of the lines."""

from hubbub.history.history import History
from hubbub.history.importing import Imported, Refusals
from hubbub.history.lines import AnyLine, JoinLine, LeaveLine, MessageLine, derive_room_id, derive_user_id
from hubbub.history.people import Renamed
from hubbub.history.source import Refusal, read_lines

__all__ = [
    "AnyLine",
    "History",
    "Imported",
    "JoinLine",
    "LeaveLine",
    "MessageLine",
    "Refusal",
    "Refusals",
    "Renamed",
    "derive_room_id",
    "derive_user_id",
    "read_lines",
]
