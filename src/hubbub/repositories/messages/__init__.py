"""Messages: sending, changing and reading them, and the log of a room."""

from hubbub.repositories.messages.log import PAGE_BYTES, Entry, LogCheck, Logs, LogSlice, entry_of, event_of
from hubbub.repositories.messages.messages import Messages
from hubbub.repositories.messages.writer import MessageWriter

__all__ = [
    "PAGE_BYTES",
    "Entry",
    "LogCheck",
    "LogSlice",
    "Logs",
    "MessageWriter",
    "Messages",
    "entry_of",
    "event_of",
]
