"""What failing cases have in common, and which rounding would explain all deviations: sentences."""

from collections import Counter

import numpy as np

from ref.files import short_list
from ref.golden.compare import relative_differences, tolerance
from ref.golden.computed import BFLOAT16_BITS, FLOAT16_BITS, has_zero_bits
from ref.golden.stages import STAGES

MOST_FAIL = 0.8  # rounding moves all numbers, so at least this share of the cases fails
# At least so many failing cases, and this share of them, are wrong from the same token on.
LEAST_ALIKE, MOST_ALIKE = 4, 0.6
SLIGHT = 10  # a deviation of so many tolerances at most may be rounding, where few cases fail


def of_failing(failing, passing):
    """Which cases fail, as few sentences as possible: [] where nothing distinguishes them."""
    if not passing:
        return [f"all {len(failing)} cases fail"] if len(failing) > 1 else []
    exact, within = by_feature(failing, passing)
    return exact or by_size(failing, passing) or within


def by_feature(failing, passing):
    """What all failing cases need: sentences on what no case needs that passes, and on the rest."""
    exact, within = [], []
    for feature in common_needs(failing):
        with_feature = [c for c in passing if feature in c.case.info["needs"]]
        total = len(failing) + len(with_feature)
        if not with_feature:
            exact.append(exactly(failing, repr(feature)))
        elif len(failing) > 1:
            within.append(f"only cases with {feature!r} fail, {len(failing)} of these {total}")
    return exact, within


def exactly(failing, what):
    """That the failing cases, one or more, are those with something."""
    if len(failing) == 1:
        return f"one case fails, the only one of those compared with {what}"
    return f"exactly the {len(failing)} cases with {what} fail"


def common_needs(comparisons):
    """The features that all cases need."""
    needs = [comparison.case.info["needs"] for comparison in comparisons]
    return [feature for feature in needs[0] if all(feature in others for others in needs)]


def by_size(failing, passing):
    """Whether only the longer cases fail, or only those with more items."""
    for words, count in (("tokens", num_tokens), ("items", num_items)):
        least = min(count(comparison.case) for comparison in failing)
        most = max(count(comparison.case) for comparison in passing)
        if least > most:
            return [exactly(failing, f"more than {most} {words}")]
    return []


def num_tokens(case):
    """The length of a case's sequences, in decoding of its prompts; 0 where it has none."""
    segment_ids = segment_ids_of(case)
    return 0 if segment_ids is None else segment_ids.shape[-1]


def num_items(case):
    """The largest segment id in a case's sequences or prompts; 0 where it has none."""
    segment_ids = segment_ids_of(case)
    return 0 if segment_ids is None else int(segment_ids.max())


def segment_ids_of(case):
    """(B, T), in decoding and search those of the prompts; None in other stages."""
    return case.tensors.get("segment_ids", case.tensors.get("prompt_segment_ids"))


def common_beginning(failing):
    """That most failing cases are right up to the same token, inside an item or text: [] if not."""
    places = [place for place in map(first_wrong_token, failing) if place is not None]
    if len(places) < LEAST_ALIKE:
        return []
    number, count = Counter(number for number, _ in places).most_common(1)[0]
    num_inside = sum(is_inside for other, is_inside in places if other == number)
    # token 0 sees itself alone, so it is right under any mistake of the attention
    if number < 2 or count < MOST_ALIKE * len(places) or num_inside < count / 2:
        return []
    return [
        f"of {len(places)} cases with wrong logits of a prompt {count} are right up to token "
        f"{number}, counted from 0 without padding: does a chunk or a block begin there?"
    ]


def first_wrong_token(comparison):
    """The first wrong token of the row that is wrong earliest; None where no logits of all deviate.

    (its number among real tokens, from 0; whether the token before it has the same segment).
    """
    case = comparison.case
    for name in ("logits", "prompt_logits"):
        if name in comparison.evidence and name in comparison.deviating:
            break
    else:
        return None
    values, precision = comparison.computed[name]
    differences = relative_differences(case, name, values, case.tensors[name])
    if differences is None:
        return None
    is_wrong = (differences > tolerance(case, precision)).any(axis=-1)  # (B, T)
    places = []
    for wrong, s in zip(is_wrong, segment_ids_of(case)):
        wrong, s = wrong[s != -1], s[s != -1]
        if wrong.any():
            number = int(wrong.argmax())
            places.append((number, number > 0 and bool(s[number] == s[number - 1])))
    return min(places, default=None)


