"""Bugs of decoding in the rows of the masks that a step builds, and in the keys that it can see.

W slots   L layers   P tokens of a prompt   T tokens of a row so far
"""

import numpy as np

from ref.golden.plants.edits import with_empty_rows_filled
from ref.llama_numpy import layer_kind, masked_softmax

PAGE = 16  # tokens


def changed_rows(change):
    """Other rows of the masks in steps. change(rows (L, W, 1, T), segment ids (W, T), P) -> rows.

    Rule R4 fills the rows that it leaves empty.
    """

    def plant(copy, case):
        P = case.prompt_ids.shape[1]
        right = copy.mask_rows

        def mask_rows(model, segment_ids, Q, network):
            rows = right(model, segment_ids, Q, network)
            if model is copy.step_model:
                rows = with_empty_rows_filled(change(rows.copy(), segment_ids, P))
            return rows

        copy.mask_rows = mask_rows
        return {}

    return plant


def hidden_keys(is_hidden):
    """Keys that no step sees. is_hidden(indices of keys (T,), P, T) -> bool (T,)."""

    def change(rows, segment_ids, P):
        T = rows.shape[-1]
        return rows & ~is_hidden(np.arange(T), P, T)

    return changed_rows(change)


def dropped_keys(kind, is_dropped):
    """Keys that layers of a kind do not hold. is_dropped(segment ids (W, T), indices (T,), P)."""

    def plant(copy, case):
        is_of_kind = layers_of(kind, case)

        def change(rows, segment_ids, P):
            index = np.arange(rows.shape[-1])
            dropped = is_dropped(segment_ids, index, P) & (index < index[-1])
            dropped = np.broadcast_to(dropped, segment_ids.shape)  # (W, T)
            return rows & ~(is_of_kind & dropped[None, :, None])

        return changed_rows(change)(copy, case)

    return plant


def layers_of(kind, case):
    """Which layers carry the mask of a kind: bool (L, 1, 1, 1)."""
    L = case.config["num_hidden_layers"]
    is_of_kind = [layer_kind(i, L, case.scheme) == kind for i in range(L)]
    return np.array(is_of_kind)[:, None, None, None]


def see_key_before_in_cr(copy, case):
    """CR layers allow the newest but one key, where it is generated."""

    def change(rows, segment_ids, P):
        index = np.arange(rows.shape[-1])
        is_key_before = (index == index[-1] - 1) & (index >= P)  # (T,)
        return rows | (layers_of("CR", case) & is_key_before)

    return changed_rows(change)(copy, case)


def query_one_early(copy, case):
    """The query's index is that of the token before, in k <= j and in j != k."""
    sees_itself = layers_of("CR", case) & case.scheme.cross_self

    def change(rows, segment_ids, P):
        T = rows.shape[-1]
        is_before = (np.arange(T) == T - 2) & (segment_ids != -1)  # (W, T)
        rows = rows | (sees_itself & is_before[None, :, None])
        rows[..., -1] = False
        return rows

    return changed_rows(change)(copy, case)


def row_from_start(rows, segment_ids, P):
    """The first row: the first token sees itself, if it is no padding."""
    is_first = np.arange(rows.shape[-1]) == 0
    return np.broadcast_to(is_first, rows.shape) & (segment_ids[:, :1] != -1)[:, None]


def last_prompt_row_repeated(copy, case):
    """Slots keep the last row of their prompt's mask, with the generated keys allowed."""
    right = copy.mask_rows
    P = case.prompt_ids.shape[1]

    def mask_rows(model, segment_ids, Q, network):
        if model is copy.prompt_model:
            return right(model, segment_ids, Q, network)
        rows = right(model, segment_ids[:, :P], 1, network)
        return with_generated_keys(rows, segment_ids.shape[1] - P, True)

    copy.mask_rows = mask_rows
    return {}


def first_row_repeated(new_keys):
    """Slots keep the row of their first step; are the generated keys allowed or not?"""

    def plant(copy, case):
        right = copy.mask_rows
        P = case.prompt_ids.shape[1]

        def mask_rows(model, segment_ids, Q, network):
            if model is copy.prompt_model:
                return right(model, segment_ids, Q, network)
            rows = right(model, segment_ids[:, : P + 1], 1, network)
            rows = with_generated_keys(rows, segment_ids.shape[1] - P - 1, new_keys)
            rows[..., -1] = True
            return rows

        copy.mask_rows = mask_rows
        return {}

    return plant


