"""Which known bugs explain given numbers: those that make the same numbers.

A bug is said to be there only if it makes all compared numbers of all compared cases, and moves
some of them. Where no bug does, one is looked for that does in the cases of one value of an option,
if only such cases fail, or in those without NaN. Then two at once are tried. Where no two do, a bug
is only called near, if in most failing cases it moves the numbers to about where they are.
"""

import time
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from ref.golden import case as cases
from ref.golden import remarks, remarks_on_cases
from ref.golden.compare import deviation, tolerance
from ref.golden.planted import DETECTED, outputs_with
from ref.golden.remarks_on_cases import has_nan
from ref.golden.stages import STAGES

# A bug explains a deviation if it leaves at most this share of it.
LEFT_OVER = 0.5
# A bug is near if it leaves at most this share in so many of the failing cases; so many are told.
# (With a half in place of a third, logits that are doubled would be near a bug of the norm.)
NEAR_LEFT_OVER, NEAR, NUM_NEAREST = 1 / 3, 0.6, 3
SECONDS_FOR_PAIRS = 20
MOST_CASES = 8  # so many failing cases say which bugs may be near, and which pairs are tried first
OPTIONS = ("text", "cross_self", "delimiters", "target")  # of the scheme; ports branch on them
SHARP = ("float64", "float32")  # in other precisions too many pairs of bugs come close


@dataclass
class Diagnosis:
    """What explains the results of a stage; bugs are ids, best first.

    equal: (bug, misfit in tolerances) of the bugs that make the same in every case.
    among: which cases these explain, where not all; else "".
    pairs: ((bug, bug), misfit) of two at once that do, where none does alone.
    tried: how many pairs were tried, and of how many.
    nearest: (bug, share of failing cases where it comes near, names of those where it makes the
        same), where none fits.
    is_told: whether remarks on the cases tell all: right in another shape, order of axes or
        convention of masks.
    remarks: sentences on what deviates without being a known bug.
    next_case: (name, those of the equal bugs or pairs that show there), where it would tell more.
    """

    stage: str
    equal: list = field(default_factory=list)
    among: str = ""
    pairs: list = field(default_factory=list)
    tried: tuple = (0, 0)
    nearest: list = field(default_factory=list)
    is_told: bool = False
    remarks: list = field(default_factory=list)
    next_case: tuple | None = None
    failing: list = field(default_factory=list)  # names of cases where something decisive deviates

    @property
    def is_unknown(self):
        """Whether something decisive deviates that no known bug makes and no remark explains."""
        return bool(self.failing) and not (self.equal or self.pairs or self.is_told)


class Suspects:
    """The results of one stage, and what its known bugs compute there: once, then remembered."""

    def __init__(self, comparisons):
        # A failing case, and a short one, refutes a bug with the least work.
        self.comparisons = sorted(
            comparisons, key=lambda c: (c.evidence_is_right, size_of(c.case), c.case.name)
        )
        self.failing = [c for c in self.comparisons if not c.evidence_is_right]
        self.passing = [c for c in self.comparisons if c.evidence_is_right]
        self.stage = STAGES[comparisons[0].case.stage]
        self.outputs = {}

    def restricted_to(self, comparisons):
        """The Suspects of some of these results; what is computed already stays so."""
        suspects = Suspects(comparisons)
        suspects.outputs = self.outputs
        return suspects

    def made_by(self, bugs, comparison):
        """What the bugs make of the tensors from which a bug is told, by name."""
        key = (bugs, comparison.case.name)
        if key not in self.outputs:
            outputs = outputs_with(bugs, comparison.case)
            self.outputs[key] = {name: outputs[name] for name in comparison.evidence}
        return self.outputs[key]

    def misfit(self, bugs, comparison):
        """How far what was computed is from what the bugs make, in tolerances."""
        largest = 0.0
        outputs = self.made_by(bugs, comparison)
        for name in comparison.evidence:
            values, precision = comparison.computed[name]
            others = in_precision(outputs[name], precision)
            relative = deviation(comparison.case, name, values, others).relative
            largest = max(largest, relative / tolerance(comparison.case, precision))
        return largest

    def explains(self, bugs, comparison):
        """Whether the bugs make what a failing case shows, and right numbers do so much worse."""
        return self.misfit(bugs, comparison) <= min(1, LEFT_OVER * comparison.largest_evidence)

    def worst_misfit(self, bugs):
        """The largest misfit in all cases, inf if the bugs do not make what each of them shows."""
        for comparison in self.failing:
            if not self.explains(bugs, comparison):
                return np.inf
        worst = 0.0
        for comparison in self.comparisons:
            worst = max(worst, self.misfit(bugs, comparison))
            if worst > 1:
                return np.inf
        return worst

    def possible(self):
        """The bugs that no passing case refutes."""
        return [bug for bug in self.stage.plants if not self.is_refuted(bug)]

    def is_refuted(self, bug):
        """Whether a case passes in which the bug would have shown in what was given."""
        return any(
            bug in comparison.case.info["catches"] and self.misfit((bug,), comparison) > 1
            for comparison in self.passing
        )

    def comes_near(self, bug, comparison):
        """Whether the numbers are much nearer to those of the bug than to the right ones."""
        if np.isinf(comparison.largest_evidence):  # whole numbers, or -inf: equal or not
            return self.explains((bug,), comparison)
        return self.misfit((bug,), comparison) <= NEAR_LEFT_OVER * comparison.largest_evidence


