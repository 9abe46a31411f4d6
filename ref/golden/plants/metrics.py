"""Bugs of the stage `metrics`: ranks, and the metrics of one target.

A table is {title: score}; negatives are a set of titles; r is a rank.
"""

import numpy as np

from ref.golden.definitions import metrics as definition
from ref.golden.plants.edits import replaced, rounded_to_bfloat16


def changed(change):
    """Compute from other tensors or options. change(case) -> {name: value}."""

    def plant(copy, case):
        return change(case)

    return plant


def changed_scores(change):
    """Compute from other scores, of both models. change(scores (U, S)) -> scores."""

    def plant(copy, case):
        scores = {}
        for name in ("scores", "second_scores"):
            if name in case.inputs:
                with np.errstate(over="ignore"):
                    scores[name] = change(getattr(case, name).astype(float))
        return scores

    return plant


def changed_lists(change):
    """Compute from other lists, of both models. change(lists (U, W), case) -> lists."""

    def plant(copy, case):
        lists = {}
        for name in ("lists", "second_lists"):
            if name in case.inputs:
                lists[name] = change(getattr(case, name), case)
        return lists

    return plant


def changed_ranks(change):
    """Count the ranks otherwise. change(r) -> r."""

    def rank(target, table, negatives):
        return change(definition.rank(target, table, negatives))

    def rank_in_list(target, titles):
        return change(definition.rank_in_list(target, titles))

    return replaced(rank=rank, rank_in_list=rank_in_list)


def ties(share):
    """Of the negatives with the target's score this share stands before it."""

    def stands_before(title, target, table):
        if table[title] == table[target]:
            return share
        return table[title] > table[target]

    return replaced(stands_before=stands_before)


def last_of_ties_first(title, target, table):
    return table[title] > table[target] or (table[title] == table[target] and title > target)


def lowest_score_first(title, target, table):
    if table[title] == table[target]:
        return title < target
    return table[title] < table[target]


def almost_equal_are_ties(title, target, table):
    if np.isclose(table[title], table[target]):
        return title < target
    return table[title] > table[target]


def missing_among_missing(target, table, negatives):
    """A target without a score has a place among the others without one."""
    return 1.0 + sum(definition.stands_before(title, target, table) for title in negatives)


def last_of_all(copy, case):
    """What was not returned stands last: rank N + 1, or one more than the list is long."""

    def rank(target, table, negatives):
        r = definition.rank(target, table, negatives)
        return r if np.isfinite(r) else len(negatives) + 2.0

    def rank_in_list(target, titles):
        r = definition.rank_in_list(target, titles)
        return r if np.isfinite(r) else case.lists.shape[1] + 1.0

    copy.rank = rank
    copy.rank_in_list = rank_in_list
    return {}


def among_all(case):
    return {"candidates": np.ones_like(case.candidates)} if "candidates" in case.inputs else {}


def candidates_of_first_target(case):
    if "candidates" not in case.inputs:
        return {}
    return {"candidates": np.broadcast_to(case.candidates[:1], case.candidates.shape)}


def only_a_listed_target_counts(copy, case):
    """A target that is not among its candidates is not found."""

    def ranks_by_scores(given, scores):
        scores = scores.copy()
        for u, target in enumerate(given.targets):
            if not given.candidates[u, target]:
                scores[u, given.title_of == given.title_of[target]] = -np.inf
        return definition.ranks_by_scores(given, scores)

    copy.ranks_by_scores = ranks_by_scores
    return {}


def each_item_an_answer(case):
    """Items that share a title are told apart."""
    return {"title_of": np.arange(len(case.title_of))}


def rows_of_users(case):
    """Rows are looked up by the user of a target, not by the target."""
    names = ("scores", "second_scores", "lists", "second_lists", "candidates", "seen")
    return {name: case.inputs[name][case.user_ids] for name in names if name in case.inputs}


def summed_over_items(copy, case):
    """The probability of a title is the sum of its items'."""

    def title_scores(scores, title_of):
        table = {}
        for title in title_of.tolist():
            table[title] = np.logaddexp.reduce(scores[title_of == title].astype(float))
        return table

    copy.title_scores = title_scores
    return {}


