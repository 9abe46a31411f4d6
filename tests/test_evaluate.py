"""evaluate.py from end to end, on made-up data and tiny models."""

import io
import itertools
import json
import shutil
import sys
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file

import evaluate
from ref import cli, recommender
from ref.data import dataset
from ref.layouts import LAYOUTS
from ref.masks import MaskScheme
from ref.report import attention_report
from ref.report import models as report_models
from ref.report import targets as report_targets
from ref.report.baselines import Baselines
from ref.report.options import check_options, parse_options
from ref.settings import Settings, read_settings

from support.broken_models import BROKEN
from support.commands import ROOT, assert_one_line, changed_copy, run_main, trained
from support.crowded import write_crowded
from support.data import (
    TITLES,
    made_up_rows,
    sentencepiece_model,
    write_interactions,
    write_llm,
    write_presplit,
)

RANKINGS = {
    "beam": (),
    "full": ("--ranking", "full"),
    "sampled": ("--ranking", "sampled", "--negatives", 9),
}


@pytest.fixture(scope="module")
def data(made_up_data):
    """The Dataset that the models of these tests were trained on."""
    return dataset.load(made_up_data, 10, 1, 3)


def history_and_target(data, user):
    """Titles, as numbers, of a test user's history, and the target."""
    *history, target = data.items[data.test.starts[user] : data.test.ends[user]].tolist()
    return history, target


@torch.inference_mode()
def scores_by_hand(weights, data, users):
    """log p(title + end | prompt) over the whole vocabulary, (users, titles).

    One run of the model for each title: no cache, no trie.
    """
    model, encoder, _ = recommender.load_model_and_encoder(weights, torch.float64)
    scores = np.zeros((users, len(data.titles)))
    for user in range(users):
        history, _ = history_and_target(data, user)
        for number, title in enumerate(data.titles):
            prompt = encoder.encode([data.titles[item] for item in history], title)
            input_ids = torch.tensor(prompt.input_ids)
            logits = model(input_ids[None], torch.tensor(prompt.segment_ids)[None])[0]
            log_probs = logits[:-1].log_softmax(-1).gather(1, input_ids[1:, None])[:, 0]
            scores[user, number] = log_probs[prompt.prompt_length - 1 :].sum()
    return scores


def best_first(scores):
    """Numbers of the titles by their score, ties by the order of the catalogue."""
    return np.argsort(-scores, kind="stable").tolist()


# --- the report


@pytest.fixture(scope="module")
def reports(made_up_data, tiny_model, full_softmax_model, tmp_path_factory):
    """{ranking: what --json writes of two models}."""
    folder = tmp_path_factory.mktemp("reports")
    asked = ("--data", made_up_data, "--weights", tiny_model, full_softmax_model)
    reports = {}
    for ranking, options in RANKINGS.items():
        path = folder / f"{ranking}.json"
        assert run_main(evaluate, *asked, "--json", path, *options) == 0
        reports[ranking] = json.loads(path.read_text())
    return reports


@pytest.mark.parametrize("ranking", RANKINGS)
def test_the_report_says_what_was_ranked(data, reports, tiny_model, full_softmax_model, ranking):
    report = reports[ranking]
    assert report["users"] == 12 and report["titles"] == len(data.titles)
    assert report["models"] == [str(tiny_model), str(full_softmax_model)]
    assert len(report["baselines"]) == 3
    for name in report["models"] + report["baselines"]:
        assert len(report["ranks"][name]) == 12
        assert ("AUC" in report["metrics"][name]) == (ranking != "beam")


def metrics_by_hand(ranks):
    """{metric: mean over users} of ranks from 1, None for what was not returned."""
    ranks = [np.inf if rank is None else rank for rank in ranks]
    metrics = {"MRR": np.mean([1 / rank for rank in ranks])}
    for k in (1, 5, 10):
        metrics[f"HR@{k}"] = np.mean([rank <= k for rank in ranks])
        metrics[f"NDCG@{k}"] = np.mean([1 / np.log2(r + 1) if r <= k else 0 for r in ranks])
    return metrics


@pytest.mark.parametrize("ranking", RANKINGS)
def test_the_metrics_of_a_report_are_those_of_its_ranks(reports, ranking):
    report = reports[ranking]
    for name, ranks in report["ranks"].items():
        assert all(rank is None or rank >= 1 for rank in ranks)
        metrics = report["metrics"][name]
        by_hand = metrics_by_hand(ranks)
        assert metrics.keys() - {"AUC", "NLL"} == by_hand.keys()
        for metric, expected in by_hand.items():
            assert metrics[metric][0] == pytest.approx(expected)
        assert all(low <= value <= high for value, low, high in metrics.values())
    for name, nll in report["nll"].items():
        assert report["metrics"][name]["NLL"][0] == pytest.approx(np.mean(nll))


