"""What the masks save, against the plain forward pass.

It is the keys and values that no target looks at, and to compute an item more than once.
"""

import random
from dataclasses import dataclass, fields, replace
from unittest import mock

import numpy as np
import pytest
import torch

import evaluate
from ref.layouts import LAYOUTS
from ref.masks import MaskScheme
from ref.search.beam import beam_search
from ref.search.cache import KVCache, drop_what_no_target_sees
from ref.search.decoder import Decoder, hidden_states_with_cache
from ref.search.exact import title_log_probs
from ref.search.item_states import ItemStates
from ref.settings import Settings
from ref.trie import build_trie

from support.catalogue import HISTORIES, TITLES, titles_of
from support.commands import trained
from support.data import write_interactions
from support.models import config_of, random_model

ISOLATED = MaskScheme(2, 1, text="isolated")


@dataclass(frozen=True)
class Sequence:
    """One prompt with its target: int tensors (1, T), and where the target starts."""

    input_ids: torch.Tensor
    segment_ids: torch.Tensor
    start: int


def generate(model, sequence):
    """Feed the prompt at once, let the cache drop what it may, then feed token by token.

    Returns the logits of the target's tokens, (1, tokens, V), and the cache.
    """
    cache = KVCache(model.kinds)
    feed(model, cache, sequence, 0, sequence.start)
    drop_what_no_target_sees(cache, model.scheme)
    logits = []
    for index in range(sequence.start, sequence.input_ids.shape[1]):
        logits.append(feed(model, cache, sequence, index, index + 1))
    return torch.cat(logits, dim=1), cache


def feed(model, cache, sequence, begin, end):
    """Feed some tokens to a model with a cache: their logits."""
    input_ids, segment_ids = sequence.input_ids[:, begin:end], sequence.segment_ids[:, begin:end]
    return model.lm_head(hidden_states_with_cache(model, cache, input_ids, segment_ids))


def random_scheme(rng):
    return MaskScheme(
        intra_layers=rng.randrange(4),
        cross_layers=rng.randrange(2),
        cross_self=rng.random() < 0.5,
        text=rng.choice(["visible", "isolated"]),
        delimiters=rng.choice(["item", "item", "text"]),
        target=rng.choice(["item", "item", "text"]),
    )


def test_random_schemes_differ_in_every_field():
    rng = random.Random(0)
    schemes = [random_scheme(rng) for _ in range(100)]
    for field in fields(MaskScheme):
        assert len({getattr(scheme, field.name) for scheme in schemes}) > 1, field.name


def random_sequence(rng, scheme):
    """Padding, text and items of random lengths, then the target, as the scheme labels it."""
    prompt = [-1] * rng.randrange(3) + [0] * rng.randrange(3)
    for number in range(1, rng.randrange(1, 5)):
        prompt += [number] * rng.randrange(1, 4)
        if rng.random() < 0.3:
            prompt.append(0)
    prompt += [0] * (1 + rng.randrange(2))
    target = [max(prompt) + 1] * rng.randrange(1, 5)
    if scheme.delimiters == "text":
        target[-1] = 0
    if scheme.target == "text":
        target = [0] * len(target)
    segment_ids = torch.tensor([prompt + target])
    input_ids = torch.tensor([[rng.randrange(40) for _ in prompt + target]])
    return Sequence(input_ids, segment_ids, len(prompt))


@pytest.mark.parametrize("seed", range(10))
def test_with_a_pruned_cache_generated_tokens_have_the_logits_of_the_plain_pass(seed):
    rng = random.Random(seed)
    scheme = random_scheme(rng)
    model = random_model(config_of(num_hidden_layers=4), scheme, seed, torch.float64)
    sequence = random_sequence(rng, scheme)

    logits, _ = generate(model, sequence)

    wanted = model(sequence.input_ids, sequence.segment_ids)[:, sequence.start :]
    torch.testing.assert_close(logits, wanted, rtol=1e-10, atol=1e-12)


def held_tokens(scheme, segments, start):
    """How many tokens each of four layers holds once a sequence has been generated."""
    model = random_model(config_of(num_hidden_layers=4), scheme)
    input_ids = torch.arange(len(segments))[None]
    _, cache = generate(model, Sequence(input_ids, torch.tensor([segments]), start))
    return [layer.keys.shape[2] for layer in cache.layers]


@pytest.mark.parametrize(
    "scheme, text",
    [
        (MaskScheme(1, 2), 2),
        (MaskScheme(1, 2, text="isolated"), 0),
        (MaskScheme(1, 2, cross_self=False), 2),
    ],
)
def test_intra_layers_hold_text_and_target_alone_and_cross_layers_the_prompt_alone(scheme, text):
    held = held_tokens(scheme, segments=[0, 1, 1, 2, 2, 0, 3, 3, 3], start=6)
    assert held == [text + 3, 9, 6, 6]


