"""The pages of docs/, whose code blocks the tests run."""

from __future__ import annotations

import re
from pathlib import Path

DOCUMENTS = Path(__file__).parents[2] / "docs"


def blocks(document: str, language: str) -> list[str]:
    """The code blocks of one language, in order."""
    text = (DOCUMENTS / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
