"""What the known bugs compute in the golden cases, once a process, and ports that have them."""

from functools import cache

import numpy as np
import pytest

from ref.golden import case as cases
from ref.golden import compare, planted
from ref.golden.computed import Computed
from ref.golden.planted import outputs_with
from ref.golden.stages import STAGES

# How many of the bugs a test takes that would need minutes for all: one in 32, or (slow) all.
SHARES = [pytest.param(32, id="one in 32"), pytest.param(1, id="all", marks=pytest.mark.slow)]


@cache
def case_of(name):
    """A golden case, read once."""
    return cases.load(name)


@cache
def stage_of_each():
    """{name of a golden case: its stage}, by name."""
    return {info["name"]: info["stage"] for info in cases.infos()}


def cases_of(stage):
    """The golden cases of a stage, by name."""
    return [case_of(name) for name, its_stage in stage_of_each().items() if its_stage == stage]


@cache
def decisive_outputs(bugs, name):
    """What bugs (a tuple of ids) make of the decisive outputs of a case, by name."""
    case = case_of(name)
    outputs = outputs_with(bugs, case)
    return {key: outputs[key] for key in STAGES[case.stage].decisive if key in case.outputs}


def let_planted_remember(monkeypatch):
    """What a single bug makes of the decisive outputs is looked up."""
    monkeypatch.setattr(
        planted, "outputs_with", lambda bugs, case: decisive_outputs(tuple(bugs), case.name)
    )


def detection_matrix(bugs):
    """The detection matrix of some bugs: bug -> name of case -> deviation in tolerances."""
    matrix = {}
    for bug in bugs:
        matrix[bug] = {
            name: planted.visible_deviation(bug, case_of(name)) for name in cases_that_can_show(bug)
        }
    return matrix


def cases_that_can_show(bug):
    """The names of the cases of all stages that know a bug."""
    return [name for name, stage in stage_of_each().items() if bug in STAGES[stage].plants]


def as_float32(values, random, noise=3e-6):
    """As of a port in float32: errors of a third of the tolerance; whole numbers stay."""
    values = np.asarray(values)
    if values.dtype.kind != "f":
        return Computed(values, "float64")
    largest = np.abs(values[np.isfinite(values)]).max(initial=0.0)
    noisy = values + noise * largest * random.uniform(-1, 1, values.shape)
    with np.errstate(over="ignore"):  # a perplexity may be too large
        return Computed(noisy.astype(np.float32), "float32")


def port_with(bugs, case, seed=0):
    """The Comparison of a port in float32 that has these bugs, from its decisive outputs."""
    random = np.random.default_rng(seed)
    outputs = decisive_outputs(tuple(bugs), case.name)
    computed = {name: as_float32(values, random) for name, values in outputs.items()}
    return compare.examine(case, computed)
