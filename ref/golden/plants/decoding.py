"""Bugs of decoding with a cache, in the cases that decode: P tokens at once, the others one by one.

The definition computes all tokens in one pass; a wrong step of decoding is a wrong row of the mask,
a wrong segment id or a wrong position of a decoded token, which is a token of index P or more.
"""

import numpy as np

from ref import llama_numpy as definition
from ref.golden.plants.edits import changed_masks, plain_causal_masks


def where_decoded(plant):
    """The plant in cases that decode; nothing in the others."""

    def plant_where_decoded(copy, case):
        return plant(copy, case) if case.decode else {}

    return plant_where_decoded


def changed_rows(change):
    """Other masks for decoded tokens. change(masks (L, B, T, T), P, case) -> rows P and later.

    What it returns is broadcast to (L, B, T - P, T).
    """

    def change_masks(masks, case):
        P = case.decode["prefill"]
        masks[:, :, P:] = change(masks, P, case)
        return masks

    return where_decoded(changed_masks(change_masks))


def changed_decoded_segments(segment_id):
    """Other ids for decoded tokens: segment_id(ids of the first P tokens, index of the token)."""

    def plant(copy, case):
        P = case.decode["prefill"]
        changed = case.segment_ids.copy()  # (B, T)
        for s in changed:
            prompt = s[:P].tolist()
            for j in range(P, len(s)):
                if s[j] != -1:
                    s[j] = segment_id(prompt, j)
        return {"segment_ids": changed}

    return where_decoded(plant)


def changed_decoded_positions(position):
    """Other positions for decoded tokens: position(right positions (B, T), indices (T,))."""

    def plant(copy, case):
        index = np.arange(case.position_ids.shape[1])
        is_decoded = (index >= case.decode["prefill"]) & (case.segment_ids != -1)
        wrong = position(case.position_ids, index)
        return {"position_ids": np.where(is_decoded, wrong, case.position_ids)}

    return where_decoded(plant)


def plain_causal_rows(masks, P, case):
    return plain_causal_masks(case)[:, P:]


def rows_without_newest_key(masks, P, case):
    rows = masks[:, :, P:].copy()
    for step in range(rows.shape[2]):
        rows[:, :, step, P + step - 1] = False
    return rows


def rows_from_start(masks, P, case):
    return masks[:, :, :1].copy()


def last_prompt_row_repeated(masks, P, case):
    is_decoded = np.arange(masks.shape[-1]) >= P  # (T,)
    new_keys = plain_causal_masks(case)[:, P:] & is_decoded  # (B, T - P, T)
    return masks[:, :, P - 1 : P] | new_keys


def rows_over_cache_of_text(masks, P, case):
    segment_ids = case.segment_ids.copy()
    segment_ids[:, :P] = np.minimum(segment_ids[:, :P], 0)
    return definition.layer_masks(segment_ids, len(masks), case.scheme)[:, :, P:]


def rows_with_padding(masks, P, case):
    is_padding = (case.segment_ids == -1)[:, None]  # (B, 1, T)
    causal = np.tri(masks.shape[-1], dtype=bool)
    return masks[:, :, P:] | (is_padding & causal[P:])


def beams_not_reordered(copy, case):
    """The cache does not follow the beams: a query reads what its slot holds of earlier steps."""
    if not case.decode or not case.decode.get("parents"):
        return {}
    row_read = rows_read(case.decode, *case.input_ids.shape)  # (B, T, T)
    keys = np.arange(case.input_ids.shape[1])[None, None]  # (1, 1, T)

    def attention(x, mask, angles, weights, config, at, trace):
        q, k, v = projected(x, weights, config, at)
        q, k = definition.rotate(q, angles), definition.rotate(k, angles)
        k, v = k[row_read, :, keys], v[row_read, :, keys]  # (B, T, T, H, D): a set of keys a query
        scores = np.einsum("bhqd,bqkhd->bhqk", q, k) / np.sqrt(q.shape[-1])  # (B, H, T, T)
        probabilities = definition.masked_softmax(scores, mask)[1]
        mixed = definition.merge_heads(np.einsum("bhqk,bqkhd->bhqd", probabilities, v))
        return definition.linear(mixed, weights, f"model.{at}.self_attn.o_proj", bias=False)

    copy.attention = attention
    return {}


def projected(x, weights, config, at):
    """q, k and v (B, H, T, D) of layer `at`, without biases."""
    D = definition.head_dim(config)
    heads = []
    for part in ("q_proj", "k_proj", "v_proj"):
        y = definition.linear(x, weights, f"model.{at}.self_attn.{part}", bias=False)
        heads.append(definition.split_heads(y, D))
    return heads


def rows_read(decode, B, T):
    """(B, T, T): the row whose key k the query j of a row reads, if the cache is never reordered.

    Key k, if decoded, is still in the slot where it was computed, so query j finds there the key of
    whichever beam had that slot at step k.
    """
    P = decode["prefill"]
    slots = slots_of_final_beams(decode["parents"])  # (T - P, B)
    row_read = np.tile(np.arange(B)[:, None, None], (1, T, T))
    for j in range(P, T):
        for k in range(P, j):
            row_in_slot = np.argsort(slots[k - P])  # the inverse of the permutation
            row_read[:, j, k] = row_in_slot[slots[j - P]]
    return row_read


def slots_of_final_beams(parents):
    """(steps, B): the slot in which each beam, as it stands at the end, was at each step."""
    slots = [np.arange(len(parents[0]))]  # from the last step back to the first
    for parents_of_step in reversed(parents[1:]):
        slots.append(np.array(parents_of_step)[slots[-1]])
    return np.array(slots[::-1])


DECODING = {
    "decode-plain-causal": changed_rows(plain_causal_rows),
    "decode-misses-newest-key": changed_rows(rows_without_newest_key),
    "decode-rows-from-start": changed_rows(rows_from_start),
    "decode-repeats-last-prompt-row": changed_rows(last_prompt_row_repeated),
    "decode-cache-is-text": changed_rows(rows_over_cache_of_text),
    "decode-sees-padding": changed_rows(rows_with_padding),
    "decode-tokens-are-text": changed_decoded_segments(lambda prompt, j: 0),
    "decode-tokens-are-items": changed_decoded_segments(lambda prompt, j: 100 + j),
    "decode-tokens-join-last-item": changed_decoded_segments(lambda prompt, j: max(prompt)),
    "decode-position-always-zero": changed_decoded_positions(lambda positions, index: 0),
    "decode-position-one-late": changed_decoded_positions(lambda positions, index: positions + 1),
    "decode-position-counts-padding": changed_decoded_positions(lambda positions, index: index),
    "decode-beams-not-reordered": beams_not_reordered,
}
