"""The known bugs, executable: each alters a copy of a definition, or what the copy is given.

What each bug is, what it does and how to fix it stands in the JSON file of its stage (model.json,
...) under the same id, in the same order. Each Python file ends in a table of its bugs. Which stage
has which bugs, `ref.golden.stages` says.

A plant is a function of (copy, case). `copy` is a fresh copy of the module that defines what is
right in the case's stage (for the model that is `ref.llama_numpy`), some of whose functions the
plant replaces; `case` is the golden case that the copy will compute. It returns the arguments that
the stage's `compute` is to change, by name: {} if none. It alters nothing else.
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
            if value is not None:  # None leaves an argument to the definition
                setattr(altered, name, value)
    return altered, changed
