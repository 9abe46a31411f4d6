"""The golden cases of the search: the definition beside ref.search, and what the cases hold.

ref.search reads the same inputs: of a case with a model through the model, of a case with a table
through a decoder whose hidden states are the logits of the table.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ref.golden import case as cases
from ref.golden.copies import copy_of
from ref.golden.definitions import search as definition
from ref.golden.recipes.common import truncated_to_bfloat16
from ref.golden.stages import search as search_stage
from ref.golden.stages.search import arguments, compute
from ref.masks import MaskScheme
from ref.prompt import Prompt
from ref.search.beam import beam_search
from ref.search.decoder import Decoder
from ref.search.exact import title_log_probs
from ref.settings import Settings
from ref.trie import Trie

from support.golden import torch_model

NAMES = [name for name in cases.names() if cases.load(name).stage == "search"]
WITH_TABLE = [name for name in NAMES if cases.load(name).config is None]


class TableDecoder(Decoder):
    """A Decoder whose hidden states are rows of a table of logits."""

    def __init__(self, case, trie, settings, dtype):
        super().__init__(SimpleNamespace(norm=torch.nn.LayerNorm(1)), trie, settings)
        self.logits = torch.from_numpy(case.prefix_logits).to(dtype)  # (N, R, V)
        vocab_size = self.logits.shape[-1]
        self.model.lm_head = torch.nn.Linear(vocab_size, vocab_size, bias=False)
        self.model.lm_head.weight.data = torch.eye(vocab_size, dtype=dtype)  # state = logits
        self.row_of = arguments(case)["row_of"]

    def read_prompts(self, prompts):
        return TableStates(np.array(prompts)), self.logits[prompts, self.row_of[()]]

    def add_nodes(self, states, nodes, ancestors, exists=None):
        rows = np.vectorize(self.row_of_node)(nodes)  # (U, Q)
        return self.logits[states.prompts[:, None], rows]

    def row_of_node(self, node):
        tokens = []
        while node > 0:
            tokens.insert(0, int(self.trie.token[node]))
            node = self.trie.parent[node]
        return self.row_of.get(tuple(tokens), 0)  # a leaf stands for a beam that is dead


class TableStates:
    """Whose rows of a table are read; prompts: int (U,)."""

    def __init__(self, prompts):
        self.prompts = prompts

    def fork(self):
        return self

    def rows(self, rows):
        return TableStates(self.prompts[rows])


def decoder_and_prompts(case, dtype=torch.float64):
    """A decoder of ref.search for a case, and the prompts for it."""
    titles = arguments(case)["titles"]
    flags = [[True] * len(title) for title in titles]
    if case.config:
        flags = [row[: len(title)] for row, title in zip(case.title_in_item, titles)]
    trie = Trie([list(title) for title in titles], flags, [str(title) for title in titles])
    settings = Settings(softmax=case.info["softmax"], temperature=case.info["temperature"])
    if case.config is None:
        return TableDecoder(case, trie, settings, dtype), [*range(len(case.excluded))]
    model = torch_model(case.config, MaskScheme(**case.info["scheme"]), case.weights).to(dtype)
    prompts = [prompt_of(case, n) for n in range(len(case.excluded))]
    return Decoder(model, trie, settings), prompts


def prompt_of(case, n):
    is_real = case.prompt_segment_ids[n] != -1
    input_ids, segment_ids = case.prompt_ids[n, is_real], case.prompt_segment_ids[n, is_real]
    return Prompt("", input_ids, segment_ids, segment_ids, len(input_ids), 0)


def lists_of_ref_search(case, dtype=torch.float64):
    """The outputs of the stage as ref.search computes them."""
    decoder, prompts = decoder_and_prompts(case, dtype)
    excluded = [set(np.flatnonzero(row).tolist()) for row in case.excluded]
    titles = np.full((len(prompts), case.info["width"]), -1)
    scores = np.full(titles.shape, -np.inf)
    lists = beam_search(decoder, prompts, case.info["width"], excluded)
    for n, best in enumerate(lists):
        for place, (title, score) in enumerate(best):
            titles[n, place] = title
            scores[n, place] = score
    return {
        "title_log_probs": title_log_probs(decoder, prompts),
        "beam_titles": titles,
        "beam_scores": scores,
    }


@pytest.mark.parametrize("name", NAMES)
def test_ref_search_computes_what_is_expected(name):
    case = cases.load(name)

    computed = lists_of_ref_search(case)

    for output, expected in case.outputs.items():
        np.testing.assert_allclose(computed[output], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_in_float32_ref_search_finds_the_same_lists(name):
    case = cases.load(name)

    computed = lists_of_ref_search(case, torch.float32)

    assert computed["beam_titles"].tolist() == case.outputs["beam_titles"].tolist()
    for output in ("title_log_probs", "beam_scores"):
        largest = np.abs(case.outputs["title_log_probs"]).max()
        tolerance = case.info["tolerances"]["float32"] * largest
        np.testing.assert_allclose(computed[output], case.outputs[output], rtol=0, atol=tolerance)


def test_the_scores_of_the_first_case_are_sums_of_logarithms_of_fractions():
    case = cases.load("search-first-case")
    row_of = arguments(case)["row_of"]
    for number, title in enumerate([(2, 4, 1), (2, 5, 1), (3, 4, 1)]):
        product = 1.0
        for length, token in enumerate(title):
            weights = [math.exp(x) for x in case.prefix_logits[0, row_of[title[:length]]].tolist()]
            product *= weights[token] / sum(weights)
        log_prob = case.outputs["title_log_probs"][0, number]
        assert log_prob == pytest.approx(math.log(product), rel=1e-12)


def test_a_choice_of_one_costs_nothing_under_the_catalogue_softmax():
    case = cases.load("search-tie-of-finished-and-live")
    # of two logits 0.75 apart: the greater twice; both; both; the smaller twice
    greater, smaller = -math.log1p(math.exp(-0.75)), -math.log1p(math.exp(0.75))
    expected = [greater + smaller, greater + smaller, 2 * greater, 2 * smaller]
    assert case.outputs["title_log_probs"][0] == pytest.approx(expected, rel=1e-12)
    assert case.outputs["beam_titles"].tolist() == [[2, 0]]


@pytest.mark.parametrize("name", NAMES)
def test_a_wide_list_holds_the_titles_that_are_left_by_exact_score(name):
    case = cases.load(name)
    titles = arguments(case)["titles"]

    lists = compute(definition, case, width=len(titles))

    for n, log_probs in enumerate(case.outputs["title_log_probs"]):
        left = set(titles) - {titles[s] for s in np.flatnonzero(case.excluded[n])}
        numbers = sorted(map(titles.index, left), key=lambda s: (-log_probs[s], s))
        found = lists["beam_titles"][n, : len(left)]
        assert found.tolist() == numbers
        assert np.isneginf(lists["beam_scores"][n, len(left) :]).all()


@pytest.mark.parametrize("name", NAMES)
def test_scores_of_lists_are_log_probs_of_titles_that_are_not_excluded(name):
    case = cases.load(name)
    for n, titles in enumerate(case.outputs["beam_titles"]):
        listed = titles[titles >= 0]
        scores = case.outputs["beam_scores"][n, : len(listed)]
        assert scores == pytest.approx(case.outputs["title_log_probs"][n, listed], rel=1e-12)
        assert not case.excluded[n, listed].any()


@pytest.mark.parametrize("name", WITH_TABLE)
def test_a_table_is_exact_in_bfloat16_and_has_every_prefix_once(name):
    case = cases.load(name)
    titles = arguments(case)["titles"]
    prefixes = [tuple(row[row != -1].tolist()) for row in case.prefixes]
    assert np.array_equal(truncated_to_bfloat16(case.prefix_logits), case.prefix_logits)
    assert len(prefixes) == len(set(prefixes))
    assert set(prefixes) == {title[:length] for title in titles for length in range(len(title))}


@pytest.mark.parametrize("name", NAMES)
def test_no_decision_is_close_but_for_exact_ties(name, monkeypatch):
    gaps = [math.inf]
    in_order = definition.in_order

    def recorded(given, candidates):
        ordered = in_order(given, candidates)
        scores = np.array([score for _, score in ordered[: 2 * given.width + 1]])
        gaps.extend((scores[:-1] - scores[1:]).tolist())
        return ordered

    monkeypatch.setattr(definition, "in_order", recorded)
    compute(definition, cases.load(name))
    if "-tie" not in name:
        assert 0 not in gaps
    assert min(gap for gap in gaps if gap > 0) > 0.02


def test_a_bug_in_what_the_model_reads_leaves_the_next_search_right(monkeypatch):
    monkeypatch.setattr(search_stage, "REMEMBERED", {})
    case = cases.load("search-model")
    doubled = compute(copy_of(definition), case, prompt_position_ids=2 * case.prompt_position_ids)
    right = compute(copy_of(definition), case)

    expected = case.outputs["title_log_probs"]
    assert np.abs(doubled["title_log_probs"] - expected).max() > 0.01
    np.testing.assert_allclose(right["title_log_probs"], expected, rtol=1e-9)


def test_by_the_mean_of_its_tokens_the_long_title_would_win():
    case = cases.load("search-long-title")
    lengths = (case.titles != -1).sum(axis=1)
    sums = case.outputs["title_log_probs"][0]
    assert lengths.tolist() == [40, 3, 5, 4]
    assert sums[0] == sums.min()
    assert (sums / lengths).argmax() == 0


def test_the_best_title_after_an_unlikely_token_is_not_in_the_list():
    outputs = cases.load("search-unlikely-first-token").outputs
    best = outputs["title_log_probs"][0].argmax()
    assert best not in outputs["beam_titles"][0]


def test_numbers_of_titles_and_tokens_leave_eight_bits():
    assert cases.load("search-306-titles").outputs["beam_titles"].max() > 255
    assert cases.load("search-tokens-beyond-255").titles.max() > 255


def test_a_place_of_a_case_is_said_with_the_tokens_of_its_title():
    titles = np.array([[4, 9, 2], [4, 2, -1]])
    case = SimpleNamespace(titles=titles)
    assert (
        search_stage.place(case, "title_log_probs", (3, 1)) == "prompt 3, title 1 (tokens [4, 2])"
    )
    assert search_stage.place(case, "beam_titles", (3, 1)) == "prompt 3, place 1 of its list"
