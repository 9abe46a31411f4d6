"""ref.trie against sets of sequences, and ref.search against a search without any cleverness.

The naive search runs prompt + generated tokens through the plain forward pass once for every live
beam: no cache, no batch, no tree.
"""

import re
from dataclasses import fields
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ref import trie as trie_module
from ref.masks import MaskScheme
from ref.search import preorder as preorder_module
from ref.search.beam import Candidates, beam_search, best_candidates, closed_nodes
from ref.search.decoder import Decoder, hidden_states_with_cache
from ref.search.exact import title_log_probs
from ref.search.preorder import Preorder
from ref.settings import Settings
from ref.trie import Trie, build_trie

from support.catalogue import HISTORIES, TITLES, continuations, titles_of

SCHEMES = {
    "plain": MaskScheme(),
    "default": MaskScheme(1, 1),
    "isolated": MaskScheme(2, 1, text="isolated"),
    "no self": MaskScheme(1, 2, cross_self=False),
    "delimiters are text": MaskScheme(1, 1, delimiters="text"),
    "target is text": MaskScheme(1, 1, target="text"),
    "both are text": MaskScheme(1, 2, cross_self=False, delimiters="text", target="text"),
}


def test_the_schemes_differ_in_every_field():
    for field in fields(MaskScheme):
        values = {getattr(scheme, field.name) for scheme in SCHEMES.values()}
        assert len(values) > 1, f"SCHEMES: all have the same {field.name}"


def node_at(trie, tokens):
    """The node reached by walking down from the root through the children, or None."""
    node = 0
    for token in tokens:
        first = trie.first_child[node]
        children = range(first, first + trie.num_children[node])
        children_of_token = [child for child in children if trie.token[child] == token]
        if not children_of_token:
            return None
        (node,) = children_of_token
    return node


def with_ends(sequences):
    """Sequences of which none begins another: token 0 ends each."""
    return [[*sequence, 0] for sequence in sequences]


def prefixes_of(sequences):
    """The beginnings of all sequences, as tuples, the empty one and the sequences among them."""
    return {tuple(tokens[:n]) for tokens in sequences for n in range(len(tokens) + 1)}


def trie_of(sequences):
    in_item = [[True] * len(tokens) for tokens in sequences]
    return Trie(sequences, in_item, [f"title {number}" for number in range(len(sequences))])


token_lists = st.lists(st.integers(1, 4), max_size=5)
catalogues = st.lists(token_lists, min_size=1, max_size=12).map(with_ends)
property_test = settings(max_examples=60)


@property_test
@given(catalogues)
def test_the_children_of_a_node_are_the_tokens_that_continue_some_title_in_order(sequences):
    trie = trie_of(sequences)

    assert len(trie.token) == len(prefixes_of(sequences))
    for prefix in prefixes_of(sequences):
        node = node_at(trie, prefix)
        children, real = trie.children(np.array([node]))
        assert trie.token[children[real]].tolist() == continuations(sequences, list(prefix))
        assert set(trie.parent[children[real]].tolist()) <= {node}
        assert trie.depth[node] == len(prefix)
        if prefix:
            assert trie.token[node] == prefix[-1]


@property_test
@given(catalogues)
def test_a_leaf_is_where_a_title_ends_and_equal_titles_share_it(sequences):
    trie = trie_of(sequences)

    for title, sequence in enumerate(sequences):
        assert trie.leaf[title] == node_at(trie, sequence)
        assert trie.title[trie.leaf[title]] == sequences.index(sequence)
        nodes = [node_at(trie, sequence[: n + 1]) for n in range(len(sequence))]
        assert trie.title_nodes[title].tolist() == nodes
    assert trie.title_lengths.tolist() == [len(sequence) for sequence in sequences]
    assert trie.longest == max(len(sequence) for sequence in sequences)
    inner = [node for node in range(len(trie.token)) if node not in trie.leaf]
    assert (trie.title[inner] == -1).all()
    assert (trie.num_children[trie.leaf] == 0).all()


@property_test
@given(catalogues)
def test_a_node_knows_its_least_title_and_whether_a_choice_lies_ahead(sequences):
    trie = trie_of(sequences)
    branches = Preorder(trie).branches

    for prefix in prefixes_of(sequences):
        below = [tokens for tokens in sequences if tuple(tokens[: len(prefix)]) == prefix]
        node = node_at(trie, prefix)
        assert trie.first_title[node] == sequences.index(below[0])
        assert branches[node] == any(tokens != below[0] for tokens in below)


