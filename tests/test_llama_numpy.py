"""The parts of the NumPy definition against arithmetic done by hand.

Its masks are tested in test_masks.py, the whole of it in test_checkpoints.py against transformers.
"""

import math
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest

from ref import llama_numpy
from ref.masks import MaskScheme

from support.golden import random_case


def scheme(**fields):
    """A mask scheme as llama_numpy's functions on masks want it."""
    return SimpleNamespace(**llama_numpy.DEFAULT_SCHEME | fields)


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


def test_float32_weights_are_computed_in_float64():
    config, _, input_ids, segment_ids, weights = random_case(0)
    narrow = {name: weight.astype(np.float32) for name, weight in weights.items()}
    wide = {name: weight.astype(np.float64) for name, weight in narrow.items()}
    logits = llama_numpy.forward(narrow, config, input_ids, segment_ids, MaskScheme())
    expected = llama_numpy.forward(wide, config, input_ids, segment_ids, MaskScheme())
    assert logits.dtype == np.float64
    assert np.array_equal(logits, expected)


def test_a_scheme_may_be_given_as_fields():
    config, scheme, input_ids, segment_ids, weights = random_case(1)
    logits = llama_numpy.forward(weights, config, input_ids, segment_ids, asdict(scheme))
    expected = llama_numpy.forward(weights, config, input_ids, segment_ids, scheme)
    causal = llama_numpy.forward(weights, config, input_ids, segment_ids, {})
    assert np.array_equal(logits, expected)
    assert not np.array_equal(logits, causal)


def test_a_trace_holds_every_intermediate_in_the_order_of_computation():
    config, scheme, input_ids, segment_ids, weights = random_case(0)
    trace = {}
    llama_numpy.forward(weights, config, input_ids, segment_ids, scheme, trace=trace)
    layers = [f"layers.{i}" for i in range(config["num_hidden_layers"])]
    masks = [f"{layer}.mask" for layer in layers]
    inside = [f"{layer}.{name}" for layer in layers for name in INSIDE_A_LAYER]
    assert list(trace) == [*masks, "embedding", *inside, "norm", "logits"]
