"""The test targets of a ranking, and the titles among which each is ranked.

U targets: one for each user, or, with `--test-items`, several in a row of the same user.
"""

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Targets:
    """U test targets; titles are numbers of the catalogue.

    histories: of each what its user chose before, an int array, oldest first. titles: int (U,), the
    targets themselves. user_ids: int (U,), the number of the user of each. candidates: for each the
    titles among which it is ranked, itself among them, an int array; None: all titles.
    """

    histories: list
    titles: np.ndarray
    user_ids: np.ndarray
    candidates: list | None = None

    def __len__(self):
        return len(self.titles)

    def __getitem__(self, part):
        candidates = None if self.candidates is None else self.candidates[part]
        return Targets(self.histories[part], self.titles[part], self.user_ids[part], candidates)


def targets_of(data, options) -> Targets:
    """The Targets of the users to rank for, with --ranking sampled each with its own negatives."""
    limit = np.inf if options.limit is None else options.limit
    is_wanted = data.test_users < limit
    windows = data.test[is_wanted]
    histories = [data.items[start : end - 1] for start, end in zip(windows.starts, windows.ends)]
    targets = Targets(histories, data.items[windows.ends - 1], data.test_users[is_wanted])
    if options.ranking != "sampled":
        return targets
    candidates = [draw_candidates(number, targets, data, options) for number in range(len(targets))]
    return replace(targets, candidates=candidates)


def draw_candidates(number, targets, data, options):
    """A target and random other titles, drawn from (--seed, number of the target)."""
    rng = np.random.default_rng([options.seed, number])
    target = targets.titles[number]
    not_drawn = [target]
    if options.exclude_seen:
        not_drawn += targets.histories[number].tolist()
    others = np.setdiff1d(np.arange(len(data.titles)), not_drawn)
    if len(others) < options.negatives:
        raise ValueError(
            f"--negatives is {options.negatives}, but there are only {len(others)} other titles"
        )
    return np.append(target, rng.choice(others, options.negatives, replace=False))


def size_text(user_ids, users="users"):
    """How many users, and how many targets where a user has several: "576 users, 5760 targets"."""
    num_users = len(np.unique(user_ids))
    text = f"{num_users} {users if num_users != 1 else users.removesuffix('s')}"
    if len(user_ids) > num_users:
        text += f", {len(user_ids)} targets"
    return text


def description(data, targets, options):
    """What every report for JSON begins with."""
    return {
        "options": vars(options),
        "data": data.source,
        "users": len(np.unique(targets.user_ids)),
        "targets": len(targets),
        "notes": list(data.notes),
    }
