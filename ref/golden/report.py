"""What the commands `check` and `run` print: a line or more for each case, then the diagnosis."""

import json
from dataclasses import asdict

from ref.cli import printable
from ref.files import short_list
from ref.golden.case import outputs_of_stage
from ref.golden.plants import descriptions

NUM_EXPLAINED = 3  # so many bugs that cannot be told apart are explained, the others named


def print_comparison(comparison):
    """The line of a case, and where and by how much it deviates."""
    name = comparison.case.name
    if comparison.problem is not None:
        print(f"FAIL  {name}: {printable(comparison.problem)}")
    elif comparison.is_right:
        num_compared = len(comparison.compared)
        tensors = "1 tensor" if num_compared == 1 else f"{num_compared} tensors"
        print(f"ok    {name}: {tensors}, at most {comparison.largest:.2g} of the tolerance")
    else:
        print(f"FAIL  {name}: {comparison.first}")
    for remark in comparison.remarks:
        print(f"      {remark}")
    if comparison.unknown:
        print_unknown_names(comparison)


def print_unknown_names(comparison):
    """The tensors that were given and not compared: those of other cases, and those of none."""
    of_stage = outputs_of_stage(comparison.case.stage)
    of_others = [name for name in comparison.unknown if name in of_stage]
    of_none = [name for name in comparison.unknown if name not in of_stage]
    if of_others:
        print(f"      not compared, this case has no {printable(short_list(of_others))}")
    if of_none:
        print(f"      not compared, unknown here: {printable(short_list(of_none))}")


def print_skipped(skipped):
    """How many cases were not run, and the first of them, a reason a line."""
    names = {}
    for name, reason in skipped.items():
        names.setdefault(reason, []).append(name)
    for reason, of_reason in names.items():
        print(f"skip  {short_list(of_reason)}: {printable(reason)}")


def print_summary(comparisons, skipped):
    """How many cases are right, how many could not be compared, how many were skipped."""
    num_right = sum(comparison.is_right for comparison in comparisons)
    summary = f"{num_right} of {len(comparisons)} cases are right"
    num_problems = sum(comparison.problem is not None for comparison in comparisons)
    if num_problems:
        summary += f", {num_problems} could not be compared"
    if skipped:
        summary += f", {len(skipped)} skipped"
    print(summary)


def print_diagnoses(diagnoses):
    """What explains the results of each failing stage."""
    for number, diagnosis in enumerate(diagnoses):
        begin = ": begin here" if number == 0 and len(diagnoses) > 1 else ""
        print(f"\nDiagnosis of the stage {diagnosis.stage}{begin}")
        print_diagnosis(diagnosis)


def print_diagnosis(diagnosis):
    """The known bugs that make the computed numbers, or else what else is known of these."""
    if diagnosis.among:
        print(f"This explains the cases {diagnosis.among}.")
    for number, (bug, _) in enumerate(diagnosis.equal[:NUM_EXPLAINED], 1):
        print_bug(bug, f"{number}. ")
    others = [bug for bug, _ in diagnosis.equal[NUM_EXPLAINED:]]
    if others:
        print(f"Or one of these: {', '.join(others)}")
    if len(diagnosis.equal) > 1:
        print(
            f"What was given does not tell these {len(diagnosis.equal)} apart; "
            "the best fit comes first."
        )
    if diagnosis.is_told:
        print("The numbers are right in another shape or convention: see the lines above.")
    elif diagnosis.pairs:
        print_pairs(diagnosis)
    elif diagnosis.is_unknown:
        print_unknown(diagnosis)
    for remark in diagnosis.remarks:
        print(f"{remark[0].upper()}{remark[1:]}.")
    print_next_case(diagnosis)


def print_bug(bug, number):
    """What a bug is, what it does and how to fix it."""
    description = descriptions()[bug]
    print(f"{number}{bug} ({description['family']}): {description['what']}")
    print(f"   Effect: {description['effect']}")
    print(f"   Fix: {description['fix']}")