def title_of_last_item(case):
    """A title has the place of its last item in the catalogue."""
    last = {title: item for item, title in enumerate(case.title_of.tolist())}
    return {"title_of": np.array([last[title] for title in case.title_of.tolist()])}


def items_counted_each(copy, case):
    """Each item of a title that stands before the target counts; items of its own title do not."""

    def rank(target, table, negatives):
        if table[target] == -np.inf:
            return np.inf
        before = [title for title in negatives if definition.stands_before(title, target, table)]
        return 1.0 + sum((case.title_of == title).sum() for title in before)

    copy.rank = rank
    return {}


def seen_items_alone(case):
    """The score of a title goes only where its first item is in the history itself."""
    if "seen" not in case.inputs:
        return {}
    is_first = case.title_of == np.arange(len(case.title_of))
    return {"seen": case.seen & is_first}


def seen_target_stays(case):
    """The target is not removed though the history holds it."""
    if "seen" not in case.inputs:
        return {}
    seen = case.seen.copy()
    for u, target in enumerate(case.targets):
        seen[u, case.title_of == case.title_of[target]] = False
    return {"seen": seen}


def removed_after_the_cut(case):
    """The best titles within the width are taken first, and seen ones removed from them."""
    if case.info["width"] is None or not case.info["exclude_seen"]:
        return {}
    scores = case.scores.copy()
    for row in scores:
        row[np.argsort(-row, kind="stable")[case.info["width"] :]] = -np.inf
    return {"scores": scores}


def removed_shift_the_others(case):
    """Seen titles are deleted from the scores, and the numbers after them are not moved."""
    if not case.info["exclude_seen"]:
        return {}
    scores = np.full(case.scores.shape, -np.inf)
    for u, seen in enumerate(case.seen):
        seen_titles = definition.titles_of(seen, case.title_of)
        stays = [title not in seen_titles for title in case.title_of.tolist()]
        scores[u, : sum(stays)] = case.scores[u, stays]
    return {"scores": scores, "exclude_seen": False}


def worst_first(lists, case):
    """The lists are read from their end; what fills them stays behind."""
    reversed_lists = np.full_like(lists, -1)
    for wrong, items in zip(reversed_lists, lists, strict=True):
        returned = items[items != -1]
        wrong[: len(returned)] = returned[::-1]
    return reversed_lists


def filled_with_last_item(lists, case):
    """-1, which fills the lists, is read as the last item of the catalogue."""
    return np.where(lists == -1, len(case.title_of) - 1, lists)


def auc(count):
    """Another AUC. count(lower, equal, num_negatives) -> AUC."""

    def changed_auc(target, table, negatives):
        if table[target] == -np.inf:
            return 0.0
        lower = sum(table[title] < table[target] for title in negatives)
        equal = sum(table[title] == table[target] for title in negatives)
        return count(lower, equal, len(negatives))

    return replaced(auc=changed_auc)


def auc_by_rank(target, table, negatives):
    """(N - (r - 1)) / N: ties by the order of the catalogue."""
    r = definition.rank(target, table, negatives)
    return (len(negatives) - (r - 1)) / len(negatives) if np.isfinite(r) else 0.0


def auc_of_missing_is_half(target, table, negatives):
    return 0.5 if table[target] == -np.inf else definition.auc(target, table, negatives)


def auc_among_returned(target, table, negatives):
    """Negatives that were not returned or were removed are none."""
    returned = {title for title in negatives if table[title] > -np.inf}
    return definition.auc(target, table, returned) if returned else 0.0


def gain_by_log_of_rank(r, k):
    """1 / log2(r), and 1 for the first."""
    if r > k:
        return 0.0
    return 1.0 if r == 1 else 1 / np.log2(r)


def gain_over_ideal_of_k(r, k):
    """As if K titles were relevant."""
    ideal = sum(1 / np.log2(place + 1) for place in range(1, k + 1))
    return definition.gain(r, k) / ideal


def gain_of_ranks(change):
    """Another gain within the cutoff. change(r) -> gain."""
    return replaced(gain=lambda r, k: change(r) if r <= k else 0.0)