def only_intermediates(comparisons):
    """Sentences where nothing from which a bug is told deviates, but something else does."""
    told_from, deviating = set(), set()
    for comparison in comparisons:
        told_from.update(comparison.evidence)
        deviating.update(comparison.deviating)
    sentences = []
    if told_from:
        sentences.append(f"right in every case: {' and '.join(sorted(told_from))}")
    kinds = sorted({name.split(".")[-1] for name in deviating if not name.startswith("gradients.")})
    if kinds:
        sentences.append(
            f"what deviates ({', '.join(kinds)}) is another way to the same numbers, "
            "or was taken at another point"
        )
    else:
        sentences.append("what deviates are gradients: look at the backward pass")
    missing = [name for name in decisive_of(comparisons) if name not in told_from]
    if missing:
        sentences.append(f"give {' and '.join(missing)}, too: some bugs show there alone")
    return sentences


def decisive_of(comparisons):
    """The names of the decisive outputs that some of these cases of one stage have."""
    decisive = STAGES[comparisons[0].case.stage].decisive
    return [name for name in decisive if any(name in c.case.outputs for c in comparisons)]


def rounding(comparisons):
    """Whether all deviations are as large as a lower precision makes them: [] or a sentence."""
    if all(c.case.config for c in comparisons if not c.is_right):
        comparisons = [c for c in comparisons if c.case.config]  # given logits hide no rounding
    tensors = float_tensors(comparisons)
    sizes = [size for _, _, size in tensors]
    share_failing = np.mean([not comparison.is_right for comparison in comparisons])
    in_tolerances = max(size for c in comparisons for size in c.in_tolerances.values())
    if not sizes or not np.isfinite(in_tolerances):
        return []
    if share_failing < MOST_FAIL:
        if in_tolerances > SLIGHT:
            return []
        return [f"no deviation is above {in_tolerances:.2g} tolerances: rounding may do that"]
    precision = least_precision(comparisons)
    if precision is None:
        return []
    how = f"every deviation is at most {max(sizes):.1g}"
    return [f"{how}, {reason(precision, [values for _, values, _ in tensors])}"]


def float_tensors(comparisons):
    """(Comparison, values, relative deviation) of all compared tensors of real numbers."""
    tensors = []
    for comparison in comparisons:
        for name in comparison.compared:
            if comparison.case.tensors[name].dtype.kind == "f":
                values = comparison.computed[name].values
                tensors.append((comparison, values, comparison.relative(name)))
    return tensors


def least_precision(comparisons):
    """The most exact precision that forgives every deviation; None where none does."""
    for precision in ("float32", "tf32", "bfloat16"):
        if all(
            size <= tolerance(comparison.case, precision)
            for comparison, _, size in float_tensors(comparisons)
        ):
            return precision
    return None


def reason(precision, tensors):
    """Why a correct implementation may deviate so much, and the option that forgives it."""
    if precision == "float32":
        why = (
            "as of a computation that is in float32 throughout or in part (transformers computes "
            "norms, rotation and softmax so, in float64 models too)"
        )
    elif all(has_zero_bits(values, BFLOAT16_BITS) for values in tensors):
        precision = "bfloat16"
        why = (
            "and every number is one of bfloat16, as if it was computed so and then saved otherwise"
        )
    elif all(has_zero_bits(values, FLOAT16_BITS) for values in tensors):
        precision = "bfloat16"
        why = (
            "and every number is one of float16, as if it was computed so and then saved otherwise"
        )
    else:
        why = f"as if {'TF32' if precision == 'tf32' else 'bfloat16'} was used on the way"
    return f"{why}. If that is meant: --precision {precision}"


def without_place(failing):
    """That intermediates would show where a deviation begins: [] if some were given or none are."""
    exist, given = set(), set()
    for comparison in failing:
        decisive = STAGES[comparison.case.stage].decisive
        outputs = {name for name in comparison.case.outputs if not name.startswith("gradients.")}
        exist |= outputs - set(decisive)
        given |= set(comparison.compared)
    if not exist or exist & given:
        return []
    return ["give intermediates, too: the first that deviates is where to look"]


def not_a_number(failing):
    """That no bug was compared with the numbers of cases that hold NaN: [] where there are none."""
    with_nan = [comparison.case.name for comparison in failing if has_nan(comparison)]
    if not with_nan:
        return []
    names = short_list(with_nan)
    return [f"no bug is compared with NaN, as in {names}: see the lines above"]


def has_nan(comparison):
    """Whether there is NaN in what a bug is told from."""
    return any(np.isnan(comparison.computed[name].values).any() for name in comparison.evidence)
