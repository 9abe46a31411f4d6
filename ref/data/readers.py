"""The forms in which interactions come.

*Interactions*: a file of interactions with columns for user, item and, if there are any, time and
rating, and a file of items with their titles. They are called

    interactions.* and items.*     .csv, .tsv, .txt, .jsonl, .json, each plain or .gz
    ratings.* and movies.*         the same, or .dat: a download of MovieLens as it is
    NAME.inter and NAME.item       RecBole

The first may hold the titles itself; then there need not be a second.

*Windows*, divided into training and test already: `id2name4Rec.json` (item id: title), `train.csv`
and `test.csv` (user_id, item_ids, timestamp). The last item of a row is its target.

Every error is a ValueError or FileNotFoundError that names the file and what is wrong.
"""

import json
import math
import re
from array import array
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ref.data import tables
from ref.data.columns import KNOWN_COLUMNS
from ref.files import read_json
from ref.text import clean_title

SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".json", ".dat")
NAMES = (("interactions", "items"), ("ratings", "movies"))
# The columns of MovieLens' .dat files, which have no header.
DAT_HEADERS = {
    "ratings": ["userId", "movieId", "rating", "timestamp"],
    "movies": ["movieId", "title", "genres"],
}
_YEAR = re.compile(r"[0-9]{4}")
_ENDS_IN_YEAR = re.compile(r"\([0-9]{4}\)\s*$")
_DECIMAL_NUMBER = re.compile(r"[0-9]{1,18}(\.[0-9]+)?([eE][+]?[0-9]{1,2})?")
_MICROSECONDS = 10**6


@dataclass(frozen=True)
class Interactions:
    """N interactions, in the order of the file, and the titles of all items.

    path: the file that they are from, for messages. titles: the cleaned title of each item.
    users, items: int32 (N,); users are numbered as they appear, items index `titles`.
    times: int64 (N,).
    user_ids: the id of each user, of those without interactions, too. notes: what was left out or
    assumed, a sentence each.
    """

    path: Path
    titles: list
    users: np.ndarray
    items: np.ndarray
    times: np.ndarray
    user_ids: list
    notes: tuple = ()


@dataclass(frozen=True)
class PresplitWindows:
    """Windows for training and for the test, in the order of the files.

    titles: the cleaned title of each item. train, test: lists of PresplitWindow. notes: what was
    left out, a sentence each.
    """

    titles: list
    train: list
    test: list
    notes: tuple


class PresplitWindow(NamedTuple):
    """time: an integer. items: indices into titles; the last is the target. user_id: as it came."""

    time: int
    items: list
    user_id: str


def read(folder, columns=KNOWN_COLUMNS):
    """The Interactions or PresplitWindows in a folder, whichever form it has."""
    if is_presplit(folder):
        if replace(columns, min_rating=None) != KNOWN_COLUMNS:
            raise ValueError(f"{folder}: comes split, with fixed columns; no option may name any")
        data = read_presplit(folder)
        if columns.min_rating is None:
            return data
        note = (
            f"min_rating {columns.min_rating} is not applied: data that comes split has no ratings"
        )
        return replace(data, notes=(*data.notes, note))
    return read_interactions(folder, columns)


def read_interactions(folder, columns=KNOWN_COLUMNS):
    """The Interactions in a folder. What has no title, or too low a rating, is left out."""
    path, items_path = find_tables(folder)
    numbers, titles, notes = _read_titles(items_path, columns) if items_path else ({}, [], [])
    reading = _Reading(numbers, titles, notes, grows=items_path is None)
    with tables.opened(path, header_of(path)) as table:
        reading.read(table, columns)
    if items_path and reading.untitled and not reading.items:
        raise ValueError(
            f"{path}: none of its {len(reading.untitled)} items has a title in {items_path.name}; "
            "expected the same ids in both"
        )
    data = reading.interactions(path)
    return _without_repetitions(data) if reading.has_times else data


