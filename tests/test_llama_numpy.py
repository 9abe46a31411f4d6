"""The NumPy definition against sources that share nothing with it.

They are masks drawn by hand, arithmetic, and transformers.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ref import llama_numpy
from ref.checkpoints.config import config_values

from peers.transformers_peer import additive, give_masks
from support.checkpoints import in_float64
from support.golden import ROPES

# Seven tokens: text, two of item 1, one of item 2, text, two of item 3 (the target).
SEGMENTS = [0, 1, 1, 2, 0, 3, 3]
# (kind, text, cross_self): the mask, row = query, column = key
TABLES = {
    ("OR", "visible", True): """
        x......
        xx.....
        xxx....
        xxxx...
        xxxxx..
        xxxxxx.
        xxxxxxx""",
    ("IN", "visible", True): """
        x......
        xx.....
        xxx....
        x..x...
        xxxxx..
        x...xx.
        x...xxx""",
    ("IN", "isolated", True): """
        x......
        .x.....
        .xx....
        ...x...
        xxxxx..
        .....x.
        .....xx""",
    ("CR", "visible", True): """
        x......
        xx.....
        x.x....
        xxxx...
        xxxxx..
        xxxxxx.
        xxxxx.x""",
    ("CR", "visible", False): """
        x......
        x......
        x......
        xxx....
        xxxxx..
        xxxxx..
        xxxxx..""",
}


def scheme(**fields):
    """A mask scheme as llama_numpy's functions on masks want it."""
    return SimpleNamespace(**llama_numpy.DEFAULT_SCHEME | fields)


def mask_of(kind, segments, **fields):
    """The mask of a model of one layer, of this kind: bool (T, T)."""
    layers = {"IN": {"intra_layers": 1}, "OR": {}, "CR": {"cross_layers": 1}}[kind]
    return llama_numpy.layer_masks(np.array([segments]), 1, scheme(**layers, **fields))[0, 0]


def drawn(table):
    """The mask that a table draws: x where the row attends to the column."""
    return np.array([[cell == "x" for cell in row.strip()] for row in table.split()])


@pytest.mark.parametrize("kind, text, cross_self", TABLES)
def test_masks_are_those_drawn_by_hand(kind, text, cross_self):
    expected = drawn(TABLES[kind, text, cross_self])
    assert np.array_equal(mask_of(kind, SEGMENTS, text=text, cross_self=cross_self), expected)


def test_padding_sees_itself_and_is_seen_by_nobody_under_every_kind():
    for kind in ("IN", "OR", "CR"):
        assert np.array_equal(mask_of(kind, [-1, 1, -1]), np.eye(3, dtype=bool))


def test_a_first_item_with_nothing_before_it_sees_itself_where_cross_self_is_off():
    assert np.array_equal(mask_of("CR", [1, 1, 2], cross_self=False), drawn("x.. .x. xx."))


def test_layer_kinds_are_counted_from_the_embedding():
    three = scheme(intra_layers=1, cross_layers=2)
    kinds = [llama_numpy.layer_kind(i, 5, three) for i in range(5)]
    assert kinds == ["IN", "OR", "OR", "CR", "CR"]


@pytest.mark.parametrize(
    "fields, named",
    [
        ({"intra_layers": 2, "cross_layers": 1}, "2 layers"),
        ({"intra_layers": -1}, "intra_layers=-1"),
        ({"text": "hidden"}, "hidden"),
    ],
)
def test_a_scheme_that_cannot_be_is_refused_by_name(fields, named):
    with pytest.raises(ValueError, match=named):
        llama_numpy.layer_masks(np.array([[0]]), 2, scheme(**fields))


def test_padding_on_either_side_gets_position_zero_and_moves_nobody():
    counted = llama_numpy.count_positions(np.array([[-1, -1, 0, 1, 1], [0, 1, 1, -1, -1]]))
    assert counted.tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 0, 0]]


def test_rotation_by_a_quarter_turn_swaps_the_halves_with_a_sign():
    quarter = np.full((1, 1, 2), math.pi / 2)
    turned = llama_numpy.rotate(np.array([[[[1.0, 2.0, 3.0, 4.0]]]]), quarter)
    assert np.allclose(turned, [-3, -4, 1, 2])


def test_rms_norm_adds_eps_under_the_root():
    assert np.allclose(llama_numpy.rms_norm(np.array([3.0, 4.0]), 2.0, 12.5), [6 / 5, 8 / 5])


def test_query_heads_share_key_heads_in_runs():
    shared = llama_numpy.share_heads(np.arange(2.0).reshape(1, 2, 1, 1), 6)
    assert shared.ravel().tolist() == [0, 0, 0, 1, 1, 1]


def test_loss_is_the_mean_over_labelled_tokens_of_the_whole_batch():
    probabilities = [[[0.5, 0.5], [0.25, 0.75], [1, 1]], [[0.5, 0.5], [0.2, 0.8], [1, 1]]]
    # the first column is nobody's future, -100 is ignored
    labels = np.array([[1, 0, 1], [1, -100, 1]])
    expected = -(math.log(0.5) + math.log(0.75) + math.log(0.8)) / 3
    loss = llama_numpy.loss(np.log(np.array(probabilities)), labels)
    assert loss == pytest.approx(expected, abs=1e-15)


