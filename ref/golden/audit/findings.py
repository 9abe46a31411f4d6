"""What the weights of a layer say of its mask, and what deviates from the scheme.

For each pair of a query and a key, a weight is

    more than 0 in any head                      the mask allows the pair
    0 in every head, one of which is soft there  the mask forbids it
    0 otherwise                                  unknown: it may be a small number, rounded to 0

A head is soft at a query that has two or more keys with weight, if the head is far from rounding:
of at least NUM_SOFT weights beside the largest of their rows, none is in the lower half of the
exponents that the data type has. Small weights are the rarer, the smaller they are; so were there
weights below the smallest number, there would be some in the lower half. Queries at padding are
free.

Shapes: B batch, H heads, Q queries, T tokens.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ref import llama_numpy as definition
from ref.golden.audit.dump import SUM_TOLERANCE, Place, place
from ref.golden.computed import BFLOAT16_BITS, has_zero_bits

# Where the lower half of the exponents ends, at the root of the smallest number: that is 6e-8 in
# float16, and 1e-38 in float32 and bfloat16 (smaller ones exist, but many kernels make them 0).
LOWER_HALF_OF_FLOAT16, LOWER_HALF = 2.4e-4, 1e-19
NUM_SOFT = 10


@dataclass(frozen=True)
class Evidence:
    """What the weights of a layer say, at real queries; where a row has NaN, nothing."""

    allowed: np.ndarray  # bool (B, H, Q, T): the head gives weight
    forbidden: np.ndarray  # bool (B, H, Q, T): the head gives none, and is soft there
    sums: np.ndarray  # (B, H, Q), 1 where nothing is known

    @cached_property
    def over_heads(self):
        """The same for the mask that all heads share: allowed and forbidden, (B, 1, Q, T)."""
        allowed = self.allowed.any(axis=1, keepdims=True)
        return allowed, self.forbidden.any(axis=1, keepdims=True) & ~allowed

    @cached_property
    def is_off(self):
        """Which rows do not sum to 1: bool (B, H, Q)."""
        return np.abs(self.sums - 1) > SUM_TOLERANCE


@dataclass
class Finding:
    """A layer beside the scheme."""

    layer: int
    scheme_kind: str  # what the scheme says: "IN", "OR" or "CR"
    kinds: list  # those of the three that the weights can come from
    share: float = 0.0  # of all weight, what lies where none may
    largest: float = 0.0  # such a weight
    largest_at: Place | None = None
    softness: float = 0.0  # see the function of this name
    scatter: float = 0.0  # its standard deviation from weight to weight
    of_heads: dict = field(default_factory=dict)  # kind -> its heads, where they are not all alike
    missing: int = 0  # pairs of query and key that are forbidden where weight may lie
    missing_at: Place | None = None
    unknown: int = 0  # pairs that are 0 in every head where weight may lie, maybe by rounding
    rows_off: int = 0  # rows that do not sum to 1
    worst_sum: float = 1.0
    nan: int = 0  # NaN at real queries
    nan_at_padding: int = 0

    @property
    def is_right(self):
        """Whether the layer can be what the scheme says."""
        is_number = self.nan == 0 and self.nan_at_padding == 0
        return is_number and not self.is_other_mask

    @property
    def is_untold(self):
        """Whether it can be another kind, too: then the prompt is one where the kinds are alike."""
        return self.is_right and len(self.kinds) > 1

    @property
    def is_other_mask(self):
        """Whether it deviates in more than NaN, so that a known bug can have its pattern."""
        return self.scheme_kind not in self.kinds or self.rows_off > 0


@dataclass(frozen=True)
class Layer:
    """A layer of a dump: what was found, the evidence for it, and the mask that the scheme says."""

    finding: Finding
    evidence: Evidence
    mask: np.ndarray  # bool (B, 1, Q, T)


def evidence_of(weights, is_real):
    """The Evidence in a layer's weights (B, H, Q, T); is_real: bool (B, Q)."""
    is_known = is_real[:, None] & ~np.isnan(weights).any(axis=-1)  # (B, H, Q)
    is_float16 = weights.dtype == np.float16
    weights = np.where(is_known[..., None], weights, 0).astype(float)
    is_float16 |= is_of_float16(weights)
    allowed = weights > 0
    smallest = np.where(allowed, weights, 1).min(axis=(0, 2, 3))  # (H,)
    num_keys = allowed.sum(axis=-1)  # (B, H, Q)
    is_far = smallest > (LOWER_HALF_OF_FLOAT16 if is_float16 else LOWER_HALF)
    is_far &= np.maximum(num_keys - 1, 0).sum(axis=(0, 2)) >= NUM_SOFT
    is_soft = (num_keys >= 2) & is_far[:, None]  # (B, H, Q)
    sums = np.where(is_known, weights.sum(axis=-1), 1)
    return Evidence(allowed, ~allowed & is_soft[..., None], sums)