def print_pairs(diagnosis):
    """Two bugs at once that make the computed numbers."""
    (pair, _), *others = diagnosis.pairs
    print("No single known bug makes these numbers. Two at once do:")
    for bug in pair:
        print_bug(bug, "+ ")
    for other, _ in others[: NUM_EXPLAINED - 1]:
        print(f"Or: {' + '.join(other)}")
    if others:
        print(f"What was given does not tell these {len(diagnosis.pairs)} pairs apart.")


def print_unknown(diagnosis):
    """That no bug makes the numbers, what was tried, and which bugs come near."""
    print("No known bug makes these numbers. Begin at the first tensor that deviates.")
    num_tried, num_pairs = diagnosis.tried
    if num_pairs and num_tried == num_pairs:
        print(f"Nor do two at once: all {num_pairs} possible pairs were tried.")
    elif num_pairs:
        print(
            f"Nor do two at once: there was time for {num_tried} of {num_pairs} possible pairs. "
            "Fewer cases take less time."
        )
    for bug, share, explained in diagnosis.nearest:
        print(
            f"Nearest: {bug}, in {share:.0%} of the failing cases ({descriptions()[bug]['what']})"
        )
        if explained:
            others = [name for name in diagnosis.failing if name not in explained]
            exceptions = f", not of {short_list(others)}" if others else ""
            print(
                f"   Alone it makes the numbers of {len(explained)} of these "
                f"{len(diagnosis.failing)} cases{exceptions}."
            )


def print_next_case(diagnosis):
    """A caveat where a case or two say little, and which case says more."""
    if diagnosis.next_case is None:
        return
    name, showing = diagnosis.next_case
    if len(diagnosis.equal) > 1 or diagnosis.pairs:
        print(f"Next, run the case {name}: of these bugs it shows {', '.join(showing)}.")
    else:
        print(
            "A single case of this stage was compared, and other mistakes may make the same "
            "numbers there. "
            f"To be sure, run the case {name}, too, which also shows {showing[0]}."
        )


def as_json(comparisons, skipped, diagnoses):
    """The text that `--json` prints: an object with `cases`, `skipped` and `diagnosis`.

    skipped: {name of a case: why it was not run}. The fields of the others are those below.
    """
    values = {
        "cases": [comparison_as_json(comparison) for comparison in comparisons],
        "skipped": skipped,
        "diagnosis": [diagnosis_as_json(diagnosis) for diagnosis in diagnoses],
    }
    # JSON has no NaN and no infinity: they become strings.
    values = json.loads(json.dumps(values), parse_constant=str)
    return json.dumps(values, indent=1)


def comparison_as_json(comparison):
    """An object of `cases`: what a Comparison holds.

    ok: whether the case is right. largest: the largest deviation of a tensor, in tolerances.
    first: the first tensor that deviates, with the fields of FirstDeviation; null if none does.
    """
    return {
        "case": comparison.case.name,
        "stage": comparison.case.stage,
        "ok": comparison.is_right,
        "compared": comparison.compared,
        "deviating": comparison.deviating,
        "unknown": comparison.unknown,
        "largest": comparison.largest,
        "first": None if comparison.first is None else asdict(comparison.first),
        "remarks": comparison.remarks,
        "problem": comparison.problem,
    }


def diagnosis_as_json(diagnosis):
    """An object of `diagnosis`: the fields of Diagnosis, with what bugs.json says of each bug.

    bugs: those that explain all, with their misfit in tolerances. pairs: those of two at once.
    pairs_tried: how many, and of how many. nearest: bugs that come near, in which share of the
    failing cases, and the cases whose numbers each `makes`.
    """
    described = descriptions()
    bugs = [described[bug] | {"misfit": misfit} for bug, misfit in diagnosis.equal]
    nearest = [{"id": bug, "share": share, "makes": m} for bug, share, m in diagnosis.nearest]
    return {"stage": diagnosis.stage, "bugs": bugs, "nearest": nearest} | {
        "among": diagnosis.among,
        "pairs": [pair for pair, _ in diagnosis.pairs],
        "pairs_tried": diagnosis.tried,
        "is_told": diagnosis.is_told,
        "remarks": diagnosis.remarks,
        "next_case": diagnosis.next_case,
    }
