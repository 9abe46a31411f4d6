"""Ranks to metrics, intervals and baselines, against arithmetic by hand and naive loops."""

import math

import numpy as np
import pytest

from ref.data.dataset import load
from ref.report.baselines import Baselines
from ref.report.metrics import bootstrap, metrics_of, paired_difference, rank_and_auc

from support.data import made_up_rows, write_interactions

INF = float("inf")


def test_metrics_of_ranks_worked_by_hand():
    found = metrics_of([1, 2, 5, 6, 10, 11, INF])
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
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-14, err_msg=name)


@pytest.mark.parametrize(
    "scores, target, candidates, rank, auc",
    (
        ([3.0, 2.0, 1.0], 0, [0, 1, 2], 1, 1.0),
        ([3.0, 2.0, 1.0], 1, [0, 1, 2], 2, 0.5),
        ([3.0, 2.0, 1.0], 2, [0, 1, 2], 3, 0.0),
        ([1.0, 1.0, 1.0, 1.0], 0, [0, 1, 2, 3], 1, 0.5),
        ([1.0, 1.0, 1.0, 1.0], 2, [0, 1, 2, 3], 3, 0.5),
        ([1.0, 2.0, 1.0, 0.0, 1.0], 2, [0, 1, 2, 3, 4], 3, (1 + 0.5 + 0.5) / 4),
        ([9.0, 2.0, 1.0, 0.0, 9.0], 2, [2, 3, 1], 2, 0.5),
        ([1.0, -INF, 0.0], 1, [0, 1, 2], INF, 0.0),
        ([1.0, -INF, 0.0, -INF], 2, [0, 1, 2, 3], 2, 2 / 3),
    ),
)
def test_ranks_and_auc_worked_by_hand(scores, target, candidates, rank, auc):
    assert rank_and_auc(np.array(scores), target, np.array(candidates)) == (
        rank,
        pytest.approx(auc, abs=1e-15),
    )


def test_ranks_are_places_in_a_stable_sort_and_auc_counts_pairs():
    rng = np.random.default_rng(0)
    for _ in range(200):
        scores, target = rng.integers(0, 6, 15).astype(float), int(rng.integers(15))
        candidates = np.union1d(rng.choice(15, 8, replace=False), [target])
        places = sorted(candidates.tolist(), key=lambda title: (-scores[title], title))
        pairs = [
            (scores[o] < scores[target]) + (scores[o] == scores[target]) / 2
            for o in candidates
            if o != target
        ]
        rank, auc = rank_and_auc(scores, target, rng.permutation(candidates))
        assert rank == places.index(target) + 1
        assert auc == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)


def test_without_ties_auc_is_what_the_specification_says_of_the_rank():
    rng = np.random.default_rng(1)
    for _ in range(50):
        rank, auc = rank_and_auc(rng.normal(size=21), int(rng.integers(21)), np.arange(21))
        assert auc == pytest.approx((20 - (rank - 1)) / 20, abs=1e-12)


def test_the_bootstrap_is_reproducible_and_follows_its_seed():
    values = {"x": np.random.default_rng(0).normal(size=80)}
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3)
    assert bootstrap(values, seed=3)["x"][1:] != bootstrap(values, seed=4)["x"][1:]


def test_the_bootstrap_covers_the_true_mean_about_95_times_in_100():
    rng, covered = np.random.default_rng(0), 0
    for seed in range(300):
        mean, low, high = bootstrap({"x": rng.random(60) < 0.3}, resamples=200, seed=seed)["x"]
        covered += low <= 0.3 <= high
    assert 0.90 < covered / 300 < 0.98


def test_the_interval_has_the_width_that_the_central_limit_theorem_says():
    values = np.random.default_rng(0).normal(size=2000)
    mean, low, high = bootstrap({"x": values}, resamples=4000)["x"]
    error = values.std() / math.sqrt(2000)
    assert mean == pytest.approx(values.mean(), abs=1e-12)
    assert (low, high) == (
        pytest.approx(mean - 1.96 * error, abs=0.1 * error),
        pytest.approx(mean + 1.96 * error, abs=0.1 * error),
    )


def test_all_columns_see_the_same_draws():
    values = np.random.default_rng(0).normal(size=50)
    found = bootstrap({"x": values, "y": 2 * values, "z": np.ones(50)})
    assert found["y"] == pytest.approx(tuple(2 * v for v in found["x"]), abs=1e-12)
    assert found["z"] == (1.0, 1.0, 1.0)


def test_a_paired_difference_is_taken_user_by_user():
    rng = np.random.default_rng(0)
    one, noise = 100 * rng.normal(size=60), rng.normal(size=60)
    found = paired_difference(
        {"x": one + noise + 1, "only here": one}, {"x": one, "only there": one}
    )
    assert set(found) == {"x"}
    assert found["x"] == pytest.approx(bootstrap({"x": noise + 1})["x"], abs=1e-9)
    assert (
        found["x"][0] == pytest.approx(1 + noise.mean(), abs=1e-9)
        and found["x"][2] - found["x"][1] < 1
    )


def test_the_difference_of_a_model_to_itself_is_zero():
    values = metrics_of(np.arange(1, 30))
    assert all(
        interval == (0.0, 0.0, 0.0) for interval in paired_difference(values, values).values()
    )


# --- baselines


@pytest.fixture
def data(tmp_path):
    return load(
        write_interactions(tmp_path / "long", made_up_rows(users=8, interactions=31)),
        min_item=1,
        min_user=3,
    )


def training(data):
    return [
        data.entries[start:end].tolist() for start, end in zip(data.train.starts, data.train.ends)
    ]


def test_most_popular_counts_training_entries(data):
    expected = [
        sum(sequence.count(title) for sequence in training(data))
        for title in range(len(data.titles))
    ]
    assert Baselines(data).scorers()["most popular"](np.array([0, 1])).tolist() == expected


def test_last_item_co_occurrence_is_that_of_a_loop(data):
    scorer = Baselines(data).scorers()["co-occurrence, last item"]
    for last in range(len(data.titles)):
        expected = [0] * len(data.titles)
        for sequence in training(data):
            for place in (p for p, title in enumerate(sequence) if title == last):
                for other in range(len(sequence)):
                    if other != place and abs(other - place) <= 10:
                        expected[sequence[other]] += 1
        assert scorer(np.array([3, last])).tolist() == expected


def test_ten_item_co_occurrence_is_that_of_a_loop(data):
    scorer = Baselines(data).scorers()["co-occurrence, ten items"]
    for history in ([5], [3, 1, 4, 1, 5], list(range(10))):
        expected = np.zeros(len(data.titles))
        for back, title in enumerate(reversed(history), start=1):
            for sequence in training(data):
                for place in range(len(sequence)):
                    for distance in range(1, 11):
                        if sequence[place] == title and place + distance < len(sequence):
                            expected[sequence[place + distance]] += 1 / distance / back
        np.testing.assert_allclose(scorer(np.array(history)), expected, rtol=1e-12, atol=1e-12)


def test_baselines_do_not_see_validation_or_test(tmp_path):
    rows = [(f"u{user}", f"{user}-{place}", place) for user in range(4) for place in range(8)]
    data = load(
        write_interactions(tmp_path / "own", rows, {i: f"t{i}" for _, i, _ in rows}),
        min_item=1,
        min_user=3,
    )
    hidden = [number for number, title in enumerate(data.titles) if title[-1] in "67"]
    for scorer in Baselines(data).scorers().values():
        for start, end in zip(data.test.starts, data.test.ends):
            assert len(hidden) == 8 and not scorer(data.entries[start : end - 1])[hidden].any()