def is_of_float16(weights):
    """Whether all of the weights can be numbers of float16, and not of bfloat16 as well."""
    return np.array_equal(weights, weights.astype(np.float16)) and not has_zero_bits(
        weights, BFLOAT16_BITS
    )


def contradicts(allowed, forbidden, mask):
    """Whether a mask forbids what is allowed, or allows what is forbidden."""
    return bool((allowed & ~mask).any() or (forbidden & mask).any())


def finding_of(dump, i, evidence, masks, kind):
    """The Finding of layer i, which the scheme says is of `kind`."""
    weights, mask = dump.weights[i], masks[kind]
    allowed, forbidden = evidence.over_heads
    kinds = [name for name in definition.KINDS if not contradicts(allowed, forbidden, masks[name])]
    finding = Finding(i, kind, kinds, of_heads=kinds_of_heads(evidence, masks))
    misplaced = np.where(evidence.allowed & ~mask, weights, 0).astype(float)
    if misplaced.any():
        finding.share = float(misplaced.sum() / evidence.sums[evidence.allowed.any(-1)].sum())
        finding.largest = float(misplaced.max())
        finding.largest_at = place(dump, misplaced)
        finding.softness, finding.scatter = softness(weights, evidence.allowed, mask)
    missing = forbidden & mask
    if missing.any():
        finding.missing = int(missing.sum())
        finding.missing_at = place(dump, missing)
    is_known = (allowed | forbidden).any(axis=-1, keepdims=True)  # (B, 1, Q, 1)
    finding.unknown = int((mask & is_known & ~allowed & ~forbidden).sum())
    is_real = dump.is_real[:, None, :, None]
    is_nan = np.isnan(weights)
    finding.rows_off = int(evidence.is_off.sum())
    finding.worst_sum = float(evidence.sums.flat[np.abs(evidence.sums - 1).argmax()])
    finding.nan = int((is_nan & is_real).sum())
    finding.nan_at_padding = int((is_nan & ~is_real).sum())
    return finding


def kinds_of_heads(evidence, masks):
    """{kinds as a text: heads}, each with the kinds it can be; {} where one fits all heads."""
    common, of_heads = set(definition.KINDS), {}
    for head in range(evidence.allowed.shape[1]):
        one_head = slice(head, head + 1)
        allowed, forbidden = evidence.allowed[:, one_head], evidence.forbidden[:, one_head]
        kinds = [name for name in masks if not contradicts(allowed, forbidden, masks[name])]
        common &= set(kinds)
        of_heads.setdefault(" or ".join(kinds) or "none of the three", []).append(head)
    return {} if common else of_heads


def softness(weights, allowed, mask):
    """By how much weights where none may lie are smaller than others: a difference of mean logs.

    It is about -10 where -10 was added to masked scores, and about 0 where nothing was. The second
    number is the standard deviation of the others' logs.
    """
    outside, inside = weights[allowed & ~mask], weights[allowed & mask]
    if not outside.size or not inside.size:
        return 0.0, 0.0
    logs = np.log(inside.astype(float))
    return float(np.log(outside.astype(float)).mean() - logs.mean()), float(logs.std())