def find_tables(folder):
    """(file of interactions, file of items or None) of a folder.

    Raises FileNotFoundError if there are none, and says what else is there.
    """
    pairs = [_find_pair(folder, *names) for names in NAMES]
    pairs += [(path, path.with_suffix(".item")) for path in sorted(folder.glob("*.inter"))]
    for path, items_path in pairs:
        if path is None:
            continue
        if items_path is not None and items_path.is_file():
            return path, items_path
        if _holds_titles(path):
            return path, None
        raise FileNotFoundError(
            f"{folder}: {path.name} holds no titles, and there is no {items_path.name} beside it; "
            + _what_is_there(folder)
        )
    raise FileNotFoundError(
        f"{folder}: expected interactions.csv and items.csv, or ratings.csv and movies.csv; "
        + _what_is_there(folder)
    )


def _find_pair(folder, interactions, items):
    """The paths of two files of these names; a name that is not there gets the first's suffix."""
    path = _find(folder, interactions)
    suffix = tables.suffix_of(path) if path else ".csv"
    return path, _find(folder, items) or folder / f"{items}{suffix}"


def _find(folder, name):
    """The path of FOLDER/name with any of SUFFIXES, or None."""
    for suffix in SUFFIXES:
        path = _plain_or_gz(folder, f"{name}{suffix}")
        if path is not None:
            return path
    return None


