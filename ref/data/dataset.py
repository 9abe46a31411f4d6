"""Interactions in, windows out: what every form of data becomes.

`load(None)` reads the embedded MovieLens, `load(folder)` a folder in one of the forms that
ref/data/readers.py knows. Interactions are filtered, ordered in time and split leave-one-out: the
last item of a user is the test target, the one before it the validation target, and the rest is
training. With `test_items` N the last N items of a user are test targets, each after the true
items before it, earlier test targets among them. Data that comes split already stays as it is;
validation is then the last twentieth of the training windows in time.

A *window* is a history and its target: items in a row, of which the last is the target.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ref.data import readers
from ref.data.columns import DEFAULT_COLUMNS
from ref.data.presplit import PresplitWindows

EMBEDDED = Path(__file__).parent / "movielens"
# So many items at least stand before a target of the losses "target" and "all"; its window shows
# the last `history` of them.
MIN_HISTORY = 4


@dataclass(frozen=True)
class Windows:
    """W ranges of `Dataset.items`: [start, end) each. The last item of a window is its target."""

    starts: np.ndarray  # int64 (W,)
    ends: np.ndarray  # int64 (W,)

    def __len__(self):
        return len(self.starts)

    def __getitem__(self, index):
        """Some of the windows: `index` is whatever indexes an array to give an array."""
        return Windows(self.starts[index], self.ends[index])


@dataclass(frozen=True)
class Dataset:
    """A catalogue of titles, and what everybody interacted with.

    titles: the distinct cleaned titles, in the order of the file of items. Items that share a title
    are one: a recommendation is a title.
    items: int32 (N,), indices into `titles`: one sequence after another, each in order of time.
    train: the training sequences, or, with `presplit`, training windows. valid, test: windows of at
    most `history` + 1 items. test_users: int (test windows,), the number of the user of each, from
    0; with `presplit` each window is a user of its own. notes: what a reader of results should
    know, a sentence each.
    """

    source: str
    titles: list
    items: np.ndarray
    train: Windows
    valid: Windows
    test: Windows
    test_users: np.ndarray
    history: int
    presplit: bool
    notes: tuple = ()

    def sequences_digest(self):
        """SHA-256 of the titles of all sequences, which may come in any order.

        With `presplit`: of all training windows.
        """
        starts, ends = self.train.starts, np.append(self.train.starts[1:], len(self.items))
        if self.presplit:
            ends = self.train.ends
        codes = [hashlib.sha256(title.encode()).digest()[:8] for title in self.titles]
        codes = np.frombuffer(b"".join(codes), np.uint64)
        sequences = (codes[self.items[begin:end]] for begin, end in zip(starts, ends))
        digests = sorted(hashlib.sha256(sequence.tobytes()).digest() for sequence in sequences)
        return hashlib.sha256(b"".join(digests)).hexdigest()

    def training_windows(self, loss, rng) -> Windows:
        """The windows of one epoch for a loss, "target", "all" or "titles"; `rng` draws offsets.

        Windows of data that comes split are the same for every loss and epoch.
        """
        if self.presplit:
            return self.train
        if loss == "titles":
            return linked_windows(self.train, self.history, rng)
        return prefix_windows(self.train, self.history)

    def possible_targets(self, loss):
        """Places in `items` of all that may end a training window, int (places,)."""
        if loss != "titles":
            return self.training_windows(loss, None).ends - 1
        # with "titles" the windows begin anywhere: all but the first item of a sequence
        return places_in(Windows(self.train.starts + 1, self.train.ends))[0]

    def training_counts(self):
        """How often each title occurs in training, int64 (titles,)."""
        places, _ = places_in(self.train)
        return np.bincount(self.items[places], minlength=len(self.titles))


def places_in(windows):
    """The places in `Dataset.items` that some windows hold, and the window of each, int (P,) both.

    A place in several windows comes once for each of them.
    """
    window, number = _number_windows(windows.ends - windows.starts)
    return windows.starts[window] + number, window


def prefix_windows(sequences: Windows, history) -> Windows:
    """Each item with MIN_HISTORY or more before it is a target once, after its last items.

    With a history of 5:

        sequence    a b c d e f g
        windows     a b c d e
                    a b c d e f
                      b c d e f g
    """
    lengths = sequences.ends - sequences.starts
    sequence, number = _number_windows(np.maximum(lengths - MIN_HISTORY, 0))
    starts = sequences.starts[sequence]
    ends = starts + MIN_HISTORY + 1 + number
    return _windows_to(ends, starts, history)


def linked_windows(sequences: Windows, history, rng) -> Windows:
    """Windows of `history` + 1 items of which each begins with the last item of the one before it.

    So every item but the first of a sequence is predicted once, from those before it in its window.
    The first window ends at an offset below `history` that `rng` draws for each sequence. With a
    history of 4 and an offset of 2:

        sequence    a b c d e f g h
        windows     a b c
                        c d e f g
                                g h
    """
    offsets = rng.integers(0, history, len(sequences))
    after_first = np.maximum(sequences.ends - sequences.starts - offsets - 1, 0)
    sequence, number = _number_windows(1 + _divide_rounding_up(after_first, history))
    starts, ends = sequences.starts[sequence], sequences.ends[sequence]
    last = starts + offsets[sequence] + history * number
    windows = Windows(np.maximum(starts, last - history), np.minimum(last + 1, ends))
    return windows[windows.ends - windows.starts >= 2]  # one item alone predicts nothing


def _number_windows(counts):
    """For each window the index of its sequence, and its number there.

    counts: windows of each sequence. [2, 0, 1] gives [0, 0, 2] and [0, 1, 0].
    """
    sequence = np.repeat(np.arange(len(counts)), counts)
    windows_before = counts.cumsum() - counts
    return sequence, np.arange(len(sequence)) - windows_before[sequence]


def _divide_rounding_up(numbers, divisor):
    return (numbers + divisor - 1) // divisor


def load(
    folder=None, history=10, min_item=10, min_user=5, test_items=1, columns=DEFAULT_COLUMNS
) -> Dataset:
    """The Dataset in a folder (None: the embedded one).

    history: items shown before a target, at most. min_item, min_user: fewest interactions of an
    item and of a user; not used on data that comes split, nor is a lowest rating. test_items: N,
    the last items of a user that are test targets; the one before them is the validation target,
    and training ends before that. A user with fewer than N + 2 items is in training only. columns:
    names of the columns, and the lowest rating that counts.
    Raises ValueError or FileNotFoundError naming the file or the option.
    """
    _check_at_least("history", history, 1)
    _check_at_least("min_item", min_item, 1)
    _check_at_least("min_user", min_user, 3)  # one each for training, validation and test
    _check_at_least("test_items", test_items, 1)
    source = "MovieLens latest-small (embedded)" if folder is None else str(folder)
    data = readers.read(data_folder(folder), columns)
    if isinstance(data, PresplitWindows):
        if test_items != 1:
            raise ValueError(
                f"test_items is {test_items}, but {source} comes split into training and test; "
                "it has to be 1"
            )
        return _split_as_given(data, source, history)
    data = in_order(filtered(data, min_item, min_user))
    return _leave_last_out(data, source, history, test_items)


def data_folder(folder) -> Path:
    """Where data lies; None is the embedded MovieLens. Raises FileNotFoundError."""
    folder = EMBEDDED if folder is None else Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    return folder


def _check_at_least(name, value, least):
    if not least <= value < 2**31:
        raise ValueError(f"{name} is {value}; expected {least} or more, below 2^31")


def filtered(data, min_item, min_user):
    """The interactions of items and users that have enough of them, counting only what is kept.

    Dropping an item may leave one of its users with too few, and the other way round: both filters
    are applied in turns until neither drops anything.
    """
    keep = np.ones(len(data.items), bool)
    num_kept = None
    while num_kept != keep.sum():
        num_kept = keep.sum()
        keep &= _occurrences(data.items, keep) >= min_item
        keep &= _occurrences(data.users, keep) >= min_user
    if num_kept == 0:
        message = (
            f"{data.path}: no users left of {len(_distinct(data.users))} ({len(data.users)} "
            f"interactions) after keeping items with at least {min_item} and users with at least "
            f"{min_user} interactions"
        )
        if data.notes:
            message += f"; before that: {'; '.join(data.notes)}"
        raise ValueError(message)
    return replace(_rows_of(data, keep), notes=(*data.notes, *_what_is_left(data, keep)))


def _what_is_left(data, keep):
    """A note that says how much the filters kept, if they dropped anything."""
    if keep.all():
        return []
    titles = f"{_num_titles(data, keep):,} of {_num_titles(data):,} titles"
    users = f"{len(_distinct(data.users[keep])):,} of {len(_distinct(data.users)):,} users"
    rows = f"{keep.sum():,} of {len(keep):,} interactions"
    return [f"{titles}, {users} and {rows} are left"]


def _num_titles(data, rows=slice(None)):
    """How many titles stand in some rows; items that share one are one."""
    return len({data.titles[item] for item in _distinct(data.items[rows])})


def _distinct(column):
    """The values that stand in a column, in ascending order, int (values,)."""
    return np.flatnonzero(np.bincount(column))


def _occurrences(column, keep):
    """For each row of a column, how often its value stands in the rows that are kept."""
    counts = np.bincount(column[keep], minlength=column.max(initial=0) + 1)
    return counts[column]


def in_order(data):
    """User after user, each in order of time; ties in time stay in the order of the file."""
    return _rows_of(data, np.lexsort((data.times, data.users)))  # lexsort is stable


def _rows_of(data, index):
    return replace(data, users=data.users[index], items=data.items[index], times=data.times[index])


def _leave_last_out(data, source, history, test_items):
    """The Dataset of ordered interactions: the last of each user are kept from training.

    These are `test_items` test targets and, before them, one validation target.
    """
    bounds = np.flatnonzero(np.diff(data.users, prepend=-1, append=-1))
    starts, ends = bounds[:-1], bounds[1:]
    is_tested = ends - starts >= test_items + 2
    if not is_tested.any():
        raise ValueError(
            f"{data.path}: no user has the {test_items + 2} interactions that test_items "
            f"{test_items} needs; the most are {(ends - starts).max()}"
        )
    first_test = ends[is_tested, None] - test_items  # (users that are tested, 1)
    test_ends = (first_test + np.arange(1, test_items + 1)).ravel()
    is_left = np.bincount(data.items) > 0
    number = is_left.cumsum() - 1  # of each item among those that are left
    titles = [data.titles[item] for item in np.flatnonzero(is_left)]
    titles, items = _with_distinct_titles(titles, number[data.items])
    return Dataset(
        source,
        titles,
        items,
        train=Windows(starts, np.where(is_tested, ends - test_items - 1, ends)),
        valid=_windows_to(first_test.ravel(), starts[is_tested], history),
        test=_windows_to(test_ends, np.repeat(starts[is_tested], test_items), history),
        test_users=np.repeat(np.arange(is_tested.sum()), test_items),
        history=history,
        presplit=False,
        notes=data.notes,
    )


def _windows_to(ends, starts, history):
    """Windows of at most `history` + 1 items that end there; `starts`: of their sequences."""
    return Windows(np.maximum(starts, ends - history - 1), ends)


def _split_as_given(data, source, history):
    """The Dataset of windows: the last twentieth of training, in time, is for validation."""
    windows_in_time = _by_time(data.train) + _by_time(data.test)
    lengths = np.array([len(window) for window in windows_in_time])
    ends = lengths.cumsum()
    windows = _windows_to(ends, ends - lengths, history)
    first_test = len(data.train)
    first_valid = first_test - max(1, first_test // 20)
    titles, items = _with_distinct_titles(data.titles, np.concatenate(windows_in_time))
    return Dataset(
        source,
        titles,
        items,
        train=windows[:first_valid],
        valid=windows[first_valid:first_test],
        test=windows[first_test:],
        test_users=np.arange(len(data.test)),
        history=history,
        presplit=True,
        notes=data.notes,
    )


def _by_time(windows):
    """The items of each window, in order of time; ties stay in the order of the file."""
    return [window.items for window in sorted(windows, key=lambda window: window.time)]


def _with_distinct_titles(titles, items):
    """The distinct titles as they first appear, and `items` as indices into them, int32."""
    index = {}
    index_of_item = [index.setdefault(title, len(index)) for title in titles]
    return list(index), np.array(index_of_item, np.int32)[items]
