"""Bugs of what stands after a prompt: other prompts' states, segments, positions, caches.

What they replace is in ref/golden/definitions/search.py; `given` is what stands there. Most need a
model: in a case with a table of logits they do nothing.
"""

from types import SimpleNamespace

import numpy as np

from ref import llama_numpy
from ref.golden.copies import copy_of
from ref.golden.definitions import search as definition
from ref.golden.plants.edits import replaced, with_empty_rows_filled

# Both cases


def prompts_in_reverse(copy, case):
    right_log_probs, right_lists = copy.title_log_probs, copy.beam_lists

    def beam_lists(given):
        titles, scores = right_lists(given)
        return titles[::-1], scores[::-1]

    def title_log_probs(given):
        return right_log_probs(given)[::-1]

    copy.title_log_probs = title_log_probs
    copy.beam_lists = beam_lists
    return {}


def changed_logits(next_logits):
    """next_logits(right function, given, n, prefix) -> logits (V,)."""

    def plant(copy, case):
        right = copy.next_logits
        copy.next_logits = lambda given, n, prefix: next_logits(right, given, n, prefix)
        return {}

    return plant


def of_first_prompt(right, given, n, prefix):
    return right(given, 0, prefix)


def generated_after_first_prompt(right, given, n, prefix):
    """What is generated for any prompt continues the cache of the first."""
    return right(given, 0 if prefix else n, prefix)


# A model


def with_model(plant):
    """The plant in cases that have a model; nothing in the others."""

    def plant_with_model(copy, case):
        return plant(copy, case) if case.config else {}

    return plant_with_model


def changed_segments(segment_id):
    """Other segments of generated tokens: segment_id(prompt's segments (P,), place) -> id."""

    def generated_segments(given, n, prefix):
        return [segment_id(given.prompt_segment_ids[n], place) for place in range(len(prefix))]

    return with_model(replaced(generated_segments=generated_segments))


def text(segment_ids, place):
    return 0


def last_item(segment_ids, place):
    return max(segment_ids.max(), 0)


def always_item(segment_ids, place):
    return last_item(segment_ids, place) + 1


def one_item_each(segment_ids, place):
    return 100 + place


def target_segment_of_first_prompt(given, n):
    return definition.target_segment(given, 0)


def segment_of_token_before(given, n, prefix):
    """A token is fed with the segment of the one before it."""
    right = definition.generated_segments(given, n, prefix)
    is_real = given.prompt_segment_ids[n] != -1
    of_prompt = given.prompt_segment_ids[n][is_real].tolist()
    return [*of_prompt, *right][-len(right) - 1 : -1]


def changed_positions(position):
    """Other positions of generated tokens: position(prompt's segments (P,), place) -> position."""

    def generated_positions(given, n, length):
        return [position(given.prompt_segment_ids[n], place) for place in range(length)]

    return with_model(replaced(generated_positions=generated_positions))


def num_real(segment_ids):
    return (segment_ids != -1).sum()


def counting_padding(segment_ids, place):
    return len(segment_ids) + place


def one_late(segment_ids, place):
    return num_real(segment_ids) + place + 1


def from_zero(segment_ids, place):
    return place


def standing_still(segment_ids, place):
    return num_real(segment_ids)


def changed_masks(change):
    """Compute with other masks: change(masks (L, 1, T, T), P) -> masks; P tokens are the prompt."""

    def model_logits(given, n, prefix):
        input_ids, segment_ids, position_ids = definition.sequence(given, n, prefix)
        P = len(input_ids) - len(prefix)
        model = copy_of(llama_numpy)
        right = model.layer_masks

        def layer_masks(segment_ids, L, scheme):
            return change(right(segment_ids, L, scheme).copy(), P)

        model.layer_masks = layer_masks
        arrays = (input_ids[None], segment_ids[None], given.scheme, position_ids[None])
        return model.forward(given.weights, given.config, *arrays)[0, -1]

    return with_model(replaced(model_logits=model_logits))


def without_generated_keys(masks, P):
    """A generated token sees the prompt and itself: no other one was put into the cache."""
    own = np.eye(masks.shape[-1] - P, dtype=bool)
    masks[..., P:, P:] &= own
    return masks


