"""The test users of a ranking, and the titles among which their targets are ranked. U users."""

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Users:
    """U test users; titles are numbers of the catalogue.

    histories: for each an int array, oldest first. targets: int (U,). candidates: for each the
    titles among which the target is ranked, an int array, the target first; None: all titles.
    """

    histories: list
    targets: np.ndarray
    candidates: list | None = None

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, part):
        candidates = None if self.candidates is None else self.candidates[part]
        return Users(self.histories[part], self.targets[part], candidates)


def test_users(data, options) -> Users:
    """The users to rank for; with --ranking sampled each has negatives drawn for it alone."""
    windows = data.test[: options.limit]
    histories = [data.items[start : end - 1] for start, end in zip(windows.starts, windows.ends)]
    users = Users(histories, data.items[windows.ends - 1])
    if options.ranking != "sampled":
        return users
    candidates = [draw_candidates(number, users, data, options) for number in range(len(users))]
    return replace(users, candidates=candidates)


def draw_candidates(number, users, data, options):
    """A user's target and random other titles, drawn from (--seed, number of the user)."""
    rng = np.random.default_rng([options.seed, number])
    target = users.targets[number]
    not_drawn = [target]
    if options.exclude_seen:
        not_drawn += users.histories[number].tolist()
    others = np.setdiff1d(np.arange(len(data.titles)), not_drawn)
    if len(others) < options.negatives:
        raise ValueError(
            f"--negatives is {options.negatives}, but there are only {len(others)} other titles"
        )
    return np.append(target, rng.choice(others, options.negatives, replace=False))