@property_test
@given(catalogues)
def test_preorder_and_size_tell_ancestors(sequences):
    trie = trie_of(sequences)
    path_to = {node_at(trie, prefix): prefix for prefix in prefixes_of(sequences)}

    preorder = Preorder(trie)
    assert sorted(preorder.place.tolist()) == list(range(len(path_to)))
    for a in path_to:
        for b in path_to:
            is_at_or_below = path_to[b][: len(path_to[a])] == path_to[a]
            begin, end = preorder.place[a], preorder.place[a] + preorder.size[a]
            assert (begin <= preorder.place[b] < end) == is_at_or_below


def test_the_arrays_in_the_description_of_the_trie_are_those_of_its_example():
    a, b, c, d, end = range(1, 6)
    trie = trie_of([[a, b, end], [a, c, end], [d, end]])

    shown = re.findall(r"^    ([a-z_]+) +((?:-?\d+ *){8})", trie_module.__doc__, re.MULTILINE)

    assert len(shown) == 6
    for name, numbers in shown:
        values = range(8) if name == "node" else getattr(trie, name).tolist()
        assert list(map(int, numbers.split())) == list(values), name
    assert f"first title has the nodes {trie.title_nodes[0].tolist()}:" in trie_module.__doc__
    preorder = Preorder(trie)
    for name, values in (("place", preorder.place), ("size", preorder.size)):
        assert f" {name} " in preorder_module.__doc__
        numbers = preorder_module.__doc__.partition(f" {name} ")[2].partition("\n")[0]
        assert list(map(int, numbers.split())) == values.tolist()
    assert np.flatnonzero(preorder.branches).tolist() == [0, 1]


def test_several_nodes_have_their_children_padded_to_the_widest():
    trie = trie_of([[1, 1], [2, 1], [2, 2], [2, 3]])

    children, real = trie.children(np.array([1, 0, 2, 3]))

    assert real.tolist() == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
        [False, False, False],
    ]
    assert children[real].tolist() == [3, 1, 2, 4, 5, 6]


@pytest.mark.parametrize("sequences", [[[1, 2, 3], [1, 2]], [[1, 2], [4], [1, 2, 3]]])
def test_a_title_whose_tokens_begin_another_is_refused_by_name(sequences):
    with pytest.raises(ValueError, match=f"'title {sequences.index([1, 2])}' begin"):
        trie_of(sequences)


def test_in_item_is_that_of_the_token_and_may_not_differ_between_titles():
    trie = Trie([[1, 2, 9], [1, 3, 9]], [[False, True, False], [False, True, True]], ["a", "b"])

    wanted = {(1,): False, (1, 2): True, (1, 2, 9): False, (1, 3, 9): True}
    assert {tokens: trie.in_item[node_at(trie, tokens)] for tokens in wanted} == wanted
    with pytest.raises(ValueError, match="delimiters='text' cannot tell 'b' from"):
        Trie([[1, 2, 9], [1, 2, 8]], [[True, True, False], [True, False, False]], ["a", "b"])


