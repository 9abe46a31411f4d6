"""What `audit` prints: each layer beside the scheme, then the known bugs with the same pattern."""

from dataclasses import asdict

from ref.golden.report import print_bug

MOST_BUGS = 5  # that are printed
SOFT = -5.0  # from here on a finite mask is told, as a difference of natural logarithms


def as_json(result):
    """What `--json` prints."""
    values = asdict(result) | {"is_right": result.is_right, "untold": result.untold}
    for value, finding in zip(values["findings"], result.findings, strict=True):
        value["is_right"] = finding.is_right
    return values


def print_audit(result):
    """Print a line or more for each layer, how many are right, and the known bugs."""
    for finding in result.findings:
        print_finding(finding)
    num_right = sum(finding.is_right for finding in result.findings) - len(result.untold)
    print(f"{num_right} of {len(result.findings)} layers are what the scheme says")
    if result.untold:
        print(
            f"this prompt does not tell of layers {', '.join(map(str, result.untold))}: "
            "take one with two items of several tokens, and all of its queries"
        )
    if result.missing_layers:
        print(f"not in the dump: layers {', '.join(map(str, result.missing_layers))}")
    if any(finding.is_other_mask for finding in result.findings):
        print_bugs(result.bugs)


def print_finding(finding):
    """A line on a layer's kind, and one for each thing that deviates."""
    verdict = "ok  " if finding.is_right else "FAIL"
    if finding.is_untold:
        verdict = "?   "
    kinds = " or ".join(finding.kinds) or "none of IN, OR and CR"
    print(f"{verdict}  layer {finding.layer}: {kinds}; the scheme says {finding.scheme_kind}")
    for remark in remarks(finding):
        print(f"      {remark}")


def remarks(finding):
    """What a person should know of a layer: sentences."""
    sentences = []
    if finding.largest_at:
        sentences.append(
            f"{finding.share:.2g} of the weight lies where none may; "
            f"the largest, {finding.largest:.2g}, at {finding.largest_at}"
        )
    if finding.softness < min(SOFT, -2 * finding.scatter):
        sentences.append(
            f"These weights are about e^{finding.softness:.0f} times the others: "
            "was a finite number added in place of -inf?"
        )
    if len(finding.of_heads) > 1:
        of_heads = [f"{kinds} in {heads}" for kinds, heads in finding.of_heads.items()]
        sentences.append(f"the heads differ: {'; '.join(of_heads)}")
    if finding.missing:
        sentences.append(
            f"{finding.missing} pairs that may have weight are masked; "
            f"the first at {finding.missing_at}"
        )
    if finding.unknown:
        sentences.append(
            f"{finding.unknown} pairs that may have weight are 0, rounded or masked: "
            "more tokens, or float32, would tell"
        )
    return sentences + remarks_on_numbers(finding)


def remarks_on_numbers(finding):
    """The same of rows that are no probabilities."""
    sentences = []
    if finding.rows_off:
        sentences.append(
            f"{finding.rows_off} rows do not sum to 1; the worst sums to {finding.worst_sum:.4g}"
        )
    if finding.nan:
        sentences.append(f"{finding.nan} weights are NaN: is there a row without any key?")
    if finding.nan_at_padding:
        sentences.append(
            f"{finding.nan_at_padding} weights of padding queries are NaN: "
            "let such a query attend to itself"
        )
    return sentences


def print_bugs(bugs):
    """The known bugs with the pattern of the dump."""
    print("\nDiagnosis")
    for number, bug in enumerate(bugs[:MOST_BUGS], start=1):
        print_bug(bug, f"{number}. ")
    if len(bugs) > 1:
        more = f" and {len(bugs) - MOST_BUGS} more" if len(bugs) > MOST_BUGS else ""
        print(f"This dump does not tell these{more} apart; --json names all.")
    if not bugs:
        print("No known bug of masks, schedule or segments has this pattern.")
