"""The definition of ranks and metrics, by counting.

Items that share a title are one answer: title_of says of each item the first item with its title,
and that number is the title's. A target has rank r, counted from 1, among N negatives; r is
infinite where the target was not returned. Of one target:

    HR@K   = 1 if r <= K, else 0
    NDCG@K = 1 / log2(r + 1) if r <= K, else 0
    MRR    = 1 / r
    AUC    = (negatives with a lower score + half of those with an equal one) / N

Means are over targets, those of infinite rank too. Targets of one user are drawn together.

Shapes: U targets, S items, W places of a list, D draws, P users.
"""

import numpy as np

CUTOFFS = (1, 5, 10)  # K of HR@K and NDCG@K
PERCENTILES = (2.5, 97.5)  # between them are 95 %


def trace(given):
    """Everything that is computed, by name, in the order of computation.

    given: the tensors of a case and its options exclude_seen and width as attributes; `scores` or
    `lists` is there; `draws`, and `second_scores` or `second_lists`, may be there.
    """
    metrics = metrics_of_model(given, "")
    outputs = dict(metrics)
    values = {name: metrics[name] for name in metrics if name != "ranks"}
    for name, value in values.items():
        outputs[f"mean.{name}"] = np.asarray(mean(value, metrics["ranks"], given.user_ids))
    if has_second_model(given):
        second = metrics_of_model(given, "second_")
        outputs["second.ranks"] = second["ranks"]
        pairs = {name: (value, second[name]) for name, value in values.items()}
        outputs |= differences(pairs, metrics["ranks"], second["ranks"])
    if hasattr(given, "draws"):
        outputs |= intervals(values, given.draws, given.user_ids, "interval")
        if has_second_model(given):
            between = {name: second[name] - value for name, value in values.items()}
            outputs |= intervals(between, given.draws, given.user_ids, "difference_interval")
    return outputs


def has_second_model(given):
    return hasattr(given, "second_scores") or hasattr(given, "second_lists")


def metrics_of_model(given, model):
    """Ranks and metrics of each target, {name: float (U,)}; model: "" or "second_".

    There is no AUC where not all scores are known: with lists, and with a width.
    """
    if hasattr(given, "lists"):
        ranks, aucs = ranks_in_lists(given, getattr(given, f"{model}lists")), None
    else:
        ranks, aucs = ranks_by_scores(given, getattr(given, f"{model}scores"))
    metrics = {"ranks": ranks}
    for k in CUTOFFS:
        metrics[f"HR@{k}"] = np.array([hit(r, k) for r in ranks])
    for k in CUTOFFS:
        metrics[f"NDCG@{k}"] = np.array([gain(r, k) for r in ranks])
    metrics["MRR"] = np.array([reciprocal(r) for r in ranks])
    if aucs is not None:
        metrics["AUC"] = aucs
    return metrics


def ranks_by_scores(given, scores):
    """Ranks (U,) and AUCs (U,), or None for these. scores: float (U, S), -inf: not returned."""
    ranks, aucs = [], []
    for u in range(len(scores)):
        target = given.title_of[given.targets[u]]
        table = title_scores(scores[u], given.title_of)
        if given.exclude_seen:
            table = without(table, titles_of(given.seen[u], given.title_of))
        negatives = titles_of(given.candidates[u], given.title_of) - {target}
        r = rank(target, table, negatives)
        ranks.append(r if is_within(r, given.width) else np.inf)
        aucs.append(auc(target, table, negatives))
    return np.array(ranks), np.array(aucs) if given.width is None else None


def title_scores(scores, title_of):
    """{title: score}: that of its first item; items of one title have one score."""
    return {int(title): float(scores[title]) for title in title_of}


def titles_of(is_chosen, title_of):
    """The titles of the items that a row of bool (S,) chooses: a set."""
    return {int(title) for title, chosen in zip(title_of, is_chosen, strict=True) if chosen}


def without(table, titles):
    """The scores, -inf for some titles."""
    return {title: -np.inf if title in titles else table[title] for title in table}


def rank(target, table, negatives):
    """1 + the negatives that stand before the target; infinite where it was not returned."""
    if table[target] == -np.inf:
        return np.inf
    return 1.0 + sum(stands_before(title, target, table) for title in negatives)


def stands_before(title, target, table):
    """A higher score comes first; of equal ones the title that comes first in the catalogue."""
    if table[title] == table[target]:
        return title < target
    return table[title] > table[target]


def is_within(r, width):
    """Would a search of this width (None: of all titles) have returned the rank?"""
    return width is None or r <= width


def auc(target, table, negatives):
    """The share of negatives that score lower; 0 where the target was not returned."""
    if table[target] == -np.inf:
        return 0.0
    lower = sum(table[title] < table[target] for title in negatives)
    equal = sum(table[title] == table[target] for title in negatives)
    return (lower + equal / 2) / len(negatives)


def ranks_in_lists(given, lists):
    """Ranks (U,). lists: int (U, W), items, best first, then -1."""
    ranks = []
    for u, items in enumerate(lists):
        titles = [int(given.title_of[item]) for item in items if item != -1]
        ranks.append(rank_in_list(int(given.title_of[given.targets[u]]), titles))
    return np.array(ranks)


def rank_in_list(target, titles):
    """The place of the target, from 1; infinite where it is not there."""
    return titles.index(target) + 1.0 if target in titles else np.inf


def hit(r, k):
    """HR@k of one target."""
    return 1.0 if r <= k else 0.0


def gain(r, k):
    """NDCG@k of one target: it is the only relevant title, so the ideal is 1."""
    return 1 / np.log2(r + 1) if r <= k else 0.0


def reciprocal(r):
    """MRR of one target; 0 where r is infinite."""
    return 1 / r


def mean(values, ranks, user_ids):
    """The mean over targets of values (U,)."""
    return values.mean()


def differences(pairs, ranks, second_ranks):
    """Means of second - first, {name: ()}. pairs: {name: (values of the first, of the second)}."""
    return {f"difference.{name}": np.mean(b - a) for name, (a, b) in pairs.items()}


def intervals(values, draws, user_ids, prefix):
    """The percentiles of the means of all draws, {name: (2,)}.

    draws: int (D, P), the users of each draw; every target of a drawn user counts, as often as the
    user was drawn. Between two means the percentile is interpolated.
    """
    outputs = {}
    for name, value in values.items():
        means = [mean_of_draw(value, users, user_ids) for users in draws]
        outputs[f"{prefix}.{name}"] = np.array([percentile(means, p) for p in PERCENTILES])
    return outputs


def percentile(means, p):
    """The value at the place p % of the way along the sorted means, interpolated."""
    ordered = sorted(means)
    place = p / 100 * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def mean_of_draw(values, users, user_ids):
    """The mean over all targets of the drawn users."""
    drawn = [values[user_ids == user] for user in users]
    return np.concatenate(drawn).mean()
