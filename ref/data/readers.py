"""The forms in which interactions come.

*Interactions*: a file of interactions with columns for user, item and, if there are any, time and
rating, and a file of items with their titles. They are called

    interactions.* and items.*     .csv, .tsv, .txt, .jsonl, .json, each plain or .gz
    ratings.* and movies.*         the same, or .dat: a download of MovieLens as it is
    NAME.inter and NAME.item       RecBole

The first may hold the titles itself; then there need not be a second. An item has one title then,
too: a title that differs from that of an earlier row (a review's headline) is refused.

*Windows*, divided into training and test already: ref/data/presplit.py.

Every error is a ValueError or FileNotFoundError that names the file and what is wrong.
"""

import math
import re
from array import array
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ref.data import tables
from ref.data.columns import DEFAULT_COLUMNS
from ref.data.presplit import NAMES_FILE, is_presplit, read_presplit
from ref.data.times import Times
from ref.text import clean_title_or_none, text_id

SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".json", ".dat")
ITEMS_OF = {"interactions": "items", "ratings": "movies"}  # names of files, without suffixes
# The columns of MovieLens' .dat files, which have no header.
DAT_HEADERS = {
    "ratings": ["userId", "movieId", "rating", "timestamp"],
    "movies": ["movieId", "title", "genres"],
}
_YEAR = re.compile(r"[0-9]{4}")
_ENDS_IN_YEAR = re.compile(r"\([0-9]{4}\)\s*$")


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


def read(folder, columns=DEFAULT_COLUMNS):
    """The Interactions or PresplitWindows in a folder, whichever form it has."""
    if is_presplit(folder):
        return _read_presplit_alone(folder, columns)
    return read_interactions(folder, columns)


def _read_presplit_alone(folder, columns):
    """The PresplitWindows in a folder that must not hold interactions, too."""
    for path, _ in _complete_forms(folder, columns, is_needed=False):
        _refuse_two_forms(folder, NAMES_FILE, path.name)
    if replace(columns, min_rating=None) != DEFAULT_COLUMNS:
        raise ValueError(f"{folder}: comes split, with fixed columns; no option may name any")
    data = read_presplit(folder)
    if columns.min_rating is None:
        return data
    note = f"min_rating {columns.min_rating} is not applied: data that comes split has no ratings"
    return replace(data, notes=(*data.notes, note))


def read_interactions(folder, columns):
    """The Interactions in a folder. What has no title, or too low a rating, is left out.

    Raises ValueError if nothing else is there.
    """
    path, items_path = find_tables(folder, columns)
    numbers, titles, notes = _read_titles(items_path, columns) if items_path else ({}, [], [])
    with tables.opened(path, header_of(path)) as table:
        reading = _Reading(table, columns, numbers, titles, titles_beside=items_path is None)
        reading.read()
    data = reading.interactions(notes)
    if not len(data.items):
        if items_path and reading.untitled:
            _refuse_items_without_titles(path, items_path, reading)
        message = f"{path}: no interactions; expected at least one"
        if data.notes:
            message += f"; before that: {'; '.join(data.notes)}"
        raise ValueError(message)
    return _without_repetitions(data) if reading.has_times else data


def _refuse_items_without_titles(path, items_path, reading):
    """Raise ValueError where no item has a title; quote an id of each file, or of each reason."""
    listed = reading.numbers
    without_title, not_listed = reading.without_title_and_not_listed()
    num_untitled = len(reading.untitled)
    if not without_title:
        example = repr(next(iter(listed))) if listed else "none"
        raise ValueError(
            f"{path}: none of its {num_untitled} items is listed in {items_path.name} "
            f"({path.name} has {not_listed[0]!r}, {items_path.name} {example}); expected the same "
            "ids in both"
        )
    message = (
        f"{path}: none of its {num_untitled} items has a title in {items_path.name}: "
        f"{len(without_title)} are listed there without one ({without_title[0]!r})"
    )
    if not_listed:
        message += f", {len(not_listed)} are not listed ({not_listed[0]!r})"
    raise ValueError(message)


def find_tables(folder, columns):
    """(file of interactions, file of items or None) of a folder.

    columns: the Columns that say what a column of titles is called.
    Raises ValueError if there are several, FileNotFoundError if there are none, and says what else
    is there.
    """
    complete = _complete_forms(folder, columns)
    if len(complete) > 1:
        (path, items_path), (other_path, other_items_path) = complete[:2]
        if path == other_path:
            _refuse_two_forms(folder, items_path.name, other_items_path.name)
        _refuse_two_forms(folder, path.name, other_path.name)
    if complete:
        return complete[0]
    incomplete = _files_of_interactions(folder)
    if incomplete:
        path = incomplete[0]
        raise FileNotFoundError(
            f"{folder}: {path.name} holds no titles, and there is no {_name_of_items(path)} beside "
            f"it; {_what_is_there(folder)}"
        )
    raise FileNotFoundError(
        f"{folder}: expected interactions.csv and items.csv, or ratings.csv and movies.csv; "
        + _what_is_there(folder)
    )


