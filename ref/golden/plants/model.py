"""Bugs of the model around the attention: heads, biases, MLP, weights, residuals.

Letters: B batch, T tokens, H query heads, K key/value heads, D head dim, C hidden size.
"""

import numpy as np

from ref import llama_numpy as definition
from ref.golden.plants.edits import changed_config, replaced


def tile_heads(x, H):
    """(B, K, T, D) -> (B, H, T, D)"""
    return np.tile(x, (1, H // x.shape[1], 1, 1))


def first_head_for_all(x, H):
    """(B, K, T, D) -> (B, H, T, D)"""
    return x[:, :1].repeat(H, axis=1)


def merge_without_transposing(x):
    """(B, H, T, D) -> (B, T, H * D)"""
    B, _, T, _ = x.shape
    return x.reshape(B, T, -1)


def split_by_dimension(x, D):
    """(B, T, heads * D) -> (B, heads, T, D)"""
    B, T, _ = x.shape
    return x.reshape(B, T, D, -1).transpose(0, 3, 1, 2)


def no_final_norm(copy, case):
    final = case.weights["model.norm.weight"]

    def rms_norm(x, weight, eps):
        return x if weight is final else definition.rms_norm(x, weight, eps)

    copy.rms_norm = rms_norm
    return {}


def linear_without_output_bias(x, weights, name, bias):
    return definition.linear(x, weights, name, bias and "o_proj" not in name)


def gelu(x):
    """The approximation by tanh."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def exchanged_weights(first, second):
    """Exchange the weights of the two names in every layer, where their shapes agree."""

    def plant(copy, case):
        exchanged = dict(case.weights)
        for name, weight in case.weights.items():
            other = name.replace(first, second) if first in name else name.replace(second, first)
            if case.weights[other].shape == weight.shape:
                exchanged[name] = case.weights[other]
        return {"weights": exchanged}

    return plant


def transposed_square_weights(copy, case):
    weights = dict(case.weights)
    for name, weight in case.weights.items():
        if weight.ndim == 2 and weight.shape[0] == weight.shape[1]:
            weights[name] = weight.T
    return {"weights": weights}


def layer_norm(x, weights, config, name):
    return definition.rms_norm(x, weights[f"model.{name}.weight"], config["rms_norm_eps"])


def residual_from_normed(copy, case):
    def layer(x, mask, angles, weights, config, at, trace):
        normed = layer_norm(x, weights, config, f"{at}.input_layernorm")
        x = normed + copy.attention(normed, mask, angles, weights, config, at, trace)
        normed = layer_norm(x, weights, config, f"{at}.post_attention_layernorm")
        return x + definition.mlp(normed, weights, config, at)

    copy.layer = layer
    return {}


def parallel_mlp(copy, case):
    def layer(x, mask, angles, weights, config, at, trace):
        normed = layer_norm(x, weights, config, f"{at}.input_layernorm")
        attended = copy.attention(normed, mask, angles, weights, config, at, trace)
        normed = layer_norm(x, weights, config, f"{at}.post_attention_layernorm")
        return x + attended + definition.mlp(normed, weights, config, at)

    copy.layer = layer
    return {}


def scaled_embedding(copy, case):
    copied_layer = copy.layer

    def layer(x, mask, angles, weights, config, at, trace):
        if at == "layers.0":
            x = x * 4.0
        return copied_layer(x, mask, angles, weights, config, at, trace)

    copy.layer = layer
    return {}


MODEL = {
    "kv-heads-tiled": replaced(share_heads=tile_heads),
    "first-kv-head-for-all": replaced(share_heads=first_head_for_all),
    "heads-not-transposed-back": replaced(merge_heads=merge_without_transposing),
    "heads-split-by-dimension": replaced(split_heads=split_by_dimension),
    "final-norm-missing": no_final_norm,
    "head-tied-anyway": changed_config(lambda config: {"tie_word_embeddings": True}),
    "attention-bias-lost": changed_config(lambda config: {"attention_bias": False}),
    "output-bias-lost": replaced(linear=linear_without_output_bias),
    "mlp-bias-lost": changed_config(lambda config: {"mlp_bias": False}),
    "gelu-for-silu": replaced(silu=gelu),
    "gate-and-up-exchanged": exchanged_weights("gate_proj", "up_proj"),
    "q-and-k-exchanged": exchanged_weights("q_proj", "k_proj"),
    "norms-exchanged": exchanged_weights("input_layernorm", "post_attention_layernorm"),
    "square-weights-transposed": transposed_square_weights,
    "residual-from-normed": residual_from_normed,
    "mlp-parallel-to-attention": parallel_mlp,
    "embedding-scaled": scaled_embedding,
}
