"""The golden cases of the metrics: against ref.report, and arithmetic by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from ref.golden import case as cases
from ref.golden.definitions import metrics as definition
from ref.golden.stages.metrics import NAMES, STAGE, place
from ref.report.metrics import bootstrap, metrics_of, paired_difference
from ref.report.ranking import evaluate_scores
from ref.report.targets import Targets

CASES = [info["name"] for info in cases.infos() if info["stage"] == "metrics"]
INF = np.inf


@pytest.fixture(params=CASES)
def case(request):
    return cases.load(request.param)


def project_metrics(case, model=""):
    """Ranks (U,) and metrics {name: (U,)} by ref.report; model: "" or "second_"."""
    titles = case.title_of[case.targets]
    if "lists" in case.inputs:
        ranks = []
        for target, items in zip(titles, case.tensors[f"{model}lists"], strict=True):
            best = case.title_of[items[items != -1]].tolist()
            ranks.append(best.index(target) + 1 if target in best else INF)
        return np.array(ranks), metrics_of(ranks)
    # titles are what ref.report ranks: an item counts as the first with its title
    histories = [np.unique(case.title_of[row]) for row in case.seen]
    candidates = [np.unique(case.title_of[row]) for row in case.candidates]
    targets = Targets(histories, titles, case.user_ids, candidates)
    width = case.info["width"]
    options = SimpleNamespace(
        ranking="beam" if width else "full",
        beam_width=width,
        exclude_seen=case.info["exclude_seen"],
    )
    result = evaluate_scores("project", case.tensors[f"{model}scores"], targets, options)
    return result.ranks, result.metrics


def test_scores_that_serve_several_targets_are_not_written_to():
    scores = np.array([3.0, 2.0, 1.0])
    targets = Targets([np.array([0]), np.array([1])], np.array([1, 0]), np.array([0, 1]))
    options = SimpleNamespace(ranking="full", exclude_seen=True)
    assert evaluate_scores("counts", [scores, scores], targets, options).ranks.tolist() == [1, 1]
    assert scores.tolist() == [3.0, 2.0, 1.0]


def has_second_model(case):
    return "second.ranks" in case.outputs


def test_the_project_gives_every_target_the_same_rank_and_metrics(case):
    ranks, metrics = project_metrics(case)
    np.testing.assert_array_equal(ranks, case.tensors["ranks"])
    assert metrics.keys() <= set(NAMES), "a metric of the report needs a definition in ref/golden"
    assert [name for name in NAMES if name in metrics] == [n for n in NAMES if n in case.outputs]
    for name, values in metrics.items():
        np.testing.assert_allclose(values, case.tensors[name], rtol=1e-14, err_msg=name)
    if has_second_model(case):
        np.testing.assert_array_equal(
            project_metrics(case, "second_")[0], case.tensors["second.ranks"]
        )


def test_the_project_gives_the_same_means_and_differences(case):
    metrics = project_metrics(case)[1]
    for name, (mean, _, _) in bootstrap(metrics, case.user_ids, resamples=1).items():
        np.testing.assert_allclose(mean, case.tensors[f"mean.{name}"], rtol=1e-13)
    if has_second_model(case):
        second = project_metrics(case, "second_")[1]
        differences = paired_difference(second, metrics, case.user_ids, resamples=1)
        for name, (mean, _, _) in differences.items():
            np.testing.assert_allclose(mean, case.tensors[f"difference.{name}"], atol=1e-15)


class GivenDraws:
    """In place of NumPy's generator: the draws of a case, one after the other."""

    def __init__(self, draws):
        self.draws = iter(draws)

    def integers(self, low, high, size):
        draws = np.stack([next(self.draws) for _ in range(size[0])])
        assert low == 0 and draws.max() < high and draws.shape == size
        return draws


@pytest.mark.parametrize("name", ["metrics-intervals", "metrics-everything"])
def test_the_project_gives_the_same_intervals_from_the_same_draws(name, monkeypatch):
    case = cases.load(name)
    monkeypatch.setattr(np.random, "default_rng", lambda seed: GivenDraws(case.draws))
    first, second = project_metrics(case)[1], project_metrics(case, "second_")[1]
    groups = {
        "interval": bootstrap(first, case.user_ids, resamples=len(case.draws)),
        "difference_interval": paired_difference(
            second, first, case.user_ids, resamples=len(case.draws)
        ),
    }
    for group, values in groups.items():
        for metric, (_, *ends) in values.items():
            np.testing.assert_allclose(ends, case.tensors[f"{group}.{metric}"], atol=1e-14)


