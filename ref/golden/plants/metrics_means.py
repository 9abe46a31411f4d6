"""Bugs of the stage `metrics`: means, differences of two models, and intervals.

Shapes: U targets, D draws, P users.
"""

import numpy as np

from ref.golden.definitions import metrics as definition
from ref.golden.plants.edits import replaced


def difference(change):
    """Another difference. change(first (U,), second (U,)) -> the mean difference."""

    def differences(pairs, ranks, second_ranks):
        return {f"difference.{name}": change(a, b) for name, (a, b) in pairs.items()}

    return replaced(differences=differences)


def mean_of_returned(values, ranks, user_ids):
    returned = values[np.isfinite(ranks)]
    return returned.mean() if len(returned) else 0.0


def mean_of_hits(values, ranks, user_ids):
    """Only over targets for which the metric is not 0."""
    return values[values != 0].mean() if values.any() else 0.0


def mean_of_users(values, ranks, user_ids):
    """The mean over each user's targets first, then over users."""
    return np.mean([values[user_ids == user].mean() for user in np.unique(user_ids)])


def first_target_of_users(values, ranks, user_ids):
    """The first target of each user alone."""
    first = np.unique(user_ids, return_index=True)[1]
    return values[first].mean()


def sum_over_users(values, ranks, user_ids):
    """The sum over targets divided by the number of users."""
    return values.sum() / len(np.unique(user_ids))


def relative(a, b):
    """The gain as a share of the first model's mean."""
    return (b.mean() - a.mean()) / a.mean() if a.mean() else 0.0


def of_common_targets(pairs, ranks, second_ranks):
    """Only over targets that both models returned."""
    both = np.isfinite(ranks) & np.isfinite(second_ranks)
    means = {}
    for name, (a, b) in pairs.items():
        means[f"difference.{name}"] = (b - a)[both].mean() if both.any() else 0.0
    return means


def interval(change):
    """Other ends of an interval. change(means (D,)) -> (2,)."""

    def intervals(values, draws, user_ids, prefix):
        outputs = {}
        for name, value in values.items():
            means = [definition.mean_of_draw(value, users, user_ids) for users in draws]
            outputs[f"{prefix}.{name}"] = np.array(change(np.array(means)))
        return outputs

    return replaced(intervals=intervals)


def by_standard_deviation(means):
    return means.mean() + 1.96 * means.std(ddof=1) * np.array([-1, 1])


def nearest_means(means):
    return np.percentile(means, definition.PERCENTILES, method="nearest")


def draws_of_targets(values, users, user_ids):
    """The numbers drawn are read as those of targets."""
    return values[users].mean()


def users_of_draw_once(values, users, user_ids):
    """A user that is drawn several times counts once."""
    return values[np.isin(user_ids, users)].mean()


def users_weigh_equally(values, users, user_ids):
    """The mean over each user's targets first, then over the drawn users."""
    return np.mean([values[user_ids == user].mean() for user in users])


def not_paired(copy, case):
    """The difference of two intervals: their lower ends and their upper ends are subtracted."""

    def trace(given):
        outputs = definition.trace(given)
        if "draws" not in vars(given) or not definition.has_second_model(given):
            return outputs
        second = definition.metrics_of_model(given, "second_")
        del second["ranks"]
        alone = definition.intervals(second, given.draws, given.user_ids, "interval")
        for name, ends in alone.items():
            outputs[f"difference_{name}"] = ends - outputs[name]
        return outputs

    copy.trace = trace
    return {}


METRICS_MEANS = {
    "mean-of-returned": replaced(mean=mean_of_returned),
    "mean-of-hits": replaced(mean=mean_of_hits),
    "mean-of-user-means": replaced(mean=mean_of_users),
    "mean-of-first-targets": replaced(mean=first_target_of_users),
    "mean-divided-by-users": replaced(mean=sum_over_users),
    "mean-in-percent": replaced(mean=lambda values, ranks, user_ids: 100 * values.mean()),
    "mean-is-sum": replaced(mean=lambda values, ranks, user_ids: values.sum()),
    "mean-is-median": replaced(mean=lambda values, ranks, user_ids: np.median(values)),
    "difference-reversed": difference(lambda a, b: np.mean(a - b)),
    "difference-absolute": difference(lambda a, b: np.abs(b - a).mean()),
    "difference-relative": difference(relative),
    "difference-of-common-targets": replaced(differences=of_common_targets),
    "interval-of-90-percent": interval(lambda means: np.percentile(means, (5, 95))),
    "interval-of-99-percent": interval(lambda means: np.percentile(means, (0.5, 99.5))),
    "interval-by-deviation": interval(by_standard_deviation),
    "interval-not-interpolated": interval(nearest_means),
    "interval-draws-targets": replaced(mean_of_draw=draws_of_targets),
    "interval-counts-users-once": replaced(mean_of_draw=users_of_draw_once),
    "interval-weighs-users-equally": replaced(mean_of_draw=users_weigh_equally),
    "interval-not-paired": not_paired,
}
