"""What each known bug makes of a golden case, and how far that is from what is expected.

The bugs (bugs.json) are mistakes that porters of HatLLM make. Each can be computed, because
`ref.golden.plants` plants it in a copy of the definition. So the golden cases are chosen such that
each bug shows in one of them, and an implementation that deviates is told why.
"""

import numpy as np

from ref.golden.compare import deviation
from ref.golden.copies import copy_of
from ref.golden.plants import plant_all
from ref.golden.stages import STAGES, all_bugs

# A case detects a bug that makes its decisive outputs deviate by so many float32 tolerances.
DETECTED = 100


def outputs_with(bugs, case):
    """What an implementation with these bugs computes: intermediates and results, by name."""
    stage = STAGES[case.stage]
    copy = copy_of(stage.definition)
    altered, changed = plant_all([stage.plants[bug] for bug in bugs], copy, case)
    stage.speed_up(copy, altered, changed)
    with np.errstate(all="ignore"):  # some bugs make NaN
        return stage.compute(copy, altered, **changed)


def detection_matrix(all_cases):
    """bug -> name of case -> deviation of what is decisive, in the case's float32 tolerances.

    A bug stands beside the cases of those stages alone in which it can show.
    """
    matrix = {}
    for bug in all_bugs():
        matrix[bug] = {}
        for case in all_cases:
            if bug in STAGES[case.stage].plants:
                matrix[bug][case.name] = visible_deviation(bug, case)
    return matrix


def visible_deviation(bug, case):
    """How far a bug moves the decisive outputs, in float32 tolerances of the case."""
    outputs = outputs_with([bug], case)
    sizes = []
    for name in STAGES[case.stage].decisive:
        if name in case.outputs:
            sizes.append(deviation(case, name, outputs[name], case.tensors[name]).relative)
    return max(sizes) / case.info["tolerances"]["float32"]


def detected_bugs(matrix, name):
    """The bugs of a detection matrix that the case of this name detects."""
    return [bug for bug, sizes in matrix.items() if sizes.get(name, 0) >= DETECTED]
