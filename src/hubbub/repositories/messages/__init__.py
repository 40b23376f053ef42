"""Messages: sent one by one or together, changed, and read in pages."""

from hubbub.repositories.messages.log import Entry, Head, Logs, LogSlice, entry_of
from hubbub.repositories.messages.messages import Messages
from hubbub.repositories.messages.writer import MessageWriter

__all__ = [
    "Entry",
    "Head",
    "LogSlice",
    "Logs",
    "MessageWriter",
    "Messages",
    "entry_of",
]