def test_differences_are_to_the_first_model_and_slices_add_up(
    reports, tiny_model, full_softmax_model
):
    report = reports["full"]
    first, other = (report["metrics"][name] for name in report["models"])
    difference = report["differences"][f"{full_softmax_model} - {tiny_model}"]
    for metric in ("HR@10", "NDCG@5", "MRR", "AUC"):
        assert difference[metric][0] == pytest.approx(other[metric][0] - first[metric][0])
    assert report["softmaxes"] == {str(tiny_model): "catalogue", str(full_softmax_model): "full"}
    assert "NLL" not in difference  # of two distributions
    sizes = {name: int(name.split("(")[-1].split()[0]) for name in report["slices"]}
    for kind in ("history", "target"):
        assert sum(size for name, size in sizes.items() if name.startswith(kind)) == 12


# --ranking sampled asks for one user at a time, whatever --batch-size says
@pytest.mark.parametrize("ranking", ("beam", "full"))
def test_the_batch_size_changes_no_rank(report_of, made_up_data, tiny_model, ranking):
    options = ("--ranking", ranking, "--batch-size")
    five, all_users = (report_of(made_up_data, tiny_model, *options, size) for size in (5, 64))
    assert five["ranks"] == all_users["ranks"]
    name = str(tiny_model)
    np.testing.assert_allclose(five["nll"][name], all_users["nll"][name], rtol=1e-4)


