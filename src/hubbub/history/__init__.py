"""History: taking it from files, and giving it to them. docs/history.md has the form of the lines."""

from hubbub.history.batches import read_lines
from hubbub.history.forms import AnyLine, JoinLine, LeaveLine, MessageLine
from hubbub.history.history import History
from hubbub.history.identities import derive_room_id, derive_user_id
from hubbub.history.importing import Imported
from hubbub.history.nicknames import Renamed
from hubbub.history.refusals import Refusal, Refusals

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
