"""Messages: sent one by one or together, changed, and read in pages."""

from hubbub.repositories.messages.messages import Messages
from hubbub.repositories.messages.writer import MessageWriter

__all__ = ["MessageWriter", "Messages"]
