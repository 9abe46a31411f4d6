"""Times of interactions, as they stand in a file: numbers or dates."""

import re
from array import array
from datetime import UTC, datetime
from fractions import Fraction

_DECIMAL_NUMBER = re.compile(r"[0-9]{1,18}(\.[0-9]{1,30})?([eE][+]?[0-9]{1,2})?")
_MICROSECONDS = 10**6
_TOO_LARGE = 2**63  # times are int64
_YEAR_10000 = 253_402_300_800  # seconds from 1970 to the year after the last that a date can have


class Times:
    """A column of times, int64. While all are whole numbers they stay as they are.

    The first fraction or date turns the whole column into microseconds: a number times 10^6, a date
    as the time since 1970.
    """

    def __init__(self):
        self.values = array("q")
        self.in_microseconds = False
        self.has_dates = False
        self.largest_number = 0  # in seconds, once the values are microseconds

    def append(self, text, place):
        """Take in a time. Raises ValueError, beginning with `place`, if it is none."""
        if not self.in_microseconds and _is_whole_number(text):
            self.values.append(int(text))
            return
        time = microseconds(text, place)  # refuses what is no time, before anything is changed
        if not self.in_microseconds:
            self._turn_into_microseconds(place)
        if _is_number(text):
            self.largest_number = max(self.largest_number, time // _MICROSECONDS)
        else:
            self.has_dates = True
        if self.has_dates and self.largest_number >= _YEAR_10000:
            raise ValueError(
                f"{place}: dates stand beside the number {self.largest_number}, which is no number "
                "of seconds since 1970; write all times as dates, or all as numbers"
            )
        self.values.append(_bounded(time, text, place))

    def _turn_into_microseconds(self, place):
        """Do so with the whole numbers so far, which are seconds then."""
        self.in_microseconds = True
        self.largest_number = max(self.values, default=0)
        times = [_bounded(time * _MICROSECONDS, time, place) for time in self.values]
        self.values = array("q", times)


def _is_whole_number(text):
    """Is it one below 2^63, in at most 19 digits, 0 to 9 alone?"""
    if not text.isascii() or not text.isdigit():
        return False
    return len(text) < 19 or (len(text) == 19 and int(text) < _TOO_LARGE)


def _is_number(text):
    return _is_whole_number(text) or _DECIMAL_NUMBER.fullmatch(text) is not None


def microseconds(text, place) -> int:
    """Microseconds since 1970 of a number of seconds, or of a date in ISO 8601 (in UTC if bare)."""
    if _is_number(text):
        return int(Fraction(text) * _MICROSECONDS)
    date = _date(text.strip())
    if date is None:
        raise ValueError(
            f"{place}: timestamp is {text[:40]!r}; expected a number of 0 or more (an integer "
            "below 2^63, or a decimal fraction) or a date like 2015-03-31 or 2015-03-31T12:00:00"
        )
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return round((date - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * _MICROSECONDS)


def _date(text):
    """The datetime that a text says in ISO 8601; None if it says none, or has digits alone.

    fromisoformat takes 1420070400000000000, nanoseconds, for a day of the year 1420.
    """
    if text.isdigit():
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _bounded(number, time, place):
    """A number of microseconds. Raises ValueError, quoting `time`, if it does not fit int64."""
    if abs(number) >= _TOO_LARGE:
        raise ValueError(
            f"{place}: the timestamp {time!r} is too large beside fractions or dates, where a "
            "number is taken for seconds; write all times as whole numbers, or all as dates"
        )
    return number