@pytest.fixture
def zero_model(tmp_path, tiny_model):
    """A model whose weights are all zero, so that all scores tie."""
    folder = shutil.copytree(tiny_model, tmp_path / "zero")
    tensors = load_file(tiny_model / "model.safetensors")
    zeros = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    save_file(zeros, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("ranking", ("beam", "full"))
def test_ties_are_ranked_alike_in_batches_of_any_size(report_of, made_up_data, zero_model, ranking):
    options = ("--ranking", ranking, "--batch-size")
    five, all_users = (report_of(made_up_data, zero_model, *options, size) for size in (5, 64))
    assert five["ranks"] == all_users["ranks"]


@pytest.mark.parametrize("ranking", RANKINGS)
def test_another_run_prints_the_same(run, made_up_data, tiny_model, ranking):
    options = ("--weights", tiny_model, "--show", 12, *RANKINGS[ranking])
    once = run(evaluate, "--data", made_up_data, *options)
    twice = run(evaluate, "--data", made_up_data, *options)
    assert once.code == 0 and once.out == twice.out


def test_limit_takes_the_first_users(report_of, made_up_data, tiny_model):
    first, everyone = (report_of(made_up_data, tiny_model, "--limit", n) for n in (5, 100))
    assert first["users"] == 5 and everyone["users"] == 12
    assert first["ranks"] == {name: ranks[:5] for name, ranks in everyone["ranks"].items()}


# --- rankings


def test_each_of_several_targets_is_ranked_after_the_true_items_before_it(
    tmp_path, report_of, made_up_data
):
    options = "--test-items 3 --softmax full --max-steps 1".split()
    weights = trained(made_up_data, tmp_path / "three", *options)
    report = report_of(made_up_data, weights, *"--ranking full --dtype float64 --limit 2".split())
    data = dataset.load(made_up_data, 10, 1, 3, test_items=3)
    scores = scores_by_hand(weights, data, 6)
    targets = [history_and_target(data, place)[1] for place in range(6)]
    expected = [-scores[place, target] for place, target in enumerate(targets)]
    assert (report["users"], report["targets"]) == (2, 6)
    np.testing.assert_allclose(report["nll"][str(weights)], expected, rtol=1e-6)
    ranks = [best_first(row).index(target) + 1 for row, target in zip(scores, targets)]
    assert report["ranks"][str(weights)] == ranks


def test_targets_are_counted_where_users_have_several():
    assert report_targets.size_text(np.array([0, 0, 0, 1, 1, 1])) == "2 users, 6 targets"
    assert report_targets.size_text(np.array([0, 1, 2]), "test users") == "3 test users"
    assert report_targets.size_text(np.array([0])) == "1 user"


def test_full_ranking_and_nll_are_those_of_a_loop_over_titles(
    data, report_of, made_up_data, full_softmax_model
):
    options = "--ranking full --dtype float64 --limit 4".split()
    report = report_of(made_up_data, full_softmax_model, *options)
    scores = scores_by_hand(full_softmax_model, data, 4)
    targets = [history_and_target(data, user)[1] for user in range(4)]
    ranks = [best_first(row).index(target) + 1 for row, target in zip(scores, targets)]
    assert report["ranks"][str(full_softmax_model)] == ranks
    nll = report["nll"][str(full_softmax_model)]
    np.testing.assert_allclose(nll, -scores[range(4), targets], rtol=1e-9)


def test_a_beam_that_is_wide_enough_ranks_as_the_full_ranking_does(
    report_of, made_up_data, tiny_model, full_softmax_model
):
    models, exact = [tiny_model, full_softmax_model], ("--dtype", "float64")
    full = report_of(made_up_data, models, *exact, "--ranking", "full")
    beam = report_of(made_up_data, models, *exact, "--beam-width", 25)
    assert beam["ranks"] == full["ranks"]


def test_a_narrow_beam_ranks_no_more_than_its_width(
    report_of, made_up_data, tiny_model, full_softmax_model
):
    report = report_of(made_up_data, [tiny_model, full_softmax_model], "--beam-width", 3)
    ranks = sum(report["ranks"].values(), [])
    assert None in ranks
    assert set(ranks) <= {None, 1, 2, 3}


def test_baseline_ranks_are_places_among_all_titles(data, reports):
    report = reports["full"]
    order = best_first(data.training_counts())
    targets = data.items[data.test.ends - 1]
    assert report["ranks"]["most popular"] == [order.index(target) + 1 for target in targets]
    assert set(report["baselines"]) == set(Baselines(data).scorers())


def test_the_bootstrap_of_a_report_follows_the_seed(report_of, made_up_data, tiny_model):
    name = str(tiny_model)
    one, other = (report_of(made_up_data, tiny_model, "--seed", seed) for seed in (0, 1))
    assert one["ranks"] == other["ranks"]
    mean, *interval = one["metrics"][name]["NLL"]
    other_mean, *other_interval = other["metrics"][name]["NLL"]
    assert mean == other_mean and interval != other_interval


def test_sampled_ranking_follows_its_seed_and_ranks_among_its_negatives(
    report_of, made_up_data, tiny_model
):
    options = (*RANKINGS["sampled"], "--seed")
    one, other = (report_of(made_up_data, tiny_model, *options, seed) for seed in (0, 1))
    assert one["ranks"] != other["ranks"]
    assert all(1 <= rank <= 10 for ranks in one["ranks"].values() for rank in ranks)


@pytest.mark.parametrize("exclude_seen, others", [(False, {1, 2, 3, 4, 5}), (True, {4, 5})])
def test_titles_of_the_history_are_drawn_unless_they_are_excluded(exclude_seen, others):
    data = SimpleNamespace(titles=list("abcdef"))
    targets = report_targets.Targets([np.array([1, 2, 3])], np.array([0]), np.array([7]))

    def draw(negatives):
        options = SimpleNamespace(seed=0, exclude_seen=exclude_seen, negatives=negatives)
        return report_targets.draw_candidates(0, targets, data, options)

    assert sorted(draw(len(others))) == sorted({0, *others})
    with pytest.raises(ValueError, match=f"only {len(others)} other titles"):
        draw(len(others) + 1)


def test_sampling_every_other_title_is_the_full_ranking(
    data, report_of, reports, made_up_data, full_softmax_model
):
    every_other = ("--ranking", "sampled", "--negatives", len(data.titles) - 1)
    sampled = report_of(made_up_data, full_softmax_model, *every_other)
    full = reports["full"]
    name = str(full_softmax_model)
    assert sampled["ranks"][name] == full["ranks"][name]
    assert sampled["metrics"][name]["AUC"] == full["metrics"][name]["AUC"]


@pytest.mark.parametrize("ranking", ("beam", "full"))
def test_excluding_what_was_seen_removes_it_from_the_ranking(
    data, report_of, made_up_data, full_softmax_model, ranking
):
    options = "--beam-width 25 --dtype float64 --limit 4 --exclude-seen --ranking".split()
    report = report_of(made_up_data, full_softmax_model, *options, ranking)
    expected = []
    for user, scores in enumerate(scores_by_hand(full_softmax_model, data, 4)):
        history, target = history_and_target(data, user)
        unseen = [title for title in best_first(scores) if title not in history]
        expected.append(unseen.index(target) + 1 if target in unseen else None)
    assert report["ranks"][str(full_softmax_model)] == expected


# --- what --show prints


@dataclass
class ShownUser:
    """What --show prints of a user: titles."""

    history: list
    target: str
    recommended: list


def users_shown(out):
    """The ShownUsers of what --show printed."""
    users = []
    for block in out.split("\nuser ")[1:]:
        history, rest = block.split("\n  and next: ")
        target, *lines = rest.splitlines()
        titles = [line.split("% ", 1)[1].strip() for line in lines if "% " in line]
        titles = [title.removesuffix("  <- the true one") for title in titles]
        history = [line.removeprefix("    ") for line in history.splitlines()[1:]]
        users.append(ShownUser(history, target, titles))
    return users


@pytest.mark.parametrize("ranking", ("beam", "full"))
def test_show_prints_history_truth_and_the_five_best(
    data, run, made_up_data, full_softmax_model, ranking
):
    options = ("--show", 3, "--ranking", ranking, "--beam-width", 25)
    ended = run(evaluate, "--data", made_up_data, "--weights", full_softmax_model, *options)
    expected = []
    for user, scores in enumerate(scores_by_hand(full_softmax_model, data, 3)):
        history, target = history_and_target(data, user)
        titles = [data.titles[title] for title in best_first(scores)[:5]]
        shown = [data.titles[title] for title in history]
        expected.append(ShownUser(shown, data.titles[target], titles))
    assert users_shown(ended.out) == expected


@pytest.mark.parametrize("ranking", RANKINGS)
def test_show_recommends_nothing_that_was_seen_when_that_is_excluded(
    run, made_up_data, tiny_model, ranking
):
    options = ("--show", 12, "--exclude-seen", *RANKINGS[ranking])
    ended = run(evaluate, "--data", made_up_data, "--weights", tiny_model, *options)
    users = users_shown(ended.out)
    assert ended.code == 0 and len(users) == 12
    assert all(set(user.recommended).isdisjoint(user.history) for user in users)


def test_show_recommends_only_candidates_in_sampled_ranking(run, data, made_up_data, tiny_model):
    options = "--show 12 --ranking sampled --negatives 2".split()
    ended = run(evaluate, "--data", made_up_data, "--weights", tiny_model, *options)
    users = users_shown(ended.out)
    assert ended.code == 0 and len(users) == 12
    targets = report_targets.targets_of(data, parse_options(options))
    for user, candidates in zip(users, targets.candidates, strict=True):
        assert set(user.recommended) == {data.titles[title] for title in candidates}


# --- other data, other models


def test_presplit_data_with_html_entities_works_from_start_to_end(
    tmp_path, run, report_of, presplit_folder
):
    model = trained(presplit_folder, tmp_path / "m", "--vocabulary", 290)
    ended = run(evaluate, "--data", presplit_folder, "--weights", model, "--show", 2)
    assert (ended.code, ended.err) == (0, "")
    assert report_of(presplit_folder, model)["users"] == 8
    titles = {f'Tom & Jerry "{number}" <b>' for number in range(12)}
    for user in users_shown(ended.out):
        assert {*user.history, user.target, *user.recommended} <= titles


def test_titles_that_the_tokenizer_cannot_tell_apart_count_as_the_same(tmp_path, run, report_of):
    titles = {"i0": "A Tale", "i1": "A\u2581Tale", "i2": "Another", "i3": "More Tales"}
    rows = []
    for user in range(8):
        rows += [(f"u{user}", f"i{(user + time) % 4}", time) for time in range(6)]
        rows += [(f"u{user}", "i0", 6), (f"u{user}", "i1", 7)]
    data = write_interactions(tmp_path / "twins", rows, titles)
    model = trained(data, tmp_path / "m", "--vocabulary", 280)
    beam = report_of(data, model, "--ranking", "beam")["ranks"][str(model)]
    full = report_of(data, model, "--ranking", "full")["ranks"][str(model)]
    assert beam == full and max(beam) <= 3
    sampled = report_of(data, model, "--ranking", "sampled", "--negatives", 1)
    assert set(sampled["ranks"][str(model)]) <= {1, 2}  # whether or not its twin is drawn
    ended = run(evaluate, "--data", data, "--weights", model, "--show", 1)
    assert "<- the true one" in ended.out


def test_the_base_of_an_adapter_can_be_named_on_the_command_line(
    tmp_path, run, made_up_data, tiny_model
):
    base = shutil.copytree(tiny_model, tmp_path / "base")
    adapter = trained(made_up_data, tmp_path / "a", "--weights", base, "--lora-rank", 4)
    asked = ("--data", made_up_data, "--weights", adapter)
    base.rename(tmp_path / "moved")
    assert_one_line(run(evaluate, *asked), "name it with --base")
    both = ("--weights", tiny_model, adapter, "--base", tmp_path / "moved")
    assert run(evaluate, "--data", made_up_data, *both).code == 0
    # as in a folder that peft wrote: the tokenizer is the base's
    (adapter / "tokenizer.model").unlink()
    assert run(evaluate, *asked, "--base", tmp_path / "moved").code == 0


@pytest.mark.parametrize("words", ["", "--softmax catalogue --temperature 0.5"])
def test_ranking_and_nll_are_of_the_same_prompt_where_items_are_dropped(tmp_path, words):
    folder, llm = write_crowded(tmp_path, max_length=290)
    data = dataset.load(folder)
    options = parse_options(["--weights", str(llm), "--ranking", "full", *words.split()])
    targets = report_targets.targets_of(data, options)
    result = evaluate.evaluate_model(llm, data, targets, options)
    best_titles = [dict(ranking.top) for ranking in result.rankings]
    scores = [best[target] for best, target in zip(best_titles, targets.titles.tolist())]
    np.testing.assert_allclose(result.metrics["NLL"], -np.array(scores), rtol=1e-4)


@pytest.mark.parametrize("option, max_length", [("--wide", 290), ("--attention", 250)])
def test_evaluation_says_how_many_items_of_histories_did_not_fit(tmp_path, run, option, max_length):
    folder, llm = write_crowded(tmp_path, max_length)
    _, encoder, _ = recommender.load_model_and_encoder(llm)
    data = dataset.load(folder)
    dropped = 0
    for start, end in zip(data.test.starts, data.test.ends):
        *history, target = [data.titles[title] for title in data.items[start:end]]
        if option == "--attention":
            dropped += encoder.encode(history, target).dropped
        else:
            longest = max(map(len, (encoder.encode_target(title)[0] for title in data.titles)))
            dropped += encoder.encode(history, reserve=longest).dropped
    report = tmp_path / "report.json"
    ended = run(evaluate, "--data", folder, "--weights", llm, option, "--json", report)
    assert ended.code == 0 and dropped > 0
    sentence = f": {dropped} items of histories did not fit into {max_length} tokens"
    assert sentence in " ".join((ended.out + ended.err).split())
    if option == "--wide":  # the JSON of --attention has no such note
        assert sentence in json.loads(report.read_text())["notes"][-1]


# --- to the end


def test_a_second_model_that_is_broken_is_refused_before_the_first_one_ranks(
    tmp_path, run, made_up_data, tiny_model, monkeypatch
):
    broken = changed_copy(tiny_model, tmp_path / "broken", model=b"")
    monkeypatch.setattr(evaluate, "evaluate_model", None)  # to rank would be another error
    ended = run(evaluate, "--data", made_up_data, "--weights", tiny_model, broken)
    assert_one_line(ended, broken / "model.safetensors")


@pytest.mark.parametrize("option", ("--json", "--svg"))
@pytest.mark.parametrize("name", ("file/report", "folder"))
def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    tmp_path, run, made_up_data, tiny_model, monkeypatch, option, name
):
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(
        attention_report, "measure_attention", None
    )  # to work would be another error
    options = ("--attention", option, tmp_path / name)
    ended = run(evaluate, "--data", made_up_data, "--weights", tiny_model, *options)
    assert_one_line(ended, tmp_path / name)
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_what_is_known_is_written_and_printed_where_the_next_model_fails(
    tmp_path, run, made_up_data, tiny_model, full_softmax_model, monkeypatch
):
    evaluate_model = evaluate.evaluate_model

    def fail_at_second(folder, *arguments):
        if folder == str(full_softmax_model):
            raise ValueError("this one fails")
        return evaluate_model(folder, *arguments)

    monkeypatch.setattr(evaluate, "evaluate_model", fail_at_second)
    models = ("--weights", tiny_model, full_softmax_model, "--json", tmp_path / "report.json")
    ended = run(evaluate, "--data", made_up_data, *models)
    assert_one_line(ended, "this one fails")
    assert str(tiny_model) in ended.out and "HR@10" in ended.out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["models"] == [str(tiny_model)]


