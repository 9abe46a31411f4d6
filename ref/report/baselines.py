"""Baselines that count: how popular a title is, and what stands near the titles of a history."""

import numpy as np

from ref.data.dataset import places_in

NAMES = ("most popular", "co-occurrence, last item", "co-occurrence, ten items")
REACH = 10  # items before or after that count as near


class Baselines:
    """Scores of all S titles for a history, float64 (S,), from the training sequences of a Dataset.

    A history is an int array of titles, oldest first. Equal scores are left to the order of the
    catalogue.
    """

    def __init__(self, data):
        self.items = data.items
        self.counts = data.training_counts().astype(np.float64)
        positions, sequence = places_in(data.train)
        order = np.argsort(self.items[positions], kind="stable")
        # training positions sorted by title, each with the sequence that it lies in
        self.positions = positions[order]
        self.starts = data.train.starts[sequence[order]]
        self.ends = data.train.ends[sequence[order]]
        titles = np.arange(len(self.counts) + 1)
        # title t has the positions first[t] ... first[t + 1] - 1
        self.first = np.searchsorted(self.items[self.positions], titles)

    def scorers(self):
        """{name: function of a history}, in the order of NAMES."""
        return dict(zip(NAMES, (self.most_popular, self.near_last_item, self.near_ten_items)))

    def most_popular(self, history):
        """How often each title stands in training, whatever the history."""
        return self.counts

    def near_last_item(self, history):
        """How often each title stands within REACH items of the last item of the history."""
        distances = np.arange(1, REACH + 1)
        offsets = np.concatenate((-distances[::-1], distances))
        return self._near(history[-1], offsets, np.ones(len(offsets)))

    def near_ten_items(self, history):
        """How often each title follows one of the last ten items of the history within REACH items.

        Weighted: 1 / distance in training, times 1 / distance of the item from the history's end.
        """
        offsets = np.arange(1, REACH + 1)
        scores = np.zeros(len(self.counts))
        for distance, title in enumerate(history[:-11:-1], start=1):
            scores += self._near(title, offsets, 1 / offsets) / distance
        return scores

    def _near(self, title, offsets, weights):
        """For all titles the sum of the weights of the offsets at which they stand from `title`."""
        of_title = slice(self.first[title], self.first[title + 1])
        neighbours = self.positions[of_title, None] + offsets  # (occurrences, offsets)
        starts, ends = self.starts[of_title, None], self.ends[of_title, None]
        inside = (starts <= neighbours) & (neighbours < ends)
        weights = np.broadcast_to(weights, neighbours.shape)[inside]
        return np.bincount(self.items[neighbours[inside]], weights, minlength=len(self.counts))