def exclusive(r, k):
    return 1.0 if r < k else 0.0


METRICS = {
    "rank-from-zero": changed_ranks(lambda r: r - 1),
    "rank-ties-optimistic": ties(0.0),
    "rank-ties-pessimistic": ties(1.0),
    "rank-ties-halfway": ties(0.5),
    "rank-ties-last-first": replaced(stands_before=last_of_ties_first),
    "rank-lowest-score-first": replaced(stands_before=lowest_score_first),
    "rank-almost-equal-tie": replaced(stands_before=almost_equal_are_ties),
    "rank-scores-in-bfloat16": changed_scores(rounded_to_bfloat16),
    "rank-by-probabilities": changed_scores(lambda x: np.exp(x.astype(np.float32))),
    "rank-in-a-byte": changed_ranks(lambda r: r % 256 if np.isfinite(r) else r),
    "rank-of-missing-among-missing": replaced(rank=missing_among_missing),
    "rank-of-missing-behind-all": last_of_all,
    "rank-width-ignored": replaced(is_within=lambda r, width: True),
    "rank-width-exclusive": replaced(is_within=lambda r, width: width is None or r < width),
    "rank-rows-of-users": changed(rows_of_users),
    "rank-among-all": changed(among_all),
    "rank-candidates-of-first-target": changed(candidates_of_first_target),
    "rank-target-must-be-candidate": only_a_listed_target_counts,
    "rank-by-item": changed(each_item_an_answer),
    "rank-counts-items-of-title": items_counted_each,
    "rank-sums-items-of-title": summed_over_items,
    "rank-title-at-last-item": changed(title_of_last_item),
    "seen-not-removed": changed(lambda case: {"exclude_seen": False}),
    "seen-always-removed": changed(lambda case: {"exclude_seen": True}),
    "seen-items-alone-removed": changed(seen_items_alone),
    "seen-target-stays": changed(seen_target_stays),
    "seen-removed-behind-width": changed(removed_after_the_cut),
    "seen-deleted-without-renumbering": changed(removed_shift_the_others),
    "list-worst-first": changed_lists(worst_first),
    "list-filled-with-last-item": changed_lists(filled_with_last_item),
    "auc-ties-lost": auc(lambda lower, equal, N: lower / N),
    "auc-ties-won": auc(lambda lower, equal, N: (lower + equal) / N),
    "auc-over-all": auc(lambda lower, equal, N: (lower + equal / 2) / (N + 1)),
    "auc-target-is-negative": auc(lambda lower, equal, N: (lower + (equal + 1) / 2) / (N + 1)),
    "auc-turned-round": auc(lambda lower, equal, N: 1 - (lower + equal / 2) / N),
    "auc-by-rank": replaced(auc=auc_by_rank),
    "auc-of-missing-is-half": replaced(auc=auc_of_missing_is_half),
    "auc-among-returned": replaced(auc=auc_among_returned),
    "hr-exclusive": replaced(hit=exclusive),
    "hr-divided-by-k": replaced(hit=lambda r, k: definition.hit(r, k) / k),
    "hr-of-exactly-k": replaced(hit=lambda r, k: 1.0 if r == k else 0.0),
    "ndcg-exclusive": replaced(gain=lambda r, k: definition.gain(r, k - 1)),
    "ndcg-log-of-rank": replaced(gain=gain_by_log_of_rank),
    "ndcg-log-of-rank-plus-two": gain_of_ranks(lambda r: 1 / np.log2(r + 2)),
    "ndcg-natural-log": gain_of_ranks(lambda r: 1 / np.log(r + 1)),
    "ndcg-by-rank": gain_of_ranks(lambda r: 1 / r),
    "ndcg-not-cut": replaced(gain=lambda r, k: 1 / np.log2(r + 1)),
    "ndcg-over-ideal-of-k": replaced(gain=gain_over_ideal_of_k),
    "mrr-cut-at-ten": replaced(reciprocal=lambda r: 1 / r if r <= 10 else 0.0),
    "mrr-of-rank-plus-one": replaced(reciprocal=lambda r: 1 / (r + 1)),
}