def without_prompt_keys(masks, P):
    """After the first token the prompt is forgotten."""
    masks[..., P:, :P] = False
    return with_empty_rows_filled(masks)


def without_newest_key(masks, P):
    """A generated token does not see the one before it."""
    for j in range(P + 1, masks.shape[-1]):
        masks[..., j, j - 1] = False
    return with_empty_rows_filled(masks)


def padding_seen(given, n, prefix):
    """Padding is kept, and is text to the masks."""
    segments = definition.generated_segments(given, n, prefix)
    positions = definition.generated_positions(given, n, len(prefix))
    return (
        np.append(given.prompt_ids[n], prefix).astype(int),
        np.append(np.maximum(given.prompt_segment_ids[n], 0), segments).astype(int),
        np.append(given.prompt_position_ids[n], positions).astype(int),
    )


def first_logits_of_last_column(given, n, prefix):
    """The first token is chosen from the logits of the last column, be it padding."""
    if prefix:
        return definition.model_logits(given, n, prefix)
    logits = definition.forward(
        given.weights,
        given.config,
        given.prompt_ids[n : n + 1],
        given.prompt_segment_ids[n : n + 1],
        given.scheme,
        given.prompt_position_ids[n : n + 1],
    )
    return logits[0, -1]


def tokens_of_slots(copy, case):
    """The cache is not reordered: slot i holds what was fed to slot i, of whichever beam."""
    held = {}  # prefix of a beam -> the prefixes whose last tokens its slot holds

    def sequence(given, n, prefix):
        fed = held.get(prefix) or beginnings(prefix)
        tokens = tuple(other[-1] for other in fed)
        in_item = {}
        for length, other in enumerate(fed, 1):
            in_item[tokens[:length]] = given.in_item[other]
        return definition.sequence(changed(given, in_item=in_item), n, tokens)

    def beam_search(given, n):
        live, finished = [((), 0.0)], []
        slots = [()] * given.width
        while live:
            candidates = copy.extended(given, n, live)
            finished = copy.best_titles(given, finished + copy.ended(given, candidates))
            live = copy.going_on(given, candidates)
            for slot, (prefix, _) in enumerate(live):
                slots[slot] = (*slots[slot], prefix)
                held[prefix] = slots[slot]
        held.clear()
        return finished

    copy.sequence = sequence
    copy.beam_search = beam_search
    return {}


def beginnings(prefix):
    return [prefix[: length + 1] for length in range(len(prefix))]


def changed(given, **attributes):
    return SimpleNamespace(**(vars(given) | attributes))


TOKENS = {
    "search-prompts-in-reverse": prompts_in_reverse,
    "search-logits-of-first-prompt": changed_logits(of_first_prompt),
    "search-cache-of-first-prompt": changed_logits(generated_after_first_prompt),
    "search-cache-not-reordered": with_model(tokens_of_slots),
    "search-generated-are-text": changed_segments(text),
    "search-generated-join-last-item": changed_segments(last_item),
    "search-generated-always-item": changed_segments(always_item),
    "search-generated-one-item-each": changed_segments(one_item_each),
    "search-generated-segments-one-late": with_model(
        replaced(generated_segments=segment_of_token_before)
    ),
    "search-target-segment-of-first-prompt": with_model(
        replaced(target_segment=target_segment_of_first_prompt)
    ),
    "search-positions-count-padding": changed_positions(counting_padding),
    "search-positions-one-late": changed_positions(one_late),
    "search-positions-from-zero": changed_positions(from_zero),
    "search-positions-stand-still": changed_positions(standing_still),
    "search-padding-seen": with_model(replaced(sequence=padding_seen)),
    "search-first-logits-of-last-column": with_model(
        replaced(model_logits=first_logits_of_last_column)
    ),
    "search-generated-keys-unseen": changed_masks(without_generated_keys),
    "search-prompt-keys-unseen": changed_masks(without_prompt_keys),
    "search-newest-key-unseen": changed_masks(without_newest_key),
}
