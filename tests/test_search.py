"""ref.trie and ref.decode against dictionaries of dictionaries and a beam search that does nothing cleverly.

The naive decoder runs prompt + generated tokens through the plain forward once for every live beam:
no cache, no batch, no tree.
"""

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ref.masks import MaskScheme
from ref.recommender import build_trie
from ref.search.beam import beam_search
from ref.search.decoder import Decoder, cached_hidden_states
from ref.search.exact import title_log_probs
from ref.settings import Settings
from ref.trie import Trie

from support.catalogue import TITLES, continuations

SCHEMES = {
    "plain": MaskScheme(),
    "default": MaskScheme(1, 1),
    "isolated": MaskScheme(2, 1, text="isolated"),
    "no self": MaskScheme(1, 2, cross_self=False),
    "delimiters are text": MaskScheme(1, 1, delimiters="text"),
    "target is text": MaskScheme(1, 1, target="text"),
    "both are text": MaskScheme(1, 2, cross_self=False, delimiters="text", target="text"),
}
HISTORIES = [["Heat", "Casino Royale", "Heat"], ["Jaws"], ["Toy Story", "Rocky III"]]


# The trie


def node_at(trie, tokens):
    """The node reached by walking down from the root through the children, or None."""
    node = 0
    for token in tokens:
        first = trie.first_child[node]
        below = {
            int(trie.token[child]): child for child in range(first, first + trie.num_children[node])
        }
        if token not in below:
            return None
        node = below[token]
    return node


def with_ends(sequences):
    """Sequences of which none begins another: token 0 ends each."""
    return [[*sequence, 0] for sequence in sequences]


def trie_of(sequences):
    return Trie(
        sequences,
        [[True] * len(s) for s in sequences],
        [f"title {i}" for i in range(len(sequences))],
    )


catalogues = st.lists(st.lists(st.integers(1, 4), max_size=5), min_size=1, max_size=12).map(
    with_ends
)
property_test = settings(max_examples=60, deadline=None, derandomize=True)


@property_test
@given(catalogues)
def test_the_children_of_a_node_are_the_tokens_that_continue_some_title_in_order(sequences):
    trie = trie_of(sequences)
    prefixes = {tuple(s[:n]) for s in sequences for n in range(len(s) + 1)}

    assert len(trie.token) == len(prefixes)
    for prefix in prefixes:
        node = node_at(trie, prefix)
        children, real = trie.children(np.array([node]))
        assert trie.token[children[real]].tolist() == continuations(sequences, list(prefix))
        assert set(trie.parent[children[real]].tolist()) <= {node}
        assert trie.depth[node] == len(prefix)
        assert prefix == () or trie.token[node] == prefix[-1]


@property_test
@given(catalogues)
def test_a_leaf_is_where_a_title_ends_and_equal_titles_share_it(sequences):
    trie = trie_of(sequences)

    for title, sequence in enumerate(sequences):
        assert trie.leaf[title] == node_at(trie, sequence)
        assert trie.title[trie.leaf[title]] == sequences.index(sequence)
        steps = [node_at(trie, sequence[:n]) for n in range(len(sequence))]
        assert trie.path(title).tolist() == steps
    inner = [node for node in range(len(trie.token)) if node not in trie.leaf]
    assert (trie.title[inner] == -1).all() and (trie.num_children[trie.leaf] == 0).all()


@property_test
@given(catalogues)
def test_a_node_knows_its_least_title_and_whether_a_choice_lies_ahead(sequences):
    trie = trie_of(sequences)

    for prefix in {tuple(s[:n]) for s in sequences for n in range(len(s) + 1)}:
        below = [i for i, s in enumerate(sequences) if tuple(s[: len(prefix)]) == prefix]
        node = node_at(trie, prefix)
        assert trie.first_title[node] == below[0]
        assert trie.branches[node] == (len({tuple(sequences[i]) for i in below}) > 1)


@property_test
@given(catalogues)
def test_preorder_and_size_tell_ancestors(sequences):
    trie = trie_of(sequences)
    paths = {node_at(trie, s[:n]): tuple(s[:n]) for s in sequences for n in range(len(s) + 1)}

    assert sorted(trie.preorder.tolist()) == list(range(len(paths)))
    for a in paths:
        for b in paths:
            begins = paths[b][: len(paths[a])] == paths[a]
            assert (
                trie.preorder[a] <= trie.preorder[b] < trie.preorder[a] + trie.size[a]
            ) == begins


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

    flags = {
        tokens: bool(trie.in_item[node_at(trie, tokens)])
        for tokens in [(1,), (1, 2), (1, 2, 9), (1, 3, 9)]
    }
    assert flags == {(1,): False, (1, 2): True, (1, 2, 9): False, (1, 3, 9): True}
    with pytest.raises(ValueError, match="delimiters='text' cannot tell 'b' from"):
        Trie([[1, 2, 9], [1, 2, 8]], [[True, True, False], [True, False, False]], ["a", "b"])


