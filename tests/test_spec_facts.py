"""Each fact of SPEC §3, in both implementations, on prompts that hypothesis draws."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ref import llama_numpy
from ref.checkpoints.config import parse_config
from ref.checkpoints.weights import hf_parameters
from ref.masks import MaskScheme, build_masks
from ref.search.cache import KVCache

from support.golden import relative, torch_model, torch_trace

few = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
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
both = pytest.mark.parametrize("trace", ["numpy", "torch"])
schemes = st.builds(
    MaskScheme,
    st.integers(0, 1),
    st.integers(0, 2),
    cross_self=st.booleans(),
    text=st.sampled_from(["visible", "isolated"]),
)


def weights():
    shapes = {name: tuple(p.shape) for name, p in torch_parameters().items()}
    random = np.random.default_rng(3)
    return {name: random.normal(0, 0.6, shape) for name, shape in shapes.items()}


def torch_parameters():
    from ref.llama import Llama, LlamaConfig

    return hf_parameters(Llama(parse_config(CONFIG)))


WEIGHTS = weights()


@st.composite
def prompts(draw, padding=True):
    """Segment ids: text and items in order, padding on either side."""
    runs = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3)), min_size=1, max_size=4))
    s = [i for number, (text, length) in enumerate(runs, 1) for i in [0] * text + [number] * length]
    sides = st.integers(0, 2) if padding else st.just(0)
    return np.array([-1] * draw(sides) + s + [-1] * draw(sides))


def masks_of(s, scheme, implementation):
    """kind -> bool (T, T)."""
    if implementation == "torch":
        return {
            kind: mask[0].numpy()
            for kind, mask in build_masks(torch.from_numpy(s[None]), scheme).items()
        }
    return {kind: llama_numpy.row_mask(kind, s.tolist(), scheme) for kind in ("IN", "OR", "CR")}


def traced(s, scheme, implementation, input_ids=None, layers=3):
    """Every intermediate for segment ids s (T,) or (B, T), input_ids likewise; tokens count up where not given."""
    s = np.atleast_2d(s)
    input_ids = (
        np.broadcast_to(np.arange(s.shape[1]) % 13, s.shape)
        if input_ids is None
        else np.atleast_2d(input_ids)
    )
    config = CONFIG | {"num_hidden_layers": layers}
    own = {
        name: w
        for name, w in WEIGHTS.items()
        if ".layers." not in name or int(name.split(".")[2]) < layers
    }
    if implementation == "torch":
        return torch_trace(torch_model(config, scheme, own), np.array(input_ids), s)
    trace = {}
    llama_numpy.forward(own, config, input_ids, s, scheme, trace=trace)
    return trace


@both
@few
@given(s=prompts(), cross_self=st.booleans(), text=st.sampled_from(["visible", "isolated"]))
def test_fact_1_in_and_cr_allow_no_more_than_or_and_by_default_cover_it(trace, s, cross_self, text):
    masks, real = masks_of(s, MaskScheme(cross_self=cross_self, text=text), trace), s != -1
    filled = np.eye(len(s), dtype=bool)  # R3 and R4 give a row back to itself
    assert (
        not (masks["IN"] & ~masks["OR"] & ~filled).any()
        and not (masks["CR"] & ~masks["OR"] & ~filled).any()
    )
    default = masks_of(s, MaskScheme(), trace)
    with_text = (s[:, None] == 0) | (s[None, :] == 0) | filled
    rows = np.ix_(real, real)
    assert np.array_equal(default["IN"] | default["CR"], default["OR"])
    assert np.array_equal((default["IN"] & default["CR"])[rows], (default["OR"] & with_text)[rows])


@both
@few
@given(s=prompts(), scheme=schemes)
def test_fact_2_every_row_allows_a_key_and_none_of_the_future_or_of_padding(trace, s, scheme):
    for mask in masks_of(s, scheme, trace).values():
        assert mask.any(axis=1).all()
        assert not np.triu(mask, 1).any()
        assert not (mask & (s == -1)[None, :] & ~np.eye(len(s), dtype=bool)).any()


@both
@few
@given(s=prompts(), scheme=schemes)
def test_fact_3_without_special_layers_or_without_items_the_model_is_plain_causal_to_the_last_bit(
    trace, s, scheme
):
    no_items = np.minimum(s, 0)
    plain = traced(no_items, MaskScheme(), trace)["logits"]
    assert np.array_equal(traced(s, MaskScheme(), trace)["logits"], plain)
    assert np.array_equal(traced(no_items, scheme, trace)["logits"], plain)


@both
@few
@given(s=prompts(), scheme=schemes, gaps=st.lists(st.integers(1, 5), min_size=5, max_size=5))
def test_fact_4_relabelling_segments_in_order_changes_nothing(trace, s, scheme, gaps):
    relabelled = np.where(s >= 1, np.cumsum([0] + gaps)[np.maximum(s, 0)], s)
    assert np.array_equal(
        traced(relabelled, scheme, trace)["logits"], traced(s, scheme, trace)["logits"]
    )


@both
@few
@given(s=prompts(), data=st.data())
def test_fact_5_changing_one_item_leaves_the_others_unchanged_in_intra_layers(trace, s, data):
    changed = data.draw(st.integers(1, s.max()))
    tokens = np.arange(len(s)) % 13
    other = np.where(s == changed, (tokens + 5) % 13, tokens)
    before, after = (
        traced(s, MaskScheme(2, 0), trace, t)["layers.1.output"][0] for t in (tokens, other)
    )
    rest = (s >= 1) & (s != changed)
    first_text_after = np.argmax(s == changed)
    rest &= ~text_between(s, first_text_after)
    assert np.array_equal(before[rest], after[rest])
    assert not np.array_equal(before[s == changed], after[s == changed])


def text_between(s, start):
    """Tokens that come after some text that comes after index `start`: that text has read the changed item."""
    seen = (s == 0) & (np.arange(len(s)) > start)
    return np.cumsum(seen) > 0


@both
@few
@given(s=prompts(padding=False), shift=st.integers(1, 6))
def test_fact_6_an_isolated_item_has_the_same_states_wherever_it_stands(trace, s, shift):
    item, tokens = s == s.max(), np.arange(len(s)) % 13
    moved, more = np.concatenate([[0] * shift, s]), np.concatenate([[7] * shift, tokens])
    scheme = MaskScheme(3, 0, text="isolated")
    here = traced(s, scheme, trace, tokens)["layers.2.output"][0][item]
    there = traced(moved, scheme, trace, more)["layers.2.output"][0][shift:][item]
    assert relative(there, here) < 1e-11


@both
@few
@given(n=st.integers(2, 4), length=st.integers(2, 3))
def test_fact_7_in_a_cross_layer_the_last_token_of_an_item_reads_no_other_token_of_it(
    trace, n, length
):
    s = np.repeat(np.arange(1, n + 1), length)
    tokens = np.arange(len(s)) % 13
    other = tokens.copy()
    other[-length:-1] = (other[-length:-1] + 5) % 13  # the last item, but for its last token
    before, after = (
        traced(s, MaskScheme(0, 3), trace, t)["layers.2.output"][0] for t in (tokens, other)
    )
    assert np.array_equal(before[-1], after[-1]) and not np.array_equal(before[-2], after[-2])


@both
@few
@given(s=prompts(), scheme=schemes, more=st.lists(st.integers(0, 1), min_size=1, max_size=3))
def test_fact_8_appending_tokens_never_changes_the_states_before_them(trace, s, scheme, more):
    longer = np.concatenate([s, np.where(more, s.max() + 1, 0)])
    tokens = np.arange(len(longer)) % 13
    before, after = (
        traced(s, scheme, trace, tokens[: len(s)])["norm"],
        traced(longer, scheme, trace, tokens)["norm"],
    )
    assert relative(after[0, : len(s)], before[0]) < 1e-12


@few
@given(s=prompts(), scheme=schemes, data=st.data())
def test_fact_8_a_cache_gives_what_one_pass_gives(s, scheme, data):
    model, tokens = torch_model(CONFIG, scheme, WEIGHTS), torch.arange(len(s))[None] % 13
    cuts = sorted(data.draw(st.sets(st.integers(1, len(s) - 1), max_size=4))) if len(s) > 1 else []
    cache, segments = KVCache(), torch.from_numpy(s[None])
    with torch.no_grad():
        parts = [
            model(tokens[:, a:b], segments[:, a:b], cache=cache)
            for a, b in zip([0, *cuts], [*cuts, len(s)], strict=True)
        ]
    expected = traced(s, scheme, "numpy")["logits"][0]
    assert relative(torch.cat(parts, dim=1)[0].numpy()[s != -1], expected[s != -1]) < 1e-11


@both
@few
@given(
    rows=st.lists(prompts(padding=False), min_size=2, max_size=3),
    scheme=schemes,
    left=st.integers(0, 2),
)
def test_fact_9_batching_and_padding_change_nothing_at_real_tokens(trace, rows, scheme, left):
    T = max(map(len, rows)) + left
    batch = np.array(
        [np.concatenate([[-1] * left, s, [-1] * (T - left - len(s))]) for s in rows]
    ).astype(int)
    tokens = np.zeros_like(batch)
    for row, s in zip(tokens, rows, strict=True):
        row[left : left + len(s)] = np.arange(len(s)) % 13
    together = traced(batch, scheme, trace, tokens)["norm"]
    backwards = traced(batch[::-1].copy(), scheme, trace, tokens[::-1].copy())["norm"][::-1]
    for b, s in enumerate(rows):
        alone = traced(s, scheme, trace)["norm"][0]
        assert relative(together[b, left : left + len(s)], alone) < 1e-11
        assert relative(backwards[b, left : left + len(s)], alone) < 1e-11


@few
@given(n=st.integers(2, 4), length=st.integers(1, 3), data=st.data())
def test_fact_10_a_gradient_is_exactly_zero_where_every_layer_masks_the_path(n, length, data):
    s = np.repeat(np.arange(1, n + 1), length)
    read = data.draw(st.integers(0, len(s) - 1))
    model = torch_model(CONFIG, MaskScheme(3, 0), WEIGHTS)
    states = []
    model.embed_tokens.register_forward_hook(
        lambda module, args, out: (out.retain_grad(), states.append(out))[0]
    )
    model(torch.arange(len(s))[None] % 13, torch.from_numpy(s[None]))[
        0, read
    ].square().sum().backward()
    gradient = states[0].grad[0].abs().sum(-1).numpy()
    own = (s == s[read]) & (np.arange(len(s)) <= read)
    assert (gradient[~own] == 0).all() and (gradient[own] > 0).all()


@few
@given(n=st.integers(2, 4), length=st.integers(1, 3), data=st.data())
def test_fact_10_in_numpy_a_masked_token_moves_nothing_by_a_single_bit(n, length, data):
    s, tokens = np.repeat(np.arange(1, n + 1), length), np.arange(n * length) % 13
    read, moved = (data.draw(st.integers(0, len(s) - 1)) for _ in range(2))
    other = tokens.copy()
    other[moved] = (other[moved] + 5) % 13
    before, after = (
        traced(s, MaskScheme(3, 0), "numpy", t)["logits"][0, read] for t in (tokens, other)
    )
    assert np.array_equal(before, after) == (s[moved] != s[read] or moved > read)
