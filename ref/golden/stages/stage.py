"""What the checker knows of a stage."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType

import numpy as np


def specified_everywhere(case, name, shape):
    """Every value of a tensor is specified: bool, of a shape that broadcasts to any."""
    return np.array(True)


def no_faster(copy, case, changed):
    """Nothing to gain."""


@dataclass(frozen=True)
class Stage:
    """A step between a user's history and a metric, which a porter writes and tests by itself.

    definition: the module that computes what is right; plants alter a copy of it.
    compute: compute(copy, case, **changed) -> {name: array}, all outputs in the order of
        computation. copy: the definition, or a copy with plants. `changed` is what a plant
        returned.
    speed_up: speed_up(copy, case, changed) lets a copy compute the same in less time. It is called
        after planting, with what the plants returned.
    plants: {id of a bug: plant}, see ref/golden/plants.
    decisive: the outputs that decide whether a case detects a bug, and which bug it is. The others
        are intermediates, which may differ between two ways of doing the same.
    specified: specified(case, name, shape) -> bool array that broadcasts to the shape: where the
        values of a tensor are specified. Elsewhere any number will do.
    place: place(case, name, index) -> an index of a tensor in words.
    """

    name: str
    definition: ModuleType
    compute: Callable
    plants: dict = field(repr=False)
    decisive: tuple
    place: Callable
    speed_up: Callable = no_faster
    specified: Callable = specified_everywhere
