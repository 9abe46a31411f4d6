"""What the recipes of several stages need."""

import zlib
from pathlib import Path

import numpy as np

from ref.files import read_json
from ref.golden.case import FORMAT


def read(file_name):
    """What a JSON file beside this one holds."""
    return read_json(Path(__file__).with_name(file_name))


def with_defaults(recipe, defaults):
    """A recipe with the defaults of what it leaves out, also within its fields that are objects."""
    fields = defaults | recipe
    for field, default in defaults.items():
        if isinstance(default, dict):
            fields[field] = default | recipe.get(field, {})
    return fields


def read_recipes(file_name):
    """The recipes of a JSON file beside this one, filled with the defaults that it begins with."""
    content = read(file_name)
    return [with_defaults(recipe, content["defaults"]) for recipe in content["recipes"]]


def random_of(name):
    """A generator of the random numbers of a name, the same in every run."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def head_of(recipe, stage):
    """What case.json begins with in every stage."""
    fields = {"format": FORMAT, "name": recipe["name"], "stage": stage, "what": recipe["what"]}
    return fields | {"also_for": recipe["also_for"]}


def names_of_true(features):
    """The names of the features that a case needs: {name: whether it does}."""
    return [name for name, is_needed in features.items() if is_needed]


def filled_up(sequences, filler):
    """Sequences of different lengths as one array, filled up at the end."""
    longest = max(map(len, sequences))
    return np.array([[*row, *[filler] * (longest - len(row))] for row in sequences])


def marked(lists, shape):
    """bool of this shape (N, S): each of the first rows is true at the numbers of its list."""
    is_marked = np.zeros(shape, bool)
    for row, numbers in zip(is_marked, lists):
        row[numbers] = True
    return is_marked


def with_outputs(case, outputs):
    """The case, with the expected tensors by name, in the order of computation."""
    case.info["outputs"] = list(outputs)
    case.tensors |= outputs
    return case


def truncated_to_bfloat16(weight):
    """float32 whose lower 16 bits are 0."""
    bits = weight.astype(np.float32).view(np.uint32)
    return (bits & 0xFFFF0000).view(np.float32)
