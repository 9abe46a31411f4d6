"""Bugs of the masks: who may attend to whom, and how a mask enters the attention.

A predicate has the definition's arguments: s is one row of segment ids, j the index of a query, k
that of a key, c the scheme. It may look at the order of j and k, and at what their segments are:
padding, text, an item, the last item, the same one. It may look at nothing else, such as a
distance: fast_masks.py asks it for one pair of each such class. The plants here do not read `case`,
for the tests plant them without one. In the stage decoding a plant that replaces `attention` has no
effect: that stage has its own.
"""

import numpy as np

from ref import llama_numpy as definition
from ref.golden.fast_masks import pairs_allowed
from ref.golden.plants.edits import (
    changed_masks,
    changed_softmax,
    plain_causal_masks,
    replaced,
    softmax,
    with_empty_rows_filled,
)
from ref.llama_numpy import CR, IN, OR


def same(s, j, k):
    """j and k are tokens of the same item."""
    return s[j] >= 1 and s[k] == s[j]


def different(s, j, k):
    """j and k are tokens of two different items."""
    return s[j] >= 1 and s[k] >= 1 and s[j] != s[k]


def both_masks(s, j, k, c):
    return IN(s, j, k, c) and CR(s, j, k, c)


def cross_in_both_directions(s, j, k, c):
    hidden = same(s, j, k) and (j != k or not c.cross_self)
    return s[k] != -1 and not hidden


def history_in_both_directions(s, j, k, c):
    target = max(s)
    query_in_history = s[j] >= 1 and s[j] != target
    return OR(s, j, k, c) or (query_in_history and s[k] not in (-1, target))


def masked_in_first_heads(count):
    """Mask the first count(H) of H heads; the others are plain causal."""

    def change(scores, mask, plain):
        H = count(scores.shape[1])
        masked = softmax(scores[:, :H], mask)
        unmasked = softmax(scores[:, H:], plain)
        return np.concatenate([masked, unmasked], axis=1)

    return changed_softmax(change)


def rows_in_turn(scores, mask, plain):
    """The B * H heads of row 0, row 1, ... have the masks 0, 1, ..., B - 1, 0, 1, ..."""
    B, H = scores.shape[:2]
    turn = np.arange(B * H).reshape(B, H) % B  # whose mask each head has
    of_heads = [softmax(scores[:, h : h + 1], mask[turn[:, h]]) for h in range(H)]
    return np.concatenate(of_heads, axis=1)


def one_late(masks, axis):
    """Shift the masks (L, B, T, T) by one key or query; nothing is seen at the first."""
    late = np.roll(masks, 1, axis=axis)
    np.moveaxis(late, axis, 0)[0] = False
    return late


def masked_up_to(length):
    """Queries from index length(T) on have the plain causal mask."""

    def change(masks, segment_ids):
        T = masks.shape[-1]
        is_masked = np.arange(T) < length(T)
        return np.where(is_masked[:, None], masks, plain_causal_masks(segment_ids))

    return changed_masks(change)


def window_of(length):
    """A query sees the last `length` tokens, itself one of them."""

    def change(masks, segment_ids):
        index = np.arange(masks.shape[-1])
        return masks & (np.subtract.outer(index, index) < length)

    return changed_masks(change)


def blocks_of_128_alone(masks, segment_ids):
    block = np.arange(masks.shape[-1]) // 128
    return masks & np.equal.outer(block, block)


def blocks_of_first_row(masks, segment_ids):
    """Of blocks of 128 x 128 row 0 tells which are skipped and which are allowed whole.

    In the others each row of the batch has its own mask.
    """
    T = masks.shape[-1]
    result = masks.copy()
    for begin in range(0, T, 128):
        for key in range(0, T, 128):
            block = (..., slice(begin, begin + 128), slice(key, key + 128))
            of_first = masks[:, :1][block]
            is_whole = of_first[0, 0].size == 128 * 128
            is_full = is_whole & of_first.all(axis=(-2, -1), keepdims=True)
            is_skipped = ~of_first.any(axis=(-2, -1), keepdims=True)
            result[block] = ~is_skipped & (is_full | masks[block])
    return result


