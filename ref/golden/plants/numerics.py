"""Bugs of scaling, softmax and normalization.

Shapes: scores (B, H, T, T), mask and plain (B, 1, T, T), x (..., C).
"""

import numpy as np

from ref import llama_numpy as definition
from ref.golden.plants.edits import changed_softmax, replaced, rounded_to_bfloat16, softmax


def rescaled(change):
    """Scale the scores otherwise: change(rightly scaled scores, config) -> scores."""

    def plant(copy, case):
        def probabilities(scores, mask, plain):
            return softmax(change(scores, case.config), mask)

        return changed_softmax(probabilities)(copy, case)

    return plant


def scale_by_hidden_size(scores, config):
    return scores * np.sqrt(definition.head_dim(config) / config["hidden_size"])


def scale_of_hidden_over_heads(scores, config):
    of_a_head = config["hidden_size"] / config["num_attention_heads"]
    return scores * np.sqrt(definition.head_dim(config) / of_a_head)


def scale_not(scores, config):
    return scores * np.sqrt(definition.head_dim(config))


def scale_twice(scores, config):
    return scores / np.sqrt(definition.head_dim(config))


def softmax_over_queries(scores, mask, plain):
    transposed = softmax(scores.swapaxes(-1, -2), mask.swapaxes(-1, -2))
    return np.nan_to_num(transposed.swapaxes(-1, -2))  # 0 for a key that no query sees


def softmax_in_bfloat16(scores, mask, plain):
    return rounded_to_bfloat16(softmax(rounded_to_bfloat16(scores), mask))


def norm_with_eps_outside_root(x, weight, eps):
    return weight * x / (np.sqrt(np.mean(x * x, axis=-1, keepdims=True)) + eps)


def norm_with_fixed_eps(fixed):
    return lambda x, weight, eps: definition.rms_norm(x, weight, fixed)


def norm_less_mean(x, weight, eps):
    return definition.rms_norm(x - x.mean(axis=-1, keepdims=True), weight, eps)


def norm_with_weight_plus_one(x, weight, eps):
    return definition.rms_norm(x, 1 + weight, eps)


def norm_by_sum(x, weight, eps):
    return weight * x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True) + eps)


NUMERICS = {
    "scale-by-hidden-size": rescaled(scale_by_hidden_size),
    "scale-of-hidden-over-heads": rescaled(scale_of_hidden_over_heads),
    "scale-missing": rescaled(scale_not),
    "scale-twice": rescaled(scale_twice),
    "softmax-over-queries": changed_softmax(softmax_over_queries),
    "softmax-in-bfloat16": changed_softmax(softmax_in_bfloat16),
    "norm-eps-outside-root": replaced(rms_norm=norm_with_eps_outside_root),
    "norm-eps-fixed": replaced(rms_norm=norm_with_fixed_eps(1e-5)),
    "norm-eps-a-millionth": replaced(rms_norm=norm_with_fixed_eps(1e-6)),
    "norm-subtracts-mean": replaced(rms_norm=norm_less_mean),
    "norm-weight-plus-one": replaced(rms_norm=norm_with_weight_plus_one),
    "norm-by-sum": replaced(rms_norm=norm_by_sum),
}
