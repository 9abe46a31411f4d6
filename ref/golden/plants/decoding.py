"""Bugs of decoding with a cache. The executor is `ref.golden.definitions.decoding`.

Letters: N prompts, P tokens of a prompt, W slots, S steps, L layers, T tokens so far.
"""

import numpy as np

from ref.golden.plants import masks, model, numerics, positions, schedule, segments
from ref.golden.plants.cached import in_both, in_steps
from ref.golden.plants.edits import replaced, with_empty_rows_filled


def changed_rows(change):
    """Other rows of the masks in steps. change(rows (L, W, 1, T), segment ids (W, T), P) -> rows.

    Rule R4 fills the rows that it leaves empty.
    """

    def plant(copy, case):
        P = case.prompt_ids.shape[1]
        right = copy.mask_rows

        def mask_rows(model, segment_ids, Q, network):
            rows = right(model, segment_ids, Q, network)
            if model is copy.prompt_model:
                return rows
            return with_empty_rows_filled(change(rows.copy(), segment_ids, P))

        return replaced(mask_rows=mask_rows)(copy, case)

    return plant


def changed_inputs(kind, change):
    """Other segment ids or position ids in steps. change(case, step, slot) -> the id.

    `kind` is "segment_ids" or "position_ids". Slots that nobody is in keep theirs.
    """

    def plant(copy, case):
        name = f"step_{kind}"
        changed = case.tensors[name].copy()
        for step, slot in np.argwhere(case.parents != -1):
            changed[step, slot] = change(case, step, slot)
        return {name: changed}

    return plant


def hidden_from_steps(is_hidden):
    """Keys that no step sees. is_hidden(indices of keys (T,), P, T) -> bool, broadcast to rows."""

    def change(rows, segment_ids, P):
        T = rows.shape[-1]
        return rows & ~is_hidden(np.arange(T), P, T)

    return changed_rows(change)


# What only whole rows of given positions show.
NOT_HERE = ("positions-ignored", "causal-by-position")


def of_the_model():
    """The bugs of the stage `model` that decoding shows, in prompts and steps."""
    plants = masks.MASKS | schedule.SCHEDULE | segments.SEGMENTS | positions.POSITIONS
    plants |= numerics.NUMERICS | model.MODEL
    return {bug: in_both(plant) for bug, plant in plants.items() if bug not in NOT_HERE}


DECODING = of_the_model() | {
    "decode-plain-causal": in_steps(masks.MASKS["mask-never-applied"]),
    "decode-misses-newest-key": hidden_from_steps(lambda k, P, T: k == T - 1),
    "decode-position-always-zero": changed_inputs("position_ids", lambda case, t, w: 0),
}
