"""The forms in which interactions come, one reader a form.

* `interactions.csv` (user_id, item_id, timestamp) and `items.csv` (item_id, title), plain or `.gz`.
* `id2name4Rec.json` (item id: title), `train.csv` and `test.csv` (user_id, item_ids, timestamp):
  windows, divided into training and test already. The last item of a row is its target.

To add a form, write a function of the folder that returns one of the two dataclasses, and list it
in FORMS. Every error is a ValueError or FileNotFoundError that names the file and what is wrong.
"""

import csv
import gzip
import io
import json
import os
import zlib
from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ref.files import read_json
from ref.text import clean_title


@dataclass(frozen=True)
class Interactions:
    """N interactions, in the order of the file, and the titles of all items.

    path: the file that they are from, for messages. titles: the cleaned title of each item.
    users, items, times: int64 (N,); users are numbered as they appear, items index `titles`.
    """

    path: Path
    titles: list
    users: np.ndarray
    items: np.ndarray
    times: np.ndarray


@dataclass(frozen=True)
class PresplitWindows:
    """Windows for training and for the test, in the order of the files.

    titles: the cleaned title of each item. train, test: windows as (time, [index into titles, ...])
    of which the last item is the target. notes: what was left out, a sentence each.
    """

    titles: list
    train: list
    test: list
    notes: tuple


def read(folder):
    """The Interactions or PresplitWindows in a folder, whichever form it has."""
    for has_form, reader in FORMS:
        if has_form(folder):
            return reader(folder)
    return read_interactions(folder)  # also where there is nothing: its error says what is missing


def read_interactions(folder):
    """The Interactions in interactions.csv and items.csv. Each item has to have a title."""
    items_path = find(folder, "items.csv")
    path = find(folder, "interactions.csv")
    item_numbers, titles = _read_titles(items_path)
    user_numbers = {}
    users, items, times = array("q"), array("q"), array("q")
    for where, (user_id, item_id, time) in rows(path, ("user_id", "item_id", "timestamp")):
        if item_id not in item_numbers:
            raise ValueError(f"{where}: item {item_id!r} has no title in {items_path.name}")
        users.append(user_numbers.setdefault(user_id, len(user_numbers)))
        items.append(item_numbers[item_id])
        times.append(timestamp(time, where))
    return Interactions(path, titles, np.asarray(users), np.asarray(items), np.asarray(times))


def _read_titles(path):
    """{item id: number of the item}, and the title of each."""
    numbers = {}
    titles = []
    for where, (item_id, title) in rows(path, ("item_id", "title")):
        if item_id in numbers:
            raise ValueError(f"{where}: item_id {item_id!r} stands twice")
        numbers[item_id] = len(titles)
        titles.append(clean_title(title, f"{where}, item {item_id!r}"))
    return numbers, titles


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
        examples = ", ".join(untitled[:5])
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
    """[(time, [number of an item, ...]), ...] of one file, and how many rows were dropped."""
    windows = []
    dropped = 0
    for where, (item_ids, time) in rows(find(folder, name), ("item_ids", "timestamp")):
        items = [numbers[item_id] for item_id in _item_ids(item_ids, where, numbers, names_file)]
        titled = [item for item in items if item is not None]
        if items[-1] is None or len(titled) < 2:
            dropped += 1
        else:
            windows.append((timestamp(time, where), titled))
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


FORMS = [  # (does a folder have this form?, its reader); the first that fits counts
    (is_presplit, read_presplit),
]


def find(folder, name):
    """The path of FOLDER/name or FOLDER/name.gz. Raises FileNotFoundError if neither is there."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{folder}: has neither {name} nor {name}.gz")


def timestamp(text, where) -> int:
    """The number that a field holds. Raises ValueError, beginning with `where`, if it is none."""
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise ValueError(
            f"{where}: timestamp is {text[:40]!r}; expected an integer of 0 or more (below 10^18)"
        )
    return int(text)


def rows(path, columns):
    """Yield ("PATH, line N", [the value in each of `columns`]) for each row of a CSV file.

    path: plain or `.gz`, in UTF-8, with a header. Blank lines and other columns are passed over.
    Columns whose name ends with _id have to hold text. Raises ValueError naming file and line.
    """
    line = 1  # the last that could be read
    try:
        with open(path, "rb") as file:
            unpacked = _BoundedGzip(fileobj=file) if path.suffix == ".gz" else file
            reader = csv.reader(io.TextIOWrapper(unpacked, "utf-8-sig", newline=""), strict=True)
            header = next(reader, [])
            places = [_place(column, header, path) for column in columns]
            ids = [place for place in places if header[place].endswith("_id")]
            for row in reader:
                line = reader.line_num
                if row:
                    where = f"{path}, line {line}"
                    _check_row(row, header, ids, where)
                    yield where, [row[place] for place in places]
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8, after line {line}") from None
    except csv.Error as error:
        raise ValueError(f"{path}: broken CSV after line {line}: {error}") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: broken gzip: {error}") from None


def _place(column, header, path):
    if column not in header:
        raise ValueError(f"{path}: column {column!r} is missing; found {header[:10]}")
    if header.count(column) > 1:
        raise ValueError(f"{path}: column {column!r} stands twice")
    return header.index(column)


def _check_row(row, header, ids, where):
    if len(row) != len(header):
        raise ValueError(f"{where}: {len(row)} fields; the header has {len(header)}")
    for place in ids:
        if not row[place] or "\0" in row[place]:
            raise ValueError(
                f"{where}: {header[place]} is {row[place]!r}; expected text without NUL characters"
            )


class _BoundedGzip(gzip.GzipFile):
    """A .gz file that is no bomb: unpacked, a table is 10 times as large, and never 1,000 times."""

    def read1(self, size=-1):
        if self.tell() > max(1 << 24, 50 * os.fstat(self.fileno()).st_size):
            raise gzip.BadGzipFile("what it holds is more than 50 times as large")
        return super().read1(size)
