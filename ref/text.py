"""What a title and an id may be."""

import html
import re

_NOT_IN_IDS = re.compile("[\0\r\n]")
_HALF_OF_A_PAIR = re.compile("[\ud800-\udfff]")


def holds_half_a_surrogate_pair(text: str) -> bool:
    """Is there a code point in it that is no character, and that no UTF-8 file can hold?"""
    return _HALF_OF_A_PAIR.search(text) is not None


def clean_title(title, source) -> str:
    """HTML entities decoded, runs of white space made one space, ends stripped.

    As in browsers, many entities need no semicolon: "&copy" is "©", and "AT&T" stays as it is.
    Raises ValueError, beginning with `source`, for what is no text or leaves no title.
    """
    cleaned = _cleaned(title, source)
    refuse_no_title(cleaned, source)
    return cleaned


def clean_title_or_none(title, source) -> str | None:
    """`clean_title` of a field that may be empty, or hold white space alone: None then."""
    if not _cleaned(title, source):
        return None
    return clean_title(title, source)


def _cleaned(text, source):
    _refuse_no_text(text, source)
    try:
        return " ".join(html.unescape(text).split())
    except ValueError as error:  # of "&#999...9;", a number of thousands of digits
        raise ValueError(f"{source}: {text[:40]!r} cannot be read as HTML: {error}") from None


def refuse_no_title(text, source):
    """Raise ValueError, beginning with `source`, for what `clean_title` never returns."""
    _refuse_no_text(text, source)
    if not text:
        raise ValueError(f"{source}: the title is empty")
    if " ".join(text.split()) != text:
        raise ValueError(f"{source}: {text[:80]!r} has white space that is not one space")
    if "\0" in text:
        raise ValueError(f"{source}: the title holds a NUL character")
    if holds_half_a_surrogate_pair(text):
        raise ValueError(f"{source}: holds half a surrogate pair, which is no character")


def text_id(text, column, source) -> str:
    """The id that a field holds. Raises ValueError for what no CSV file can hold."""
    if not text or _NOT_IN_IDS.search(text) or holds_half_a_surrogate_pair(text):
        raise ValueError(
            f"{source}: {column} is {text!r}; expected one line of text, without NUL "
            "or half a surrogate pair"
        )
    return text


def _refuse_no_text(title, source):
    if not isinstance(title, str):
        raise ValueError(f"{source}: the title is {title!r}; expected text")
