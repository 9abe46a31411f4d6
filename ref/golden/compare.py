"""How far the tensors of an implementation are from the expected ones, and where first."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ref.golden import remarks
from ref.golden.case import Case
from ref.golden.stages import STAGES

LENGTH_OF_A_QUOTE = 20  # characters
TF32_OVER_BFLOAT16 = 1 / 8  # TF32 has three bits more: 11 against 8


class Deviation(NamedTuple):
    """The largest difference over the largest expected value, and the index where it is."""

    relative: float
    index: tuple | None  # None where nothing differs, or the shape does


@dataclass
class FirstDeviation:
    """The first tensor, in the order of computation, that deviates by more than its tolerance.

    The values are those at the place of the largest difference, which `where` gives in words.
    """

    tensor: str
    found: float
    expected: float
    deviation: float
    tolerance: float
    precision: str
    where: str
    has_wrong_shape: bool
    begins: str  # the first place beyond the tolerance, where that is another one; else ""

    def __str__(self):
        if self.has_wrong_shape:
            return f"{self.tensor} has the {self.where}"
        if np.isnan(self.found):
            difference = f"{self.tensor} holds NaN, expected {self.expected:.6g}"
        elif np.isinf(self.deviation):
            difference = f"{self.tensor} holds {self.found:.10g}, expected {self.expected:.10g}"
        else:
            difference = (
                f"{self.tensor} deviates by {self.deviation:.2g} (tolerance {self.tolerance:.2g}, "
                f"{self.precision}): {self.found:.6g}, expected {self.expected:.6g}"
            )
        begins = f"\n      the first place that is wrong: {self.begins}" if self.begins else ""
        return f"{difference}\n      at {self.where}{begins}"


@dataclass
class Comparison:
    """A case beside what an implementation computed for it."""

    case: Case
    computed: dict = field(default_factory=dict)  # name -> Computed
    in_tolerances: dict = field(default_factory=dict)  # the deviation of each compared tensor
    unknown: list = field(default_factory=list)  # names that the case does not have
    # names of scores that are finite where -inf is expected, and the largest of them there
    softly_masked: dict = field(default_factory=dict)
    first: FirstDeviation | None = None  # None where every tensor is right
    remarks: list = field(default_factory=list)  # sentences
    problem: str | None = None  # why nothing could be compared

    @property
    def compared(self):
        """The names of the compared tensors, in the order of computation."""
        return list(self.in_tolerances)

    @property
    def largest(self):
        """The largest deviation of a tensor, in tolerances."""
        return max(self.in_tolerances.values(), default=np.inf)

    @property
    def largest_evidence(self):
        """The largest deviation of a tensor from which a bug is told, in tolerances."""
        return max((self.in_tolerances[name] for name in self.evidence), default=np.inf)

    @property
    def is_right(self):
        """Whether every compared tensor is within its tolerance."""
        return self.first is None and self.problem is None

    @property
    def deviating(self):
        """The names of the tensors that deviate by more than their tolerance."""
        return [name for name, deviation in self.in_tolerances.items() if not deviation <= 1]

    def relative(self, name):
        """The deviation of a tensor over its largest expected value."""
        return self.in_tolerances[name] * tolerance(self.case, self.computed[name].precision)

    @property
    def evidence(self):
        """The names of the compared tensors from which a bug is told.

        They are the decisive outputs of the stage. The others may differ between two ways of doing
        the same, and are taken only where nothing else was given.
        """
        decisive = [name for name in STAGES[self.case.stage].decisive if name in self.in_tolerances]
        return decisive or [
            name for name in self.in_tolerances if not name.startswith("gradients.")
        ]

    @property
    def evidence_is_right(self):
        """Whether all that a bug is told from is within its tolerance."""
        return self.problem is None and not set(self.evidence) & set(self.deviating)


def tolerance(case, precision):
    """How much a tensor of some precision may deviate in a case."""
    tolerances = case.info["tolerances"]
    if precision == "tf32":
        return tolerances["bfloat16"] * TF32_OVER_BFLOAT16
    return tolerances[precision]


def deviation(case, name, values, expected):
    """How far the values of tensor `name` are from the expected ones, where these are specified.

    Whole numbers and truth values must be equal. Returns a Deviation, infinite where they are not,
    where only one of two values is finite, where a shape differs, and where a NaN stands, be it
    where any number will do. A single number fits in any shape.
    """
    differences = relative_differences(case, name, values, expected)
    if differences is None:
        return Deviation(np.inf, None)
    if not differences.any():
        return Deviation(0.0, None)
    index = np.unravel_index(differences.argmax(), differences.shape)
    return Deviation(float(differences[index]), tuple(map(int, index)))


def relative_differences(case, name, values, expected):
    """How far each value is, over the largest expected one, as in `deviation`.

    0 where any number will do; None for a wrong shape.
    """
    values = np.asarray(values)
    expected = np.asarray(expected)
    if values.size == expected.size == 1:
        values = values.reshape(expected.shape)
    if values.shape != expected.shape:
        return None
    is_exact = expected.dtype.kind in "biu"
    values = values.astype(float)
    expected = expected.astype(float)
    differs = values != expected
    differs &= STAGES[case.stage].specified(case, name, values.shape) | np.isnan(values)
    if not differs.any():
        return np.zeros(differs.shape)
    with np.errstate(invalid="ignore"):  # inf - inf
        difference = np.abs(values - expected)
    both_finite = np.isfinite(values) & np.isfinite(expected)
    difference = np.where(both_finite, difference, np.inf)
    if is_exact:
        difference = np.where(differs, np.inf, 0.0)
    largest_expected = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
    return np.where(differs, difference, 0.0) / (largest_expected or 1.0)


def examine(case, computed):
    """Compare all tensors (name -> Computed) that the case has: a Comparison.

    Raises ValueError where nothing can be compared.
    """
    compared = [name for name in case.outputs if name in computed]
    if not compared:
        raise ValueError(
            f"found {', '.join(sorted(computed)) or 'no tensor'}; "
            f"expected at least one of {', '.join(case.outputs)}"
        )
    comparison = Comparison(case, computed, unknown=sorted(set(computed) - set(compared)))
    for name in compared:
        examine_tensor(comparison, name)
    comparison.remarks = remarks.on_case(comparison)
    return comparison


def examine_tensor(comparison, name):
    """Add the deviation of a tensor to a comparison."""
    case = comparison.case
    values, precision = comparison.computed[name]
    expected = case.tensors[name]
    if is_masked_softly(case, name, values) and shows_masks(comparison, name):
        comparison.softly_masked[name] = values[masked_places(case, name)].max()
        values = np.where(masked_places(case, name), expected, values)
    relative, index = deviation(case, name, values, expected)
    allowed = tolerance(case, precision)
    comparison.in_tolerances[name] = relative / allowed
    if relative <= allowed or comparison.first is not None:
        return
    comparison.first = FirstDeviation(
        tensor=name,
        found=number_at(values, index),
        expected=number_at(expected, index),
        deviation=relative,
        tolerance=allowed,
        precision=precision,
        where=where(case, name, values, index),
        has_wrong_shape=index is None,
        begins=first_place(case, name, values, expected, allowed, index),
    )


def first_place(case, name, values, expected, allowed, worst_index):
    """The first place of a tensor that deviates by more than allowed, in words.

    "" where that is the one at `worst_index`, and for a wrong shape.
    """
    differences = relative_differences(case, name, values, expected)
    if differences is None or differences.ndim == 0:
        return ""
    index = tuple(int(i) for i in np.argwhere(differences > allowed)[0])
    return "" if index == worst_index else STAGES[case.stage].place(case, name, index)


def is_masked_softly(case, name, values):
    """Whether scores of attention are finite wherever -inf is expected."""
    expected = case.tensors[name]
    if not name.endswith(".scores") or values.shape != expected.shape:
        return False
    is_masked = masked_places(case, name)
    return bool(is_masked.any() and np.isfinite(values[is_masked]).all())


def masked_places(case, name):
    """Where -inf is expected, padding queries aside, for which any number will do."""
    expected = case.tensors[name]
    return np.isneginf(expected) & STAGES[case.stage].specified(case, name, expected.shape)


def shows_masks(comparison, name):
    """Whether a compared tensor that follows from the scores `name` shows if they are masked."""
    later = (name.replace("scores", "probabilities"), *STAGES[comparison.case.stage].decisive)
    return any(other in comparison.computed for other in later if other in comparison.case.outputs)


def number_at(values, index):
    """A number of a tensor; NaN where the shape is wrong, so that there is no index."""
    if index is None:
        return np.nan
    return float(np.asarray(values).reshape(-1)[0] if index == () else values[index])


def where(case, name, values, index):
    """The place of a deviation in words, or what is wrong with the shape."""
    expected = case.outputs[name]
    words = ""
    if index is None:
        words = f"shape {values.shape}, expected {expected.shape}"
        if values.ndim != 1 or expected.ndim != 1:
            return words
        words += "; they part at "
        index = (first_difference(values, expected),)
        if index == expected.shape:
            return words + "the end of what is expected"
    words += STAGES[case.stage].place(case, name, index)
    if expected.dtype == np.uint8:
        quotes = [text_of(text[index[0] :])[:LENGTH_OF_A_QUOTE] for text in (values, expected)]
        words += f": {quotes[0]!r}, expected {quotes[1]!r}"
    return words


def first_difference(values, expected):
    """The first place where two lists differ, the end of the shorter one at most."""
    common = min(len(values), len(expected))
    differs = values[:common] != expected[:common]
    return int(differs.argmax()) if differs.any() else common


def text_of(values):
    """The text whose bytes in UTF-8 a tensor holds."""
    with np.errstate(invalid="ignore"):  # NaN becomes any byte
        return np.asarray(values).astype(np.uint8).tobytes().decode("utf-8", errors="replace")