def _complete_forms(folder, columns, is_needed=True):
    """[(file of interactions, file of items, None if the first holds the titles), ...].

    Where none is needed any more, a file that cannot be read is none: it is not what is meant.
    """
    forms = []
    alone = []
    for path in _files_of_interactions(folder):
        items_paths = _files_of_items(path)
        forms += [(path, items_path) for items_path in items_paths]
        if not items_paths:
            alone.append(path)
    is_needed = is_needed and not forms
    for path in alone:
        try:
            if _holds_titles(path, columns):
                forms.append((path, None))
        except (ValueError, OSError):
            if is_needed:
                raise
    return forms


def _refuse_two_forms(folder, one, other):
    raise ValueError(
        f"{folder}: holds both {one} and {other}; which one is meant? Move the other away"
    )


def _files_of_interactions(folder):
    of_recbole = sorted(path for path in folder.glob("*.inter") if path.is_file())
    return [path for name in ITEMS_OF for path in _with_any_suffix(folder, name)] + of_recbole


def _files_of_items(path):
    """The files that may hold the items of a file of interactions."""
    if path.suffix == ".inter":
        items_path = path.with_suffix(".item")
        return [items_path] if items_path.is_file() else []
    return _with_any_suffix(path.parent, ITEMS_OF[_stem(path)])


def _name_of_items(path):
    """What the file of items beside a file of interactions would be called."""
    if path.suffix == ".inter":
        return path.with_suffix(".item").name
    return ITEMS_OF[_stem(path)] + tables.suffix_of(path)


def _stem(path):
    """ "ratings" of "ratings.csv" and of "ratings.csv.gz"."""
    return path.name.split(".")[0]


def _with_any_suffix(folder, name):
    """The files FOLDER/name with any of SUFFIXES; of a plain and a packed one, the plain."""
    paths = [tables.plain_or_gz(folder, name + suffix) for suffix in SUFFIXES]
    return [path for path in paths if path is not None]


def _holds_titles(path, columns):
    with tables.opened(path, header_of(path)) as table:
        return any(table.index_of(name) is not None for name in columns.names_of("title"))


def _what_is_there(folder):
    """The files of a folder; if one is parquet, the line that converts it."""
    for path in sorted(folder.glob("*.parquet")):
        is_named = path.stem in (*ITEMS_OF, *ITEMS_OF.values())
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
    return DAT_HEADERS.get(_stem(path))


def _read_titles(path, columns):
    """{item id: number of the item, None if it has no title}, the title of each number, notes."""
    numbers, titles = {}, []
    num_with_year = 0
    with tables.opened(path, header_of(path)) as table:
        item_column = columns.find("item", table)
        title_column = columns.find("title", table)
        year_column = _year_column(table)
        table.columns_read.extend((item_column, title_column))
        place = table.place
        for row in table.rows:
            item_id = text_id(row[item_column], table.header[item_column], place)
            if item_id in numbers:
                raise ValueError(f"{place}: {table.header[item_column]} {item_id!r} stands twice")
            title = row[title_column]
            if year_column is not None and _lacks_year(title, row[year_column], place):
                title = f"{title.strip()} ({row[year_column]})"
                num_with_year += 1
            numbers[item_id] = _number_of_title(title, titles, place, item_id)
    if not num_with_year:
        return numbers, titles, []
    return numbers, titles, [f"the year in {path.name} was added to {num_with_year:,} titles"]


def _year_column(table):
    """Where an .item file holds the years that RecBole cut off MovieLens' titles; None if not.

    Without them an item and its remake would share a title, and so be one.
    """
    if tables.suffix_of(table.path) == ".item" and "release_year" in table.header:
        return table.header.index("release_year")
    return None


def _lacks_year(title, year, place):
    """Is there a year, and a title that does not end in one in brackets?"""
    has_both = _YEAR.fullmatch(year) and clean_title_or_none(title, place) is not None
    return has_both and not _ENDS_IN_YEAR.search(title)


def _number_of_title(text, titles, place, item_id):
    """The number of an item whose title is appended to `titles`; None if it has none."""
    title = clean_title_or_none(text, f"{place}, item {item_id!r}")
    if title is None:
        return None
    titles.append(title)
    return len(titles) - 1


