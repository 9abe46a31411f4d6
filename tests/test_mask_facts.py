"""What follows from the definition of the masks, in both implementations, on random prompts.

PyTorch runs its fused kernel here, with which people train; test_llama.py and test_agreement.py
hold the equation ("eager") against it and against NumPy.
Each fact is a property of all prompts; hypothesis draws them. The segment ids of a prompt of T
tokens are s, int (T,).
"""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ref.checkpoints.config import parse_config
from ref.checkpoints.weights import hf_parameters
from ref.llama import Llama
from ref.masks import MaskScheme
from ref.search.cache import KVCache
from ref.search.decoder import hidden_states_with_cache

from support.golden import numpy_trace, relative, torch_model, torch_trace
from support.masks import kinds_of, mask_table

CONFIG = {
    "vocab_size": 13,
    "hidden_size": 8,
    "intermediate_size": 6,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "num_hidden_layers": 3,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100.0,
    "tie_word_embeddings": True,
    "max_position_embeddings": 64,
}
few = settings(max_examples=25, suppress_health_check=list(HealthCheck))
both = pytest.mark.parametrize("implementation", ["numpy", "torch"])
either_attention = pytest.mark.parametrize("attention", ["eager", "sdpa"])


@st.composite
def schemes(draw):
    """Any MaskScheme of the model's three layers."""
    intra_layers = draw(st.integers(0, 3))
    cross_layers = draw(st.integers(0, 3 - intra_layers))
    text = draw(st.sampled_from(["visible", "isolated"]))
    return MaskScheme(intra_layers, cross_layers, cross_self=draw(st.booleans()), text=text)


def random_weights():
    random = np.random.default_rng(3)
    weights = {}
    for name, parameter in hf_parameters(Llama(parse_config(CONFIG))).items():
        weights[name] = random.normal(0, 0.6, tuple(parameter.shape))
    return weights


WEIGHTS = random_weights()


@st.composite
def prompts(draw, padding=True):
    """Segment ids: text and items in order, padding on either side."""
    runs = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3)), min_size=1, max_size=4))
    sides = st.integers(0, 2) if padding else st.just(0)
    s = [-1] * draw(sides)
    for item, (text_length, item_length) in enumerate(runs, start=1):
        s += [0] * text_length + [item] * item_length
    return np.array(s + [-1] * draw(sides))


def counting_up(length):
    """Token ids 0, 1, 2, ..., int (length,)."""
    return np.arange(length) % CONFIG["vocab_size"]


def other_tokens(input_ids, changed):
    """The same with other tokens where `changed` says so."""
    return np.where(changed, (input_ids + 5) % CONFIG["vocab_size"], input_ids)


def traced(s, scheme, implementation, input_ids=None):
    """Every intermediate for s, int (T,) or (B, T); the token ids count up where not given."""
    segment_ids = np.atleast_2d(s)
    if input_ids is None:
        input_ids = counting_up(segment_ids.shape[1])
    input_ids = np.array(np.broadcast_to(input_ids, segment_ids.shape))
    if implementation == "torch":
        return torch_trace(torch_model(CONFIG, scheme, WEIGHTS, "sdpa"), input_ids, segment_ids)
    return numpy_trace(CONFIG, scheme, input_ids, segment_ids, WEIGHTS)


@both
@few
@given(s=prompts(), scheme=schemes())
def test_without_special_layers_or_without_items_the_model_is_plain_causal_to_the_last_bit(
    implementation, s, scheme
):
    no_items = np.minimum(s, 0)
    plain = traced(no_items, MaskScheme(), implementation)["logits"]
    assert np.array_equal(traced(s, MaskScheme(), implementation)["logits"], plain)
    assert np.array_equal(traced(no_items, scheme, implementation)["logits"], plain)


@both
@few
@given(s=prompts(), scheme=schemes(), gaps=st.lists(st.integers(1, 5), min_size=5, max_size=5))
def test_relabelling_segments_in_order_changes_nothing(implementation, s, scheme, gaps):
    labels = np.cumsum([0, *gaps])
    relabelled = np.where(s >= 1, labels[np.maximum(s, 0)], s)
    expected = traced(s, scheme, implementation)["logits"]
    assert np.array_equal(traced(relabelled, scheme, implementation)["logits"], expected)


@both
@few
@given(s=prompts(), data=st.data())
def test_changing_one_item_leaves_the_others_unchanged_in_intra_layers(implementation, s, data):
    changed = s == data.draw(st.integers(1, s.max()))
    input_ids = counting_up(len(s))
    scheme = MaskScheme(2, 0)
    before = traced(s, scheme, implementation, input_ids)["layers.1.output"][0]
    other = other_tokens(input_ids, changed)
    after = traced(s, scheme, implementation, other)["layers.1.output"][0]
    unread = (s >= 1) & ~changed & ~after_text_that_read(changed, s)
    assert np.array_equal(before[unread], after[unread])
    assert not np.array_equal(before[changed], after[changed])


def after_text_that_read(changed, s):
    """Which tokens come after text that comes after the changed item: text sees everything."""
    later_text = (s == 0) & (np.arange(len(s)) > np.argmax(changed))
    return np.cumsum(later_text) > 0


