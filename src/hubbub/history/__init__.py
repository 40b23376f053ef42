"""History: taking it from files, and giving it to them. docs/history.md has the form of the lines."""

from hubbub.history.history import History
from hubbub.history.importing import Imported
from hubbub.history.nicknames import Renamed
from hubbub.history.refusals import Refusal, Refusals

__all__ = ["History", "Imported", "Refusal", "Refusals", "Renamed"]
