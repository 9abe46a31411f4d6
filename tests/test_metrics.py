"""Ranks to metrics, intervals and baselines, against arithmetic by hand and naive loops."""

import math

import numpy as np
import pytest

from ref.data.dataset import load
from ref.report import metrics as metrics_module
from ref.report.baselines import Baselines
from ref.report.metrics import bootstrap, metrics_of, paired_difference, rank_and_auc, slices
from ref.report.ranking import Result, summarize

from support.data import made_up_rows, write_interactions

INF = float("inf")


def test_metrics_of_ranks_worked_by_hand():
    log = math.log2
    expected = {
        "HR@1": [1, 0, 0, 0, 0, 0, 0],
        "HR@5": [1, 1, 1, 0, 0, 0, 0],
        "HR@10": [1, 1, 1, 1, 1, 0, 0],
        "NDCG@1": [1, 0, 0, 0, 0, 0, 0],
        "NDCG@5": [1, 1 / log(3), 1 / log(6), 0, 0, 0, 0],
        "NDCG@10": [1, 1 / log(3), 1 / log(6), 1 / log(7), 1 / log(11), 0, 0],
        "MRR": [1, 1 / 2, 1 / 5, 1 / 6, 1 / 10, 1 / 11, 0],
    }
    metrics = metrics_of([1, 2, 5, 6, 10, 11, INF])
    assert set(metrics) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(metrics[name], values, rtol=1e-14, err_msg=name)


@pytest.mark.parametrize(
    "scores, target, candidates, rank, auc",
    [
        ([3.0, 2.0, 1.0], 0, [0, 1, 2], 1, 1.0),
        ([3.0, 2.0, 1.0], 1, [0, 1, 2], 2, 0.5),
        ([3.0, 2.0, 1.0], 2, [0, 1, 2], 3, 0.0),
        ([1.0, 1.0, 1.0, 1.0], 0, [0, 1, 2, 3], 1, 0.5),
        ([1.0, 1.0, 1.0, 1.0], 2, [0, 1, 2, 3], 3, 0.5),
        ([1.0, 2.0, 1.0, 0.0, 1.0], 2, [0, 1, 2, 3, 4], 3, (1 + 0.5 + 0.5) / 4),
        ([9.0, 2.0, 1.0, 0.0, 9.0], 2, [2, 3, 1], 2, 0.5),
        ([2.0, 1.0], 0, [0, 1], 1, 1.0),
        ([2.0, 1.0], 1, [0, 1], 2, 0.0),
        ([1.0, 1.0], 0, [0, 1], 1, 0.5),
        ([1.0, 2.0], 0, [0], 1, 0.0),
        ([1.0, -INF, 0.0], 1, [0, 1, 2], INF, 0.0),
        ([1.0, -INF, 0.0, -INF], 2, [0, 1, 2, 3], 2, 2 / 3),
    ],
)
def test_ranks_and_auc_worked_by_hand(scores, target, candidates, rank, auc):
    measured = rank_and_auc(np.array(scores), target, np.array(candidates))
    assert measured == (rank, pytest.approx(auc, abs=1e-15))


@pytest.mark.parametrize("seed", range(20))
def test_ranks_are_places_in_a_stable_sort_and_auc_counts_pairs(seed):
    rng = np.random.default_rng(seed)
    scores, target = rng.integers(0, 6, 15).astype(float), int(rng.integers(15))
    candidates = np.union1d(rng.choice(15, 8, replace=False), [target])
    in_order = sorted(candidates.tolist(), key=lambda title: (-scores[title], title))
    negatives = candidates[candidates != target]
    worse, equal = scores[negatives] < scores[target], scores[negatives] == scores[target]
    rank, auc = rank_and_auc(scores, target, rng.permutation(candidates))
    assert rank == in_order.index(target) + 1
    assert auc == pytest.approx(np.mean(worse + equal / 2), abs=1e-12)


def test_the_bootstrap_is_reproducible_and_follows_its_seed():
    values = {"x": np.random.default_rng(0).normal(size=80)}
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3)
    assert bootstrap(values, seed=3)["x"][1:] != bootstrap(values, seed=4)["x"][1:]


def test_the_bootstrap_draws_ten_thousand_times():
    values = {"x": np.random.default_rng(0).normal(size=80)}
    assert bootstrap(values) == bootstrap(values, resamples=10_000)


@pytest.mark.parametrize("user", range(3))
def test_each_of_three_users_fills_a_draw_and_is_missing_in_another(user):
    # a draw holds one of three users k times with probability 8, 12, 6 and 1 of 27 for k = 0 to 3:
    # at both ends more than 2.5 %
    values = np.eye(3)[user]
    assert bootstrap({"x": values}, resamples=2000)["x"] == (pytest.approx(1 / 3), 0.0, 1.0)


