"""Bootstrap intervals over users and seeds, and how figures stand in tables.

Both users and seeds are drawn with replacement, a user with all of its targets (plan.md). A
bootstrap of few seeds covers less than its name says (five: about 90 % where seeds differ much), so
fewer than five are never called clear.

Letters: S seeds, U users, N targets of a user.
"""

from functools import cache

import numpy as np

DRAWS = 10_000
FEWEST_SEEDS = 5  # of a difference that is called clear


@cache
def times_drawn(seeds, users):
    """How often each draw holds each seed and each user: (DRAWS, S), (DRAWS, U).

    float64, since NumPy multiplies matrices of integers slowly.
    """
    rng = np.random.default_rng(0)
    times = [rng.multinomial(size, np.full(size, 1 / size), DRAWS) for size in (seeds, users)]
    return [array.astype(np.float64) for array in times]


def interval(values, level=95, mask=None):
    """(mean, low, high) of values (S, U) or (S, U, N); mask: bool (U, N), which of these count."""
    mask = np.ones(values.shape[1:], bool) if mask is None else mask
    num_seeds, num_users = values.shape[:2]
    sums = (values * mask).reshape(num_seeds, num_users, -1).sum(2)  # (S, U)
    counts = mask.reshape(num_users, -1).sum(1)  # (U,)
    seed_times, user_times = times_drawn(num_seeds, num_users)
    of_seeds = user_times @ sums.T  # (DRAWS, S)
    totals = (of_seeds * seed_times).sum(1) / num_seeds
    drawn = user_times @ counts  # 0 where a small slice has none of the users
    means = totals[drawn > 0] / drawn[drawn > 0]
    outside = (100 - level) / 2
    return values[:, mask].mean(), *np.percentile(means, (outside, 100 - outside))


def is_clear(values, level):
    """Does the interval leave out 0, of FEWEST_SEEDS at least?"""
    if len(values) < FEWEST_SEEDS:
        return False
    _, low, high = interval(values, level)
    return bool(low > 0 or high < 0)


def interval_text(values, mask=None):
    """Mean and 95 % interval."""
    mean, low, high = interval(values, mask=mask)
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def table_line(cells):
    return f"| {' | '.join(cells)} |"


def table_head(cells):
    """The first two lines of a Markdown table."""
    return [table_line(cells), "| --- " * len(cells) + "|"]
