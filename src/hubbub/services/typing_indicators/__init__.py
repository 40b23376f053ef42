"""Who is typing in a room. What nobody refreshes fades by itself."""

from hubbub.services.typing_indicators.typing_indicators import TypingIndicators

__all__ = ["TypingIndicators"]
