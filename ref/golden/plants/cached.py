"""The bugs of the model in decoding with a cache: in prompts and steps, or in steps alone.

A plant of the model gets as its copy one of the two models of `ref.golden.definitions.decoding`,
and as its case the rows that stand in the cache, with the config and weights of that model.
"""

from types import SimpleNamespace

import numpy as np

from ref.golden.definitions.paths import row_along, values_along

KINDS = ("segment_ids", "position_ids")


def in_both(plant):
    """A bug of the model, in prompts and steps."""

    def plant_in_both(copy, case):
        return changed_in_prompts(plant, copy, case) | changed_in_steps(plant, copy, case)

    return plant_in_both


def in_steps(plant):
    """A bug of the model, in steps alone."""

    def plant_in_steps(copy, case):
        return changed_in_steps(plant, copy, case)

    return plant_in_steps


def changed_in_prompts(plant, copy, case):
    """Plant a bug in the model of prompts; returns what it changes, by the names of decoding."""
    rows = rows_so_far(case, -1, case.config, case.weights)
    changed = plant(copy.prompt_model, rows)
    return {f"prompt_{name}" if name in KINDS else name: changed[name] for name in changed}


def changed_in_steps(plant, copy, case):
    """Plant a bug in the model of steps; returns what it changes, by the names of decoding."""
    # a bug that was planted before may have changed those of steps alone
    config = getattr(case, "step_config", case.config)
    weights = getattr(case, "step_weights", case.weights)
    changed = plant(copy.step_model, rows_so_far(case, -1, config, weights))
    of_steps = {}
    for name, value in changed.items():
        if name in KINDS:
            value = changed_along_steps(plant, case, name, config, weights)
        of_steps[f"step_{name}"] = value
    return of_steps


def changed_along_steps(plant, case, kind, config, weights):
    """The segment ids or position ids of steps, (S, W): what a plant gives the newest tokens."""
    changed = getattr(case, f"step_{kind}").copy()
    for step, parents in enumerate(case.parents):
        unused = SimpleNamespace()  # a plant that changes ids replaces no function
        ids = plant(unused, rows_so_far(case, step, config, weights))[kind]
        changed[step, parents != -1] = ids[:, -1]
    return changed


def rows_so_far(case, step, config, weights):
    """The rows that stand in the cache after a step, as a case of the stage `model`.

    After step -1 these are the prompts; later, the slots that somebody is in.
    """
    occupied = range(len(case.rows))
    if step >= 0:
        occupied = np.flatnonzero(case.parents[step] != -1)
    rows = SimpleNamespace(config=config, weights=weights, info=case.info)
    rows.rows = [row_along(case.info, case.parents, step, slot) for slot in occupied]
    for kind in KINDS:
        values = [values_along(case, kind, step, slot) for slot in occupied]
        setattr(rows, kind, np.array(values))
    return rows