@pytest.mark.parametrize("mode", ((), ("--attention",)))
def test_the_report_is_written_even_if_nobody_reads_what_is_printed(
    tmp_path, run, made_up_data, tiny_model, monkeypatch, mode
):
    def broken_pipe(*arguments):
        raise BrokenPipeError

    monkeypatch.setattr(evaluate, "print_ranking", broken_pipe)
    monkeypatch.setattr(attention_report, "print_attention", broken_pipe)
    options = ("--weights", tiny_model, "--json", tmp_path / "report.json", *mode)
    assert run(evaluate, "--data", made_up_data, *options).code != 0
    assert json.loads((tmp_path / "report.json").read_text())["users"] == 12


@pytest.mark.parametrize("ranking", RANKINGS)
def test_a_model_that_gives_no_number_is_refused_by_name(run, made_up_data, tiny_model, ranking):
    options = ("--weights", tiny_model, "--temperature", "1e-45", *RANKINGS[ranking])
    ended = run(evaluate, "--data", made_up_data, *options)
    assert_one_line(ended, tiny_model, "nan", "--temperature")


def test_attention_that_is_no_number_is_refused_by_name(run, made_up_data, tiny_model, tmp_path):
    weights = load_file(tiny_model / "model.safetensors")
    for name in ("q_proj", "k_proj"):  # scores are infinite
        weights[f"model.layers.0.self_attn.{name}.weight"] *= 1e25
    broken = changed_copy(tiny_model, tmp_path / "broken", model=save(weights))
    ended = run(evaluate, "--data", made_up_data, "--weights", broken, "--attention")
    assert_one_line(ended, broken, "share of attention is nan")


