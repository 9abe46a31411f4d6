"""What a ranking gives: ranks and metrics of each target, their means, differences and slices.

U targets (ref/report/targets.py), S titles. Titles are numbers of the catalogue.
"""

from dataclasses import dataclass

import numpy as np

from ref.report.metrics import bootstrap, metrics_of, paired_difference, rank_and_auc
from ref.report.targets import size_text


@dataclass(frozen=True)
class Ranking:
    """Where a target stands.

    rank: from 1; infinity where it was not returned. auc: None after a beam search. top: the best
    five titles of a model, as (title, log-probability).
    """

    rank: float
    auc: float | None = None
    top: list | None = None


@dataclass(frozen=True)
class Result:
    """What is measured of a model or a baseline.

    rankings: the Ranking of each target. metrics: {name: float64 (U,)}. true_titles: int
    (U,), of a model, the titles that its rankings are of (the target or the first title of the same
    tokens). note: a sentence that belongs beside its figures, or "". softmax: of a model, over what
    its NLL is normalized, "full" or "catalogue".
    """

    name: str
    rankings: list
    metrics: dict
    true_titles: np.ndarray | None = None
    note: str = ""
    softmax: str | None = None

    @property
    def is_model(self):
        return self.true_titles is not None

    @property
    def ranks(self):
        """float64 (U,), infinity where the target was not returned."""
        return np.array([ranking.rank for ranking in self.rankings])


def metrics_of_rankings(rankings):
    """The metrics of each target, {name: float64 (U,)}: those of ranks, and the AUC where known."""
    metrics = metrics_of([ranking.rank for ranking in rankings])
    if rankings[0].auc is not None:
        metrics["AUC"] = np.array([ranking.auc for ranking in rankings])
    return metrics


def evaluate_scores(name, scores, targets, options) -> Result:
    """Rank all targets by scores of all titles: for each target float (S,).

    With --ranking beam, a target ranked beyond the beam width counts as not returned.
    """
    rankings = []
    for number, row in enumerate(scores):
        candidates = np.arange(len(row))
        if targets.candidates is not None:
            candidates = targets.candidates[number]
        row = row.astype(np.float64)  # a copy: a scorer may give one array for all targets
        if options.exclude_seen:
            row[targets.histories[number]] = -np.inf
        rank, auc = rank_and_auc(row, targets.titles[number], candidates)
        if options.ranking == "beam":
            auc = None
            if rank > options.beam_width:
                rank = np.inf
        rankings.append(Ranking(rank, auc))
    return Result(name, rankings, metrics_of_rankings(rankings))


def best_titles(scores, titles):
    """The best five of some titles, those without a score left out: [(title, score), ...]."""
    best = titles[np.argsort(-scores[titles], kind="stable")[:5]]
    return [(int(title), float(scores[title])) for title in best if scores[title] > -np.inf]


@dataclass(frozen=True)
class Summary:
    """Means with their intervals, {name: {metric: (mean, low, high)}}: a table each.

    overall: of each result. differences: of each but the first to the first, target by target.
    slices: {name of a slice: as overall, over the targets of the slice}. slice_users: {name of a
    slice: the number of its users}.
    """

    overall: dict
    differences: dict
    slices: dict
    slice_users: dict


def summarize(results, user_ids, slices, seed) -> Summary:
    """The Summary of Results.

    user_ids: int (U,), the user of each target; slices: {name: bool (U,)}; seed: of the bootstrap.
    """
    first, *others = results
    differences = {}
    for result in others:
        metrics = dict(result.metrics)
        if result.softmax != first.softmax:
            metrics.pop("NLL", None)  # of another distribution
        name = f"{result.name} - {first.name}"
        differences[name] = paired_difference(metrics, first.metrics, user_ids, seed=seed)
    in_slices, slice_users = {}, {}
    for name, mask in slices.items():
        name = f"{name} ({size_text(user_ids[mask])})"
        in_slices[name] = _means(results, user_ids, mask, seed)
        slice_users[name] = len(np.unique(user_ids[mask]))
    everything = np.ones(len(user_ids), bool)
    overall = _means(results, user_ids, everything, seed)
    return Summary(overall, differences, in_slices, slice_users)


def _means(results, user_ids, mask, seed):
    """{name: {metric: (mean, low, high)}} over the targets of a mask; the same draws for all."""
    metrics = {}
    for result in results:
        for metric, values in result.metrics.items():
            metrics[result.name, metric] = values[mask]
    means = {result.name: {} for result in results}
    for (name, metric), interval in bootstrap(metrics, user_ids[mask], seed=seed).items():
        means[name][metric] = interval
    return means


def summary_values(summary: Summary, results) -> dict:
    """The Summary for JSON, with the rank (null: not returned) and the NLL of every target."""
    models = [result for result in results if result.is_model]
    baselines = [result for result in results if not result.is_model]
    return {
        "models": [model.name for model in models],
        "baselines": [baseline.name for baseline in baselines],
        "softmaxes": {model.name: model.softmax for model in models},
        "metrics": summary.overall,
        "differences": summary.differences,
        "slices": summary.slices,
        "ranks": {result.name: _ranks_or_none(result.ranks) for result in results},
        "nll": {model.name: model.metrics["NLL"].tolist() for model in models},
    }


def _ranks_or_none(ranks):
    return [int(rank) if np.isfinite(rank) else None for rank in ranks]
