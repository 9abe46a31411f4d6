"""The bugs of the model in decoding with a cache: in prompts and steps, or in steps alone.

A plant of the model gets as its copy one of the two models of `ref.golden.definitions.decoding`,
and as its case the rows that stand in the cache.
"""

from types import SimpleNamespace

import numpy as np

from ref.golden.definitions.paths import row_along, values_along

KINDS = ("segment_ids", "position_ids")


def in_both(plant):
    """A bug of the model, in prompts and steps."""

    def plant_in_both(copy, case):
        prompts = rows_so_far(case, -1)
        changed = plant(copy.prompt_model, prompts)
        plant(copy.step_model, prompts)
        for kind in KINDS:
            if kind in changed:
                changed |= {
                    f"prompt_{kind}": changed.pop(kind),
                    f"step_{kind}": changed_along_steps(plant, case, kind),
                }
        return changed

    return plant_in_both


def in_steps(plant):
    """A bug of the model, in steps alone."""

    def plant_in_steps(copy, case):
        changed = plant(copy.step_model, rows_so_far(case, -1))
        return {f"step_{name}": value for name, value in changed.items()}

    return plant_in_steps


def changed_along_steps(plant, case, kind):
    """The segment ids or position ids of steps, (S, W): what a plant gives the newest tokens."""
    changed = case.tensors[f"step_{kind}"].copy()
    for step, parents in enumerate(case.parents):
        unused = SimpleNamespace()
        ids = plant(unused, rows_so_far(case, step))[kind]
        changed[step, parents != -1] = ids[:, -1]
    return changed


def rows_so_far(case, step):
    """The rows that stand in the cache after a step, as a case of the stage `model`.

    After step -1 these are the prompts; later, the slots that somebody is in.
    """
    occupied = range(len(case.rows))
    if step >= 0:
        occupied = np.flatnonzero(case.parents[step] != -1)
    rows = SimpleNamespace(config=case.config, weights=case.weights, info=case.info)
    rows.rows = [row_along(case.info, case.parents, step, slot) for slot in occupied]
    for kind in KINDS:
        values = [values_along(case, kind, step, slot) for slot in occupied]
        setattr(rows, kind, np.array(values))
    return rows