# Decoding


class Naive:
    """The docstrings of Decoder.beam_search and title_log_probs, word by word."""

    def __init__(self, model, encoder, titles, recommender):
        self.model, self.encoder, self.titles, self.recommender = (
            model,
            encoder,
            titles,
            recommender,
        )
        self.answers = [self.answer([titles[0]], title)[0] for title in titles]

    def answer(self, history, title):
        """The tokens that answer `history` with `title`, and their segments."""
        prompt = self.encoder.encode(history, title)
        start = prompt.prompt_length
        return prompt.input_ids[start:].tolist(), prompt.segment_ids[start:].tolist()

    @torch.no_grad()
    def next_log_probs(self, history, tokens):
        """{token: log-probability} of what continues some title behind the prompt and `tokens`."""
        prompt = self.encoder.encode(history)
        like = next(
            title for title, ids in zip(self.titles, self.answers) if ids[: len(tokens)] == tokens
        )
        segments = self.answer(history, like)[1][: len(tokens)]
        ids = torch.tensor([[*prompt.input_ids.tolist(), *tokens]])
        logits = self.model(ids, torch.tensor([[*prompt.segment_ids.tolist(), *segments]]))[0, -1]
        logits = logits.double() / self.recommender.temperature
        options = continuations(self.answers, tokens)
        over = logits[options] if self.recommender.softmax == "catalogue" else logits
        return {token: float(logits[token] - over.logsumexp(0)) for token in options}

    def log_prob(self, history, title):
        ids = self.answers[title]
        return sum(self.next_log_probs(history, ids[:n])[ids[n]] for n in range(len(ids)))

    def beam_search(self, history, width, banned=()):
        live, finished = [([], 0.0)], []
        while live:
            candidates = [
                (tokens + [token], score + log_prob)
                for tokens, score in live
                for token, log_prob in self.next_log_probs(history, tokens).items()
            ]
            candidates = [
                (ids, score)
                for ids, score in candidates
                if ids not in [self.answers[b] for b in banned]
            ]
            candidates.sort(key=lambda c: (-c[1], self.first_title(c[0])))
            ends = [
                (self.answers.index(ids), score)
                for ids, score in candidates[:width]
                if ids in self.answers
            ]
            finished = sorted(finished + ends, key=lambda f: (-f[1], f[0]))[:width]
            live = [(ids, score) for ids, score in candidates if ids not in self.answers][:width]
        return finished

    def first_title(self, tokens):
        return next(i for i, ids in enumerate(self.answers) if ids[: len(tokens)] == tokens)


@pytest.fixture(scope="session")
def decoders(encoder_for, model_for):
    """(the decoder under test, the naive one) of a scheme and settings."""

    def make(
        scheme=SCHEMES["default"],
        titles=TITLES,
        softmax="full",
        layout="lines",
        temperature=1.0,
        **model,
    ):
        encoder, network = encoder_for(scheme, layout), model_for(scheme, **model)
        recommender = Settings(encoder.layout, softmax, temperature)
        decoder = Decoder(network, build_trie(encoder, titles), recommender)
        return decoder, Naive(network, encoder, titles, recommender)

    return make


def encoded(naive, histories=HISTORIES):
    return [naive.encoder.encode(history) for history in histories]


def assert_same_lists(found, wanted, tolerance):
    assert [[title for title, _ in user] for user in found] == [
        [title for title, _ in user] for user in wanted
    ]
    for user, other in zip(found, wanted):
        np.testing.assert_allclose(
            [s for _, s in user], [s for _, s in other], rtol=0, atol=tolerance
        )


