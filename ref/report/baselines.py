"""Baselines that count: how popular a title is, and what stands near the titles of a history."""

import numpy as np

REACH = 10  # entries on either side that count as "together"


class Baselines:
    """Scores of all titles for a history, float64 (titles,); ties are left to the order of the catalogue."""

    def __init__(self, data):
        self.entries, self.counts = data.entries, data.training_counts().astype(np.float64)
        lengths = data.train.ends - data.train.starts
        within = np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths)
        places = np.repeat(data.train.starts, lengths) + within
        order = np.argsort(self.entries[places], kind="stable")
        self.places = places[order]  # training positions, sorted by title
        self.starts, self.ends = (
            np.repeat(bound, lengths)[order] for bound in (data.train.starts, data.train.ends)
        )
        self.first = np.searchsorted(self.entries[self.places], np.arange(len(self.counts) + 1))

    def scorers(self):
        """{name: function of a history (int array, oldest first)}."""
        return {
            "most popular": lambda history: self.counts,
            "co-occurrence, last item": self._last_item,
            "co-occurrence, ten items": self._ten_items,
        }

    def _last_item(self, history):
        """How often each title stands within REACH entries before or after the last item of the history."""
        offsets = np.concatenate((np.arange(-REACH, 0), np.arange(1, REACH + 1)))
        return self._near(history[-1], offsets, np.ones(len(offsets)))

    def _ten_items(self, history):
        """Titles that follow an item of the history within REACH entries: 1 / distance in training,
        times 1 / distance of the item from the end of the history."""
        offsets = np.arange(1, REACH + 1)
        near = (
            self._near(title, offsets, 1 / offsets) / back
            for back, title in enumerate(history[::-1], start=1)
        )
        return sum(near, np.zeros(len(self.counts)))

    def _near(self, title, offsets, weights):
        own = slice(self.first[title], self.first[title + 1])
        places = self.places[own, None] + offsets
        inside = (places >= self.starts[own, None]) & (places < self.ends[own, None])
        weights = np.broadcast_to(weights, places.shape)[inside]
        return np.bincount(self.entries[places[inside]], weights, minlength=len(self.counts))
