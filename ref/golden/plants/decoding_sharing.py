"""Bugs of decoding in keys that prompts or slots share: prefixes in the cache, pages.

    N prompts   P tokens of a prompt   W slots   B rows, N or W   Q new tokens of a row, P or 1
    T tokens of a row so far   L layers   K key/value heads   D head dim

A page holds the keys and values of PAGE tokens. Engines that have pages hold no padding, so places
in pages count real tokens.
"""

import numpy as np

from ref.golden.definitions.paths import path
from ref.golden.plants.decoding_rows import PAGE, changed_rows

WHOLE_KEY = ("ids", "segment_ids")  # what two prompts must agree in to share keys


def real_tokens(case, n):
    """The indices of a prompt's tokens without padding."""
    return np.flatnonzero(case.prompt_segment_ids[n] != -1)


def tokens_of(case, n, kinds):
    """The real tokens of a prompt: of each a tuple of its ids of these kinds."""
    of_kinds = [getattr(case, f"prompt_{kind}")[n] for kind in kinds]
    return [tuple(values[i] for values in of_kinds) for i in real_tokens(case, n)]


def num_equal(tokens, others):
    """How many tokens two prompts have in common at their beginnings."""
    count = 0
    for token, other in zip(tokens, others):
        if token != other:
            break
        count += 1
    return count


def longest_prefix(case, m, kinds):
    """(n, count): the earlier prompt that begins most like prompt m, in how many tokens."""
    tokens = tokens_of(case, m, kinds)
    counts = [num_equal(tokens, tokens_of(case, n, kinds)) for n in range(m)]
    if not counts:
        return m, 0
    return int(np.argmax(counts)), max(counts)


def whole_pages(count, length):
    """How many tokens stand in the first whole pages of `count`; never all `length` of a prompt."""
    return min(count, length - 1) // PAGE * PAGE


def taken_by_ids(case, m):
    """As far as the token ids of prompt m are those of an earlier one: the giver of each token.

    The last token of a prompt is always computed, since its logits are wanted.
    """
    giver, count = longest_prefix(case, m, ["ids"])
    return [giver] * min(count, len(real_tokens(case, m)) - 1)


def taken_by_ids_in_pages(case, m):
    """The same in whole pages."""
    giver, count = longest_prefix(case, m, ["ids"])
    return [giver] * whole_pages(count, len(real_tokens(case, m)))


def taken_page_by_page(case, m):
    """Each page from an earlier prompt that has there the same tokens, whatever stands before."""
    tokens = tokens_of(case, m, WHOLE_KEY)
    givers = []
    for begin in range(0, whole_pages(len(tokens), len(tokens)), PAGE):
        page = slice(begin, begin + PAGE)
        earlier = [n for n in range(m) if tokens_of(case, n, WHOLE_KEY)[page] == tokens[page]]
        if not earlier:
            break
        givers += [earlier[0]] * PAGE
    return givers


def prompts_take(givers):
    """Prompts take keys, values and logits of their first tokens from what was computed before.

    givers(case, m) -> of each token that prompt m takes, the earlier prompt that it is taken from.
    """

    def plant(copy, case):
        right_store, right_run = copy.store, copy.run

        def store(cache, k, v, at):
            if at not in cache.keys:
                k, v = with_taken(k.swapaxes(1, 2)), with_taken(v.swapaxes(1, 2))
                k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
            return right_store(cache, k, v, at)

        def run(model, tokens, cache, network):
            logits = right_run(model, tokens, cache, network)
            return with_taken(logits) if model is copy.prompt_model else logits

        def with_taken(values):
            """What prompts compute (N, P, ...), with what they take."""
            values = values.copy()
            for m in range(len(values)):
                for i, n in enumerate(givers(case, m)):
                    values[m, real_tokens(case, m)[i]] = values[n, real_tokens(case, n)[i]]
            return values

        copy.store, copy.run = store, run
        return {}

    return plant


def shared_by_right(case, m):
    """The indices of those first tokens of prompt m that an earlier prompt has in whole pages."""
    _, count = longest_prefix(case, m, WHOLE_KEY)
    real = real_tokens(case, m)
    return real[: whole_pages(count, len(real))]