@both
@few
@given(s=prompts(padding=False), others=prompts(padding=False))
def test_an_isolated_item_has_the_same_states_wherever_it_stands(implementation, s, others):
    item, input_ids = s == s.max(), counting_up(len(s))
    moved = np.concatenate([others, np.full(item.sum(), others.max() + 1)])
    moved_ids = np.concatenate([counting_up(len(others)), input_ids[item]])
    scheme = MaskScheme(3, 0, text="isolated")
    here = traced(s, scheme, implementation, input_ids)["layers.2.output"][0]
    there = traced(moved, scheme, implementation, moved_ids)["layers.2.output"][0]
    assert relative(there[len(others) :], here[item]) < 1e-11


@both
@few
@given(n=st.integers(2, 4), length=st.integers(2, 3), cross_self=st.booleans())
def test_in_cross_layers_the_last_token_of_an_item_reads_no_other_token_of_it(
    implementation, n, length, cross_self
):
    s = np.append(np.repeat(np.arange(1, n + 1), length), 0)
    input_ids = counting_up(len(s))
    last, later_text = len(s) - 2, len(s) - 1
    changed = (s == n) & (np.arange(len(s)) < last)
    scheme, other = MaskScheme(0, 3, cross_self=cross_self), other_tokens(input_ids, changed)
    before = traced(s, scheme, implementation, input_ids)["layers.2.output"][0]
    after = traced(s, scheme, implementation, other)["layers.2.output"][0]
    assert np.array_equal(before[last], after[last])
    assert not np.array_equal(before[later_text], after[later_text])


@both
@few
@given(s=prompts(), scheme=schemes(), is_item=st.lists(st.booleans(), min_size=1, max_size=3))
def test_appending_tokens_never_changes_the_states_before_them(implementation, s, scheme, is_item):
    longer = np.concatenate([s, np.where(is_item, s.max() + 1, 0)])
    before = traced(s, scheme, implementation)["norm"][0]
    after = traced(longer, scheme, implementation)["norm"][0]
    assert relative(after[: len(s)], before) < 1e-12


def padded_batch(rows, left):
    """Segment ids of some prompts, (B, T), with `left` padding before each, the rest after it."""
    T = max(map(len, rows)) + left
    segment_ids = np.full((len(rows), T), -1)
    for row, s in zip(segment_ids, rows, strict=True):
        row[left : left + len(s)] = s
    return segment_ids


@either_attention
@few
@given(rows=st.lists(prompts(), min_size=2, max_size=2), scheme=schemes(), data=st.data())
def test_a_cache_gives_what_one_pass_gives(attention, rows, scheme, data):
    segment_ids = padded_batch(rows, left=1)
    B, T = segment_ids.shape
    ends = [*sorted(data.draw(st.sets(st.integers(1, T - 1), max_size=4))), T]
    model = torch_model(CONFIG, scheme, WEIGHTS, attention)
    tokens = torch.from_numpy(np.tile(counting_up(T), (B, 1)))
    segments = torch.from_numpy(segment_ids)
    cache, logits = KVCache(model.kinds), []
    with torch.no_grad():
        for begin, end in zip([0, *ends], ends):
            part = tokens[:, begin:end], segments[:, begin:end]
            logits.append(model.lm_head(hidden_states_with_cache(model, cache, *part)))
    expected = traced(segment_ids, scheme, "numpy")["logits"]
    real = segment_ids != -1
    assert relative(torch.cat(logits, dim=1).numpy()[real], expected[real]) < 1e-11


@both
@few
@given(
    rows=st.lists(prompts(padding=False), min_size=2, max_size=3),
    scheme=schemes(),
    left=st.integers(0, 2),
)
def test_batching_and_padding_change_nothing_at_real_tokens(implementation, rows, scheme, left):
    segment_ids = padded_batch(rows, left)
    input_ids = np.zeros_like(segment_ids)
    for row, s in zip(input_ids, rows, strict=True):
        row[left : left + len(s)] = counting_up(len(s))
    forwards = traced(segment_ids, scheme, implementation, input_ids)["norm"]
    backwards = traced(segment_ids[::-1].copy(), scheme, implementation, input_ids[::-1])["norm"]
    for s, forward, backward in zip(rows, forwards, backwards[::-1], strict=True):
        alone = traced(s, scheme, implementation)["norm"][0]
        real = slice(left, left + len(s))
        assert relative(forward[real], alone) < 1e-11
        assert relative(backward[real], alone) < 1e-11


def paths(s, scheme):
    """How many ways lead from a token's state after the layers, a row, to each embedding."""
    count = np.eye(len(s))
    for kind in kinds_of(scheme, 3):
        # by the residual, or by the attention
        count = count + mask_table(kind, s.tolist(), scheme) @ count
    return count


@either_attention
@pytest.mark.parametrize(
    "scheme",
    [MaskScheme(3, 0), MaskScheme(3, 0, text="isolated"), MaskScheme(0, 3)],
    ids=["IN", "isolated IN", "CR"],
)
@few
@given(s=prompts(), data=st.data())
def test_a_gradient_is_exactly_zero_where_every_layer_masks_the_path(attention, scheme, s, data):
    read = data.draw(st.integers(0, len(s) - 1))
    model = torch_model(CONFIG, scheme, WEIGHTS, attention)
    embedded = []
    model.embed_tokens.register_forward_hook(
        lambda module, arguments, output: embedded.append(output)
    )
    input_ids = torch.from_numpy(counting_up(len(s)))[None]
    loss = model(input_ids, torch.from_numpy(s)[None])[0, read].square().sum()
    (gradient,) = torch.autograd.grad(loss, embedded)
    of_tokens = gradient[0].abs().sum(-1).numpy()
    assert np.array_equal(of_tokens > 0, paths(s, scheme)[read] > 0)
