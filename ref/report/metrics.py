"""Ranks, metrics of ranks, and bootstrap intervals of their means.

A target has rank r, counted from 1, among N negatives; r is infinite where a search did
not return the target. Of one target:

    HR@K   = 1 if r <= K, else 0
    NDCG@K = 1 / log2(r + 1) if r <= K, else 0          (one relevant item, so the ideal DCG is 1)
    MRR    = 1 / r
    AUC    = (N - (r - 1)) / N                           (negatives with the target's score: half)

U targets, one or several of each user; S titles.
"""

import numpy as np

CUTOFFS = (1, 5, 10)  # K of HR@K and NDCG@K; a beam search narrower than K finds fewer
RESAMPLES = 10_000  # draws of a bootstrap
_USERS_AT_ONCE = 1 << 20  # drawn at a time: bounds the memory
_PERCENTILES = (2.5, 97.5)  # between them are 95 %


def rank_and_auc(scores, target, candidates):
    """Rank and AUC of `target` among `candidates`, by `scores`.

    scores: float (S,), larger is better; target: a title; candidates: int array of titles, with or
    without the target. For the rank, equal scores go by the order of the catalogue; for the AUC
    they count half. A target with the score -inf is not returned: rank infinity, AUC 0.
    """
    if scores[target] == -np.inf:
        return np.inf, 0.0
    negatives = candidates[candidates != target]
    num_better = (scores[negatives] > scores[target]).sum()
    num_worse = (scores[negatives] < scores[target]).sum()
    ties = negatives[scores[negatives] == scores[target]]
    rank = 1 + num_better + (ties < target).sum()
    auc = (num_worse + len(ties) / 2) / max(len(negatives), 1)
    return float(rank), float(auc)


def metrics_of(ranks):
    """{"HR@1": float64 (U,), ..., "MRR": ...}, one value a target, from the ranks (U,)."""
    ranks = np.asarray(ranks, np.float64)
    metrics = {}
    for k in CUTOFFS:
        metrics[f"HR@{k}"] = (ranks <= k).astype(np.float64)
    for k in CUTOFFS:
        metrics[f"NDCG@{k}"] = np.where(ranks <= k, 1 / np.log2(ranks + 1), 0.0)
    metrics["MRR"] = 1 / ranks
    return metrics


def bootstrap(metrics, user_ids=None, resamples=RESAMPLES, seed=0):
    """Means over targets with 95 % intervals: {name: (mean, low, high)}.

    metrics: {name: float (U,)}. user_ids: int (U,), the user of each target, those of a user in a
    row; None: each is of another user. Users are drawn with replacement, each with all of its
    targets, because the targets of a user are not independent; the same draws for all metrics. The
    interval lies between the percentiles 2.5 and 97.5 of the means of the draws.
    """
    values = np.stack(list(metrics.values()), axis=1)  # (U, metrics)
    if user_ids is None:
        user_ids = np.arange(len(values))
    is_first = np.append(True, np.diff(user_ids) != 0)  # of its user
    sizes = np.diff(np.flatnonzero(np.append(is_first, True)))  # targets of each user
    sums = np.add.reduceat(values, np.flatnonzero(is_first))  # (users, metrics)
    rng = np.random.default_rng(seed)
    draws_at_once = max(1, _USERS_AT_ONCE // len(sizes))
    means = []
    for begin in range(0, resamples, draws_at_once):
        draws = min(draws_at_once, resamples - begin)
        times = _times_drawn(rng, draws, len(sizes))
        means.append((times @ sums) / (times @ sizes)[:, None])
    means = np.concatenate(means)  # (resamples, metrics)
    low, high = np.percentile(means, _PERCENTILES, axis=0)
    rows = np.stack((values.mean(0), low, high), axis=1)  # (metrics, 3)
    return {name: tuple(row) for name, row in zip(metrics, rows.tolist())}


def _times_drawn(rng, draws, num_users):
    """How often each draw, of as many users as there are, holds each user: int (draws, users)."""
    users = rng.integers(0, num_users, (draws, num_users))
    places = users + num_users * np.arange(draws)[:, None]  # each draw counts in its own places
    times = np.bincount(places.ravel(), minlength=draws * num_users)
    return times.reshape(draws, num_users)


def paired_difference(metrics, others, user_ids=None, resamples=RESAMPLES, seed=0):
    """`bootstrap` of metrics - others, target by target, for the metrics that both have."""
    differences = {name: metrics[name] - others[name] for name in metrics if name in others}
    return bootstrap(differences, user_ids, resamples, seed)


def slices(lengths, counts):
    """{name: bool (U,)}: which targets belong to which slice; empty slices are left out.

    lengths: int (U,), items of the history; counts: int (U,), how often the target stands in
    training.
    """
    masks = {
        "history of 1 to 4": _between(lengths, 1, 4),
        "history of 5 to 9": _between(lengths, 5, 9),
        "history of 10 or more": lengths >= 10,
        "target never in training (cold)": counts == 0,
        "target 1 to 9 times in training": _between(counts, 1, 9),
        "target 10 to 49 times in training": _between(counts, 10, 49),
        "target 50 to 99 times in training": _between(counts, 50, 99),
        "target 100 times or more": counts >= 100,
    }
    return {name: mask for name, mask in masks.items() if mask.any()}


def _between(values, low, high):
    return (low <= values) & (values <= high)