def after_shared_tokens(change, also_generated):
    """Other rows of the masks for the tokens of a prompt that follow those taken from the cache.

    change(masks_of, segment ids (T,), indices of what is taken) -> masks (L, Q, T), where
    masks_of(segment ids (T,)) -> masks (L, Q, T) of the last Q tokens.
    also_generated: also for the tokens that are generated after it?
    """

    def plant(copy, case):
        right = copy.mask_rows
        P = case.prompt_ids.shape[1]

        def mask_rows(model, segment_ids, Q, network):
            def masks_of(segment_ids):
                return right(model, segment_ids[None], Q, network)[:, 0]

            T = segment_ids.shape[1]
            step = T - P - 1  # -1 in the pass of prompts
            rows = right(model, segment_ids, Q, network).copy()
            for b in rows_in_use(case, step):
                prompt, _ = path(case.parents, step, b)
                taken = shared_by_right(case, prompt)
                if len(taken) and (step == -1 or also_generated):
                    first = max(0, taken[-1] + 1 - (T - Q))  # of the Q queries
                    rows[:, b, first:] = change(masks_of, segment_ids[b], taken)[:, first:]
            return rows

        copy.mask_rows = mask_rows
        return {}

    return plant


def rows_in_use(case, step):
    """The numbers of the prompts, at step -1, or of the slots that somebody is in."""
    if step == -1:
        return range(len(case.prompt_ids))
    return np.flatnonzero(case.parents[step] != -1)


def masks_with_text(masks_of, segment_ids, taken):
    """The segment ids of what is taken are not noted: 0."""
    forgotten = segment_ids.copy()
    forgotten[taken] = 0
    return masks_of(forgotten)


def masks_with_all(masks_of, segment_ids, taken):
    """All of what is taken is seen."""
    masks = masks_of(segment_ids).copy()
    masks[:, :, taken] = True
    return masks


def shared_by_slots(case, t):
    """Of each slot somebody is in at step t: the indices of the tokens in pages that all share.

    These are whole pages of the prompts' first tokens. {} if somebody is in one slot alone.
    """
    prompts = {int(w): path(case.parents, t, w)[0] for w in rows_in_use(case, t)}
    if len(prompts) < 2:
        return {}
    first, *others = [tokens_of(case, n, WHOLE_KEY) for n in prompts.values()]
    count = min(num_equal(first, other) for other in others)
    return {w: real_tokens(case, n)[: count // PAGE * PAGE] for w, n in prompts.items()}


def in_shared_pages(change):
    """Other rows of the masks over the keys that all slots share, in steps.

    change(rows (L, W, 1, T), shared: {slot: indices}) changes the rows in place.
    """

    def plant(copy, case):
        def changed(rows, segment_ids, P):
            t = rows.shape[-1] - P - 1
            change(rows, shared_by_slots(case, t))
            return rows

        return changed_rows(changed)(copy, case)

    return plant


def unmask_shared(rows, shared):
    """Each slot sees all of what is shared."""
    for w, indices in shared.items():
        rows[:, w, 0, indices] = True


def mask_shared_as_first_slot(rows, shared):
    """Each slot sees of what is shared what the first slot that somebody is in sees."""
    if not shared:
        return
    first = min(shared)
    of_first = rows[:, first, 0, shared[first]].copy()
    for w, indices in shared.items():
        rows[:, w, 0, indices] = of_first


def slots_write_into_one_page(copy, case):
    """A copy on write is missing: slots that continue one page write into it, the last one wins."""
    right = copy.store
    P = case.prompt_ids.shape[1]

    def store(cache, k, v, at):
        if at in cache.keys:
            t = cache.keys[at].shape[2] - P
            k, v = k.copy(), v.copy()
            pages = {w: newest_page(case, t, w) for w in rows_in_use(case, t)}
            last_in = {page: w for w, page in pages.items()}
            for w, page in pages.items():
                k[w], v[w] = k[last_in[page]], v[last_in[page]]
        return right(cache, k, v, at)

    copy.store = store
    return {}


def newest_page(case, t, w):
    """What tells the page in which a slot's newest token stands: who was the first to write there.

    (step, slot) of that token, or the number of the prompt.
    """
    prompt, nodes = path(case.parents, t, w)
    length = len(real_tokens(case, prompt))
    for step, slot in reversed(nodes):
        if (length + step) % PAGE == 0:
            return step, slot
    return prompt


SHARING = {
    "decode-slots-share-a-page": slots_write_into_one_page,
    "decode-prefix-shared-by-tokens": prompts_take(taken_by_ids),
    "decode-pages-shared-by-tokens": prompts_take(taken_by_ids_in_pages),
    "decode-pages-shared-one-by-one": prompts_take(taken_page_by_page),
    "decode-shared-prefix-is-text": after_shared_tokens(masks_with_text, also_generated=True),
    "decode-shared-prefix-unmasked": after_shared_tokens(masks_with_all, also_generated=False),
    "decode-shared-pages-unmasked": in_shared_pages(unmask_shared),
    "decode-shared-pages-seen-as-by-first-slot": in_shared_pages(mask_shared_as_first_slot),
}