class Naive:
    """The docstrings of beam_search and title_log_probs, word by word."""

    def __init__(self, model, encoder, titles, settings):
        self.model = model
        self.encoder = encoder
        self.titles = titles
        self.settings = settings
        self.title_tokens = [self.target([titles[0]], title)[0] for title in titles]

    def target(self, history, title):
        """The tokens that continue the prompt of `history` with `title`, and their segments."""
        prompt = self.encoder.encode(history, title)
        start = prompt.prompt_length
        return prompt.input_ids[start:].tolist(), prompt.segment_ids[start:].tolist()

    @torch.no_grad()
    def next_log_probs(self, history, tokens):
        """{token: log-probability} of what continues some title after the prompt and `tokens`."""
        prompt = self.encoder.encode(history)
        begins_so = self.titles[self.first_title(tokens)]
        segments = self.target(history, begins_so)[1][: len(tokens)]
        input_ids = torch.tensor([[*prompt.input_ids.tolist(), *tokens]])
        segment_ids = torch.tensor([[*prompt.segment_ids.tolist(), *segments]])
        logits = self.model(input_ids, segment_ids)[0, -1].double() / self.settings.temperature
        return self.log_softmax(logits, continuations(self.title_tokens, tokens))

    def log_softmax(self, logits, options):
        """{token: log-probability} of these tokens; logits (V,) of one position."""
        alternatives = logits[options] if self.settings.softmax == "catalogue" else logits
        return {token: float(logits[token] - alternatives.logsumexp(0)) for token in options}

    def log_prob(self, history, title):
        tokens = self.title_tokens[title]
        total = 0.0
        for place, token in enumerate(tokens):
            total += self.next_log_probs(history, tokens[:place])[token]
        return total

    @torch.no_grad()
    def log_prob_in_one_pass(self, history, title):
        """The same by teacher forcing: prompt and title in one plain forward pass."""
        prompt = self.encoder.encode(history, self.titles[title])
        input_ids, segment_ids = prompt.input_ids[None], prompt.segment_ids[None]
        logits = self.model(torch.from_numpy(input_ids), torch.from_numpy(segment_ids))[0]
        logits = logits.double() / self.settings.temperature
        tokens = self.title_tokens[title]
        total = 0.0
        for place, token in enumerate(tokens):
            options = continuations(self.title_tokens, tokens[:place])
            total += self.log_softmax(logits[prompt.prompt_length - 1 + place], options)[token]
        return total

    def beam_search(self, history, width, excluded=()):
        excluded = [self.title_tokens[title] for title in excluded]
        live, finished = [([], 0.0)], []
        while live:
            candidates = []
            for tokens, score in live:
                for token, log_prob in self.next_log_probs(history, tokens).items():
                    if self.is_open([*tokens, token], excluded):
                        candidates.append(([*tokens, token], score + log_prob))
            candidates.sort(key=lambda pair: (-pair[1], self.first_title(pair[0])))
            for tokens, score in candidates[:width]:
                if tokens in self.title_tokens:
                    finished.append((self.title_tokens.index(tokens), score))
            finished = sorted(finished, key=lambda pair: (-pair[1], pair[0]))[:width]
            live = [pair for pair in candidates if pair[0] not in self.title_tokens][:width]
        return finished

    def is_open(self, tokens, excluded):
        """Does a title that is not excluded begin with these tokens?"""
        begin_so = [title for title in self.title_tokens if title[: len(tokens)] == tokens]
        return any(title not in excluded for title in begin_so)

    def first_title(self, tokens):
        """The first title of the catalogue that begins with these tokens."""
        length = len(tokens)
        return [title_tokens[:length] for title_tokens in self.title_tokens].index(tokens)


@pytest.fixture(scope="session")
def decoders(encoder_for, model_for):
    """Makes the decoder under test and the naive one, of a scheme and settings."""

    def make(scheme=SCHEMES["default"], titles=TITLES, softmax="full", layout="lines", **options):
        encoder = encoder_for(scheme, layout)
        settings = Settings(encoder.layout, softmax, options.pop("temperature", 1.0))
        model = model_for(scheme, **options)
        decoder = Decoder(model, build_trie(encoder, titles), settings)
        return decoder, Naive(model, encoder, titles, settings)

    return make


def encoded(naive, histories=HISTORIES):
    return [naive.encoder.encode(history) for history in histories]


def scores_of(ranking):
    return [score for _, score in ranking]


def assert_same_lists(rankings, wanted, tolerance=1e-6):
    """Lists of [(title, score), ...], one a user."""
    assert [titles_of(ranking) for ranking in rankings] == [titles_of(other) for other in wanted]
    for ranking, other in zip(rankings, wanted):
        np.testing.assert_allclose(scores_of(ranking), scores_of(other), rtol=0, atol=tolerance)


def assert_lists_of_the_naive_search(decoder, naive, width, tolerance=1e-6):
    rankings = beam_search(decoder, encoded(naive), width)
    wanted = [naive.beam_search(history, width) for history in HISTORIES]
    assert_same_lists(rankings, wanted, tolerance)


in_two_ways = pytest.mark.parametrize(
    "layout, softmax", [("lines", "catalogue"), ("instruction", "full")]
)


@pytest.mark.parametrize("scheme", SCHEMES)
@in_two_ways
def test_beam_search_is_the_naive_one_list_for_list(decoders, scheme, softmax, layout):
    decoder, naive = decoders(SCHEMES[scheme], softmax=softmax, layout=layout, temperature=0.7)

    assert_lists_of_the_naive_search(decoder, naive, width=5)


