"""Bugs of decoding in what the cache holds: beams, and prompts in one row.

    N prompts   P tokens of a prompt   W slots   B rows, N or W   T tokens of a row so far
    K key/value heads   D head dim

A wrong choice of rows takes (rows, t, parents): the right ones, the cache's row for each slot; the
step; and parents (S, W). It returns others.
"""

import numpy as np

from ref.golden.definitions.passes import Tokens
from ref.golden.plants.edits import rounded_to_bfloat16

TENSORS = ("segment_ids", "keys", "values")


def reordered_otherwise(choose, tensors=TENSORS):
    """Give slots other rows of the cache's segment ids, keys or values."""

    def plant(copy, case):
        right = copy.reorder

        def reorder(cache, parents):
            t = cache.segment_ids.shape[1] - case.prompt_ids.shape[1]
            others = choose(np.maximum(parents, 0), t, case.parents)
            result, wrong = right(cache, parents), right(cache, others)
            for name in tensors:
                setattr(result, name, getattr(wrong, name))
            return result

        copy.reorder = reorder
        return {}

    return plant


def own_row(rows, t, parents):
    """From the second step on each slot keeps what it has."""
    return rows if t == 0 else np.arange(len(rows))


def inverted(rows, t, parents):
    """From the second step on slot w goes to parents[w], in place of coming from there."""
    if t == 0:
        return rows
    inverse = np.arange(len(rows))
    for w, parent in enumerate(rows):
        inverse[parent] = w
    return inverse


def in_place(rows, t, parents):
    """One slot after the other is overwritten, from the second step on."""
    if t == 0:
        return rows
    held = np.arange(len(rows))
    for w, parent in enumerate(rows):
        held[w] = held[parent]
    return held


def within_first_prompt(rows, t, parents):
    """The offset of a prompt's beams is forgotten: a parent counts within the prompt's beams."""
    prompts = prompts_in_slots(t - 1, parents)
    if t == 0:
        return rows
    first_slots = [int(np.flatnonzero(prompts == prompts[parent])[0]) for parent in rows]
    return rows - first_slots


def prompts_in_slots(t, parents):
    """The prompt that each slot continues at step t: (W,)."""
    prompts = np.maximum(parents[0], 0)
    for of_step in parents[1 : t + 1]:
        prompts = prompts[np.maximum(of_step, 0)]
    return prompts


def first_prompt_for_all(rows, t, parents):
    return np.zeros_like(rows) if t == 0 else rows


def prompts_in_turn(rows, t, parents):
    """Slots begin with prompts 0, 1, ..., 0, 1, ... in place of 0, 0, ..., 1, 1, ..."""
    return np.arange(len(rows)) % (rows.max() + 1) if t == 0 else rows


def parents_of_step_before(rows, t, parents):
    """The cache is put in order after a step has added its keys, too late for that step."""
    if t == 0:
        return rows
    if t == 1:
        return np.arange(len(rows))
    return np.maximum(parents[t - 1], 0)


def reordered_twice(rows, t, parents):
    return rows if t == 0 else rows[rows]


def ended_slots_squeezed(rows, t, parents):
    """The cache dropped the slots that nobody was in; parents count these, too."""
    if t == 0:
        return rows
    kept = np.flatnonzero(parents[t - 1] != -1)
    return kept[np.minimum(rows, len(kept) - 1)]


def only_first_layer_reordered(copy, case):
    P = case.prompt_ids.shape[1]

    def reorder_tensor(tensor, rows, at):
        is_right = at == "layers.0" or tensor.shape[2] == P
        return tensor[rows] if is_right else tensor

    copy.reorder_tensor = reorder_tensor
    return {}


def newest_key_not_reordered(copy, case):
    P = case.prompt_ids.shape[1]

    def reorder_tensor(tensor, rows, at):
        reordered = tensor[rows]
        if tensor.shape[2] > P:
            reordered[:, :, -1] = tensor[:, :, -1]
        return reordered

    copy.reorder_tensor = reorder_tensor
    return {}