def causal_alone(masks, segment_ids):
    """k <= j for all tokens, padding too."""
    return np.broadcast_to(np.tri(masks.shape[-1], dtype=bool), masks.shape).copy()


def inverted_with_zeros(scores, mask, plain):
    """The inverted mask; rows that allow nothing then give nothing."""
    inverted = ~mask
    probabilities = softmax(scores, with_empty_rows_filled(inverted))
    return np.where(inverted.any(axis=-1, keepdims=True), probabilities, 0.0)


def heads_in_place_of_rows(scores, mask, plain):
    """With as many heads as rows, head h has the mask of row h in all rows."""
    B, H = scores.shape[:2]
    if B != H:
        return softmax(scores, mask)
    of_heads = [softmax(scores[:, h : h + 1], mask[h : h + 1]) for h in range(H)]
    return np.concatenate(of_heads, axis=1)


def padding_as_text(copy, case):
    """To the masks padding is text; positions are right."""
    layer_masks = copy.layer_masks
    copy.layer_masks = lambda ids, L, scheme: layer_masks(np.maximum(ids, 0), L, scheme)
    return {}


def empty_rows_get(probability):
    """A row that allows no key gives its keys probability(T), in place of rule R4."""

    def plant(copy, case):
        def row_mask(kind, s, scheme):
            is_padding = np.array(s) == -1
            allowed = pairs_allowed(vars(copy)[kind], s, scheme) & ~is_padding[:, None]
            return np.where(is_padding[:, None], np.eye(len(s), dtype=bool), allowed)

        def masked_softmax(scores, mask):
            is_empty = ~mask.any(axis=-1)[:, None, :, None]  # (B, 1, Q, 1)
            right = definition.masked_softmax(scores, with_empty_rows_filled(mask))[1]
            return scores, np.where(is_empty, probability(mask.shape[-1]), right)

        copy.row_mask = row_mask
        copy.masked_softmax = masked_softmax
        return {}

    return plant


def empty_rows_are_causal(copy, case):
    """A row that allows no key sees what it would see in an OR layer, in place of rule R4."""

    def row_mask(kind, s, scheme):
        is_real = np.array(s)[:, None] != -1
        allowed = pairs_allowed(vars(copy)[kind], s, scheme) & is_real
        causal = pairs_allowed(copy.OR, s, scheme) & is_real
        is_empty = ~allowed.any(axis=-1, keepdims=True)
        return with_empty_rows_filled(np.where(is_empty, causal, allowed))

    copy.row_mask = row_mask
    return {}