class OneUserADraw:
    """In place of NumPy's generator: draw number d holds nobody but user d."""

    def integers(self, low, high, size):
        return np.broadcast_to(np.arange(size[0])[:, None], size)


def test_the_interval_leaves_out_one_mean_in_forty_at_each_end(monkeypatch):
    monkeypatch.setattr(np.random, "default_rng", lambda seed: OneUserADraw())
    values = {"x": np.arange(41.0)}  # the means of the draws, too: 0, 1, ..., 40
    assert bootstrap(values, resamples=41)["x"] == (20.0, 1.0, 39.0)


def test_many_users_are_drawn_as_if_a_draw_at_a_time(monkeypatch):
    values = {"x": np.random.default_rng(0).normal(size=30)}
    at_once = bootstrap(values, resamples=50)["x"]
    monkeypatch.setattr(metrics_module, "_USERS_AT_ONCE", 1)
    assert bootstrap(values, resamples=50)["x"] == pytest.approx(at_once, abs=1e-12)


def test_users_are_drawn_with_all_of_their_targets():
    rng = np.random.default_rng(0)
    user_ids = np.repeat(np.arange(40), rng.integers(1, 6, 40))
    values = rng.normal(size=40)[user_ids] + rng.normal(size=len(user_ids))
    draws, means = np.random.default_rng(7), []
    for _ in range(200):
        drawn = []
        for user in draws.integers(0, 40, 40):
            drawn += values[user_ids == user].tolist()
        means.append(np.mean(drawn))
    expected = (values.mean(), *np.percentile(means, (2.5, 97.5)))
    interval = bootstrap({"x": values}, user_ids, resamples=200, seed=7)["x"]
    assert interval == pytest.approx(expected, abs=1e-12)
    assert paired_difference({"x": 2 * values}, {"x": values}, user_ids, 200, 7)["x"] == (
        pytest.approx(expected, abs=1e-12)
    )


def test_a_paired_difference_is_taken_user_by_user():
    rng = np.random.default_rng(0)
    one, noise = 100 * rng.normal(size=60), rng.normal(size=60)
    differences = paired_difference(
        {"x": one + noise + 1, "only here": one}, {"x": one, "only there": one}
    )
    assert set(differences) == {"x"}
    assert differences["x"] == pytest.approx(bootstrap({"x": noise + 1})["x"], abs=1e-9)
    mean, low, high = differences["x"]
    assert mean == pytest.approx(1 + noise.mean(), abs=1e-9)
    assert high - low < 1


def test_a_slice_holds_the_numbers_that_its_name_says():
    lengths, counts = np.arange(1, 12), np.array([0, 1, 9, 10, 49, 50, 99, 100, 101, 5, 5])
    masks = slices(lengths, counts)
    assert {name: lengths[mask].tolist() for name, mask in masks.items() if "history" in name} == {
        "history of 1 to 4": [1, 2, 3, 4],
        "history of 5 to 9": [5, 6, 7, 8, 9],
        "history of 10 or more": [10, 11],
    }
    assert {name: counts[mask].tolist() for name, mask in masks.items() if "target" in name} == {
        "target never in training (cold)": [0],
        "target 1 to 9 times in training": [1, 9, 5, 5],
        "target 10 to 49 times in training": [10, 49],
        "target 50 to 99 times in training": [50, 99],
        "target 100 times or more": [100, 101],
    }


def test_slices_are_by_history_and_by_count_and_none_is_empty():
    masks = slices(lengths=np.array([1, 4, 5, 10]), counts=np.array([0, 9, 10, 100]))
    assert {name: np.flatnonzero(mask).tolist() for name, mask in masks.items()} == {
        "history of 1 to 4": [0, 1],
        "history of 5 to 9": [2],
        "history of 10 or more": [3],
        "target never in training (cold)": [0],
        "target 1 to 9 times in training": [1],
        "target 10 to 49 times in training": [2],
        "target 100 times or more": [3],
    }


@pytest.fixture
def data(tmp_path):
    rows = made_up_rows(users=8, interactions=31)
    return load(write_interactions(tmp_path / "long", rows), min_item=1, min_user=3)


def training_sequences(data):
    bounds = zip(data.train.starts, data.train.ends)
    return [data.items[start:end].tolist() for start, end in bounds]


