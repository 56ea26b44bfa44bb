"""What the site does with links out of it: files of the repository are named, not linked."""

from __future__ import annotations

import re
from typing import Any

OUTSIDE = re.compile(r"(?<!!)\[([^\]]+)\]\(\.\./([^)#]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page's text with ``[text](../file)`` as the text and the file's name."""
    return OUTSIDE.sub(_named, markdown)


def _named(found: re.Match[str]) -> str:
    text, file = found[1], found[2]
    return f"`{file}`" if text.strip("`") in file else f"{text} (`{file}`)"