@pytest.mark.parametrize(
    "width, softmax",
    [(1, "full"), (2, "catalogue"), (3, "full"), (10, "catalogue"), (40, "full")],
)
def test_beam_search_is_the_naive_one_at_every_width(decoders, width, softmax):
    decoder, naive = decoders(softmax=softmax, seed=width)

    assert_lists_of_the_naive_search(decoder, naive, width)


@pytest.mark.parametrize("seed", range(6))
def test_beam_search_is_the_naive_one_for_other_models_and_part_of_the_catalogue(decoders, seed):
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(TITLES))[: rng.integers(2, 15)]
    titles = [TITLES[title] for title in order]
    scheme, softmax = [*SCHEMES.values()][seed], ["full", "catalogue"][seed % 2]
    decoder, naive = decoders(scheme, titles, softmax, seed=seed, num_hidden_layers=3 + seed % 2)

    assert_lists_of_the_naive_search(decoder, naive, width=3)


@pytest.mark.parametrize("softmax", ["full", "catalogue"])
def test_beam_search_in_float32_finds_what_the_naive_one_finds(decoders, softmax):
    decoder, naive = decoders(softmax=softmax, dtype=torch.float32)

    assert_lists_of_the_naive_search(decoder, naive, width=5, tolerance=1e-4)


@pytest.mark.parametrize("softmax", ["full", "catalogue"])
def test_excluded_titles_do_not_finish_and_leave_their_places_to_others(decoders, softmax):
    decoder, naive = decoders(softmax=softmax)
    free = beam_search(decoder, encoded(naive), 4)
    first, _, third, _ = titles_of(free[0])
    excluded = [{first, third}, set(), {TITLES.index("Toy Story"), *range(8, 20)}]

    rankings = beam_search(decoder, encoded(naive), 4, excluded)

    wanted = [naive.beam_search(*user) for user in zip(HISTORIES, [4, 4, 4], excluded)]
    assert_same_lists(rankings, wanted)
    assert rankings[0] != free[0]
    assert rankings[1] == free[1]


ROCKIES = {title for title, text in enumerate(TITLES) if text.startswith("Rocky")}
MOST = {title for title in range(len(TITLES)) if title % 4}


@pytest.mark.parametrize("width, softmax", [(1, "catalogue"), (3, "full"), (6, "catalogue")])
@pytest.mark.parametrize("excluded", [ROCKIES, MOST], ids=["one branch", "most titles"])
def test_a_branch_that_holds_only_excluded_titles_takes_no_beam(decoders, softmax, width, excluded):
    decoder, naive = decoders(softmax=softmax, seed=width)

    rankings = beam_search(decoder, encoded(naive), width, [excluded] * 3)

    wanted = [naive.beam_search(history, width, excluded) for history in HISTORIES]
    assert_same_lists(rankings, wanted)
    assert [len(ranking) for ranking in rankings] == [width] * 3


@pytest.mark.parametrize("seed", range(4))
def test_a_wide_search_returns_the_best_of_the_exact_scores_that_are_not_excluded(decoders, seed):
    decoder, naive = decoders(seed=seed)
    prompts = encoded(naive)

    rankings = beam_search(decoder, prompts, len(TITLES), [MOST] * 3)

    for ranking, exact in zip(rankings, title_log_probs(decoder, prompts)):
        left = [title for title in range(len(TITLES)) if title not in MOST]
        assert titles_of(ranking) == sorted(left, key=lambda title: -exact[title])


@property_test
@given(catalogues, st.sets(st.integers(0, 11)))
def test_a_node_is_closed_where_every_title_at_or_below_it_is_excluded(sequences, excluded):
    trie = trie_of(sequences)
    excluded = {title for title in excluded if title < len(sequences)}

    closed = closed_nodes(trie, excluded)

    tokens_of_excluded = [sequences[title] for title in excluded]
    for prefix in prefixes_of(sequences):
        below = [tokens for tokens in sequences if tuple(tokens[: len(prefix)]) == prefix]
        is_closed = all(tokens in tokens_of_excluded for tokens in below)
        assert (node_at(trie, prefix) in closed) == is_closed