def changed_new_keys(change):
    """Other keys and values are held in steps.

    change(new (W, K, 1, D), parents (W,) of the step) -> new; it may write into its own.
    """

    def plant(copy, case):
        right = copy.store
        P = case.prompt_ids.shape[1]

        def store(cache, k, v, at):
            if at in cache.keys:
                parents = case.parents[cache.keys[at].shape[2] - P]
                k, v = change(k.copy(), parents), change(v.copy(), parents)
            return right(cache, k, v, at)

        copy.store = store
        return {}

    return plant


def shared_by_siblings(new, parents):
    """Children of one parent write into one page: the last one's stays."""
    for w, parent in enumerate(parents):
        siblings = np.flatnonzero(parents == parent)
        if parent != -1:
            new[w] = new[siblings[-1]]
    return new


def held_in_bfloat16(copy, case):
    right = copy.store

    def store(cache, k, v, at):
        return right(cache, rounded_to_bfloat16(k), rounded_to_bfloat16(v), at)

    copy.store = store
    return {}


def run_prompts_otherwise(change):
    """Other tokens in the pass of prompts: a plant.

    change(Tokens (N, P)) -> (Tokens (N, more than P), the first of the P whose logits are taken).
    """

    def plant(copy, case):
        right = copy.run
        P = case.prompt_ids.shape[1]

        def run(model, tokens, cache, network):
            if model is copy.step_model:
                return right(model, tokens, cache, network)
            longer, begin = change(tokens)
            return right(model, longer, cache, network)[:, begin : begin + P]

        copy.run = run
        return {}

    return plant


def prompts_packed(tokens):
    """All prompts in one row without a border: a prompt sees those before it."""
    N, P = tokens.ids.shape
    packed = []
    for values, filler in (
        (tokens.ids, 0),
        (tokens.segment_ids, -1),
        (tokens.position_ids, 0),
    ):
        rows = np.full((N, N * P), filler)
        for n in range(N):
            rows[n, (N - 1 - n) * P :] = values[: n + 1].ravel()
        packed.append(rows)
    return Tokens(*packed), (N - 1) * P


def last_token_again(tokens):
    """The last token of a prompt is computed twice."""
    N, P = tokens.ids.shape
    last = [np.flatnonzero(s != -1)[-1] for s in tokens.segment_ids]
    longer = []
    for values in (tokens.ids, tokens.segment_ids, tokens.position_ids):
        again = values[np.arange(N), last]
        longer.append(np.concatenate([values, again[:, None]], axis=1))
    return Tokens(*longer), 0


def positions_go_on_in_next_prompt(copy, case):
    """Prompts in one row count on from one another; generated tokens count from their own."""
    lengths = (case.prompt_segment_ids != -1).sum(axis=1)
    before = np.cumsum([0, *lengths[:-1]])
    return {"prompt_position_ids": case.prompt_position_ids + before[:, None]}


CACHE = {
    "decode-beams-not-reordered": reordered_otherwise(own_row),
    "decode-parents-inverted": reordered_otherwise(inverted),
    "decode-parents-within-first-prompt": reordered_otherwise(within_first_prompt),
    "decode-all-begin-with-first-prompt": reordered_otherwise(first_prompt_for_all),
    "decode-prompts-in-turn": reordered_otherwise(prompts_in_turn),
    "decode-reordered-in-place": reordered_otherwise(in_place),
    "decode-reordered-late": reordered_otherwise(parents_of_step_before),
    "decode-reordered-twice": reordered_otherwise(reordered_twice),
    "decode-ended-slots-squeezed": reordered_otherwise(ended_slots_squeezed),
    "decode-segments-not-reordered": reordered_otherwise(own_row, ["segment_ids"]),
    "decode-keys-not-reordered": reordered_otherwise(own_row, ["keys"]),
    "decode-values-not-reordered": reordered_otherwise(own_row, ["values"]),
    "decode-only-first-layer-reordered": only_first_layer_reordered,
    "decode-newest-key-not-reordered": newest_key_not_reordered,
    "decode-siblings-share-a-page": changed_new_keys(shared_by_siblings),
    "decode-cache-in-bfloat16": held_in_bfloat16,
    "decode-prompts-packed": run_prompts_otherwise(prompts_packed),
    "decode-prompt-positions-packed": positions_go_on_in_next_prompt,
    "decode-last-prompt-token-twice": run_prompts_otherwise(last_token_again),
}
