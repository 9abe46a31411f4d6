"""Times of interactions, as they stand in a file: numbers or dates."""

import re
from array import array
from datetime import UTC, datetime
from fractions import Fraction

_DECIMAL_NUMBER = re.compile(r"[0-9]{1,18}(\.[0-9]{1,30})?([eE][+]?[0-9]{1,2})?")
_MICROSECONDS = 10**6


class Times:
    """A column of times, int64. While all are whole numbers they stay as they are.

    The first fraction or date turns the whole column into microseconds: a number times 10^6, a date
    as the time since 1970.
    """

    def __init__(self):
        self.values = array("q")
        self.in_microseconds = False

    def append(self, text, where):
        """Take in a time. Raises ValueError, beginning with `where`, if it is none."""
        if not self.in_microseconds:
            if _is_whole_number(text):
                self.values.append(int(text))
                return
            microseconds(text, where)  # refuses what is no time, before anything is changed
            self.in_microseconds = True
            self.values = array(
                "q", [_bounded(time * _MICROSECONDS, where) for time in self.values]
            )
        self.values.append(_bounded(microseconds(text, where), where))


def _is_whole_number(text):
    """Is it one below 10^18, in the digits 0 to 9 alone?"""
    return len(text) <= 18 and text.isascii() and text.isdigit()


def microseconds(text, where) -> int:
    """Microseconds since 1970 of a number of seconds, or of a date in ISO 8601 (in UTC if bare)."""
    if _DECIMAL_NUMBER.fullmatch(text):
        return int(Fraction(text) * _MICROSECONDS)
    try:
        date = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(
            f"{where}: timestamp is {text[:40]!r}; expected a number of 0 or more (an integer "
            "below 10^18, or a decimal fraction) or a date like 2015-03-31 or 2015-03-31T12:00:00"
        ) from None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return round((date - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * _MICROSECONDS)


def _bounded(number, where):
    if abs(number) >= 2**63:
        raise ValueError(f"{where}: the timestamp is too large beside fractions or dates")
    return number


def whole_time(text, where) -> int:
    """The whole number that a field holds. Raises ValueError, beginning with `where`, if none."""
    if not _is_whole_number(text):
        raise ValueError(
            f"{where}: timestamp is {text[:40]!r}; expected an integer of 0 or more (below 10^18)"
        )
    return int(text)
