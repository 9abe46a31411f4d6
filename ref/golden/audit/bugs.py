"""The known bugs that give weight to the same pairs as a dump.

Shapes: B batch, H heads, Q queries, T tokens.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from ref import llama_numpy as definition
from ref.golden.audit.dump import SUM_TOLERANCE
from ref.golden.audit.findings import contradicts, softness
from ref.golden.copies import are_unchanged, copy_of
from ref.golden.fast_masks import speed_up_masks
from ref.golden.plants.masks import MASKS
from ref.golden.plants.positions import POSITIONS
from ref.golden.plants.schedule import SCHEDULE
from ref.golden.plants.segments import SEGMENTS_FROM_IDS

SAME_SOFTNESS = 7.0  # as a difference of natural logarithms
# Where several have the same pattern, the first is told first: a mask that a library dropped.
BUGS = (
    {"mask-never-applied": MASKS["mask-never-applied"]}
    | MASKS
    | SCHEDULE
    | SEGMENTS_FROM_IDS
    | {"causal-by-position": POSITIONS["causal-by-position"]}
)


@dataclass
class Fit:
    """How a known bug fits a dump that does not contradict it."""

    num_extra: int = 0  # pairs that the bug allows and the dump does not show
    in_each_head: bool = True  # whether every head alone agrees, too


def bugs_with_pattern(layers, case):
    """The known bugs of masks, schedule and segments that give weight to the same pairs.

    layers: a list of Layer. Where zeros are unknown, several bugs fit: those come first that allow
    the fewest of these pairs. A bug has to fit in each head alone, too. Bugs of decoding
    are not tried, for they need the length of the prompt: a step without its mask has the pattern
    of a model without masks.
    """
    heads = case.config["num_attention_heads"]
    fits = {}
    for bug, plant in BUGS.items():
        fit = fit_of(weights_with(plant, case, heads), layers)
        if fit is not None:
            fits[bug] = fit
    ordered = sorted(fits, key=lambda bug: fits[bug].num_extra)
    return [bug for bug in ordered if fits[bug].in_each_head]


def case_of(dump, scheme, L):
    """What plants need to know of a golden case, as far as a dump tells it."""
    B, T = dump.segment_ids.shape
    return SimpleNamespace(
        segment_ids=dump.segment_ids,
        position_ids=definition.count_positions(dump.segment_ids),
        scheme=scheme,
        config={
            "num_hidden_layers": L,
            "num_attention_heads": next(iter(dump.weights.values())).shape[1],
        },
        rows=[{"roles": ["unknown"] * T}] * B,
    )


def weights_with(plant, case, heads):
    """The weights that a model with a bug gives if all scores are equal: i -> (B, H or 1, T, T).

    i is the index of a layer.
    """
    copy = copy_of(definition)
    changed = plant(copy, case)
    speed_up_masks(copy)
    segment_ids = changed.get("segment_ids", case.segment_ids)
    masks = copy.layer_masks(segment_ids, case.config["num_hidden_layers"], case.scheme)
    if are_unchanged(copy, definition, ["masked_softmax"]):
        heads = 1  # all heads are alike
    computed = {}  # by mask: most layers share theirs with others

    def weights_of_layer(i):
        mask = masks[i]
        if mask.tobytes() not in computed:
            scores = np.zeros((len(mask), heads, *mask.shape[1:]))
            with np.errstate(all="ignore"):  # some bugs make NaN
                computed[mask.tobytes()] = copy.masked_softmax(scores, mask)[1]
        return computed[mask.tobytes()]

    return weights_of_layer


def fit_of(weights_of_layer, layers):
    """The Fit of a bug with these weights to all layers; None where a layer contradicts it."""
    fit = Fit()
    for layer in layers:
        evidence = layer.evidence
        Q = evidence.allowed.shape[2]
        weights = weights_of_layer(layer.finding.layer)[:, :, -Q:]  # (B, H or 1, Q, T)
        is_off = np.abs(weights.sum(axis=-1) - 1) > SUM_TOLERANCE  # (B, H or 1, Q)
        allowed, forbidden = evidence.over_heads  # (B, 1, Q, T)
        mask = (weights > 0).any(axis=1, keepdims=True)
        is_other = contradicts(allowed, forbidden, mask) or (evidence.is_off & ~is_off).any()
        if is_other or not is_as_soft(weights, layer):
            return None
        is_known = (allowed | forbidden).any(axis=-1, keepdims=True)  # (B, 1, Q, 1): not padding
        fit.num_extra += int((mask & is_known & ~allowed & ~forbidden).sum())
        fit.in_each_head &= not contradicts(evidence.allowed, evidence.forbidden, weights > 0)
    return fit


def is_as_soft(weights, layer):
    """Whether a bug's weights where none may lie are about as small as the layer's.

    True too where the layer's weights scatter so much that this says nothing.
    """
    finding = layer.finding
    if 2 * finding.scatter > SAME_SOFTNESS:
        return True
    difference = softness(weights, weights > 0, layer.mask)[0] - finding.softness
    return abs(difference) < SAME_SOFTNESS