def _plain_or_gz(folder, name):
    """FOLDER/name or FOLDER/name.gz, or None if neither is there."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    return None


def _holds_titles(path):
    with tables.opened(path, header_of(path)) as table:
        return KNOWN_COLUMNS.find("title", table, is_needed=False) is not None


def _what_is_there(folder):
    """The files of a folder; if one is parquet, the line that converts it."""
    for path in sorted(folder.glob("*.parquet")):
        is_named = any(path.stem in names for names in NAMES)
        target = path.with_name(f"{path.stem if is_named else 'interactions'}.csv")
        if not target.exists():
            return (
                f'{path.name} is parquet, which is not read; convert it: python -c "import pandas; '
                f"pandas.read_parquet('{path.name}').to_csv('{target.name}', index=False)\""
            )
    names = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    return f"found {names}"


def header_of(path):
    """The columns of a file that has no header; None for one that has."""
    if tables.suffix_of(path) != ".dat":
        return None
    return DAT_HEADERS.get(path.name.split(".")[0])


def _read_titles(path, columns):
    """{item id: number of the item, None if it has no title}, the title of each number, notes."""
    numbers, titles = {}, []
    num_with_year = 0
    with tables.opened(path, header_of(path)) as table:
        item_column = columns.find("item", table)
        title_column = columns.find("title", table)
        year_column = _year_column(table)
        where = table.place
        for row in table.rows:
            item_id = text_id(row[item_column], table.header[item_column], where)
            if item_id in numbers:
                raise ValueError(f"{where}: {table.header[item_column]} {item_id!r} stands twice")
            title = row[title_column]
            if year_column is not None and _lacks_year(title, row[year_column]):
                title = f"{title.strip()} ({row[year_column]})"
                num_with_year += 1
            numbers[item_id] = _number_of_title(title, titles, where, item_id)
    if not num_with_year:
        return numbers, titles, []
    return numbers, titles, [f"the year in {path.name} was added to {num_with_year:,} titles"]


def _year_column(table):
    """Where an .item file holds the years that RecBole cut off MovieLens' titles; None if not.

    Without them a film and its remake would share a title, and so be one.
    """
    if tables.suffix_of(table.path) == ".item" and "release_year" in table.header:
        return table.header.index("release_year")
    return None


def _lacks_year(title, year):
    """Is there a year, and a title that does not end in one in brackets?"""
    has_both = bool(title.strip() and _YEAR.fullmatch(year))
    return has_both and not _ENDS_IN_YEAR.search(title)


def _number_of_title(text, titles, where, item_id):
    """The number of an item whose title is appended to `titles`; None if it has none."""
    if not text.strip():
        return None
    titles.append(clean_title(text, f"{where}, item {item_id!r}"))
    return len(titles) - 1


def text_id(text, column, where):
    """An id of a row. Raises ValueError, beginning with `where`, if it is empty or holds NUL."""
    if not text or "\0" in text:
        raise ValueError(f"{where}: {column} is {text!r}; expected text without NUL characters")
    return text


class _Reading:
    """A file of interactions while it is read, row after row.

    numbers: {item id: number of the item, None if it has no title}. titles: of each number.
    notes: on the titles. grows: the titles stand in the same file.
    """

    def __init__(self, numbers, titles, notes, grows):
        self.numbers = numbers
        self.titles = titles
        self.notes = notes
        self.grows = grows
        self.user_numbers = {}
        self.users, self.items, self.times = array("i"), array("i"), Times()
        self.untitled = {}  # item id -> rows
        self.rated_lower = 0
        self.has_times = True

    def read(self, table, columns):
        """Take in all rows of a table."""
        user, item = columns.find("user", table), self._item_column(table, columns)
        time = columns.find("time", table, is_needed=False)
        rating = columns.find("rating", table, is_needed=columns.min_rating is not None)
        title = columns.find("title", table) if self.grows else None
        self.has_times = time is not None
        where = table.place
        for number, row in enumerate(table.rows):
            user_id, item_id = row[user], row[item]
            user_number = self.user_numbers.get(user_id)
            if user_number is None:
                text_id(user_id, table.header[user], where)
                user_number = self.user_numbers[user_id] = len(self.user_numbers)
            is_no_title = item == title and not item_id  # a title may be empty, an id may not
            if item_id not in self.numbers and not is_no_title:
                text_id(item_id, table.header[item], where)
            if columns.min_rating is not None and not _reaches(row[rating], columns, where):
                self.rated_lower += 1
                continue
            if self.grows and item_id not in self.numbers:
                self.numbers[item_id] = _number_of_title(row[title], self.titles, where, item_id)
            item_number = self.numbers.get(item_id)
            if item_number is None:
                self.untitled[item_id] = self.untitled.get(item_id, 0) + 1
                continue
            self.times.append(row[time] if self.has_times else str(number), where)
            self.users.append(user_number)
            self.items.append(item_number)

    def _item_column(self, table, columns):
        """Where titles stand beside the interactions, they may be all that tells items apart."""
        place = columns.find("item", table, is_needed=not self.grows)
        return columns.find("title", table) if place is None else place

    def interactions(self, path):
        """All that was read, as Interactions."""
        notes = [*self.notes]
        if not self.has_times:
            notes.append(f"{path.name} has no column of times: its order is taken for time")
        if self.rated_lower:
            notes.append(f"{self.rated_lower:,} interactions rated lower than asked for left out")
        if self.untitled:
            examples = ", ".join(map(repr, list(self.untitled)[:5]))
            notes.append(
                f"{len(self.untitled):,} items without a title left out ({examples}), and "
                f"{sum(self.untitled.values()):,} interactions"
            )
        columns = (np.asarray(column) for column in (self.users, self.items, self.times.values))
        return Interactions(path, self.titles, *columns, list(self.user_numbers), tuple(notes))


def _reaches(text, columns, where):
    """Is a rating high enough?"""
    try:
        rating = float(text)
    except ValueError:
        rating = math.nan
    if math.isnan(rating):
        raise ValueError(f"{where}: the rating is {text[:40]!r}; expected a number")
    return rating >= columns.min_rating


def _without_repetitions(data):
    """Rows that say the same once more (user, item and time) are left out."""
    pairs = data.users * np.int64(len(data.titles)) + data.items  # one number for user and item
    order = np.lexsort((data.times, pairs))  # stable: of equal rows, the first of the file leads
    is_repeated = np.zeros(len(order), bool)
    is_repeated[1:] = True
    for column in (pairs, data.times):
        in_order = column[order]
        is_repeated[1:] &= in_order[1:] == in_order[:-1]
    if not is_repeated.any():
        return data
    kept = np.sort(order[~is_repeated])
    return replace(
        data,
        users=data.users[kept],
        items=data.items[kept],
        times=data.times[kept],
        notes=(*data.notes, f"{is_repeated.sum():,} rows that repeat an earlier one left out"),
    )


class Times:
    """A column of times, int64: whole numbers as they are.

    From the first fraction or date on, they count microseconds: of a number, or since 1970.
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


