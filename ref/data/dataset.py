"""Interactions in, windows out: three readers behind one `Dataset`.

`load(None)` reads the embedded MovieLens; `load(folder)` a folder that holds either

* `interactions.csv` (user_id, item_id, timestamp) and `items.csv` (item_id, title), plain or `.gz`:
  split leave-one-out, the last entry of a user is the test target, the one before it the validation
  target, the rest is training; or
* `id2name4Rec.json`, `train.csv` and `test.csv` (user_id, item_ids, timestamp), split already: each
  row is a window whose last item is the target. Validation is the last twentieth of train.csv in time.
  An item without a title cannot be shown: it is left out of histories, and so are the rows that it
  is the target of; `Dataset.notes` says how many.

Every error is a ValueError or FileNotFoundError that names the file, what was found and expected.
"""

import csv
import gzip
import html
import io
import json
import os
import zlib
from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ref.files import read_json

EMBEDDED = Path(__file__).parent / "movielens"
MIN_HISTORY = 4  # a training window of the losses "target" and "all" has at least as many entries


@dataclass(frozen=True)
class Windows:
    """Stretches of `Dataset.entries`, [start, end); the last entry of each is the target."""

    starts: np.ndarray  # int64 (N,)
    ends: np.ndarray  # int64 (N,)

    def __len__(self):
        return len(self.starts)

    def __getitem__(self, choice):
        return Windows(self.starts[choice], self.ends[choice])