class _Reading:
    """A file of interactions while it is read, row after row.

    numbers: {item id: number of the item, None if it has no title}. titles: of each number.
    titles_beside: do the titles stand in the same file? Then both grow from empty.
    """

    def __init__(self, table, columns, numbers, titles, titles_beside):
        self.table = table
        self.min_rating = columns.min_rating
        self.numbers = numbers
        self.titles = titles
        self.user_column = columns.find("user", table)
        self.item_column = columns.find("item", table, is_needed=not titles_beside)
        self.title_column = columns.find("title", table) if titles_beside else None
        if self.item_column is None:
            self.item_column = self.title_column
        self.title_is_id = self.item_column == self.title_column  # titles alone tell items apart
        self.time_column = columns.find("time", table, is_needed=False)
        self.rating_column = columns.find("rating", table, is_needed=self.min_rating is not None)
        columns = [self.user_column, self.item_column, self.title_column, self.time_column]
        if self.min_rating is not None:
            columns.append(self.rating_column)
        table.columns_read.extend(column for column in columns if column is not None)
        self.title_texts = []  # titles beside: of each number, as they stand in the first row
        self.user_numbers = {}
        self.users, self.items, self.times = array("i"), array("i"), Times()
        self.untitled = {}  # item id -> rows
        self.rated_lower = 0

    def read(self):
        """Take in all rows of the table."""
        place, has_times = self.table.place, self.has_times
        for number, row in enumerate(self.table.rows):
            user_id = row[self.user_column]
            user_number = self.user_numbers.get(user_id)
            if user_number is None:
                text_id(user_id, self.table.header[self.user_column], place)
                user_number = self.user_numbers[user_id] = len(self.user_numbers)
            if self.min_rating is not None and self._is_rated_lower(row):
                self.rated_lower += 1
                continue
            item_number = self._item_number(row)
            if item_number is None:
                item_id = row[self.item_column]
                self.untitled[item_id] = self.untitled.get(item_id, 0) + 1
                continue
            self.times.append(row[self.time_column] if has_times else str(number), place)
            self.users.append(user_number)
            self.items.append(item_number)

    @property
    def has_times(self):
        return self.time_column is not None

    def _is_rated_lower(self, row):
        """Is the rating of a row lower than asked for?"""
        text = row[self.rating_column]
        try:
            rating = float(text)
        except ValueError:
            rating = math.nan
        if math.isnan(rating):
            raise ValueError(f"{self.table.place}: the rating is {text[:40]!r}; expected a number")
        return rating < self.min_rating

    def _item_number(self, row):
        """The number of the item of a row, None if it has no title."""
        item_id = row[self.item_column]
        if item_id not in self.numbers:
            return self._number_of_new_item(item_id, row)
        number = self.numbers[item_id]
        if self.title_column is not None:
            text = row[self.title_column]
            if number is None or text != self.title_texts[number]:
                self._refuse_another_title(item_id, text)
        return number

    def _number_of_new_item(self, item_id, row):
        """The number that an item gets with the title beside it; None without one."""
        if not self.title_is_id:
            text_id(item_id, self.table.header[self.item_column], self.table.place)
        if self.title_column is None:
            return None
        text = row[self.title_column]
        number = _number_of_title(text, self.titles, self.table.place, item_id)
        self.numbers[item_id] = number
        if number is not None:
            self.title_texts.append(text)
        return number

    def _refuse_another_title(self, item_id, text):
        """Raise ValueError if a text is another title than the item has; an empty one is none."""
        place = self.table.place
        title = clean_title_or_none(text, f"{place}, item {item_id!r}")
        if title is None:
            return
        number = self.numbers[item_id]
        if number is None:
            raise ValueError(
                f"{place}: item {item_id!r} has the title {title[:80]!r} here and none in its "
                "first row; write it there, too, or put the titles into a file of items"
            )
        before = self.titles[number]
        if title != before:
            raise ValueError(
                f"{place}: item {item_id!r} has the title {title[:80]!r} here and {before[:80]!r} "
                "before; put the titles into a file of items, or name their column "
                "(--title-column)"
            )

    def without_title_and_not_listed(self):
        """Two lists of item ids, why interactions were left out: no title, or no such item."""
        without_title = [item_id for item_id in self.untitled if item_id in self.numbers]
        not_listed = [item_id for item_id in self.untitled if item_id not in self.numbers]
        return without_title, not_listed

    def interactions(self, notes):
        """All that was read, as Interactions. notes: on the titles."""
        path = self.table.path
        notes = [*notes]
        if not self.has_times:
            notes.append(f"{path.name} has no column of times: its order is taken for time")
        if self.rated_lower:
            notes.append(f"{self.rated_lower:,} interactions rated lower than asked for left out")
        reasons = ("without a title", "that no file of items lists")
        for reason, item_ids in zip(reasons, self.without_title_and_not_listed(), strict=True):
            if item_ids:
                examples = ", ".join(map(repr, item_ids[:5]))
                num_rows = sum(self.untitled[item_id] for item_id in item_ids)
                notes.append(
                    f"{len(item_ids):,} items {reason} left out ({examples}), and "
                    f"{num_rows:,} interactions"
                )
        columns = (np.asarray(column) for column in (self.users, self.items, self.times.values))
        return Interactions(path, self.titles, *columns, list(self.user_numbers), tuple(notes))


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