def test_a_model_with_the_name_of_a_baseline_keeps_its_own_results(
    tmp_path, report_of, made_up_data, tiny_model, monkeypatch
):
    expected = report_of(made_up_data, tiny_model)
    shutil.copytree(tiny_model, tmp_path / "most popular")
    monkeypatch.chdir(tmp_path)
    report = report_of(made_up_data, "most popular")
    assert report["models"] == ["./most popular"]
    assert report["ranks"]["./most popular"] == expected["ranks"][str(tiny_model)]
    assert report["ranks"]["most popular"] == expected["ranks"]["most popular"]


# --- wrong input

# fmt: off
WRONG_OPTIONS = (
    ("--weights nowhere", ("nowhere", "no such folder")),
    (f"--weights {ROOT / 'ref'}", ("ref", "config.json")),
    ("--data nowhere", ("nowhere", "no such folder")),
    ("--ranking sampled --negatives 100", ("--negatives is 100", "other titles")),
    ("--beam-width 0", ("--beam-width", "0")),
    ("--limit 0", ("--limit", "0")),
    ("--test-items 0", ("--test-items", "0")),
    ("--batch-size -1", ("--batch-size", "-1")),
    ("--show -1", ("--show", "-1")),
    ("--seed -1", ("--seed", "-1")),
    ("--device toaster", ("toaster",)),
    ("--base nowhere", ("--base has no effect", "no folder of --weights holds an adapter")),
    ("--attention --json x --svg x", ("--json and --svg are both x",)),
    ("--device cuda:99", ("cuda",)),
)
# fmt: on