@dataclass(frozen=True)
class Dataset:
    """A catalogue of titles and everybody's entries, as indices into it.

    titles: the distinct cleaned titles in the order of the item file; items that share a title are one answer. entries: int32 (N,),
    the sequences one after another, each in order of time. train: the training sequences; presplit: they are windows already.
    valid, test: one window an example, `history` + 1 entries at most.
    """

    source: str
    titles: list
    entries: np.ndarray
    train: Windows
    valid: Windows
    test: Windows
    history: int
    presplit: bool
    notes: tuple = ()

    def training_windows(self, loss, rng):
        """The windows of one epoch, vectorized over all sequences.

        loss "target" and "all": every prefix with at least MIN_HISTORY entries gives (last `history` entries -> next). loss
        "titles": windows of `history` + 1 entries that share one entry with the next, from an offset that `rng` draws for each sequence,
        so that every entry but the first of a sequence is predicted once. Ready-made windows are given back as they are.
        """
        if self.presplit:
            return self.train
        starts, ends = self.train.starts, self.train.ends
        if loss == "titles":
            offset = rng.integers(0, self.history, len(starts))
            count = np.maximum(-((starts + offset + 1 - ends) // self.history), 0) + 1
            which, number = _numbered(count)
            last = starts[which] + offset[which] + self.history * number
            windows = Windows(
                np.maximum(starts[which], last - self.history), np.minimum(last + 1, ends[which])
            )
            return windows[windows.ends - windows.starts >= 2]
        which, number = _numbered(np.maximum(ends - starts - MIN_HISTORY, 0))
        stop = starts[which] + MIN_HISTORY + 1 + number
        return Windows(np.maximum(starts[which], stop - self.history - 1), stop)

    def training_counts(self):
        """How often each title occurs in training, int64 (titles,)."""
        depth = np.zeros(len(self.entries) + 1, np.int64)
        np.add.at(depth, self.train.starts, 1)
        np.add.at(depth, self.train.ends, -1)
        return np.bincount(self.entries[depth.cumsum()[:-1] > 0], minlength=len(self.titles))


def _numbered(count):
    """For counts [2, 0, 1]: which = [0, 0, 2], number = [0, 1, 0]."""
    which = np.repeat(np.arange(len(count)), count)
    return which, np.arange(len(which)) - np.repeat(count.cumsum() - count, count)


def clean_title(title, where):
    """HTML entities decoded, runs of white space made one space, ends stripped (SPEC section 4)."""
    if not isinstance(title, str):
        raise ValueError(f"{where}: the title is {title!r}; expected text")
    cleaned = " ".join(html.unescape(title).split())
    if not cleaned or "\0" in cleaned:
        raise ValueError(
            f"{where}: the title is empty"
            if not cleaned
            else f"{where}: the title holds a NUL character"
        )
    try:
        cleaned.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where}: holds half a surrogate pair, which is no character") from None
    return cleaned


def load(folder=None, history=10, min_item=10, min_user=5):
    """The Dataset in a folder (None: the embedded one).

    history: entries shown before a target, at most. min_item, min_user: fewest interactions of an item and of a user, until both hold;
    not used on data that is split already.
    """
    source = "MovieLens latest-small (embedded)" if folder is None else str(folder)
    folder = EMBEDDED if folder is None else Path(folder)
    for name, value, least in (
        ("history", history, 1),
        ("min_item", min_item, 1),
        ("min_user", min_user, 3),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; expected {least} or more")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    if (folder / "id2name4Rec.json").exists():
        return _load_presplit(folder, source, history)
    return _load_interactions(folder, source, history, min_item, min_user)


def _load_interactions(folder, source, history, min_item, min_user):
    items_path, path = _find(folder, "items.csv"), _find(folder, "interactions.csv")
    number, titles = {}, []  # item id -> row, cleaned title of each row
    for where, (item, title) in _rows(items_path, ("item_id", "title")):
        if number.setdefault(item, len(titles)) != len(titles):
            raise ValueError(f"{where}: item_id {item!r} stands twice")
        titles.append(clean_title(title, f"{where}, item {item!r}"))
    users, user, item, time = {}, array("q"), array("q"), array("q")
    for where, (user_id, item_id, timestamp) in _rows(path, ("user_id", "item_id", "timestamp")):
        if item_id not in number:
            raise ValueError(f"{where}: item {item_id!r} has no title in {items_path.name}")
        user.append(users.setdefault(user_id, len(users)))
        item.append(number[item_id])
        time.append(_timestamp(timestamp, where))
    user, item, time = (np.frombuffer(column, np.int64) for column in (user, item, time))
    keep = _frequent(user, item, min_user, min_item)
    if not keep.any():
        raise ValueError(
            f"{path}: no users left of {len(users)} ({len(user)} interactions) after keeping items with at least "
            f"{min_item} and users with at least {min_user} interactions"
        )
    user, item, time = user[keep], item[keep], time[keep]
    order = np.lexsort((time, user))  # stable: ties in time stay in the order of the file
    bounds = np.flatnonzero(np.diff(user[order], prepend=-1, append=-1))
    starts, ends = bounds[:-1], bounds[1:]
    catalogue, entries = _catalogue(
        [titles[i] for i in np.unique(item)], np.unique(item, return_inverse=True)[1][order]
    )
    valid, test = (Windows(np.maximum(starts, end - history - 1), end) for end in (ends - 1, ends))
    return Dataset(
        source, catalogue, entries, Windows(starts, ends - 2), valid, test, history, presplit=False
    )


def _load_presplit(folder, source, history):
    names_path = folder / "id2name4Rec.json"
    number, titles = {}, []
    for item, title in read_json(names_path).items():
        untitled = isinstance(title, str) and not title.strip()
        clean_title(item, f"{names_path}, item id {item!r}")
        number[item] = None if untitled else len(titles)
        if not untitled:
            titles.append(clean_title(title, f"{names_path}, item {item!r}"))
    entries, lengths, sizes, dropped = array("q"), [], [], 0
    for name in ("train.csv", "test.csv"):
        rows = []
        for where, (items, timestamp) in _rows(_find(folder, name), ("item_ids", "timestamp")):
            row = _item_list(items, where, number, names_path)
            titled = [item for item in row if item is not None]
            if row[-1] is None or len(titled) < 2:
                dropped += 1
            else:
                rows.append((_timestamp(timestamp, where), titled))
        if len(rows) < 2:
            raise ValueError(f"{folder / name}: {len(rows)} usable rows; expected at least 2")
        rows.sort(key=lambda row: row[0])  # stable
        sizes.append(len(rows))
        for _, row in rows:
            entries.extend(row)
            lengths.append(len(row))
    ends = np.cumsum(lengths)
    windows = Windows(np.maximum(ends - lengths, ends - history - 1), ends)
    validation = max(1, sizes[0] // 20)
    train, valid, test = np.split(np.arange(len(ends)), [sizes[0] - validation, sizes[0]])
    catalogue, entries = _catalogue(titles, np.array(entries, np.int64))
    untitled = [item for item, row in number.items() if row is None]
    notes = (
        f"{len(untitled)} items without a title left out ({', '.join(untitled[:5])}), and {dropped} rows",
    )
    return Dataset(
        source,
        catalogue,
        entries,
        windows[train],
        windows[valid],
        windows[test],
        history,
        True,
        notes * bool(untitled),
    )


def _catalogue(titles, items):
    """Distinct titles in order of first appearance, and the items renamed to indices into them."""
    index = {}
    answer = np.array([index.setdefault(title, len(index)) for title in titles], np.int32)
    return list(index), answer[items]


def _frequent(user, item, min_user, min_item):
    keep, before = np.ones(len(user), bool), -1
    while before != keep.sum():
        before = keep.sum()
        for column, least in ((item, min_item), (user, min_user)):
            keep &= np.bincount(column[keep], minlength=column.max(initial=0) + 1)[column] >= least
    return keep


def _item_list(text, where, number, names_path):
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        items = None
    if (
        not isinstance(items, list)
        or len(items) < 2
        or not all(type(item) in (int, str) for item in items)
    ):
        raise ValueError(
            f"{where}: item_ids is {text[:60]!r}; expected a list of at least 2 item ids"
        )
    for item in items:
        if str(item) not in number:
            raise ValueError(f"{where}: item {item!r} has no title in {names_path.name}")
    return [number[str(item)] for item in items]


def _timestamp(text, where):
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise ValueError(
            f"{where}: timestamp is {text[:40]!r}; expected an integer of 0 or more (below 10^18)"
        )
    return int(text)


def _find(folder, name):
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{folder}: has neither {name} nor {name}.gz")


class _Unpacked(gzip.GzipFile):
    """A .gz file that is no bomb: a table becomes 10 times as large when it is unpacked, not 1,000 times."""

    def read1(self, size=-1):
        if self.tell() > max(1 << 24, 50 * os.fstat(self.fileno()).st_size):
            raise gzip.BadGzipFile("what it holds is more than 50 times as large")
        return super().read1(size)


def _rows(path, columns):
    """Yield (where, values of `columns`) for each row of a CSV file with a header."""
    line = 1
    try:
        with open(path, "rb") as raw:
            binary = _Unpacked(fileobj=raw) if path.suffix == ".gz" else raw
            reader = csv.reader(io.TextIOWrapper(binary, "utf-8-sig", newline=""), strict=True)
            header = next(reader, [])
            for name in columns:
                if header.count(name) != 1:
                    what = "stands twice" if name in header else f"is missing; found {header[:10]}"
                    raise ValueError(f"{path}: column {name!r} {what}")
            places = [header.index(name) for name in columns]
            for row in reader:
                line = reader.line_num
                if len(row) != len(header):
                    if not row:
                        continue
                    raise ValueError(
                        f"{path}, line {line}: {len(row)} fields; the header has {len(header)}"
                    )
                values = [row[place] for place in places]
                for name, value in zip(columns, values):
                    if name.endswith("_id") and (not value or "\0" in value):
                        raise ValueError(
                            f"{path}, line {line}: {name} is {value!r}; expected text without NUL characters"
                        )
                yield f"{path}, line {line}", values
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8, after line {line}") from None
    except csv.Error as error:
        raise ValueError(f"{path}: broken CSV after line {line}: {error}") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: broken gzip: {error}") from None
