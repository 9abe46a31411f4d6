"""The stage `model`: from token and segment ids to masks, logits, loss and gradients."""

import numpy as np

from ref import llama_numpy
from ref.golden.fast_masks import speed_up_masks
from ref.golden.plants.masks import MASKS
from ref.golden.plants.model import MODEL
from ref.golden.plants.model_loss import LOSS
from ref.golden.plants.numerics import NUMERICS
from ref.golden.plants.positions import POSITIONS
from ref.golden.plants.schedule import SCHEDULE
from ref.golden.plants.segments import SEGMENTS
from ref.golden.stages.stage import Stage

# The axes of tensors by the last part of their name.
AXES = {
    "mask": ("row", "query", "key"),
    "q": ("row", "head", "token", "dimension"),
    "k": ("row", "kv-head", "token", "dimension"),
    "v": ("row", "kv-head", "token", "dimension"),
    "scores": ("row", "head", "query", "key"),
    "probabilities": ("row", "head", "query", "key"),
    "logits": ("row", "token", "vocabulary"),
    "loss": (),
}
AXES_OF_OTHERS = ("row", "token", "dimension")


def arguments(case):
    """The arguments of `ref.llama_numpy.forward`."""
    return {
        "weights": case.weights,
        "config": case.config,
        "input_ids": case.input_ids,
        "segment_ids": case.segment_ids,
        "scheme": case.scheme,
        "position_ids": case.position_ids if case.info["positions_given"] else None,
    }


def compute(copy, case, **changed):
    """Every intermediate and the loss, by name, in the order of computation.

    `changed` replaces arguments of `forward`.
    """
    trace = {}
    copy.forward(**(arguments(case) | changed), trace=trace)
    trace["loss"] = np.asarray(copy.loss(trace["logits"], case.labels))
    return trace


def speed_up(copy, case, changed):
    """Build the masks without loops over pairs of tokens."""
    speed_up_masks(copy)


def specified(case, name, shape):
    """Where a tensor belongs to a real token or query: bool, of a shape that broadcasts to it."""
    if name.startswith("gradients.") or not axes(name):
        return np.array(True)
    row_and_token = []
    for axis, size in zip(axes(name), shape, strict=True):
        row_and_token.append(size if axis in ("row", "token", "query") else 1)
    return (case.segment_ids != -1).reshape(row_and_token)


def axes(name):
    """The axes of a tensor that is no gradient."""
    return AXES.get(name.split(".")[-1], AXES_OF_OTHERS)


def place(case, name, index):
    """An index of a tensor in words: layer and its kind, row, head, tokens with their segments."""
    if name.startswith("gradients."):
        return f"index {list(index)}"
    words = []
    if name.startswith("layers."):
        layer = name.split(".")[1]
        L = case.config["num_hidden_layers"]
        words.append(f"layer {layer} ({llama_numpy.layer_kind(int(layer), L, case.scheme)})")
    for axis, i in zip(axes(name), index, strict=True):
        if axis in ("token", "query", "key"):
            row = index[0]
            token = case.rows[row]["tokens"][i]
            words.append(f"{axis} {i} {token!r} (segment {case.segment_ids[row, i]})")
        else:
            words.append(f"{axis} {i}")
    return ", ".join(words) or "the whole batch"


STAGE = Stage(
    name="model",
    definition=llama_numpy,
    compute=compute,
    plants=MASKS | SCHEDULE | SEGMENTS | POSITIONS | NUMERICS | MODEL | LOSS,
    decisive=("logits", "loss"),
    specified=specified,
    speed_up=speed_up,
    place=place,
)
