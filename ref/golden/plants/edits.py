"""How plants alter a copy of the definition: what more than one family of bugs needs.

The functions with `change` or `functions` as their argument return a plant. Shapes: B batch,
T tokens, Q queries, L layers, H heads.
"""

import numpy as np

from ref import llama_numpy as definition


def replaced(**functions):
    """Put functions in place of those that the definition has under the same names."""

    def plant(copy, case):
        vars(copy).update(functions)
        return {}

    return plant


def with_tokenizer(plant):
    """The plant in cases of prompts that name a tokenizer; nothing in the others."""

    def plant_with_tokenizer(copy, case):
        return plant(copy, case) if case.info["tokenizer"] else {}

    return plant_with_tokenizer


def changed_config(change):
    """Compute with another config. change(config) -> the fields that are different."""

    def plant(copy, case):
        return {"config": case.config | change(case.config)}

    return plant


def changed_masks(change):
    """Compute with other masks. change(masks (L, B, T, T), segment ids (B, T)) -> masks.

    It may write into its own. Rule R4 fills the rows that it leaves empty.
    """

    def plant(copy, case):
        copied_layer_masks = copy.layer_masks  # it calls the functions of the copy, maybe replaced

        def layer_masks(segment_ids, L, scheme):
            masks = copied_layer_masks(segment_ids, L, scheme)
            return with_empty_rows_filled(change(masks.copy(), segment_ids))

        copy.layer_masks = layer_masks
        return {}

    return plant


def with_empty_rows_filled(masks):
    """Rule R4: a row that allows no key gets the token itself. masks: bool (..., Q, T).

    The rows are those of the last Q of T tokens.
    """
    Q, T = masks.shape[-2:]
    itself = np.eye(Q, T, T - Q, dtype=bool)
    return masks | (itself & ~masks.any(axis=-1, keepdims=True))


def plain_causal_masks(segment_ids):
    """The masks of an OR layer: bool (B, T, T)."""
    T = segment_ids.shape[1]
    is_real = segment_ids != -1  # (B, T)
    pairs = is_real[:, :, None] & is_real[:, None, :]
    return with_empty_rows_filled(pairs & np.tri(T, dtype=bool))


def changed_softmax(change):
    """Mask the scores in another way. change(scores, mask, plain) -> probabilities (B, H, Q, T).

    scores (B, H, Q, T) of the last Q of T tokens are not masked yet, mask (B, 1, Q, T) is that of
    the layer, and plain (B, 1, Q, T) is the plain causal one.
    """

    def plant(copy, case):
        copied_layer_masks = copy.layer_masks
        plain = {}

        def layer_masks(segment_ids, L, scheme):
            plain["latest"] = plain_causal_masks(segment_ids)
            return copied_layer_masks(segment_ids, L, scheme)

        def masked_softmax(scores, mask):
            rows = plain["latest"][:, None, -scores.shape[2] :]
            return scores, change(scores, mask[:, None], rows)

        copy.layer_masks = layer_masks
        copy.masked_softmax = masked_softmax
        return {}

    return plant


def softmax(scores, mask):
    """The definition's probabilities (B, H, Q, T) of scores under a mask (B, 1, Q, T)."""
    return definition.masked_softmax(scores, mask[:, 0])[1]


def rounded_to_bfloat16(x):
    """The nearest bfloat16, as float64; ties to even."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    is_odd = bits >> 16 & 1
    rounded = (bits + 0x7FFF + is_odd) & 0xFFFF0000
    return rounded.view(np.float32).astype(float)