@property_test
@given(catalogues, st.integers(1, 4), st.randoms(use_true_random=False))
def test_the_best_candidates_are_those_of_a_sort_of_all(sequences, width, random):
    trie = trie_of(sequences)
    nodes = [node for node in range(1, len(trie.token)) if random.random() < 0.8]
    random.shuffle(nodes)
    scores = [random.choice([-np.inf, *range(-20, 0)]) for _ in nodes]  # with a few ties
    candidates = Candidates(np.array([nodes], int), np.array([scores], float), len(nodes))

    finished, unfinished = best_candidates(candidates, 0, width, trie)

    possible = [place for place in range(len(nodes)) if scores[place] > -np.inf]
    possible.sort(key=lambda place: (-scores[place], trie.first_title[nodes[place]]))
    ends = {place for place in possible if nodes[place] in trie.leaf}
    titles = [
        (trie.title[nodes[place]], scores[place]) for place in possible[:width] if place in ends
    ]
    assert finished == titles
    # of equal score and first title are a node and one above it, which no search holds at once
    keys = [(scores[p], trie.first_title[nodes[p]]) for p in possible if p not in ends]
    assert [(scores[p], trie.first_title[nodes[p]]) for p in unfinished] == keys[:width]


def test_a_user_with_every_title_excluded_gets_an_empty_list(decoders):
    decoder, naive = decoders()

    rankings = beam_search(decoder, encoded(naive), 3, [set(range(len(TITLES))), set(), set()])

    assert [len(ranking) for ranking in rankings] == [0, 3, 3]


def test_of_a_catalogue_smaller_than_the_width_every_title_is_found_in_order(decoders):
    decoder, naive = decoders(titles=["Toy Story", "Heat", "Toy Story 2"])

    rankings = beam_search(decoder, encoded(naive), 10)

    for ranking, history in zip(rankings, HISTORIES):
        scored = [(title, naive.log_prob(history, title)) for title in range(3)]
        assert_same_lists([ranking], [sorted(scored, key=lambda pair: -pair[1])])


@pytest.mark.parametrize(
    "titles", [["Batman", "Rocky", "Aliens", "Heat"], ["Heat", "Aliens", "Rocky", "Batman"]]
)
def test_titles_of_equal_score_come_in_the_order_of_the_catalogue(decoders, titles):
    decoder, naive = decoders(titles=titles, softmax="catalogue")
    decoder.model.lm_head.weight.data.zero_()
    # the first token tells the titles apart: all cost log 4
    assert len({tokens[0] for tokens in naive.title_tokens}) == 4

    rankings = beam_search(decoder, encoded(naive), 3)

    assert [titles_of(ranking) for ranking in rankings] == [[0, 1, 2]] * 3
    assert scores_of(rankings[0]) == pytest.approx([-np.log(4)] * 3)


@pytest.mark.parametrize("seed", [0, 2, 5])
def test_the_search_ends_as_soon_as_no_live_beam_can_pass_what_is_finished(
    decoders, seed, monkeypatch
):
    decoder, naive = decoders(titles=["Rocky", "Rocky II", "Rocky III", "Rocky IV"], seed=seed)
    passes = mock.Mock(wraps=hidden_states_with_cache)
    monkeypatch.setattr("ref.search.decoder.hidden_states_with_cache", passes)

    (ranking,) = beam_search(decoder, encoded(naive)[:1], 1)

    assert titles_of(ranking) == [0]  # "Rocky", while all others, being longer, still live
    # the prompt, and each token but the last
    assert passes.call_count == len(naive.title_tokens[0])