def outputs_of(scores, target, **options):
    """Everything computed of one target by scores, without seen titles."""
    S = len(scores)
    given = {
        "scores": np.array([scores], float),
        "targets": np.array([target]),
        "title_of": np.arange(S),
        "candidates": np.ones((1, S), bool),
        "seen": np.zeros((1, S), bool),
        "user_ids": np.array([0]),
        "exclude_seen": False,
        "width": None,
    }
    return definition.trace(SimpleNamespace(**(given | options)))


@pytest.mark.parametrize(
    "scores, target, rank, auc",
    [
        ([3, 2, 1], 1, 2, 1 / 2),
        ([1, 1, 1, 1, 0], 2, 3, (1 + 3 / 2) / 4),
        ([2, 1, 3, 1], 3, 4, (0 + 1 / 2) / 3),
        ([1, -INF, 0], 1, INF, 0),
        ([1, -INF, 0, -INF], 2, 2, 2 / 3),
    ],
)
def test_ranks_and_auc_by_hand(scores, target, rank, auc):
    outputs = outputs_of(scores, target)
    assert outputs["ranks"].tolist() == [rank]
    assert outputs["AUC"] == pytest.approx([auc])


def test_a_seen_title_is_a_negative_that_scores_lower_and_a_seen_target_is_not_found():
    seen = np.array([[True, False, False, True]])
    outputs = outputs_of([4, 2, 3, 1], 1, seen=seen, exclude_seen=True)
    assert (outputs["ranks"].item(), outputs["AUC"].item()) == (2, pytest.approx(2 / 3))
    outputs = outputs_of([4, 2, 3, 1], 0, seen=seen, exclude_seen=True)
    assert (outputs["ranks"].item(), outputs["AUC"].item()) == (INF, 0)


def test_items_of_one_title_are_one_answer():
    title_of = np.array([0, 1, 0, 3, 1])
    outputs = outputs_of([2, 3, 2, 2, 3], 3, title_of=title_of)
    assert outputs["ranks"].tolist() == [3]  # after the titles 1 and 0
    assert outputs["AUC"].tolist() == [(1 / 2) / 2]


@pytest.mark.parametrize("width, rank", [(None, 3), (3, 3), (2, INF)])
def test_a_width_cuts_ranks_and_leaves_no_auc(width, rank):
    outputs = outputs_of([3, 2, 1, 0], 2, width=width)
    assert outputs["ranks"].tolist() == [rank]
    assert ("AUC" in outputs) == (width is None)


def test_metrics_of_ranks_by_hand():
    expected = {1: (1, 1, 1), 2: (0, 1 / np.log2(3), 1 / 2), 6: (0, 0, 1 / 6), INF: (0, 0, 0)}
    for rank, values in expected.items():
        r = np.float64(rank)
        measured = (definition.hit(r, 1), definition.gain(r, 5), definition.reciprocal(r))
        assert measured == pytest.approx(values)


def test_a_list_is_read_from_its_best_title_and_what_fills_it_is_no_title():
    case = cases.load("metrics-lists")
    assert case.tensors["ranks"].tolist() == [4, INF, 11, 6, 1, INF]


def test_a_drawn_user_brings_all_its_targets_as_often_as_it_was_drawn():
    values, user_ids = np.array([1.0, 2.0, 6.0]), np.array([0, 0, 1])
    assert definition.mean_of_draw(values, [0, 1, 1], user_ids) == (1 + 2 + 6 + 6) / 4


@pytest.mark.parametrize("p, value", [(0, 1), (25, 3), (50, 5), (60, 5.8), (97.5, 18.7)])
def test_percentiles_lie_between_two_of_the_sorted_values(p, value):
    assert definition.percentile([7, 1, 20, 5, 3], p) == pytest.approx(value)
    assert definition.percentile([value], p) == value


def test_all_outputs_are_decisive(case):
    assert set(case.outputs) <= set(STAGE.decisive)


def test_a_place_is_told_by_target_item_and_user():
    case = cases.load("metrics-several-targets")
    assert place(case, "ranks", (2,)) == f"target 2 (item {case.targets[2]} of user 1)"
    assert place(case, "mean.MRR", ()) == "the mean"
    assert place(case, "interval.MRR", (1,)) == "the upper end"
