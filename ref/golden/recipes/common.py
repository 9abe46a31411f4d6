"""What the recipes of several stages need."""

import zlib
from pathlib import Path

import numpy as np

from ref.files import read_json


def read(file_name):
    """What a JSON file beside this one holds."""
    return read_json(Path(__file__).with_name(file_name))


def random_of(name):
    """A generator of the random numbers of a name, the same in every run."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def with_outputs(case, outputs):
    """The case, with the expected tensors by name, in the order of computation."""
    case.info["outputs"] = list(outputs)
    case.tensors |= outputs
    return case