@pytest.mark.parametrize("softmax", ["full", "catalogue"])
def test_users_in_one_batch_get_what_each_gets_alone(decoders, softmax):
    decoder, naive = decoders(softmax=softmax)
    prompts = encoded(naive)

    together = beam_search(decoder, prompts[::-1], 5)[::-1]

    lists_alone = [beam_search(decoder, [prompt], 5)[0] for prompt in prompts]
    assert_same_lists(together, lists_alone, 1e-10)
    alone = np.concatenate([title_log_probs(decoder, [prompt]) for prompt in prompts])
    np.testing.assert_allclose(title_log_probs(decoder, prompts), alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("scheme", SCHEMES)
@in_two_ways
def test_title_log_probs_are_those_of_each_title_fed_alone(decoders, scheme, softmax, layout):
    decoder, naive = decoders(SCHEMES[scheme], TITLES[::2], softmax, layout, temperature=1.3)

    log_probs = title_log_probs(decoder, encoded(naive), chunk=7)

    assert log_probs.dtype == np.float64
    for row, history in zip(log_probs, HISTORIES, strict=True):
        wanted = [naive.log_prob_in_one_pass(history, title) for title in range(len(naive.titles))]
        np.testing.assert_allclose(row, wanted, rtol=0, atol=1e-6)


def test_the_probabilities_of_all_titles_sum_to_one_under_the_catalogue_softmax(decoders):
    decoder, naive = decoders(softmax="catalogue")

    log_probs = title_log_probs(decoder, encoded(naive))

    np.testing.assert_allclose(np.exp(log_probs).sum(axis=1), 1, rtol=1e-10)


def test_the_probabilities_of_all_titles_sum_to_less_than_one_under_the_full_softmax(decoders):
    decoder, naive = decoders(softmax="full")

    log_probs = title_log_probs(decoder, encoded(naive))

    assert (np.exp(log_probs).sum(axis=1) < 1).all()


def test_the_title_of_a_catalogue_of_one_is_certain_under_the_catalogue_softmax(decoders):
    decoder, naive = decoders(titles=["Toy Story"], softmax="catalogue")

    assert title_log_probs(decoder, encoded(naive)).tolist() == [[0.0]] * 3
    assert beam_search(decoder, encoded(naive), 2) == [[(0, 0.0)]] * 3


@pytest.mark.parametrize("softmax", ["full", "catalogue"])
@pytest.mark.parametrize("chunk", [1, 2, 5, 31])
def test_the_chunk_size_does_not_matter(decoders, softmax, chunk):
    decoder, naive = decoders(softmax=softmax)
    prompts = encoded(naive)

    in_chunks = title_log_probs(decoder, prompts, chunk=chunk)

    at_once = title_log_probs(decoder, prompts, chunk=10**6)
    np.testing.assert_allclose(in_chunks, at_once, rtol=0, atol=1e-10)


@pytest.mark.parametrize("softmax", ["full", "catalogue"])
def test_the_number_of_logit_rows_at_a_time_does_not_matter(decoders, softmax, monkeypatch):
    decoder, naive = decoders(softmax=softmax)
    prompts = encoded(naive)
    log_probs = title_log_probs(decoder, prompts)
    rankings = beam_search(decoder, prompts, 4)

    for module in ("decoder", "exact"):
        monkeypatch.setattr(f"ref.search.{module}.LOGIT_ROWS", 3)

    np.testing.assert_allclose(title_log_probs(decoder, prompts), log_probs, rtol=0, atol=1e-10)
    assert_same_lists(beam_search(decoder, prompts, 4), rankings, 1e-10)


@pytest.mark.parametrize("softmax", ["full", "catalogue"])
def test_for_a_few_titles_alone_the_log_probs_are_the_same_and_minus_infinity_elsewhere(
    decoders, softmax
):
    decoder, naive = decoders(softmax=softmax)
    prompts = encoded(naive)
    few = [3, 4, 17, 29]
    others = [title for title in range(len(TITLES)) if title not in few]

    of_few = title_log_probs(decoder, prompts, few, chunk=3)

    of_all = title_log_probs(decoder, prompts)
    np.testing.assert_allclose(of_few[:, few], of_all[:, few], rtol=0, atol=1e-10)
    assert (of_few[:, others] == -np.inf).all()


def test_beam_scores_are_the_exact_log_probs_of_their_titles(decoders):
    decoder, naive = decoders(SCHEMES["no self"])
    prompts = encoded(naive)

    rankings = beam_search(decoder, prompts, 6)

    for ranking, exact in zip(rankings, title_log_probs(decoder, prompts)):
        wanted = exact[titles_of(ranking)]
        np.testing.assert_allclose(scores_of(ranking), wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("softmax", ("full", "catalogue"))
def test_exact_scores_of_a_model_in_bfloat16_are_normalized_in_float32(
    model_for, encoder_for, softmax
):
    encoder, settings = encoder_for(), Settings(encoder_for().layout, softmax)
    model = model_for(MaskScheme(), dtype=torch.bfloat16)
    decoder = Decoder(model, build_trie(encoder, TITLES), settings)
    prompts = [encoder.encode(history, reserve=decoder.trie.longest) for history in HISTORIES]
    scores = title_log_probs(decoder, prompts)
    assert np.isfinite(scores).all()
    if softmax == "catalogue":  # then one of the titles is certain
        np.testing.assert_allclose(np.exp(scores).sum(1), 1, atol=1e-5)
