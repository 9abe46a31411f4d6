"""What a title may be, and what text may not hold."""

import html
import re

_HALF_OF_A_PAIR = re.compile("[\ud800-\udfff]")


def holds_half_a_surrogate_pair(text: str) -> bool:
    """Is there a code point in it that is no character, and that no UTF-8 file can hold?"""
    return _HALF_OF_A_PAIR.search(text) is not None


def clean_title(title, where) -> str:
    """HTML entities decoded, runs of white space made one space, ends stripped.

    Raises ValueError, beginning with `where`, for what is no text or leaves no title.
    """
    if not isinstance(title, str):
        raise ValueError(f"{where}: the title is {title!r}; expected text")
    cleaned = " ".join(html.unescape(title).split())
    if not cleaned:
        raise ValueError(f"{where}: the title is empty")
    if "\0" in cleaned:
        raise ValueError(f"{where}: the title holds a NUL character")
    if holds_half_a_surrogate_pair(cleaned):
        raise ValueError(f"{where}: holds half a surrogate pair, which is no character")
    return cleaned