@pytest.mark.parametrize("options, fragments", WRONG_OPTIONS)
def test_wrong_options_are_refused_in_one_line(run, made_up_data, tiny_model, options, fragments):
    asked = ("--data", made_up_data, "--weights", tiny_model, *options.split())
    assert_one_line(run(evaluate, *asked), *fragments)


def test_the_least_that_each_number_may_be_is_taken():
    ones = ("test-items", "beam-width", "negatives", "limit", "batch-size", "threads")
    least = [f"--{name}=1" for name in ones] + ["--show=0", "--seed=0"]
    options = parse_options([*least, "--ranking=sampled"])
    check_options(options)
    assert (options.beam_width, options.threads, options.show) == (1, 1, 0)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_model_folder_is_refused_in_one_line(
    tmp_path, run, made_up_data, tiny_model, name
):
    changes, fragments = BROKEN[name]
    broken = changed_copy(tiny_model, tmp_path / "broken", **changes)
    assert_one_line(run(evaluate, "--data", made_up_data, "--weights", broken), *fragments)


def test_targets_that_were_trained_on_are_refused(run, made_up_data, tiny_model):
    ended = run(evaluate, "--data", made_up_data, "--weights", tiny_model, "--test-items", 2)
    assert_one_line(ended, tiny_model, "--test-items 1", "--test-items 2")


def test_a_model_that_may_have_seen_targets_and_one_of_other_titles_are_noted(
    run, made_up_data, tiny_model, tmp_path
):
    ended = run(evaluate, "--data", made_up_data, "--weights", tiny_model)
    assert "was trained" not in ended.out

    ended = run(evaluate, "--data", made_up_data, "--weights", tiny_model, "--min-item", 2)
    words = " ".join(ended.out.split())
    note = f"{tiny_model} was trained with min_item 1, and is evaluated with min_item 2: if"
    assert note in words
    asked = ("--data", made_up_data, "--weights", tiny_model, "--min-item", 2, "--attention")
    assert note in " ".join(run(evaluate, *asked).out.split())

    titles = {f"i{n}": title if n > 1 else f"new {n}" for n, title in enumerate(TITLES)}
    other = write_interactions(tmp_path / "other", made_up_rows(), titles)
    words = " ".join(run(evaluate, "--data", other, "--weights", tiny_model).out.split())
    assert f"{tiny_model} was trained on another catalogue" in words
    assert "it lacks 2 of these 20 titles and has 2 more" in words


