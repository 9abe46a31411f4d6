"""Bugs of decoding in the segment ids and position ids of generated tokens.

A change takes (case, t, w), the step and the slot of a token, and returns its wrong id.
"""

import numpy as np

from ref.golden.definitions.paths import path


def changed_inputs(kind, change):
    """Other segment ids or position ids in steps, but where nobody is.

    `kind` is "segment_ids" or "position_ids".
    """

    def plant(copy, case):
        name = f"step_{kind}"
        changed = getattr(case, name).copy()
        for t, w in np.argwhere(case.parents != -1):
            changed[t, w] = change(case, t, w)
        return {name: changed}

    return plant


def changed_positions(position):
    """Other positions in steps: position(the right one, t, P) -> the wrong one."""

    def change(case, t, w):
        return position(case.step_position_ids[t, w], t, case.prompt_ids.shape[1])

    return changed_inputs("position_ids", change)


def changed_target(segment):
    """Other segment ids of tokens of the target that are no text. segment(case, t, w)."""

    def change(case, t, w):
        right = case.step_segment_ids[t, w]
        return right if right == 0 else segment(case, t, w)

    return changed_inputs("segment_ids", change)


def target_of(case, t, w):
    """The segment n + 1 of the target of a slot."""
    prompt, _ = path(case.parents, t, w)
    return case.rows[prompt]["history"] + 1


def last_item(case, t, w):
    prompt, _ = path(case.parents, t, w)
    return max(case.prompt_segment_ids[prompt].max(), 0)


def of_last_prompt_token(case, t, w):
    """Where the prompt is padded on the right, the token before its padding is meant."""
    prompt, _ = path(case.parents, t, w)
    segments = case.prompt_segment_ids[prompt]
    return segments[segments != -1][-1]


def target_of_first_prompt(case, t, w):
    return case.rows[0]["history"] + 1


def is_title(case, t, w):
    return case.info["step_roles"][t][w] == "title"


def delimiter_as_item(case, t, w):
    is_forgotten = case.scheme.target == "item" and not is_title(case, t, w)
    return target_of(case, t, w) if is_forgotten else case.step_segment_ids[t, w]


def of_first_slot(kind):
    """The id of the first slot that somebody is in."""

    def change(case, t, w):
        first = np.flatnonzero(case.parents[t] != -1)[0]
        return getattr(case, f"step_{kind}")[t, first]

    return changed_inputs(kind, change)


def position_counted_in_slot(case, t, w):
    """The position of the slot's first token, one more each step, whoever is in it."""
    if case.parents[0, w] == -1:
        return case.step_position_ids[t, w]
    return case.step_position_ids[0, w] + t


# fmt: off
INPUTS = {
    "decode-tokens-are-items": changed_target(lambda case, t, w: 1000 + t),
    "decode-tokens-join-last-item": changed_target(last_item),
    "decode-tokens-keep-last-segment": changed_inputs("segment_ids", of_last_prompt_token),
    "decode-later-tokens-are-text":
        changed_target(lambda case, t, w: 0 if t else case.step_segment_ids[t, w]),
    "decode-target-numbered-one": changed_target(lambda case, t, w: 1),
    "decode-target-numbered-by-first-prompt": changed_target(target_of_first_prompt),
    "decode-segment-of-first-slot": of_first_slot("segment_ids"),
    "decode-target-is-item": changed_inputs("segment_ids", target_of),
    "decode-delimiters-are-items": changed_inputs("segment_ids", delimiter_as_item),
    "decode-delimiters-are-text":
        changed_target(lambda case, t, w: target_of(case, t, w) if is_title(case, t, w) else 0),
    "decode-position-always-zero": changed_positions(lambda right, t, P: 0),
    "decode-position-one-late": changed_positions(lambda right, t, P: right + 1),
    "decode-position-one-early": changed_positions(lambda right, t, P: right - 1),
    "decode-position-stays": changed_positions(lambda right, t, P: right - t),
    "decode-position-counts-padding": changed_positions(lambda right, t, P: P + t),
    "decode-position-counts-steps": changed_positions(lambda right, t, P: t),
    "decode-position-clamped-at-prompt": changed_positions(lambda right, t, P: min(right, P - 1)),
    "decode-position-of-first-slot": of_first_slot("position_ids"),
    "decode-position-counted-in-slot": changed_inputs("position_ids", position_counted_in_slot),
}
# fmt: on
