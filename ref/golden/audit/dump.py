"""The dump of a model: its attention probabilities on a prompt, in a safetensors file.

    layers.I.probabilities    float (B, H, Q, T), after the softmax; attentions.I is the same
    segment_ids               int (B, T): -1 padding, 0 text, 1..n history, n + 1 target

B batch, H heads, T tokens, I the number of a layer. The Q queries are the last of the T tokens: all
of them, or those of a step of decoding. The scheme's `delimiters` and `target` are already in the
segment ids.
"""

import re
from dataclasses import dataclass

import numpy as np

from ref.golden.computed import read_dump

NAME = re.compile(r"(?:layers\.(\d{1,9})\.probabilities|attentions\.(\d{1,9}))")
SUM_TOLERANCE = 0.01  # of a row; bfloat16 has three digits


@dataclass(frozen=True)
class Dump:
    """What is known of a model: weights[i] (B, H, Q, T) of each layer i, and the prompt."""

    weights: dict
    segment_ids: np.ndarray  # (B, T)

    @property
    def num_queries(self):
        """Q."""
        return next(iter(self.weights.values())).shape[2]

    @property
    def is_real(self):
        """Which queries are no padding: bool (B, Q)."""
        return self.segment_ids[:, -self.num_queries :] != -1


@dataclass(frozen=True)
class Place:
    """A weight or a row of a dump, in the terms of its prompt."""

    row: int
    head: int
    query: int
    query_segment: int
    key: int
    key_segment: int

    def __str__(self):
        return (
            f"row {self.row}, head {self.head}, query {self.query} (segment {self.query_segment}), "
            f"key {self.key} (segment {self.key_segment})"
        )


def place(dump, values):
    """The Place of the largest of values (B, H or 1, Q, T)."""
    row, head, query, key = (int(i) for i in np.unravel_index(values.argmax(), values.shape))
    query += dump.segment_ids.shape[1] - dump.num_queries
    segments = dump.segment_ids[row]
    return Place(row, head, query, int(segments[query]), key, int(segments[key]))


def read(path):
    """The Dump in a safetensors file. Raises FileNotFoundError or ValueError, naming the file."""
    tensors = {name: computed.values for name, computed in read_dump(path).items()}
    if "segment_ids" not in tensors:
        raise ValueError(f"{path}: holds no segment_ids; expected integers (B, T), -1 for padding")
    segment_ids = tensors["segment_ids"]
    check_segment_ids(segment_ids, path)
    weights = {}
    for name, tensor in tensors.items():
        if match := NAME.fullmatch(name):
            layer = int(match[1] or match[2])
            if layer in weights:
                raise ValueError(f"{path}: holds layer {layer} twice; expected one name for each")
            check_weights(tensor, segment_ids.shape, f"{path}: {name}")
            weights[layer] = tensor
    if not weights:
        names = ", ".join(sorted(tensors)[:5])
        raise ValueError(f"{path}: holds {names}; expected layers.0.probabilities and so on")
    shapes = {tensor.shape for tensor in weights.values()}
    if len(shapes) > 1:
        raise ValueError(f"{path}: layers have shapes {sorted(shapes)}; expected one for all")
    return Dump(dict(sorted(weights.items())), segment_ids.astype(int))


def check_segment_ids(segment_ids, path):
    """Raise ValueError where they are not integers (B, T) of at least -1."""
    description = f"{path}: segment_ids is {segment_ids.dtype} {segment_ids.shape}"
    if segment_ids.dtype.kind not in "iu" or segment_ids.ndim != 2 or segment_ids.size == 0:
        raise ValueError(f"{description}; expected integers (B, T), at least one")
    for value in (segment_ids.min(), segment_ids.max()):
        if not -1 <= value < 2**31:
            raise ValueError(f"{path}: segment_ids has {value}; expected -1 or more, below 2^31")
    if segment_ids.max() < 1:
        raise ValueError(f"{path}: segment_ids holds no item; expected 1, 2, ... at their tokens")


def check_weights(weights, shape, source):
    """Raise ValueError where a layer's tensor cannot be attention probabilities over (B, T)."""
    B, T = shape
    if weights.dtype.kind != "f":
        raise ValueError(f"{source} is {weights.dtype}; expected floating point")
    is_shape = weights.ndim == 4 and (weights.shape[0], weights.shape[3]) == shape
    if not is_shape or weights.shape[1] == 0 or not 0 < weights.shape[2] <= T:
        raise ValueError(
            f"{source} has shape {weights.shape}; expected ({B}, heads, queries, {T}), "
            f"as segment_ids is ({B}, {T}), with at most {T} queries"
        )
    is_probability = (weights >= 0) & (weights <= 1 + SUM_TOLERANCE)
    if not (is_probability | np.isnan(weights)).all():
        wrong = weights[~is_probability & ~np.isnan(weights)][0]
        raise ValueError(
            f"{source} holds {wrong:.6g}; expected probabilities from 0 to 1, "
            "after the softmax and without dropout"
        )