@pytest.mark.parametrize(
    "scheme", [MaskScheme(1, 2, delimiters="text"), MaskScheme(1, 2, target="text")]
)
def test_nothing_is_dropped_where_generated_tokens_may_be_text(scheme):
    held = held_tokens(scheme, segments=[0, 1, 1, 2, 2, 0, 3, 3, 0], start=6)
    assert held == [9, 9, 9, 9]


@pytest.fixture
def two_decoders(encoder_for, model_for):
    """Makes an encoder, and decoders without and with cached items."""

    def make(scheme=ISOLATED, softmax="catalogue"):
        model = model_for(scheme, num_hidden_layers=4)
        encoder = encoder_for(scheme)
        trie = build_trie(encoder, TITLES)
        settings = Settings(LAYOUTS["lines"], softmax)
        item_states = ItemStates(model, encoder, TITLES, batch_size=7)
        plain = Decoder(model, trie, settings)
        return encoder, plain, Decoder(model, trie, settings, item_states)

    return make


@pytest.mark.parametrize("softmax", ["full", "catalogue"])
@pytest.mark.parametrize(
    "scheme", [ISOLATED, MaskScheme(4, text="isolated"), MaskScheme(1, 3, False, text="isolated")]
)
def test_cached_items_change_no_log_probability_and_no_list(two_decoders, scheme, softmax):
    rng = random.Random(scheme.intra_layers)
    histories = HISTORIES + [rng.choices(TITLES, k=rng.randrange(1, 11)) for _ in range(20)]
    encoder, plain, cached = two_decoders(scheme, softmax)
    prompts = [encoder.encode(history) for history in histories]

    log_probs = title_log_probs(cached, prompts)
    rankings = beam_search(cached, prompts, 5)

    np.testing.assert_allclose(log_probs, title_log_probs(plain, prompts), rtol=1e-10)
    wanted = beam_search(plain, prompts, 5)
    assert [titles_of(ranking) for ranking in rankings] == [titles_of(other) for other in wanted]


def test_a_prompt_of_cached_items_starts_after_the_intra_layers(two_decoders, monkeypatch):
    encoder, _, cached = two_decoders()
    for layer in cached.model.layers[: ISOLATED.intra_layers]:
        monkeypatch.setattr(layer, "forward", None)
        with pytest.raises(TypeError):
            layer(None)
    _, last_hidden = cached.read_prompts([encoder.encode(["Heat", "Jaws"])])
    assert last_hidden.isfinite().all()


def test_an_item_that_is_not_in_the_catalogue_is_named(two_decoders):
    encoder, _, cached = two_decoders()
    with pytest.raises(ValueError, match="no title of the catalogue: 'Heat.nSomething else"):
        beam_search(cached, [encoder.encode(["Heat", "Something else"])], 3)


@pytest.mark.parametrize(
    "change", [{"text": "visible"}, {"delimiters": "text"}, {"target": "text"}, {"intra_layers": 0}]
)
def test_cached_items_are_refused_under_other_schemes(encoder_for, model_for, change):
    scheme = replace(ISOLATED, **change)
    (field,) = change
    message = f"--cache-items needs IN layers with text='isolated'.*{field}"
    with pytest.raises(ValueError, match=message):
        ItemStates(model_for(scheme), encoder_for(scheme), TITLES)


@pytest.mark.parametrize("text", [{"before": "Seen:"}, {"after": "Next:"}, {"bos": True}])
def test_cached_items_are_refused_in_a_layout_with_text(encoder_for, model_for, text):
    encoder = encoder_for(ISOLATED)
    encoder.layout = replace(encoder.layout, **text)
    with pytest.raises(ValueError, match="without text around the items; 'lines' has some"):
        ItemStates(model_for(ISOLATED), encoder, TITLES)


@pytest.fixture(scope="module")
def isolated_model(tmp_path_factory):
    """A data folder, and a tiny model trained on it whose items are isolated in the IN layers."""
    folder = tmp_path_factory.mktemp("isolated")
    rng = random.Random(0)
    rows = [(f"u{user}", f"i{rng.randrange(7)}", time) for user in range(24) for time in range(9)]
    data = write_interactions(folder / "data", rows)
    return data, trained(data, folder / "model", "--text", "isolated", "--intra-layers", 1)


@pytest.mark.parametrize("ranking", ["beam", "full", "sampled --negatives 3"])
def test_evaluation_with_cached_items_reports_the_same(
    isolated_model, report_of, ranking, monkeypatch
):
    options = ("--ranking", *ranking.split())
    made = mock.Mock(wraps=ItemStates)
    monkeypatch.setattr(evaluate, "ItemStates", made)

    plain = report_of(*isolated_model, *options)
    assert made.call_count == 0
    cached = report_of(*isolated_model, *options, "--cache-items")
    assert made.call_count == 1

    assert cached["ranks"] == plain["ranks"]