# fmt: off
MASKS = {
    "in-hides-text-from-items":
        replaced(IN=lambda s, j, k, c: OR(s, j, k, c) and (s[j] < 1 or s[k] == s[j])),
    "in-hides-all-but-own-segment":
        replaced(IN=lambda s, j, k, c: OR(s, j, k, c) and s[k] == s[j]),
    "in-hides-items-from-text":
        replaced(IN=lambda s, j, k, c: IN(s, j, k, c) and (s[j] >= 1 or s[k] < 1)),
    "in-isolation-ignored":
        replaced(IN=lambda s, j, k, c: OR(s, j, k, c) and not different(s, j, k)),
    "cr-hides-text-from-text":
        replaced(CR=lambda s, j, k, c: CR(s, j, k, c) and (s[k] != s[j] or j == k)),
    "cr-hides-text-from-items":
        replaced(CR=lambda s, j, k, c: CR(s, j, k, c) and (s[j] < 1 or s[k] >= 1)),
    "cr-drops-self":
        replaced(CR=lambda s, j, k, c: OR(s, j, k, c) and not same(s, j, k)),
    "cr-keeps-self":
        replaced(CR=lambda s, j, k, c: OR(s, j, k, c) and not (same(s, j, k) and j != k)),
    "cr-drops-every-self":
        replaced(CR=lambda s, j, k, c: CR(s, j, k, c) and j != k),
    "in-and-cr-together":
        replaced(IN=both_masks, CR=both_masks),
    "causal-lost-in-in":
        replaced(IN=lambda s, j, k, c: s[k] != -1 and IN(s, max(j, k), min(j, k), c)),
    "causal-lost-in-cr":
        replaced(CR=cross_in_both_directions),
    "causal-lost":
        replaced(OR=lambda s, j, k, c: s[k] != -1),
    "causal-strict":
        replaced(OR=lambda s, j, k, c: k < j and s[k] != -1),
    "items-bidirectional-in-in":
        replaced(IN=lambda s, j, k, c: IN(s, j, k, c) or same(s, j, k)),
    "history-bidirectional":
        replaced(OR=history_in_both_directions),
    "item-mask-inverted":
        replaced(IN=lambda s, j, k, c: OR(s, j, k, c) and different(s, j, k),
                 CR=lambda s, j, k, c: OR(s, j, k, c) and same(s, j, k) and j != k),
    "mask-inverted":
        changed_masks(lambda masks, s: ~masks),
    "mask-inverted-with-zeros":
        changed_softmax(inverted_with_zeros),
    "mask-after-softmax":
        changed_softmax(lambda scores, mask, plain: softmax(scores, plain) * mask),
    "mask-multiplied":
        changed_softmax(lambda scores, mask, plain: softmax(scores * mask, plain)),
    "mask-minus-one":
        changed_softmax(lambda scores, mask, plain: softmax(scores - ~mask, plain)),
    "mask-minus-ten":
        changed_softmax(lambda scores, mask, plain: softmax(scores - 10.0 * ~mask, plain)),
    "mask-added-as-numbers":
        changed_softmax(lambda scores, mask, plain: softmax(scores + mask, np.ones_like(mask))),
    "mask-never-applied":
        replaced(layer_kind=lambda i, L, scheme: "OR"),
    "no-mask-at-all":
        changed_masks(causal_alone),
    "mask-on-first-head-only":
        masked_in_first_heads(lambda H: 1),
    "mask-on-first-half-of-heads":
        masked_in_first_heads(lambda H: H // 2),
    "mask-transposed":
        changed_masks(lambda masks, s: masks.swapaxes(-1, -2)),
    "mask-of-first-row":
        changed_masks(lambda masks, s: masks[:, :1].repeat(masks.shape[1], axis=1)),
    "mask-of-rows-in-turn":
        changed_softmax(rows_in_turn),
    "mask-of-rows-for-heads":
        changed_softmax(heads_in_place_of_rows),
    "mask-one-key-late":
        changed_masks(lambda masks, s: one_late(masks, axis=-1)),
    "mask-one-query-late":
        changed_masks(lambda masks, s: one_late(masks, axis=-2)),
    "mask-ends-at-128":
        masked_up_to(lambda T: 128),
    "mask-ends-at-256":
        masked_up_to(lambda T: 256),
    "mask-ends-at-512":
        masked_up_to(lambda T: 512),
    "last-block-of-64-unmasked":
        masked_up_to(lambda T: T // 64 * 64),
    "window-of-128":
        window_of(128),
    "window-of-256":
        window_of(256),
    "window-of-512":
        window_of(512),
    "blocks-of-128-alone":
        changed_masks(blocks_of_128_alone),
    "blocks-of-first-row":
        changed_masks(blocks_of_first_row),
    "empty-row-uniform":
        empty_rows_get(lambda T: 1 / T),
    "empty-row-zero":
        empty_rows_get(lambda T: 0.0),
    "empty-row-first-key":
        empty_rows_get(lambda T: np.eye(1, T)[0]),
    "empty-row-causal":
        empty_rows_are_causal,
    "padding-text-to-masks":
        padding_as_text,
    "padding-attended":
        replaced(OR=lambda s, j, k, c: k <= j),
}
# fmt: on