def test_a_model_that_was_trained_on_the_same_items_in_another_order_is_noted(
    run, tiny_model, tmp_path
):
    rows = [(user, item, -time % 1000) for user, item, time in made_up_rows()]
    titles = {f"i{number}": title for number, title in enumerate(TITLES)}
    other = write_interactions(tmp_path / "other", rows, titles)
    asked = ("--data", other, "--weights", tiny_model)
    note = f"{tiny_model} was trained on other interactions, or on the same in another order of"
    assert note in " ".join(run(evaluate, *asked).out.split())
    twice = " ".join(run(evaluate, *asked, "--min-item", 2).out.split())
    assert "was trained with min_item" in twice and note not in twice


def test_the_order_of_users_and_of_the_catalogue_says_nothing_of_a_training(
    made_up_data, tmp_path, tiny_model
):
    titles = {f"i{number}": title for number, title in reversed(list(enumerate(TITLES)))}
    rows = sorted(made_up_rows(), key=lambda row: row[0], reverse=True)
    other = write_interactions(tmp_path / "other", rows, titles)
    asked = read_settings(tiny_model)
    data, same = (dataset.load(folder, 10, 1, 3) for folder in (made_up_data, other))
    assert data.titles != same.titles
    assert report_models.notes_on_training(tiny_model, asked, same) == []
    renamed = replace(same, titles=[f"{title}?" for title in same.titles])
    assert renamed.sequences_digest() != same.sequences_digest() == data.sequences_digest()


def test_of_windows_only_those_of_training_count(tmp_path):
    digests = set()
    for name, target in (("a", 2), ("b", 3)):
        train = [([1, 2, 3], 1), ([2, 3, 1], 2), ([3, 1], 3)]
        titles = {"1": "x", "2": "y", "3": "z"}
        folder = write_presplit(tmp_path / name, train, [([1, target], 4)], titles)
        digests.add(dataset.load(folder, 10, 1, 3).sequences_digest())
    assert len(digests) == 1


@pytest.mark.parametrize("log", [None, '{"data": {"titles": 20}}', '{"data": 3}', "{}"])
def test_of_a_model_whose_log_does_not_say_it_no_other_order_is_noted(
    log, tiny_model, data, tmp_path
):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "log.jsonl").unlink()
    if log is not None:
        (folder / "log.jsonl").write_text(log)
    backwards = replace(data, items=data.items[::-1].copy())
    assert report_models.notes_on_training(folder, read_settings(folder), backwards) == []
    assert len(report_models.notes_on_training(tiny_model, read_settings(folder), backwards)) == 1