def with_generated_keys(rows, count, are_allowed):
    """Rows (L, W, 1, T) with `count` keys more."""
    new_keys = np.full((*rows.shape[:-1], count), are_allowed)
    return np.concatenate([rows, new_keys], axis=-1)


def keys_are_text(of_keys):
    """Items among older keys are text in steps. of_keys(P): the slice of these keys."""

    def plant(copy, case):
        right = copy.mask_rows
        keys = of_keys(case.prompt_ids.shape[1])

        def mask_rows(model, segment_ids, Q, network):
            if model is copy.step_model:
                segment_ids = segment_ids.copy()
                segment_ids[:, keys] = np.minimum(segment_ids[:, keys], 0)
            return right(model, segment_ids, Q, network)

        copy.mask_rows = mask_rows
        return {}

    return plant


def written_at_length_of_first(rows, segment_ids, P):
    """New keys overwrite what stands where the first slot's prompt would end."""
    is_real = segment_ids[:, :P] != -1  # (W, P)
    length = is_real[0].sum()
    rank = is_real.cumsum(axis=1) - 1
    num_new = rows.shape[-1] - P
    is_lost = is_real & (rank >= length) & (rank < length + num_new)
    rows[..., :P] &= ~is_lost[None, :, None]
    return rows


def softmax_over_whole_pages(copy, case):
    """Scores are padded to whole pages with 0 in place of -inf."""

    def softmax(scores, mask):
        missing = -scores.shape[-1] % PAGE
        padded_scores = np.pad(scores, [(0, 0)] * 3 + [(0, missing)])
        padded_mask = np.pad(mask, [(0, 0)] * 2 + [(0, missing)], constant_values=True)
        probabilities = masked_softmax(padded_scores, padded_mask)[1]
        return scores, probabilities[..., : scores.shape[-1]]

    copy.step_model.masked_softmax = softmax
    return {}


ROWS = {
    "decode-misses-newest-key": hidden_keys(lambda k, P, T: k == T - 1),
    "decode-query-one-early": query_one_early,
    "decode-rows-from-start": changed_rows(row_from_start),
    "decode-repeats-last-prompt-row": last_prompt_row_repeated,
    "decode-repeats-first-row": first_row_repeated(new_keys=True),
    "decode-row-does-not-grow": first_row_repeated(new_keys=False),
    "decode-cache-is-text": keys_are_text(lambda P: slice(0, P)),
    "decode-generated-keys-are-text": keys_are_text(lambda P: slice(P, -1)),
    "decode-generated-keys-are-padding": hidden_keys(lambda k, P, T: (k >= P) & (k < T - 1)),
    "decode-last-prompt-token-lost": hidden_keys(lambda k, P, T: k == P - 1),
    "decode-drops-history-in-in": dropped_keys("IN", lambda s, k, P: (s >= 1) & (k < P)),
    "decode-drops-text-in-in": dropped_keys("IN", lambda s, k, P: s == 0),
    "decode-drops-text-in-cr": dropped_keys("CR", lambda s, k, P: s == 0),
    "decode-drops-history-in-cr": dropped_keys("CR", lambda s, k, P: (s >= 1) & (k < P)),
    "decode-drops-generated-in-cr": dropped_keys("CR", lambda s, k, P: k >= P),
    "decode-key-before-seen-in-cr": see_key_before_in_cr,
    "decode-window-of-16": hidden_keys(lambda k, P, T: k < T - 16),
    "decode-window-of-128": hidden_keys(lambda k, P, T: k < T - 128),
    "decode-window-of-256": hidden_keys(lambda k, P, T: k < T - 256),
    "decode-window-of-512": hidden_keys(lambda k, P, T: k < T - 512),
    "decode-ring-of-16": hidden_keys(lambda k, P, T: (k >= P) & (k < T - PAGE)),
    "decode-writes-clamped-at-prompt": hidden_keys(lambda k, P, T: (k >= P - 1) & (k < T - 1)),
    "decode-last-page-missed": hidden_keys(
        lambda k, P, T: (k >= (T - 1) // PAGE * PAGE) & (k < T - 1)
    ),
    "decode-last-prompt-page-lost": hidden_keys(lambda k, P, T: (k >= P // PAGE * PAGE) & (k < P)),
    "decode-writes-at-length-of-first": changed_rows(written_at_length_of_first),
    "decode-pages-padded-with-zeros": softmax_over_whole_pages,
}
