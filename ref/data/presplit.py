"""Windows that come divided into training and test already.

They are `id2name4Rec.json` (item id: title), `train.csv` and `test.csv` (user_id, item_ids,
timestamp). The last item of a row is its target. Every error names the file and what is wrong.
"""

import json
from dataclasses import dataclass
from typing import NamedTuple

from ref.data import tables
from ref.data.times import Times
from ref.files import read_json
from ref.text import clean_title_or_none, text_id

NAMES_FILE = "id2name4Rec.json"


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
    """time: in one unit in both files. items: indices into titles; the last is the target.

    user_id: as it came.
    """

    time: int
    items: list
    user_id: str


def is_presplit(folder):
    """Does the folder hold windows rather than interactions?"""
    return (folder / NAMES_FILE).exists()


def read_presplit(folder):
    """The PresplitWindows in id2name4Rec.json, train.csv and test.csv.

    An item without a title cannot be shown: it is left out of the windows, and so are the windows
    of which it is the target, or which have fewer than two items left. A note says how many.
    """
    numbers, titles = _read_names(folder / NAMES_FILE)
    rows = _Rows(numbers)
    rows.read(folder, "train.csv", least=2)  # one is for validation
    num_train = len(rows.items)
    rows.read(folder, "test.csv", least=1)
    untitled = [item_id for item_id, number in numbers.items() if number is None]
    notes = ()
    if untitled:
        examples = ", ".join(map(repr, untitled[:5]))
        notes = (
            f"{len(untitled)} items without a title left out ({examples}), and {rows.dropped} rows",
        )
    windows = rows.windows()
    return PresplitWindows(titles, windows[:num_train], windows[num_train:], notes)


def _read_names(path):
    """{item id: number of the item, None if it has no title}, and the title of each number."""
    numbers = {}
    titles = []
    for item_id, title in read_json(path).items():
        text_id(item_id, "item id", path)
        cleaned = clean_title_or_none(title, f"{path}, item {item_id!r}")
        if cleaned is None:
            numbers[item_id] = None
        else:
            numbers[item_id] = len(titles)
            titles.append(cleaned)
    return numbers, titles


class _Rows:
    """The usable rows of both files, one file after the other: so all times are in one unit.

    numbers: {item id: number of the item, None if it has no title}.
    """

    def __init__(self, numbers):
        self.numbers = numbers
        self.times, self.items, self.user_ids = Times(), [], []
        self.dropped = 0

    def read(self, folder, name, least):
        """Take in the rows of a file. Raises ValueError if fewer than `least` are usable."""
        numbers, num_before = self.numbers, len(self.items)
        columns = ("user_id", "item_ids", "timestamp")
        for place, (user_id, item_ids, time) in _fields(_presplit_file(folder, name), columns):
            items = [numbers[item_id] for item_id in _item_ids(item_ids, place, numbers)]
            titled = [item for item in items if item is not None]
            if items[-1] is None or len(titled) < 2:
                self.dropped += 1
                continue
            self.user_ids.append(text_id(user_id, "user_id", place))
            self.times.append(time, place)
            self.items.append(titled)
        usable = len(self.items) - num_before
        if usable < least:
            raise ValueError(f"{folder / name}: {usable} usable rows; expected at least {least}")

    def windows(self):
        """A PresplitWindow of each row; a later row may have changed the unit of an earlier one."""
        return list(map(PresplitWindow, self.times.values, self.items, self.user_ids))


def _item_ids(text, place, numbers):
    """The item ids of a JSON list, as strings; all of them stand in `numbers`."""
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        items = None
    is_list_of_two = isinstance(items, list) and len(items) >= 2
    if not is_list_of_two or not all(type(item) in (int, str) for item in items):
        raise ValueError(
            f"{place}: item_ids is {text[:60]!r}; expected a JSON list of at least 2 item "
            "ids, such as [7, 12]"
        )
    for item in items:
        if str(item) not in numbers:
            raise ValueError(f"{place}: item {item!r} is not listed in {NAMES_FILE}")
    return [str(item) for item in items]


def _presplit_file(folder, name):
    """The path of FOLDER/name or FOLDER/name.gz. Raises FileNotFoundError if neither is there."""
    path = tables.plain_or_gz(folder, name)
    if path is None:
        raise FileNotFoundError(f"{folder}: has neither {name} nor {name}.gz")
    return path


def _fields(path, columns):
    """Yield (Place, [the field in each of `columns`]) for each row of a table."""
    with tables.opened(path) as table:
        indices = [_index_of(column, table) for column in columns]
        for row in table.rows:
            yield table.place, [row[index] for index in indices]


def _index_of(column, table):
    index = table.index_of(column)
    if index is None:
        raise ValueError(
            f"{table.path}: column {column!r} is missing; found {table.header[:10]}; give the "
            "column that holds it this name"
        )
    return index