def test_loss_without_a_label_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        llama_numpy.loss(np.zeros((1, 2, 3)), np.full((1, 2), -100))


def random_llama(seed):
    """A small random LlamaForCausalLM in float64, and its configuration."""
    random = np.random.default_rng(seed)
    num_kv_heads, head_dim = int(random.choice([1, 2])), int(random.choice([4, 6, 8]))
    num_heads = num_kv_heads * int(random.choice([1, 2, 3]))
    rope_theta = float(random.choice([100.0, 10000.0, 500000.0]))
    config = LlamaConfig(
        vocab_size=23,
        hidden_size=num_heads * int(random.choice([4, 6])),
        intermediate_size=11,
        head_dim=head_dim,
        num_hidden_layers=int(random.choice([1, 2, 4])),
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        rms_norm_eps=float(random.choice([1e-6, 0.1])),
        attention_bias=bool(random.integers(2)),
        mlp_bias=bool(random.integers(2)),
        tie_word_embeddings=bool(random.integers(2)),
        rope_parameters=ROPES[seed % 3] | {"rope_theta": rope_theta},
        attn_implementation="eager",
        max_position_embeddings=64,
    )
    torch.manual_seed(seed)
    with in_float64():  # its frequencies too
        model = LlamaForCausalLM(config).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model, config_values(config)


def weights_of(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def numpy_logits(model, config, input_ids, segment_ids, **fields):
    return llama_numpy.forward(weights_of(model), config, input_ids, segment_ids, fields)


def assert_close(logits, expected):
    """To 1e-12 of the largest expected value."""
    assert np.abs(logits - expected).max() < 1e-12 * np.abs(expected).max()


@pytest.mark.parametrize("seed", range(10))
def test_plain_causal_forward_is_that_of_transformers(seed):
    model, config = random_llama(seed)
    input_ids = np.random.default_rng(seed).integers(0, 23, (2, 9))
    with torch.no_grad(), in_float64():
        expected = model(torch.tensor(input_ids)).logits.numpy()
    assert_close(numpy_logits(model, config, input_ids, np.zeros((2, 9), int)), expected)


@pytest.mark.parametrize("seed", range(10))
def test_forward_under_a_mask_a_layer_is_that_of_transformers_with_the_same_masks(seed):
    model, config = random_llama(seed)
    L = config["num_hidden_layers"]
    fields = {"intra_layers": L // 2, "cross_layers": L - L // 2}
    segment_ids = np.array([[0, 1, 1, 1, 2, 2, 0, 3, 3], [1, 1, 2, 3, 3, 3, 4, 4, 4]])
    input_ids = np.random.default_rng(seed).integers(0, 23, (2, 9))
    masks = llama_numpy.layer_masks(segment_ids, L, scheme(**fields))
    allowed = [additive(torch.tensor(mask), torch.float64) for mask in masks]
    give_masks(model).update(enumerate(allowed))
    with torch.no_grad(), in_float64():
        expected = model(torch.tensor(input_ids)).logits.numpy()
    assert_close(numpy_logits(model, config, input_ids, segment_ids, **fields), expected)


def test_a_head_is_as_wide_as_head_dim_says_or_else_hidden_size_over_heads():
    config = {"hidden_size": 24, "num_attention_heads": 3}
    assert llama_numpy.head_dim(config) == 8
    assert llama_numpy.head_dim(config | {"head_dim": None}) == 8
    assert llama_numpy.head_dim(config | {"head_dim": 6}) == 6


def test_settings_of_transformers_four_give_the_frequencies_of_five():
    shape = {"hidden_size": 8, "num_attention_heads": 1}
    four = shape | {"rope_theta": 77.0, "rope_scaling": {"type": "linear", "factor": 4.0}}
    five = shape | {"rope_parameters": {"rope_theta": 77.0, "rope_type": "linear", "factor": 4.0}}
    assert np.array_equal(llama_numpy.rope_frequencies(four), llama_numpy.rope_frequencies(five))
    assert llama_numpy.rope_frequencies(four)[0] == 0.25


INSIDE_A_LAYER = """
    normed q k v scores probabilities attention residual mlp output
""".split()


def test_a_trace_holds_every_intermediate_in_the_order_of_computation():
    model, config = random_llama(0)
    input_ids, segment_ids, trace = np.array([[1, 2]]), np.array([[0, 1]]), {}
    llama_numpy.forward(weights_of(model), config, input_ids, segment_ids, {}, trace=trace)
    layers = [f"layers.{i}" for i in range(config["num_hidden_layers"])]
    masks = [f"{layer}.mask" for layer in layers]
    inside = [f"{layer}.{name}" for layer in layers for name in INSIDE_A_LAYER]
    assert list(trace) == [*masks, "embedding", *inside, "norm", "logits"]
