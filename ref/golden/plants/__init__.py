"""The known bugs, executable: each alters a copy of a definition, or what the copy is given.

What each bug is, what it does and how to fix it stands in the JSON file of its stage (model.json,
...) under the same id, in the same order. Each Python file ends in a table of its bugs. Which stage
has which bugs, `ref.golden.stages` says.

A plant is a function of (copy, case). `copy` is a fresh copy of the module that defines what is
right in the case's stage (for the model that is `ref.llama_numpy`), some of whose functions the
plant replaces; `case` is the golden case that the copy will compute. It returns the arguments that
the stage's `compute` is to change, by name: {} if none. It alters nothing else. In decoding a plant
of the model gets one of two models instead (cached.py says which).

Two bugs are looked for at once, so plants have to fit together. A plant reads what it changes from
attributes of the case or from `case.info`, which hold what earlier plants made, and never from
`case.tensors`. Where it wraps a function that another plant may have replaced, it keeps the copy's
function and calls that. Of two plants that replace one function whole, the later one stands.

To add a bug:
    1. its plant, in a table here, and its entry, at the same place in the JSON file of its stage.
       A bug of masks, schedule, segments, positions, numerics or model is one of decoding, too, if
       decoding.py does not list it in NOT_HERE; one of masks or schedule, or in
       SEGMENTS_FROM_IDS, is one of `audit`, too
    2. `python -m ref.golden write`: which cases catch it, bugs.json, and the pictures
    3. the count in README.md
    4. `pytest tests/test_golden_words.py -m slow`: a port with this bug is told so first
"""

import copy as copies
from functools import cache
from pathlib import Path

from ref.files import read_json


@cache
def descriptions():
    """All known bugs by id: of each its id, family, what it is, its effect and the fix."""
    by_id = {}
    for path in sorted(Path(__file__).parent.glob("*.json")):
        for bug in read_json(path, list):
            by_id[bug["id"]] = bug
    return by_id


def plant_all(plants, copy, case):
    """Plant several bugs in one copy: (the case with all changed arguments, and these by name).

    Each plant is given the case with the arguments that those before it changed.
    """
    altered, changed = copies.copy(case), {}
    for plant in plants:
        changed |= plant(copy, altered)
        for name, value in changed.items():
            if value is None:  # it leaves the argument to the definition
                continue
            setattr(altered, name, value)
            if name in altered.info:  # an option, such as the temperature
                altered.info = altered.info | {name: value}
    return altered, changed