@pytest.mark.parametrize("softmax", ["full", "catalogue"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("layout", ["lines", "instruction"])
def test_beam_search_is_the_naive_one_list_for_list(decoders, scheme, softmax, layout):
    decoder, naive = decoders(SCHEMES[scheme], softmax=softmax, layout=layout, temperature=0.7)

    found = beam_search(decoder, encoded(naive), 5)

    assert_same_lists(found, [naive.beam_search(history, 5) for history in HISTORIES], 1e-6)


@pytest.mark.parametrize("softmax", ["full", "catalogue"])
@pytest.mark.parametrize("width", [1, 2, 3, 10, 40])
def test_beam_search_is_the_naive_one_at_every_width(decoders, width, softmax):
    decoder, naive = decoders(softmax=softmax, seed=width)

    found = beam_search(decoder, encoded(naive), width)

    assert_same_lists(found, [naive.beam_search(history, width) for history in HISTORIES], 1e-6)
    assert width < 40 or all(
        sorted(title for title, _ in user) == [*range(len(TITLES))] for user in found
    )


@pytest.mark.parametrize("seed", range(6))
def test_beam_search_is_the_naive_one_for_other_models_and_part_of_the_catalogue(decoders, seed):
    rng = np.random.default_rng(seed)
    titles = [TITLES[i] for i in rng.permutation(len(TITLES))[: rng.integers(2, 15)]]
    scheme, softmax = [*SCHEMES.values()][seed], ["full", "catalogue"][seed % 2]
    decoder, naive = decoders(scheme, titles, softmax, seed=seed, num_hidden_layers=3 + seed % 2)

    found = beam_search(decoder, encoded(naive), 3)

    assert_same_lists(found, [naive.beam_search(history, 3) for history in HISTORIES], 1e-6)


@pytest.mark.parametrize("softmax", ["full", "catalogue"])
def test_beam_search_in_float32_finds_what_the_naive_one_finds(decoders, softmax):
    decoder, naive = decoders(softmax=softmax, dtype=torch.float32)

    found = beam_search(decoder, encoded(naive), 5)

    assert_same_lists(found, [naive.beam_search(history, 5) for history in HISTORIES], 1e-4)


@pytest.mark.parametrize("softmax", ["full", "catalogue"])
def test_banned_titles_do_not_finish_and_leave_their_places_to_others(decoders, softmax):
    decoder, naive = decoders(softmax=softmax)
    free = beam_search(decoder, encoded(naive), 4)
    banned = [{free[0][0][0], free[0][2][0]}, set(), {TITLES.index("Toy Story"), *range(8, 20)}]

    found = beam_search(decoder, encoded(naive), 4, banned)

    wanted = [naive.beam_search(history, 4, titles) for history, titles in zip(HISTORIES, banned)]
    assert_same_lists(found, wanted, 1e-6)
    assert found[0] != free[0] and found[1] == free[1]


def test_a_user_with_every_title_banned_gets_an_empty_list(decoders):
    decoder, naive = decoders()

    found = beam_search(decoder, encoded(naive), 3, [set(range(len(TITLES))), set(), set()])

    assert found[0] == [] and len(found[1]) == len(found[2]) == 3


def test_a_catalogue_smaller_than_the_width_is_returned_whole_and_in_order(decoders):
    decoder, naive = decoders(titles=["Toy Story", "Heat", "Toy Story 2"])

    found = beam_search(decoder, encoded(naive), 10)

    for user, history in zip(found, HISTORIES):
        wanted = sorted(
            ((t, naive.log_prob(history, t)) for t in range(3)), key=lambda pair: -pair[1]
        )
        assert_same_lists([user], [wanted], 1e-6)


@pytest.mark.parametrize(
    "titles", [["Batman", "Rocky", "Aliens", "Heat"], ["Heat", "Aliens", "Rocky", "Batman"]]
)
def test_titles_of_equal_score_come_in_the_order_of_the_catalogue(decoders, titles):
    decoder, naive = decoders(titles=titles, softmax="catalogue")
    decoder.model.lm_head.weight.data.zero_()
    assert (
        len({answer[0] for answer in naive.answers}) == 4
    )  # the first token tells: all cost log 4

    found = beam_search(decoder, encoded(naive), 3)

    assert [[title for title, _ in user] for user in found] == [[0, 1, 2]] * 3
    assert found[0][0][1] == pytest.approx(-np.log(4))


@pytest.mark.parametrize("seed", [0, 2, 5])
def test_the_search_ends_as_soon_as_no_live_beam_can_pass_what_is_finished(
    decoders, seed, monkeypatch
):
    decoder, naive = decoders(titles=["Rocky", "Rocky II", "Rocky III", "Rocky IV"], seed=seed)
    passes = mock.Mock(wraps=cached_hidden_states)
    monkeypatch.setattr("ref.search.decoder.cached_hidden_states", passes)

    found = beam_search(decoder, encoded(naive)[:1], 1)

    assert found[0][0][0] == 0  # "Rocky", while all others, being longer, still live
    assert passes.call_count == len(naive.answers[0])  # the prompt, and each token but the last


@pytest.mark.parametrize("softmax", ["full", "catalogue"])
def test_users_in_one_batch_get_what_each_gets_alone(decoders, softmax):
    decoder, naive = decoders(softmax=softmax)
    prompts = encoded(naive)

    together = beam_search(decoder, prompts[::-1], 5)[::-1]

    assert_same_lists(together, [beam_search(decoder, [prompt], 5)[0] for prompt in prompts], 1e-10)
    alone = np.concatenate([title_log_probs(decoder, [prompt]) for prompt in prompts])
    np.testing.assert_allclose(title_log_probs(decoder, prompts), alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("softmax", ["full", "catalogue"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("layout", ["lines", "instruction"])
def test_title_log_probs_are_those_of_each_title_fed_alone(decoders, scheme, softmax, layout):
    decoder, naive = decoders(SCHEMES[scheme], TITLES[::2], softmax, layout, temperature=1.3)

    found = title_log_probs(decoder, encoded(naive), chunk=7)

    wanted = [[fed_alone(naive, history, title) for title in TITLES[::2]] for history in HISTORIES]
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


@torch.no_grad()
def fed_alone(naive, history, title):
    """The title's tokens behind the prompt in one plain forward: teacher forcing."""
    prompt = naive.encoder.encode(history, title)
    ids, start = prompt.input_ids.tolist(), prompt.prompt_length
    logits = naive.model(torch.tensor([ids]), torch.tensor([prompt.segment_ids.tolist()]))[
        0
    ].double()
    total = 0.0
    for place in range(start, len(ids)):
        row = logits[place - 1] / naive.recommender.temperature
        options = continuations(naive.answers, ids[start:place])
        over = row[options] if naive.recommender.softmax == "catalogue" else row
        total += float(row[ids[place]] - over.logsumexp(0))
    return total


def test_the_probabilities_of_the_whole_catalogue_sum_to_one_under_its_own_softmax(decoders):
    own, naive = decoders(softmax="catalogue")
    full, _ = decoders(softmax="full")

    np.testing.assert_allclose(np.exp(title_log_probs(own, encoded(naive))).sum(1), 1, rtol=1e-10)
    assert (np.exp(title_log_probs(full, encoded(naive))).sum(1) < 1).all()


def test_a_catalogue_of_one_title_is_certain_under_its_own_softmax(decoders):
    decoder, naive = decoders(titles=["Toy Story"], softmax="catalogue")

    assert title_log_probs(decoder, encoded(naive)).tolist() == [[0.0]] * 3
    assert beam_search(decoder, encoded(naive), 2) == [[(0, 0.0)]] * 3


@pytest.mark.parametrize("softmax", ["full", "catalogue"])
@pytest.mark.parametrize("chunk", [1, 2, 5, 31])
def test_the_chunk_size_does_not_matter(decoders, softmax, chunk):
    decoder, naive = decoders(softmax=softmax)
    prompts = encoded(naive)

    whole = title_log_probs(decoder, prompts, chunk=10**6)

    np.testing.assert_allclose(
        title_log_probs(decoder, prompts, chunk=chunk), whole, rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("softmax", ["full", "catalogue"])
def test_the_number_of_logit_rows_at_a_time_does_not_matter(decoders, softmax, monkeypatch):
    decoder, naive = decoders(softmax=softmax)
    prompts = encoded(naive)
    whole, beams = title_log_probs(decoder, prompts), beam_search(decoder, prompts, 4)

    monkeypatch.setattr("ref.search.decoder._LOGIT_ROWS", 3)

    np.testing.assert_allclose(title_log_probs(decoder, prompts), whole, rtol=0, atol=1e-10)
    assert_same_lists(beam_search(decoder, prompts, 4), beams, 1e-10)


@pytest.mark.parametrize("softmax", ["full", "catalogue"])
def test_for_some_titles_alone_the_log_probs_are_the_same_and_minus_infinity_elsewhere(
    decoders, softmax
):
    decoder, naive = decoders(softmax=softmax)
    prompts, some = encoded(naive), [3, 4, 17, 29]
    others = [title for title in range(len(TITLES)) if title not in some]

    found, every = title_log_probs(decoder, prompts, some, chunk=3), title_log_probs(decoder, prompts)

    np.testing.assert_allclose(found[:, some], every[:, some], rtol=0, atol=1e-10)
    assert (found[:, others] == -np.inf).all()


def test_beam_scores_are_the_exact_log_probs_of_their_titles(decoders):
    decoder, naive = decoders(SCHEMES["no self"])
    prompts = encoded(naive)

    exact = title_log_probs(decoder, prompts)

    for row, user in zip(exact, beam_search(decoder, prompts, 6)):
        np.testing.assert_allclose(
            [score for _, score in user], row[[title for title, _ in user]], rtol=0, atol=1e-10
        )
