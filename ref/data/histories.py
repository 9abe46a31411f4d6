"""All that each user chose, in order of time: nothing is held out, filtered or cut into windows."""

from dataclasses import dataclass

import numpy as np

from ref.data import readers
from ref.data.columns import DEFAULT_COLUMNS
from ref.data.dataset import data_folder, in_order
from ref.data.presplit import PresplitWindows


@dataclass(frozen=True)
class Histories:
    """The histories of U users, in the order in which the data names the users first.

    titles: the cleaned title of each item; items may share one. user_ids: as they stand in the
    data. items: for each user an int array, indices into `titles`, oldest first; empty where all
    was left out. notes: what was left out or assumed, a sentence each.
    """

    titles: list
    user_ids: list
    items: list
    notes: tuple


def load_histories(folder, columns=DEFAULT_COLUMNS) -> Histories:
    """The Histories in a folder of data, in any form that is read; None: the embedded data.

    Raises ValueError or FileNotFoundError naming the file.
    """
    data = readers.read(data_folder(folder), columns)
    if isinstance(data, PresplitWindows):
        by_user = _joined_windows(data.train + data.test)
        return Histories(data.titles, list(by_user), list(by_user.values()), data.notes)
    data = in_order(data)
    ends = np.bincount(data.users, minlength=len(data.user_ids)).cumsum()
    return Histories(data.titles, data.user_ids, np.split(data.items, ends[:-1]), data.notes)


def _joined_windows(windows):
    """{user id: items}: the latest window, after what only the user's earlier windows hold."""
    by_user = {window.user_id: [] for window in windows}
    for window in sorted(windows, key=lambda window: window.time):
        earlier = [item for item in by_user[window.user_id] if item not in window.items]
        by_user[window.user_id] = earlier + window.items
    return {user_id: np.array(items) for user_id, items in by_user.items()}