def in_precision(values, precision):
    """The values as float32 holds them, where that is the precision: too large ones become inf."""
    if precision != "float32" or np.asarray(values).dtype != np.float64:
        return values
    with np.errstate(over="ignore"):
        return np.asarray(values, dtype=np.float32)


def size_of(case):
    """How many numbers a case holds."""
    return sum(tensor.size for tensor in case.tensors.values())


def diagnose_stages(comparisons, seconds=None):
    """A Diagnosis of each stage in which a case fails, in the order of the stages.

    Where the stage `model` is wrong, later stages are diagnosed from their cases without a model.
    """
    diagnoses = []
    model_is_wrong = False
    for stage in STAGES:
        of_stage = [c for c in comparisons if c.case.stage == stage and c.problem is None]
        if all(comparison.is_right for comparison in of_stage):
            continue
        if model_is_wrong:
            diagnoses.append(diagnose_without_model(stage, of_stage, seconds))
            continue
        diagnoses.append(diagnose(of_stage, seconds))
        if stage == "model":
            model_is_wrong = not all(c.evidence_is_right for c in of_stage)
    return diagnoses


def diagnose_without_model(stage, comparisons, seconds):
    """The Diagnosis of a later stage, from those of its cases that hold no model."""
    others = [comparison for comparison in comparisons if comparison.case.config is None]
    diagnosis = Diagnosis(stage)
    if not all(comparison.is_right for comparison in others):
        diagnosis = diagnose(others, seconds)
        # what is left out may say otherwise
        diagnosis.next_case, diagnosis.remarks = None, []
    left_out = len(comparisons) - len(others)
    if left_out:
        remark = f"{left_out} cases with a model are left out: get the stage model right first"
        diagnosis.remarks.append(remark)
    return diagnosis


def diagnose(comparisons, seconds=None):
    """The known bugs that explain a list of Comparison of one stage, some not right: a Diagnosis.

    `seconds` bounds the time for pairs of bugs, by default to SECONDS_FOR_PAIRS.
    """
    suspects = Suspects(comparisons)
    failing = [comparison.case.name for comparison in suspects.failing]
    diagnosis = Diagnosis(suspects.stage.name, failing=failing)
    if not suspects.failing:
        diagnosis.remarks += remarks_on_cases.only_intermediates(comparisons)
        return diagnosis
    find_bugs(suspects, diagnosis, SECONDS_FOR_PAIRS if seconds is None else seconds)
    if diagnosis.is_unknown:
        diagnosis.remarks += remarks_on_cases.rounding(suspects.comparisons)
        diagnosis.remarks += remarks_on_cases.without_place(suspects.failing)
        diagnosis.remarks += remarks_on_cases.not_a_number(suspects.failing)
        diagnosis.remarks += remarks_on_cases.common_beginning(suspects.failing)
        diagnosis.remarks += remarks_on_cases.of_failing(suspects.failing, suspects.passing)
    return diagnosis


