"""Ranks, metrics of ranks, and bootstrap intervals of their means."""

import numpy as np

CUTOFFS = (1, 5, 10)  # of HR and NDCG


def rank_and_auc(scores, target, candidates):
    """Rank of `target` among `candidates` (indices into `scores`), ties by index, and its AUC, ties half.

    A target whose score is -inf is not returned: rank infinity, AUC 0.
    """
    others = candidates[candidates != target]
    if scores[target] == -np.inf:
        return np.inf, 0.0
    ties = scores[others] == scores[target]
    rank = 1 + (scores[others] > scores[target]).sum() + (others[ties] < target).sum()
    auc = ((scores[others] < scores[target]).sum() + ties.sum() / 2) / max(len(others), 1)
    return float(rank), float(auc)


def metrics_of(ranks):
    """{"HR@1": float64 (U,), ..., "MRR": ...}, one value a user, from ranks (U,)."""
    ranks = np.asarray(ranks, np.float64)
    out = {f"HR@{k}": (ranks <= k).astype(np.float64) for k in CUTOFFS}
    out |= {f"NDCG@{k}": np.where(ranks <= k, 1 / np.log2(ranks + 1), 0.0) for k in CUTOFFS}
    return out | {"MRR": 1 / ranks}


def bootstrap(values, resamples=1000, seed=0):
    """95 % intervals of the means of several columns, users drawn with replacement.

    values: {name: float (U,)}; the same draws for every column. Returns {name: (mean, low, high)}.
    """
    table = np.stack(list(values.values()), axis=1)  # (U, columns)
    rng = np.random.default_rng(seed)
    means = np.stack(
        [table[rng.integers(0, len(table), len(table))].mean(0) for _ in range(resamples)]
    )
    low, high = np.percentile(means, (2.5, 97.5), axis=0)
    return {name: tuple(map(float, row)) for name, *row in zip(values, table.mean(0), low, high)}


def paired_difference(values, others, resamples=1000, seed=0):
    """`bootstrap` of values - others, user by user, for the columns that both have."""
    return bootstrap(
        {name: values[name] - others[name] for name in values if name in others}, resamples, seed
    )


def slices(lengths, counts):
    """{name: bool (U,)}: by history length, and by how often the target stands in training, both int (U,)."""
    masks = {
        f"history of {low} to {high}": (lengths >= low) & (lengths <= high)
        for low, high in ((1, 4), (5, 9))
    }
    masks["history of 10 or more"] = lengths >= 10
    masks["target never in training (cold)"] = counts == 0
    for low, high in ((1, 9), (10, 49), (50, 99)):
        masks[f"target {low} to {high} times in training"] = (counts >= low) & (counts <= high)
    masks["target 100 times or more"] = counts >= 100
    return {name: mask for name, mask in masks.items() if mask.any()}
