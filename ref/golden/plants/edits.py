"""How plants alter a copy of the definition: what more than one family of bugs needs.

The functions with `change` or `functions` as their argument return a plant. Shapes: B batch,
T tokens, L layers, H heads.
"""

from types import SimpleNamespace

import numpy as np

from ref import llama_numpy as definition

PLAIN_SCHEME = SimpleNamespace(**definition.DEFAULT_SCHEME)


def replaced(**functions):
    """Put functions in place of those that the definition has under the same names."""

    def plant(copy, case):
        vars(copy).update(functions)
        return {}

    return plant


def changed_config(change):
    """Compute with another config. change(config) -> the fields that are different."""

    def plant(copy, case):
        return {"config": case.config | change(case.config)}

    return plant


def changed_masks(change):
    """Compute with other masks. change(masks (L, B, T, T), case) -> masks; may write into its own.

    Rule R4 fills the rows that the change leaves empty.
    """

    def plant(copy, case):
        copied_layer_masks = copy.layer_masks  # it calls the functions of the copy, maybe replaced

        def layer_masks(segment_ids, L, scheme):
            masks = copied_layer_masks(segment_ids, L, scheme)
            return with_empty_rows_filled(change(masks.copy(), case))

        copy.layer_masks = layer_masks
        return {}

    return plant


def with_empty_rows_filled(masks):
    """Rule R4: a row that allows no key gets the token itself. masks: bool (..., T, T)."""
    diagonal = np.eye(masks.shape[-1], dtype=bool)
    return masks | (diagonal & ~masks.any(axis=-1, keepdims=True))


def plain_causal_masks(case):
    """The masks of the case's rows in an OR layer: bool (B, T, T)."""
    return definition.layer_masks(case.segment_ids, 1, PLAIN_SCHEME)[0]


def changed_softmax(change):
    """Mask the scores in another way. change(scores, mask, plain) -> probabilities (B, H, T, T).

    scores (B, H, T, T) are not masked yet, mask (B, 1, T, T) is that of the layer, and plain
    (B, 1, T, T) is the plain causal one.
    """

    def plant(copy, case):
        plain = plain_causal_masks(case)[:, None]

        def masked_softmax(scores, mask):
            return scores, change(scores, mask[:, None], plain)

        copy.masked_softmax = masked_softmax
        return {}

    return plant


def softmax(scores, mask):
    """The definition's probabilities (B, H, T, T) of scores under a mask (B, 1, T, T)."""
    return definition.masked_softmax(scores, mask[:, 0])[1]


def rounded_to_bfloat16(x):
    """The nearest bfloat16, as float64; ties to even."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    is_odd = bits >> 16 & 1
    rounded = (bits + 0x7FFF + is_odd) & 0xFFFF0000
    return rounded.view(np.float32).astype(float)
