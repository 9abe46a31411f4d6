"""Bugs of the schedule: which of the three masks a layer carries.

i is the layer's index, L the number of layers; intra and cross are the scheme's two counts.
"""

from types import SimpleNamespace

from ref import llama_numpy as definition
from ref.golden.plants.edits import replaced


def schedule(kind_of_layer):
    """Give layer i the kind kind_of_layer(i, L, intra, cross): "IN", "OR" or "CR"."""

    def layer_kind(i, L, scheme):
        return kind_of_layer(i, L, scheme.intra_layers, scheme.cross_layers)

    return replaced(layer_kind=layer_kind)


def kind(i, L, intra, cross):
    """The right kind of layer i."""
    return definition.layer_kind(i, L, SimpleNamespace(intra_layers=intra, cross_layers=cross))


def kinds_exchanged(i, L, intra, cross):
    return {"IN": "CR", "CR": "IN", "OR": "OR"}[kind(i, L, intra, cross)]


def cross_right_after_intra(i, L, intra, cross):
    if i < intra:
        return "IN"
    if i < intra + cross:
        return "CR"
    return "OR"


def all_cross_for_zero(i, L, intra, cross):
    """layers[-0:] are all layers."""
    return kind(i, L, intra, cross) if cross else "CR"


def one_layer_of_each(i, L, intra, cross):
    return kind(i, L, min(intra, 1), min(cross, 1))


# fmt: off
SCHEDULE = {
    "schedule-reversed": schedule(lambda i, L, intra, cross: kind(L - 1 - i, L, intra, cross)),
    "kinds-exchanged": schedule(kinds_exchanged),
    "counts-exchanged": schedule(lambda i, L, intra, cross: kind(i, L, cross, intra)),
    "intra-one-more": schedule(lambda i, L, intra, cross: kind(i, L, intra + 1, cross)),
    "intra-one-fewer": schedule(lambda i, L, intra, cross: kind(i, L, intra - 1, cross)),
    "cross-one-more": schedule(lambda i, L, intra, cross: kind(i, L, intra, cross + 1)),
    "cross-one-fewer": schedule(lambda i, L, intra, cross: kind(i, L, intra, cross - 1)),
    "layers-counted-from-one": schedule(lambda i, L, intra, cross: kind(i + 1, L, intra, cross)),
    "layers-counted-from-minus-one": schedule(
        lambda i, L, intra, cross: kind(i - 1, L, intra, cross)
    ),
    "mask-of-first-layer": schedule(lambda i, L, intra, cross: kind(0, L, intra, cross)),
    "mask-of-last-layer": schedule(lambda i, L, intra, cross: kind(L - 1, L, intra, cross)),
    "kinds-in-turn": schedule(lambda i, L, intra, cross: ("IN", "OR", "CR")[i % 3]),
    "kinds-by-thirds": schedule(lambda i, L, intra, cross: kind(i, L, L // 3, L // 3)),
    "cross-right-after-intra": schedule(cross_right_after_intra),
    "cross-zero-is-all": schedule(all_cross_for_zero),
    "cross-count-read-as-index": schedule(lambda i, L, intra, cross: kind(i, L, intra, L - cross)),
    "middle-is-intra": schedule(lambda i, L, intra, cross: kind(i, L, L - cross, cross)),
    "middle-is-cross": schedule(lambda i, L, intra, cross: kind(i, L, intra, L - intra)),
    "one-layer-of-each": schedule(one_layer_of_each),
}
# fmt: on