def is_presplit(folder):
    """Does the folder hold windows rather than interactions?"""
    return (folder / "id2name4Rec.json").exists()


def read_presplit(folder):
    """The PresplitWindows in id2name4Rec.json, train.csv and test.csv.

    An item without a title cannot be shown: it is left out of the windows, and so are the windows
    of which it is the target, or which have fewer than two items left. A note says how many.
    """
    names_path = folder / "id2name4Rec.json"
    numbers, titles = _read_names(names_path)
    train, dropped_from_train = _read_windows(folder, "train.csv", numbers, names_path.name)
    test, dropped_from_test = _read_windows(folder, "test.csv", numbers, names_path.name)
    untitled = [item_id for item_id, number in numbers.items() if number is None]
    notes = ()
    if untitled:
        examples = ", ".join(map(repr, untitled[:5]))
        dropped = dropped_from_train + dropped_from_test
        notes = (
            f"{len(untitled)} items without a title left out ({examples}), and {dropped} rows",
        )
    return PresplitWindows(titles, train, test, notes)


def _read_names(path):
    """{item id: number of the item, None if it has no title}, and the title of each number."""
    numbers = {}
    titles = []
    for item_id, title in read_json(path).items():
        clean_title(item_id, f"{path}, item id {item_id!r}")  # refuses what no CSV file can hold
        if isinstance(title, str) and not title.strip():
            numbers[item_id] = None
        else:
            numbers[item_id] = len(titles)
            titles.append(clean_title(title, f"{path}, item {item_id!r}"))
    return numbers, titles


def _read_windows(folder, name, numbers, names_file):
    """The PresplitWindows of one file, and how many rows were dropped."""
    windows = []
    dropped = 0
    columns = ("user_id", "item_ids", "timestamp")
    for where, (user_id, item_ids, time) in rows(_presplit_file(folder, name), columns):
        items = [numbers[item_id] for item_id in _item_ids(item_ids, where, numbers, names_file)]
        titled = [item for item in items if item is not None]
        if items[-1] is None or len(titled) < 2:
            dropped += 1
        else:
            windows.append(PresplitWindow(whole_time(time, where), titled, user_id))
    if len(windows) < 2:
        raise ValueError(f"{folder / name}: {len(windows)} usable rows; expected at least 2")
    return windows, dropped


def _item_ids(text, where, numbers, names_file):
    """The item ids of a JSON list, as strings; all of them stand in `numbers`."""
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        items = None
    is_list_of_two = isinstance(items, list) and len(items) >= 2
    if not is_list_of_two or not all(type(item) in (int, str) for item in items):
        raise ValueError(
            f"{where}: item_ids is {text[:60]!r}; expected a list of at least 2 item ids"
        )
    for item in items:
        if str(item) not in numbers:
            raise ValueError(f"{where}: item {item!r} has no title in {names_file}")
    return [str(item) for item in items]


def whole_time(text, where) -> int:
    """The whole number that a field holds. Raises ValueError, beginning with `where`, if none."""
    if not _is_whole_number(text):
        raise ValueError(
            f"{where}: timestamp is {text[:40]!r}; expected an integer of 0 or more (below 10^18)"
        )
    return int(text)


def _presplit_file(folder, name):
    """The path of FOLDER/name or FOLDER/name.gz. Raises FileNotFoundError if neither is there."""
    path = _plain_or_gz(folder, name)
    if path is None:
        raise FileNotFoundError(f"{folder}: has neither {name} nor {name}.gz")
    return path


def rows(path, columns):
    """Yield (Place, [the value in each of `columns`]) for each row of a table.

    Raises ValueError naming file and line.
    """
    with tables.opened(path) as table:
        places = [_place(column, table) for column in columns]
        for row in table.rows:
            yield table.place, [row[place] for place in places]


def _place(column, table):
    if column not in table.header:
        raise ValueError(f"{table.path}: column {column!r} is missing; found {table.header[:10]}")
    if table.header.count(column) > 1:
        raise ValueError(f"{table.path}: column {column!r} stands twice")
    return table.header.index(column)