def test_most_popular_counts_training_items(data):
    expected = np.zeros(len(data.titles))
    for sequence in training_sequences(data):
        for title in sequence:
            expected[title] += 1
    scores = Baselines(data).scorers()["most popular"](np.array([0, 1]))
    np.testing.assert_array_equal(scores, expected)


def test_last_item_co_occurrence_is_that_of_a_loop(data):
    scorer = Baselines(data).scorers()["co-occurrence, last item"]
    for last in range(len(data.titles)):
        expected = np.zeros(len(data.titles))
        for sequence in training_sequences(data):
            for place in range(len(sequence)):
                for other in range(len(sequence)):
                    if sequence[place] == last and 1 <= abs(other - place) <= 10:
                        expected[sequence[other]] += 1
        np.testing.assert_array_equal(scorer(np.array([3, 5, last])), expected)


@pytest.mark.parametrize("history", ([5], [3, 1, 4, 1, 5], [3, 1, *range(10)]))
def test_ten_item_co_occurrence_is_that_of_a_loop(data, history):
    expected = np.zeros(len(data.titles))
    for from_end, title in enumerate(reversed(history[-10:]), start=1):
        for sequence in training_sequences(data):
            for place in range(len(sequence)):
                for distance, follower in enumerate(sequence[place + 1 : place + 11], start=1):
                    if sequence[place] == title:
                        expected[follower] += 1 / distance / from_end
    scorer = Baselines(data).scorers()["co-occurrence, ten items"]
    np.testing.assert_allclose(scorer(np.array(history)), expected, rtol=1e-12, atol=1e-12)


def test_baselines_do_not_see_validation_or_test(tmp_path):
    rows = [(f"u{user}", f"{user}-{place}", place) for user in range(4) for place in range(8)]
    titles = {item: f"t{item}" for _, item, _ in rows}
    data = load(write_interactions(tmp_path / "data", rows, titles), min_item=1, min_user=3)
    hidden = [number for number, title in enumerate(data.titles) if title[-1] in "67"]
    assert len(hidden) == 8
    for scorer in Baselines(data).scorers().values():
        for start, end in zip(data.test.starts, data.test.ends):
            scores = scorer(data.items[start : end - 1])
            assert not scores[hidden].any()


def result_of(name, values):
    """A Result with one metric, "x"."""
    return Result(name, [], {"x": np.asarray(values, float)}, None, "")


def test_intervals_of_a_report_draw_users_and_not_their_targets():
    rng = np.random.default_rng(0)
    values, others, users = rng.random(60), rng.random(60), np.arange(60)
    of_users = [result_of("a", values), result_of("b", others)]
    of_targets = [result_of("a", np.repeat(values, 10)), result_of("b", np.repeat(others, 10))]
    single = summarize(of_users, users, {}, seed=0)
    tenfold = summarize(of_targets, np.repeat(users, 10), {}, seed=0)
    for part in ("overall", "differences"):
        for name, row in getattr(single, part).items():
            assert getattr(tenfold, part)[name]["x"] == pytest.approx(row["x"], abs=1e-12)


def test_intervals_of_a_report_are_those_of_its_seed():
    rng = np.random.default_rng(0)
    users, results = np.arange(60), [result_of(name, rng.random(60)) for name in "ab"]
    one, other = (summarize(results, users, {}, seed) for seed in (0, 1))
    for part in ("overall", "differences"):
        for name, row in getattr(one, part).items():
            mean, *interval = row["x"]
            other_mean, *other_interval = getattr(other, part)[name]["x"]
            assert mean == other_mean
            assert interval != other_interval


@pytest.mark.parametrize("softmax, is_compared", [("full", True), ("catalogue", False)])
def test_nll_is_compared_where_both_are_normalized_over_the_same(softmax, is_compared):
    values, users = np.array([1.0, 2.0, 4.0]), np.arange(3)
    first = Result("a", [], {"NLL": values, "x": values}, softmax="full")
    other = Result("b", [], {"NLL": values + 1, "x": values + 1}, softmax=softmax)
    (difference,) = summarize([first, other], users, {}, 0).differences.values()
    expected = {"NLL", "x"} if is_compared else {"x"}
    assert difference == {name: (1.0, 1.0, 1.0) for name in expected}


def test_a_slice_of_a_report_has_the_mean_of_its_targets_alone():
    values, users = np.array([0.0, 1.0, 5.0, 7.0]), np.array([0, 1, 2, 2])
    result = result_of("a", values)
    summary = summarize([result], users, {"late": np.array([False, False, True, True])}, 0)
    assert summary.slices["late (1 user, 2 targets)"]["a"]["x"] == (6.0, 6.0, 6.0)
    assert summary.slice_users == {"late (1 user, 2 targets)": 1}