def find_bugs(suspects, diagnosis, seconds):
    """Fill a diagnosis with one bug that explains all, or else with two, or with those near."""
    possible = suspects.possible()
    diagnosis.equal = explaining(suspects, possible)
    if not diagnosis.equal:
        diagnosis.is_told = all(is_another_convention(c) for c in suspects.failing)
    if diagnosis.is_unknown:
        find_in_branch(suspects, diagnosis)
    if diagnosis.is_unknown:
        find_beside_nan(suspects, diagnosis)
    if diagnosis.is_unknown:
        find_pairs(suspects, possible, diagnosis, seconds)
    if diagnosis.is_unknown:
        diagnosis.nearest = nearest_bugs(suspects, possible)
    diagnosis.next_case = case_to_run_next(suspects, diagnosis)


def explaining(suspects, possible):
    """(bug, misfit in tolerances) of the bugs that explain all cases, best first."""
    equal = []
    for bug in possible:
        misfit = suspects.worst_misfit((bug,))
        if np.isfinite(misfit):
            equal.append((bug, misfit))
    return sorted(equal, key=lambda pair: pair[1])


def find_in_branch(suspects, diagnosis):
    """Fill in the bugs that explain all cases of the one value of an option that all failing have.

    So it is where a port has a branch of code for each value, with a mistake in one of them.
    """
    for option in OPTIONS:
        values = {value_of(option, comparison) for comparison in suspects.failing}
        of_value = [c for c in suspects.comparisons if value_of(option, c) in values]
        in_one_branch = len(values) == 1 and None not in values
        if not in_one_branch or len(of_value) == len(suspects.comparisons):
            continue
        branch = suspects.restricted_to(of_value)
        diagnosis.equal = explaining(branch, branch.possible())
        if diagnosis.equal:
            diagnosis.among = f"where {option} = {values.pop()}; look at that branch of your code"
            return


def find_beside_nan(suspects, diagnosis):
    """Fill in the bugs that explain the cases without NaN and would show in those with it."""
    with_nan = [c for c in suspects.failing if has_nan(c)]
    if not with_nan or len(with_nan) == len(suspects.failing):
        return
    without = suspects.restricted_to([c for c in suspects.comparisons if not has_nan(c)])
    for bug, misfit in explaining(without, without.possible()):
        if all(bug in comparison.case.info["catches"] for comparison in with_nan):
            diagnosis.equal.append((bug, misfit))
    if diagnosis.equal:
        diagnosis.among = f"without NaN; {len(with_nan)} cases have some"


def value_of(option, comparison):
    """The value of an option in the scheme of a case; None where it has none."""
    return (comparison.case.info.get("scheme") or {}).get(option)


def is_another_convention(comparison):
    """Whether all decisive numbers are right in another form: see `remarks.on_convention`.

    The first tensor that deviates has to be so, too: it is the one on which a remark is printed.
    """
    decisive = set(comparison.evidence) & set(comparison.deviating)
    for name in decisive | {comparison.first.tensor}:
        if not remarks.on_convention(comparison, name):
            return False
    return True


def find_pairs(suspects, possible, diagnosis, seconds):
    """Fill in the pairs of bugs that explain all, as far as the time suffices.

    None are tried where there is NaN, which equals nothing, or a wrong shape of real numbers, which
    no bug makes, nor in a precision that is not SHARP.
    """
    if not all(can_tell_pairs(comparison) for comparison in suspects.failing):
        return
    pairs = promising_pairs(suspects, possible)
    end = time.process_time() + seconds  # of work: the machine may be busy with something else
    num_tried = 0
    for pair in pairs:
        if time.process_time() > end:
            break
        num_tried += 1
        misfit = misfit_of_pair(suspects, pair)
        if np.isfinite(misfit):
            diagnosis.pairs.append((pair, misfit))
    diagnosis.pairs.sort(key=lambda found: found[1])
    diagnosis.tried = (num_tried, len(pairs))


def misfit_of_pair(suspects, pair):
    """The largest misfit in all cases; inf where one plant fails on what the other makes."""
    try:
        return suspects.worst_misfit(pair)
    except Exception:  # plants are written to stand alone
        return np.inf


