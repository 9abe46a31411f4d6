"""The models of recipes: their weights, and what they need an implementation to do."""

import numpy as np

from ref.checkpoints.config import parse_config
from ref.checkpoints.weights import hf_parameters
from ref.golden.case import WEIGHTS
from ref.golden.recipes.common import names_of_true, random_of, truncated_to_bfloat16
from ref.llama import Llama
from ref.masks import MaskScheme


def needs(config, scheme, rows):
    """What an implementation must be able to do for the case, beyond the plainest Llama."""
    rope = config["rope_scaling"] or {"rope_type": None}
    is_padded = any("padding" in row["roles"] for row in rows)
    features = {
        "grouped heads": config["num_key_value_heads"] < config["num_attention_heads"],
        "head_dim": config["head_dim"] * config["num_attention_heads"] != config["hidden_size"],
        "biases": config["attention_bias"] or config["mlp_bias"],
        "tied embeddings": config["tie_word_embeddings"],
        "rope linear": rope["rope_type"] == "linear",
        "rope llama3": rope["rope_type"] == "llama3",
        "padding": is_padded,
        "several rows": len(rows) > 1,
        "cross_self false": not scheme["cross_self"],
        "text isolated": scheme["text"] == "isolated",
    }
    return names_of_true(features)


def draw_weights(config, scheme, name_of_draw, gains=None, step=None):
    """Random weights by name, the same in every run with the same `name_of_draw`.

    They are float32 but exact in bfloat16, so that every precision reads the same numbers.
    gains: {part of the model: the deviation of what it makes, if what it reads has deviation 1}.
    step: all are multiples of it; None: of nothing.
    """
    random = random_of(name_of_draw)
    gains = gains or {}
    weights = {}
    for name, parameter in hf_parameters(torch_model(config, scheme)).items():
        weight = random.standard_normal(tuple(parameter.shape))
        weight = scaled(weight, name, gains)
        if step is not None:
            weight = step * np.round(weight / step) + 0.0
        weights[WEIGHTS + name] = truncated_to_bfloat16(weight)
    return weights


def scaled(weight, name, gains):
    """A weight drawn with deviation 1, with the deviation that its place in the model needs."""
    part = name.split(".")[-2]
    if weight.ndim == 2 and part != "embed_tokens":
        usual_gain = 1.4 if part in ("q_proj", "k_proj") else 1.0  # sharper attention
        return weight * (weight.shape[1] ** -0.5 * gains.get(part, usual_gain))
    if name.endswith(".bias"):
        return 0.5 * weight
    if weight.ndim == 1:
        return 1 + 0.2 * weight
    return weight


def torch_model(config, scheme):
    """The PyTorch model in float64, with random weights."""
    return Llama(parse_config(config), MaskScheme(**scheme), attention="eager").double()
