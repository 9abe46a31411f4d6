"""Which known bug explains given numbers: the one that makes the same numbers.

The bugs (bugs.json) are mistakes that porters of HatLLM's masks make. Each can be computed, because
`ref.golden.plants` plants it in a copy of the definition. So the golden cases are chosen such that
each bug shows in one of them, and an implementation that deviates is told why.
"""

import importlib.util
from dataclasses import dataclass

import numpy as np

from ref.golden.compare import deviation
from ref.golden.stages import STAGES, all_bugs

# A case detects a bug that makes its logits or loss deviate by so many float32 tolerances.
DETECTED = 100
# A bug is near that explains more than this share of the deviation; so many are told.
NEAR, NUM_NEAREST = 0.3, 3


@dataclass
class Diagnosis:
    """The known bugs that explain what an implementation computed, best first."""

    equal: list  # (bug, misfit in tolerances): those that make the same in every case
    nearest: list  # (bug, share of the deviation that it explains), where none makes the same


def outputs_with(bug, case):
    """What an implementation with this bug computes: every intermediate and the loss, by name."""
    stage = STAGES[case.stage]
    copy = copy_of(stage.definition)
    changed = stage.plants[bug](copy, case)
    with np.errstate(all="ignore"):  # some bugs make NaN
        return stage.compute(copy, case, **changed)


def copy_of(module):
    """A fresh copy of a module, whose functions can be replaced without harm to the original."""
    specification = importlib.util.spec_from_file_location("planted", module.__file__)
    copy = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(copy)
    return copy


def detection_matrix(cases):
    """bug -> name of case -> deviation of what is decisive, in the case's float32 tolerances.

    A bug stands beside the cases of those stages alone in which it can show.
    """
    matrix = {}
    for bug in all_bugs():
        matrix[bug] = {}
        for case in cases:
            if bug in STAGES[case.stage].plants:
                matrix[bug][case.name] = visible_deviation(bug, case)
    return matrix


def visible_deviation(bug, case):
    """How far a bug moves the decisive outputs, in float32 tolerances of the case."""
    outputs = outputs_with(bug, case)
    sizes = []
    for name in STAGES[case.stage].decisive:
        if name in case.outputs:
            sizes.append(deviation(case, name, outputs[name], case.tensors[name]).size)
    return max(sizes) / case.info["tolerances"]["float32"]


def detected_bugs(matrix, name):
    """The bugs of a detection matrix that the case of this name detects."""
    return [bug for bug, sizes in matrix.items() if sizes.get(name, 0) >= DETECTED]


def misfit(comparison, bug):
    """How far what was computed is from what the bug makes, in tolerances.

    The decisive outputs of the stage decide where there are any: the others may differ between two
    ways of making the same mistake.
    """
    case, computed = comparison.case, comparison.computed
    if bug not in STAGES[case.stage].plants:
        return 0.0 if comparison.is_right else np.inf
    outputs = outputs_with(bug, case)
    names = [name for name in STAGES[case.stage].decisive if name in computed]
    if not names:
        names = [name for name in computed if name in outputs]
    largest = 0.0 if names else np.inf
    for name in names:
        values, precision = computed[name]
        size = deviation(case, name, values, outputs[name]).size
        largest = max(largest, size / case.info["tolerances"][precision])
    return largest


def diagnose(comparisons):
    """The known bugs that explain a list of Comparison: a Diagnosis, empty where all is right."""
    # A failing case, and a short one, refutes a bug with the least work.
    ordered = sorted(comparisons, key=lambda c: (c.is_right, size_of(c.case)))
    failing = [comparison for comparison in ordered if not comparison.is_right]
    if not failing:
        return Diagnosis([], [])
    equal = equal_bugs(ordered)
    if equal:
        return Diagnosis(equal, [])
    return Diagnosis([], nearest_bugs(failing[:3]))


def size_of(case):
    """How many numbers a case holds."""
    return sum(tensor.size for tensor in case.tensors.values())


def equal_bugs(comparisons):
    """(bug, misfit) of the bugs that make the same in every case, best first."""
    equal = []
    for bug in all_bugs():
        largest = 0.0
        for comparison in comparisons:
            largest = max(largest, misfit(comparison, bug))
            if largest > 1:
                break
        if largest <= 1:
            equal.append((bug, largest))
    return sorted(equal, key=lambda pair: pair[1])


def nearest_bugs(failing):
    """(bug, share) of the bugs that explain most of the deviation in failing cases, best first."""
    finite = [comparison for comparison in failing if np.isfinite(comparison.largest)]
    if not finite:
        return []
    near = []
    for bug in all_bugs():
        shares = [1 - misfit(comparison, bug) / comparison.largest for comparison in finite]
        share = float(np.mean(shares))
        if share > NEAR:
            near.append((bug, share))
    return sorted(near, key=lambda pair: -pair[1])[:NUM_NEAREST]
