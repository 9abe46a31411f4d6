"""Bugs of the position ids and of the rotation."""

import itertools

import numpy as np

from ref import llama_numpy as definition
from ref.golden.plants.edits import changed_config, changed_masks, replaced, rounded_to_bfloat16


def changed_positions(change):
    """Give other positions. change(segment ids (B, T), right positions (B, T)) -> (B, T)."""

    def plant(copy, case):
        return {"position_ids": change(case.segment_ids, case.position_ids)}

    return plant


def count_padding(segment_ids, positions):
    B, T = positions.shape
    return np.tile(np.arange(T), (B, 1))


def restart_at_items(segment_ids, positions):
    """Each segment counts from 0."""
    restarted = positions.copy()
    for s, of_row, of_restarted_row in zip(segment_ids.tolist(), positions, restarted):
        for j in range(len(s)):
            first_of_segment = s.index(s[j])
            of_restarted_row[j] = of_row[j] - of_row[first_of_segment]
    return restarted


def restart_at_runs(segment_ids, positions):
    """Each run of equal segment ids counts from 0."""
    restarted = np.zeros_like(positions)
    for s, of_row in zip(segment_ids, restarted):
        for j in range(1, len(s)):
            if s[j] == s[j - 1]:
                of_row[j] = of_row[j - 1] + 1
    return restarted


def ignore_positions(copy, case):
    return {"position_ids": None}


def causal_by_position(copy, case):
    """A key is seen where its position id, not its place, is at most the query's."""
    p = case.position_ids
    not_later = p[:, None, :] <= p[:, :, None]  # (B, T, T)
    copy.OR = lambda s, j, k, scheme: s[k] != -1
    return changed_masks(lambda masks, s: masks & not_later)(copy, case)


def rotate_interleaved(x, angles):
    """RoPE on neighbours (0, 1), (2, 3), ... in place of halves. x: (B, heads, T, D)."""
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    pairs = np.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
    return pairs.reshape(x.shape)


def rotate_backwards(x, angles):
    return definition.rotate(x, -angles)


def angles_in_bfloat16(position_ids, frequencies):
    positions = rounded_to_bfloat16(position_ids)[:, :, None]
    return rounded_to_bfloat16(positions * rounded_to_bfloat16(frequencies))


def rotate_queries_only(copy, case):
    # The definition rotates queries, then keys, in every layer.
    is_query = itertools.cycle([True, False])

    def rotate(x, angles):
        return definition.rotate(x, angles) if next(is_query) else x

    copy.rotate = rotate
    return {}


def is_scaled_as(rope_type, config):
    return definition.rope_settings(config)["rope_type"] == rope_type


def multiply_by_linear_factor(config):
    right = definition.rope_frequencies(config)  # divided by the factor once
    if not is_scaled_as("linear", config):
        return right
    return right * definition.rope_settings(config)["factor"] ** 2


def frequencies_of_hidden_over_heads(config):
    D = config["hidden_size"] // config["num_attention_heads"]
    if config["head_dim"] == D:
        return definition.rope_frequencies(config)
    pairs = np.arange(0, config["head_dim"], 2)
    return 1 / definition.rope_settings(config)["rope_theta"] ** (pairs / D)


def llama3_as_linear(config):
    if not is_scaled_as("llama3", config):
        return {}
    return {"rope_scaling": config["rope_scaling"] | {"rope_type": "linear"}}


def llama3_bounds_exchanged(config):
    if not is_scaled_as("llama3", config):
        return {}
    right = config["rope_scaling"]
    low, high = right["low_freq_factor"], right["high_freq_factor"]
    return {"rope_scaling": right | {"low_freq_factor": high, "high_freq_factor": low}}


def llama3_of_31(config):
    """The numbers of Llama 3.1, whatever the configuration says."""
    if not is_scaled_as("llama3", config):
        return {}
    numbers = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return {"rope_scaling": config["rope_scaling"] | numbers}


def llama3_unblended(frequencies, rope):
    """llama3's scaling without the blend between fast and slow pairs."""
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    is_slow = turns < rope["high_freq_factor"]
    return np.where(is_slow, frequencies / rope["factor"], frequencies)


POSITIONS = {
    "positions-count-padding": changed_positions(count_padding),
    "positions-restart-at-items": changed_positions(restart_at_items),
    "positions-restart-at-runs": changed_positions(restart_at_runs),
    "positions-are-segments": changed_positions(lambda s, positions: np.maximum(s, 0)),
    "positions-clamped-at-255": changed_positions(lambda s, positions: np.minimum(positions, 255)),
    "positions-clamped-at-511": changed_positions(lambda s, positions: np.minimum(positions, 511)),
    "positions-in-uint8": changed_positions(lambda s, positions: positions % 256),
    "positions-in-bfloat16": changed_positions(lambda s, positions: rounded_to_bfloat16(positions)),
    "positions-ignored": ignore_positions,
    "causal-by-position": causal_by_position,
    "rope-interleaved": replaced(rotate=rotate_interleaved),
    "rope-backwards": replaced(rotate=rotate_backwards),
    "rope-in-bfloat16": replaced(rope_angles=angles_in_bfloat16),
    "rope-on-queries-only": rotate_queries_only,
    "rope-missing": replaced(rotate=lambda x, angles: x),
    "rope-theta-ignored": changed_config(lambda config: {"rope_theta": 10000.0}),
    "rope-scaling-ignored": changed_config(lambda config: {"rope_scaling": None}),
    "rope-linear-multiplies": replaced(rope_frequencies=multiply_by_linear_factor),
    "rope-llama3-as-linear": changed_config(llama3_as_linear),
    "rope-llama3-unblended": replaced(llama3_frequencies=llama3_unblended),
    "rope-llama3-fixed-numbers": changed_config(llama3_of_31),
    "rope-llama3-bounds-exchanged": changed_config(llama3_bounds_exchanged),
    "rope-of-hidden-over-heads": replaced(rope_frequencies=frequencies_of_hidden_over_heads),
}