def can_tell_pairs(comparison):
    """Whether numbers are exact enough to tell two bugs at once, of the right shape, and no NaN."""
    for name in comparison.evidence:
        values, precision = comparison.computed[name]
        if precision not in SHARP or np.isnan(values).any():
            return False
        expected = comparison.case.tensors[name]
        fits = values.shape == expected.shape or values.size == expected.size == 1
        if expected.dtype.kind == "f" and not fits:  # of whole numbers bugs make more or fewer
            return False
    return True


def promising_pairs(suspects, possible):
    """Pairs of bugs that together show in all failing cases that deviate much, best first.

    A pair is the better, the more failing cases one of its bugs explains alone.
    """
    smallest = suspects.failing[:MOST_CASES]
    num_explained = {}
    for bug in possible:
        num_explained[bug] = sum(suspects.explains((bug,), c) for c in smallest)
    catches_of_clear_cases = []
    for comparison in suspects.failing:
        if in_float32_tolerances(comparison) >= 2 * DETECTED:
            catches_of_clear_cases.append(set(comparison.case.info["catches"]))
    pairs = []
    for first, second in combinations(possible, 2):
        if all(first in catches or second in catches for catches in catches_of_clear_cases):
            pairs.append((first, second))
    return sorted(pairs, key=lambda pair: -max(num_explained[bug] for bug in pair))


def in_float32_tolerances(comparison):
    """The largest deviation from which a bug is told, in the case's float32 tolerances."""
    largest = max(comparison.relative(name) for name in comparison.evidence)
    return largest / tolerance(comparison.case, "float32")


def nearest_bugs(suspects, possible):
    """(bug, share, failing cases explained) of the bugs that come near, best first.

    The share is that of the failing cases where the bug comes near. Most bugs are ruled out by some
    of the cases.
    """
    sample = spread(suspects.failing)
    near = []
    for bug in possible:
        if share_near(suspects, bug, sample) < NEAR:
            continue
        share = share_near(suspects, bug, suspects.failing)
        if share >= NEAR:
            near.append((bug, share))
    near.sort(key=lambda bug: -bug[1])
    return [(bug, share, explained_cases(suspects, bug)) for bug, share in near[:NUM_NEAREST]]


def share_near(suspects, bug, comparisons):
    """The share of some failing cases where a bug comes near."""
    return float(np.mean([suspects.comes_near(bug, comparison) for comparison in comparisons]))


def explained_cases(suspects, bug):
    """The names of the failing cases of which a bug makes the numbers."""
    explained = [c for c in suspects.failing if suspects.explains((bug,), c)]
    return [comparison.case.name for comparison in explained]


def spread(comparisons):
    """At most MOST_CASES of a list that begins with the smallest: small and, of many, larger ones.

    The smallest alone are unlike the others (most have no text); the largest quarter, which would
    take long, is left out.
    """
    end = max(MOST_CASES, len(comparisons) * 3 // 4)
    comparisons = comparisons[:end]
    if len(comparisons) <= MOST_CASES:
        return comparisons
    places = np.linspace(0, len(comparisons) - 1, MOST_CASES).astype(int)
    return [comparisons[place] for place in places]


def case_to_run_next(suspects, diagnosis):
    """(name, bugs that show there) of the case that splits the bugs that fit best; None if none.

    With a single bug that one case shows, it is the case that catches it and the fewest others.
    """
    if diagnosis.among:
        return None
    candidates = [bug for bug, _ in diagnosis.equal]
    candidates += sorted({bug for pair, _ in diagnosis.pairs for bug in pair})
    if not candidates or (len(candidates) == 1 and len(suspects.comparisons) > 1):
        return None
    compared = {comparison.case.name for comparison in suspects.comparisons}
    best, least = None, np.inf
    for info in cases.infos():
        showing = [bug for bug in candidates if bug in info["catches"]]
        if info["stage"] != suspects.stage.name or info["name"] in compared or not showing:
            continue
        if len(candidates) > 1 and len(showing) == len(candidates):
            continue
        distance = abs(len(showing) - len(candidates) / 2) + len(info["catches"]) / 1e4
        if distance < least:
            best, least = (info["name"], showing), distance
    return best