def test_what_cannot_be_known_of_a_training_is_not_noted(tiny_model, data, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(tiny_model, bare, ignore=shutil.ignore_patterns("catalogue.json"))
    fewer = replace(data, titles=data.titles[1:])
    asked = replace(read_settings(tiny_model), min_item=3)
    assert len(report_models.notes_on_training(tiny_model, asked, fewer)) == 2
    assert len(report_models.notes_on_training(bare, asked, fewer)) == 1
    (bare / "log.jsonl").unlink()
    split = replace(data, presplit=True)  # no filter was applied to it
    assert report_models.notes_on_training(bare, asked, split) == []
    (bare / "recommender.json").unlink()
    assert report_models.notes_on_training(bare, asked, fewer) == []


def test_models_trained_with_other_filters_are_not_compared(
    tmp_path, run, made_up_data, tiny_model
):
    other = changed_copy(tiny_model, tmp_path / "other", recommender={"history": 5})
    ended = run(evaluate, "--data", made_up_data, "--weights", tiny_model, other)
    assert_one_line(ended, "history")


def test_without_any_model_it_says_how_to_get_one(tmp_path, run, made_up_data, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_one_line(run(evaluate, "--data", made_up_data), "--weights")


def test_options_ask_a_model_as_another_was_trained(report_of, made_up_data, tiny_model, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(tiny_model, bare, ignore=shutil.ignore_patterns("recommender.json"))
    config = json.loads((bare / "config.json").read_text())
    del config["hatllm"]
    (bare / "config.json").write_text(json.dumps(config))
    asked = "--layout lines --softmax catalogue --intra-layers 1 --cross-layers 1".split()
    asked += "--min-item 1 --min-user 3".split()
    options = ("--limit", 4, "--ranking", "full")

    expected = report_of(made_up_data, tiny_model, *options)
    report = report_of(made_up_data, bare, *options, *asked)

    assert report["nll"][str(bare)] == expected["nll"][str(tiny_model)]


def test_a_folder_that_says_nothing_is_said_to_be_a_plain_language_model(
    run, tmp_path, tiny_model, made_up_data
):
    llm = write_llm(tmp_path / "llm", sentencepiece_model(TITLES, 470))
    ended = run(evaluate, "--data", made_up_data, "--weights", tiny_model, llm, "--limit", 1)
    assert ended.code == 0, ended.err
    assert f"{llm} has no recommender.json" in ended.out
    assert "plain causal attention, layout instruction, softmax full" in ended.out


def test_a_seen_title_is_excluded_under_every_name_that_reads_the_same(report_of, tmp_path):
    titles = {f"i{n}": f"Title {'abcdefghijklmnopqrst'[n]}" for n in range(20)}
    for n in range(10):  # SentencePiece reads U+2581 as a space
        titles[f"i{10 + n}"] = titles[f"i{n}"].replace(" ", "\u2581")
    folder = write_interactions(tmp_path / "data", made_up_rows(), titles)
    model = trained(folder, tmp_path / "model", "--vocabulary", 280)
    options = ("--exclude-seen", "--beam-width", 20, "--ranking")

    full = report_of(folder, model, *options, "full")["ranks"][str(model)]
    beam = report_of(folder, model, *options, "beam")["ranks"][str(model)]

    assert full == beam
    assert None in full and max(rank for rank in full if rank) > 1


@pytest.mark.parametrize(
    "scheme, words",
    [
        (MaskScheme(), "plain causal attention"),
        (MaskScheme(0, 1), "0 IN and 1 CR layers"),
        (MaskScheme(1, 0), "1 IN and 0 CR layers"),
    ],
)
def test_a_folder_without_settings_says_with_which_masks_it_is_asked(tmp_path, scheme, words):
    settings = Settings(LAYOUTS["lines"], "full", 1.0)
    assert words in report_models.note_on_defaults(tmp_path, settings, scheme)


def test_a_folder_with_settings_needs_no_such_note(tmp_path):
    settings = Settings(LAYOUTS["lines"], "full", 1.0)
    settings.save(tmp_path)
    assert report_models.note_on_defaults(tmp_path, settings, MaskScheme()) is None


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_drawn_as_a_bar_on_a_terminal_alone(monkeypatch, is_terminal):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    with cli.progress_bar(2, "ranking", "user") as bar:
        bar.update()
    assert ("ranking:   0%|" in sys.stderr.getvalue()) == is_terminal


def test_without_a_terminal_progress_is_a_line_that_says_how_long_it_takes(capfd):
    with cli.progress_bar(8, "work", "target") as bar:
        bar.delay = 0
        bar.update(2)
        bar.refresh()
    line = capfd.readouterr().err.splitlines()[0]
    assert line.startswith("work: 2 of 8 targets in 00:00, ")
    assert line.endswith(" left")


def test_work_of_less_than_half_a_minute_shows_no_line(capfd):
    with cli.progress_bar(2, "work", "target") as bar:
        bar.update(2)
    assert capfd.readouterr().err == ""


def test_the_number_of_threads_is_what_is_asked_for(run, tiny_model, made_up_data, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    run(evaluate, "--data", made_up_data, "--weights", tiny_model, "--limit", 1, "--threads", 7)
    assert asked[0] == 7


def test_a_language_model_is_asked_for_as_many_targets_as_the_model_beside_it(
    report_of, tmp_path, made_up_data
):
    model = trained(made_up_data, tmp_path / "model", "--test-items", 2)
    llm = write_llm(tmp_path / "llm", sentencepiece_model(TITLES, 470))
    report = report_of(made_up_data, [model, llm])
    assert report["users"] == 12
    assert report["targets"] == 24


@pytest.mark.parametrize(
    "options, message",
    [
        ("--data folder", "--data needs --weights"),
        ("--attention --beam-width 3", "--beam-width has no effect beside --attention"),
        ("--attention --temperature 3", "--temperature has no effect beside --attention"),
        ("--negatives 5", "--negatives needs --ranking sampled"),
    ],
)
def test_an_option_that_would_have_no_effect_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        parse_options(options.split())


def test_each_target_has_negatives_of_its_own():
    data = SimpleNamespace(titles=list("abcdefghijklmnopqrstuvwxyz"))
    targets = report_targets.Targets([np.array([1])] * 2, np.array([0, 0]), np.array([0, 1]))
    options = SimpleNamespace(seed=0, exclude_seen=False, negatives=5)
    one, other = (report_targets.draw_candidates(n, targets, data, options) for n in (0, 1))
    assert set(one) != set(other)


def test_every_pair_of_other_titles_may_be_the_negatives():
    data = SimpleNamespace(titles=list("abcdef"))
    targets = report_targets.Targets([np.array([1])] * 200, np.zeros(200, int), np.arange(200))
    options = SimpleNamespace(seed=0, exclude_seen=False, negatives=2)
    drawn = [report_targets.draw_candidates(n, targets, data, options) for n in range(200)]
    pairs = {frozenset(candidates[1:].tolist()) for candidates in drawn}
    assert pairs == {frozenset(pair) for pair in itertools.combinations(range(1, 6), 2)}
