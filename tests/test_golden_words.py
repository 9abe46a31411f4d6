"""The checker says what is true of wrong numbers, and nothing that is false; bugs are named."""

import json
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest

from ref.golden import case as cases
from ref.golden import compare, diagnosis, planted, remarks, remarks_on_cases, report
from ref.golden.computed import Computed, computed_by_adapter, read_dump
from ref.golden.stages import STAGES, all_bugs

from support import known_bugs
from support.known_bugs import case_of, cases_of, port_with
from support.probes import PROBES, logits, softmax, with_bugs

BUGS = cases.FOLDER.parent / "bugs.json"


@pytest.fixture(autouse=True)
def remembered(monkeypatch):
    """What a bug makes of the decisive outputs is computed once, not once a test."""
    monkeypatch.setattr(diagnosis.Suspects, "made_by", computed_or_remembered)


def computed_or_remembered(suspects, bugs, comparison):
    name = comparison.case.name
    if set(comparison.evidence) <= set(STAGES[comparison.case.stage].decisive) and len(bugs) == 1:
        return known_bugs.decisive_outputs(bugs, name)
    outputs = planted.outputs_with(bugs, comparison.case)
    return {name: outputs[name] for name in comparison.evidence}


def comparisons_of(port, stage="model"):
    """A port compared with all cases of a stage that it runs."""
    comparisons = []
    for case in cases_of(stage):
        computed = port(case)
        if computed is not None:
            comparisons.append(compare.examine(case, computed))
    return comparisons


def told(comparisons, capsys, seconds=0.2):
    """All that `run` prints of comparisons; `seconds` bounds the time for pairs of bugs."""
    for comparison in comparisons:
        report.print_comparison(comparison)
    report.print_diagnoses(diagnosis.diagnose_stages(comparisons, seconds))
    report.print_summary(comparisons, {})
    return capsys.readouterr().out


def named_bugs(text):
    """The bugs that a report names as a diagnosis, as one of a pair or as near."""
    named = set(re.findall(r"^(?:\d+\. |\+ |Nearest: )([\w-]+)", text, re.MULTILINE))
    for line in re.findall(r"^Or(?: one of these)?: (.*)$", text, re.MULTILINE):
        named.update(re.findall(r"[\w-]+", line))
    return named


@pytest.mark.parametrize("name", PROBES)
def test_what_is_said_of_a_probe_is_true_and_nothing_false_is_said(name, capsys):
    probe = PROBES[name]
    seconds = 60 if len(probe.bugs) == 2 else 0.2
    text = told(comparisons_of(probe.port), capsys, seconds)
    assert probe.sentence in text
    assert named_bugs(text) <= set(probe.bugs)
    assert [words for words in probe.forbidden if words in text] == []


@pytest.mark.parametrize("share", known_bugs.SHARES)
def test_the_list_of_bugs_says_of_each_which_cases_show_it(share, monkeypatch):
    known_bugs.let_planted_remember(monkeypatch)
    listed = {bug["id"]: bug for bug in json.loads(BUGS.read_text())}
    for bug, sizes in known_bugs.detection_matrix(all_bugs()[::share]).items():
        shown_by = {name for name, size in sizes.items() if size >= 100}
        assert set(listed[bug]["shown_by"]) == shown_by, bug


@pytest.mark.parametrize("share", known_bugs.SHARES)
@pytest.mark.parametrize("stage", STAGES)
def test_every_bug_is_named_first_from_decisive_outputs_in_float32(stage, share):
    not_first = set()
    # those of the test before: what they compute is remembered
    for bug in [bug for bug in all_bugs()[::share] if bug in STAGES[stage].plants]:
        comparisons = [port_with([bug], case) for case in cases_of(stage)]
        equal = diagnosis.diagnose(comparisons, seconds=0).equal
        if not equal or equal[0][0] != bug:
            not_first.add(bug)
    assert not_first == set()


def test_the_first_stage_that_fails_is_where_to_begin(capsys):
    comparisons = comparisons_of(with_bugs("scale-twice"))
    comparisons += comparisons_of(with_bugs("decode-plain-causal"), "decoding")
    text = told(comparisons, capsys)
    assert "Diagnosis of the stage model: begin here" in text
    assert re.search(r"\d+ cases with a model are left out: get the stage model right first.", text)
    assert named_bugs(text) == {"scale-twice"}
    assert "begin here" not in told(comparisons_of(with_bugs("scale-twice")), capsys)


def test_where_the_model_is_wrong_cases_without_a_model_tell_of_later_stages(capsys):
    comparisons = comparisons_of(with_bugs("scale-twice"))
    comparisons += comparisons_of(with_bugs("search-length-normalized"), "search")
    text = told(comparisons, capsys)
    assert named_bugs(text) == {"scale-twice", "search-length-normalized"}
    assert "6 cases with a model are left out: get the stage model right first." in text


def test_a_later_stage_is_diagnosed_where_the_model_is_right(capsys):
    comparisons = comparisons_of(with_bugs())
    comparisons += comparisons_of(with_bugs("decode-misses-newest-key"), "decoding")
    assert "decode-misses-newest-key" in named_bugs(told(comparisons, capsys))


def rounded_where(is_wanted):
    """A port of no known bug whose logits are wrong in some cases: is_wanted(case)."""
    return logits(lambda values, case: values.round() if is_wanted(case) else values)


def test_what_failing_cases_have_in_common_is_said(capsys):
    port = rounded_where(lambda case: "rope llama3" in case.info["needs"])
    assert "Exactly the 2 cases with 'rope llama3' fail." in told(comparisons_of(port), capsys)


def test_where_a_bug_is_named_nothing_is_said_of_what_failing_cases_have_in_common(capsys):
    text = told(comparisons_of(with_bugs("rope-llama3-as-linear")), capsys)
    assert "1. rope-llama3-as-linear" in text
    assert "Exactly the" not in text


def test_one_failing_case_is_not_told_as_many():
    one = "one case fails, the only one of those compared with 'padding'"
    assert remarks_on_cases.exactly(["case"], "'padding'") == one
    two = "exactly the 2 cases with 'padding' fail"
    assert remarks_on_cases.exactly(["case", "other"], "'padding'") == two


def test_that_only_the_longest_cases_fail_is_said(capsys):
    port = rounded_where(lambda case: case.input_ids.shape[1] > 100)
    text = told(comparisons_of(port), capsys)
    assert re.search(r"Exactly the \d cases with more than \d+ tokens fail", text)


def test_one_case_alone_gives_a_caveat_and_the_case_to_run_next(capsys):
    comparison = port_with(["schedule-reversed"], known_bugs.case_of("three-kinds"))
    text = told([comparison], capsys)
    equal = re.findall(r"^\d+\. ([\w-]+)", text, re.MULTILINE)
    assert equal[0] == "schedule-reversed"
    assert ("A single case of this stage was compared" in text) == (len(equal) == 1)
    assert "run the case " in text


def test_several_bugs_that_fit_give_the_case_that_tells_them_apart(capsys):
    bugs = ["scale-twice", "schedule-reversed"]
    equal = [(bug, 0.0) for bug in bugs]
    report.print_diagnosis(diagnosis.Diagnosis("model", equal, next_case=("deeper", bugs[1:])))
    assert (
        "Next, run the case deeper: of these bugs it shows schedule-reversed."
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("bugs", (["scale-twice"], ["scale-twice", "schedule-reversed"]))
def test_that_bugs_cannot_be_told_apart_is_said_of_several_alone(bugs, capsys):
    report.print_diagnosis(diagnosis.Diagnosis("model", equal=[(bug, 0.0) for bug in bugs]))
    text = capsys.readouterr().out
    assert all(f"{number}. {bug}" in text for number, bug in enumerate(bugs, 1))
    assert ("does not tell these 2 apart" in text) == (len(bugs) == 2)
    assert "these 1" not in text


def all_tensors_with(bug, unlike=()):
    """A port with a bug that gives all tensors; in the cases of these names logits are others."""

    def port(case):
        outputs = planted.outputs_with([bug], case)
        if case.name in unlike:
            outputs["logits"] = np.random.default_rng(0).normal(size=outputs["logits"].shape)
        names = outputs.keys() & case.outputs.keys()
        return {name: Computed(outputs[name], "float64") for name in names}

    return port


def test_a_near_bug_is_told_with_the_number_of_cases_that_it_explains(capsys):
    text = told(comparisons_of(all_tensors_with("segments-one-late", ["biases"])), capsys, 0)
    assert re.search(
        r"^Nearest: segments-one-late, in (8|9|10)\d% of the failing cases", text, re.MULTILINE
    )
    failing = text.count("FAIL")
    explained = f"the numbers of {failing - 1} of these {failing} cases, not of biases."
    assert f"Alone it makes {explained}" in text


@pytest.mark.parametrize("value, other", [("visible", "isolated"), ("isolated", "visible")])
def test_a_bug_in_the_branch_of_one_option_is_named_with_it(value, other, capsys):
    def port(case):
        bugs = ("in-hides-all-but-own-segment",) if case.info["scheme"]["text"] == value else ()
        outputs = known_bugs.decisive_outputs(bugs, case.name)
        return {name: Computed(values, "float64") for name, values in outputs.items()}

    text = told(comparisons_of(port), capsys)
    words = f"This explains the cases where text = {value}; look at that branch of your code."
    assert f"{words}\n1. in-hides-all-but-own-segment (mask)" in text
    assert f"text = {other}" not in text


def test_a_bug_is_named_from_the_cases_without_nan_if_it_shows_in_the_others(capsys):
    def port(case):
        outputs = known_bugs.decisive_outputs(("mask-inverted",), case.name)
        if len(case.input_ids) > 1:
            outputs = {name: np.full_like(values, np.nan) for name, values in outputs.items()}
        return {name: Computed(values, "float64") for name, values in outputs.items()}

    text = told(comparisons_of(port), capsys)
    assert "This explains the cases without NaN; " in text
    assert "\n1. mask-inverted (mask)" in text


def test_beside_the_largest_deviation_the_first_place_that_is_wrong_is_told():
    case = case_of("three-kinds")
    logits = case.tensors["logits"].copy()
    logits[0, 4, 3] += 0.01
    logits[0, 9, 2] += 1.0
    comparison = compare.examine(case, {"logits": Computed(logits, "float64")})
    at, begins = str(comparison.first).splitlines()[1:]
    assert at.startswith("      at row 0, token 9 ")
    assert begins.startswith("      the first place that is wrong: row 0, token 4 ")


def test_logits_alone_refute_the_bugs_that_would_show_in_them():
    port = PROBES["two bugs that show in few cases, from the logits alone"].port
    possible = diagnosis.Suspects(comparisons_of(port)).possible()
    of_the_loss = {bug for bug in possible if bug.startswith(("loss-", "labels-"))}
    assert set(possible) - of_the_loss == {"kv-heads-tiled", "in-isolation-ignored"}


def test_near_bugs_are_looked_for_in_small_and_larger_cases_but_not_in_the_largest_quarter():
    assert diagnosis.spread(list(range(40))) == [0, 4, 8, 12, 16, 20, 24, 29]
    assert diagnosis.spread(list(range(9))) == list(range(8))


def test_scores_that_are_masked_with_a_small_number_are_not_called_unmasked(capsys):
    case = known_bugs.case_of("three-kinds")
    text = told([compare.examine(case, all_tensors_with("mask-minus-ten")(case))], capsys, 0)
    assert "not masked, or with a small number only, instead of -inf (R5)" in text
    assert "saved before they are masked" not in text


def test_of_numbers_that_are_right_nothing_is_remarked():
    case = case_of("three-kinds")
    outputs = {name: Computed(values, "float64") for name, values in case.outputs.items()}
    comparison = compare.examine(case, outputs)
    assert comparison.is_right
    assert comparison.remarks == []


def test_a_filler_of_lists_is_wrong_where_it_is_finite():
    case = next(case for case in cases_of("search") if case.name == "search-all-excluded")
    scores = case.outputs["beam_scores"]
    filled = np.where(np.isneginf(scores), -1e9, scores)
    computed = {"beam_scores": Computed(filled, "float64")}

    comparison = compare.examine(case, computed)

    assert not comparison.is_right
    assert comparison.remarks == []


@pytest.mark.parametrize(
    "length, words",
    [
        (
            20,
            "(20,), expected (39,); they part at token 20, at character 32, before '>; <Tin Star>.",
        ),
        (50, "(50,), expected (39,); they part at the end of what is expected"),
    ],
)
def test_of_a_list_of_another_length_the_place_is_told_where_it_parts(length, words):
    case = known_bugs.case_of("prompt-accents")
    begins = np.resize(case.outputs["begins"], length)

    comparison = compare.examine(case, {"begins": Computed(begins, "float64")})

    assert f"begins has the shape {words}" in str(comparison.first)


def test_a_single_number_that_deviates_is_of_the_whole_batch():
    case = known_bugs.case_of("three-kinds")
    comparison = compare.examine(case, {"loss": Computed(2 * case.outputs["loss"], "float64")})
    assert str(comparison.first).endswith("at the whole batch")


def test_of_a_text_that_differs_only_what_stands_there_is_quoted():
    case = known_bugs.case_of("prompt-accents")
    text = case.outputs["text"].tobytes().replace(b"Liked: <", b"liked: <")

    comparison = compare.examine(case, {"text": Computed(np.frombuffer(text, np.uint8), "float64")})

    assert ': "liked: <N' in str(comparison.first)
    assert ', expected "Liked: <N' in str(comparison.first)
    assert "Tin Star" not in str(comparison.first)


def test_truth_values_that_are_no_mask_are_not_called_a_mask(capsys):
    def port(case):
        return {"predicted": Computed(~case.outputs["predicted"], "float64")}

    text = told(comparisons_of(port, "loss"), capsys)

    assert "FAIL" in text
    assert "mask" not in text


def test_a_pair_of_bugs_whose_plants_do_not_fit_together_explains_nothing():
    class Failing:
        def worst_misfit(self, pair):
            raise IndexError

    assert diagnosis.misfit_of_pair(Failing(), ("one", "other")) == np.inf


def exactly_with(bugs):
    """A port in float64, without any noise, that has bugs."""

    def port(case):
        outputs = known_bugs.decisive_outputs(bugs, case.name)
        return {name: Computed(values, "float64") for name, values in outputs.items()}

    return port


def test_of_two_bugs_that_cannot_be_told_apart_the_case_to_run_next_shows_one():
    names = ("metrics-candidates", "metrics-shared-titles")
    found = diagnosis.diagnose([port_with(["auc-by-rank"], case_of(n)) for n in names], seconds=0)
    equal = {bug for bug, _ in found.equal}
    assert equal == {"auc-by-rank", "rank-sums-items-of-title"}
    name, showing = found.next_case
    assert equal & set(case_of(name).info["catches"]) == set(showing)
    assert len(showing) == 1


def test_the_case_to_run_next_splits_the_bugs_that_fit_as_evenly_as_any():
    bugs = ["mask-inverted", "norm-eps-fixed", "kv-heads-tiled", "rope-llama3-as-linear"]
    bugs += ["mlp-bias-lost", "cr-drops-self", "in-hides-text-from-items"]
    suspects = diagnosis.Suspects([port_with(["mask-inverted"], case_of("three-kinds"))])
    found = diagnosis.Diagnosis("model", [(bug, 0.0) for bug in bugs])
    _, showing = diagnosis.case_to_run_next(suspects, found)
    sizes = set()
    for case in cases_of("model"):
        if case.name != "three-kinds":
            sizes.add(len(set(bugs) & set(case.info["catches"])))
    assert {2, 3, 4} <= sizes
    assert len(showing) in (3, 4)  # about half of seven


def test_what_is_not_compared_is_told_apart_from_what_nobody_knows(capsys):
    case = case_of("longer-than-512")  # it has no masks, which would be large
    outputs = {"logits": case.outputs["logits"], "layers.0.mask": np.ones(1), "masks": np.ones(1)}
    report.print_comparison(compare.examine(case, computed_by_adapter(outputs)))
    printed = capsys.readouterr().out
    assert "not compared, this case has no layers.0.mask\n" in printed
    assert "not compared, unknown here: masks\n" in printed


def test_what_is_exactly_true_goes_before_what_is_nearly_so():
    def compared(length):
        tensors = {"segment_ids": np.ones((1, length), int)}
        return SimpleNamespace(case=SimpleNamespace(info={"needs": ["padding"]}, tensors=tensors))

    failing, passing = [compared(30), compared(20)], [compared(12), compared(11)]
    words = ["exactly the 2 cases with more than 12 tokens fail"]
    assert remarks_on_cases.of_failing(failing, passing) == words
    words = ["only cases with 'padding' fail, 2 of these 4"]
    assert remarks_on_cases.of_failing([failing[0], passing[0]], [failing[1], passing[1]]) == words


@pytest.mark.parametrize(
    ("places", "is_said"),
    [
        ([(7, True)] * 4 + [(3, False)], True),
        ([(7, True)] * 2 + [(7, False)] * 2, True),
        ([(7, False)] * 4, False),  # items begin there
        ([(0, False)] * 4, False),
        ([(1, True)] * 4, False),  # token 0 sees itself alone
        ([(7, True)] * 3, False),  # too few
        ([(7, True)] * 4 + [(3, False)] * 4, False),
        ([None] * 4, False),
    ],
)
def test_whether_a_chunk_begins_where_most_cases_begin_to_be_wrong_is_asked(places, is_said):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remarks_on_cases, "first_wrong_token", lambda place: place)
        assert bool(remarks_on_cases.common_beginning(places)) == is_said


def comparison_with_wrong_tokens(name, places, tensor="logits"):
    """A case whose logits of some (row, token) are wrong."""
    case = case_of(name)
    logits = case.outputs[tensor].copy()
    for row, token in places:
        logits[row, token] += 1
    return compare.examine(case, {tensor: Computed(logits, "float64")})


def test_the_first_wrong_token_is_counted_without_padding_in_the_row_that_is_wrong_first():
    s = case_of("padding-left-and-right").segment_ids
    (row, padding) = next((b, (s[b] == -1).argmin()) for b in range(len(s)) if s[b, 0] == -1)
    other = next(b for b in range(len(s)) if s[b, 0] != -1)
    first = remarks_on_cases.first_wrong_token

    same = bool(s[row, padding + 3] == s[row, padding + 2])
    places = [(row, padding + 3), (other, 5)]
    assert first(comparison_with_wrong_tokens("padding-left-and-right", places)) == (3, same)
    same = bool(s[other, 2] == s[other, 1])
    places = [(row, padding + 3), (other, 2)]
    assert first(comparison_with_wrong_tokens("padding-left-and-right", places)) == (2, same)


def test_only_logits_of_all_tokens_tell_the_first_wrong_token():
    first = remarks_on_cases.first_wrong_token
    assert first(comparison_with_wrong_tokens("decode-beams", [(0, 4)], "prompt_logits"))[0] == 4
    assert first(comparison_with_wrong_tokens("decode-beams", [(1, 0)], "step_logits")) is None


def test_one_tensor_is_not_told_as_many(capsys):
    report.print_comparison(comparison_with_wrong_tokens("plain-causal", []))
    assert capsys.readouterr().out.startswith("ok    plain-causal: 1 tensor, at most 0 of")


def test_that_all_cases_fail_is_said_of_more_than_one():
    assert remarks_on_cases.of_failing(["one"], passing=[]) == []
    assert remarks_on_cases.of_failing(["one", "two"], passing=[]) == ["all 2 cases fail"]


def test_pairs_of_bugs_that_cannot_be_told_apart_are_counted(capsys):
    pairs = [(("mask-inverted", f"mask-{other}"), 0.5) for other in ("never-applied", "multiplied")]
    report.print_pairs(SimpleNamespace(pairs=pairs))
    assert "What was given does not tell these 2 pairs apart." in capsys.readouterr().out
    report.print_pairs(SimpleNamespace(pairs=pairs[:1]))
    assert "What was given" not in capsys.readouterr().out


def test_two_bugs_of_which_one_moves_little_are_tried_together_in_float64_too():
    pair = ("mask-of-first-row", "norm-eps-a-millionth")
    suspects = diagnosis.Suspects(comparisons_of(exactly_with(pair)))

    assert pair in diagnosis.promising_pairs(suspects, list(pair))


# Both change the same thing: segment ids, positions or config in decoding, an option, a tensor.
@pytest.mark.parametrize(
    "stage, pair",
    [
        ("decoding", ("target-joins-last-item", "first-item-is-text")),
        ("decoding", ("items-start-late", "items-end-early")),
        ("decoding", ("positions-restart-at-items", "positions-in-bfloat16")),
        ("decoding", ("decode-attention-bias-lost", "decode-mlp-bias-lost")),
        ("loss", ("temperature-multiplied", "temperature-twice")),
        ("metrics", ("seen-items-alone-removed", "rank-rows-of-users")),
    ],
)
def test_two_bugs_at_once_are_both_there(stage, pair):
    first, second = pair
    differs_from = set()
    for case in cases_of(stage):
        outputs = planted.outputs_with(pair, case)
        for bug in pair:
            alone = known_bugs.decisive_outputs((bug,), case.name)
            if any(differ(outputs[name], alone[name]) for name in alone):
                differs_from.add(bug)
    assert differs_from == {first, second}


def differ(outputs, others):
    return np.shape(outputs) != np.shape(others) or not np.allclose(
        outputs, others, equal_nan=True, rtol=1e-9, atol=1e-9
    )


def test_cases_that_have_no_options_are_no_branch_of_one(capsys):
    wrong, right = exactly_with(("search-length-normalized",)), exactly_with(())

    def port(case):
        return wrong(case) if case.config is None else right(case)

    assert "None" not in told(comparisons_of(port, "search"), capsys, seconds=0)


@pytest.mark.parametrize("name", ["prompt_logits", "step_logits"])
def test_probabilities_are_told_in_decoding_too_whatever_stands_at_padding(name):
    case = case_of("decode-everything")
    expected = case.outputs[name]
    is_specified = STAGES["decoding"].specified(case, name, expected.shape)
    assert not is_specified.all()
    values = np.where(is_specified, softmax(expected, case), 7.0)
    comparison = SimpleNamespace(case=case, computed={name: Computed(values, "float64")})
    (told,) = remarks.on_convention(comparison, name)
    assert told.startswith("these are probabilities")


@pytest.mark.parametrize("largest", [1e-3, 1.0, 1e3])
def test_numbers_are_close_up_to_a_share_of_the_largest(largest):
    expected = np.array([0.5, -1.0]) * largest
    assert remarks.is_close(expected + 0.9e-5 * largest, expected)
    assert not remarks.is_close(expected + 1.1e-5 * largest, expected)
    assert not remarks.is_close(expected[:0], expected[:0])


@pytest.mark.parametrize("precision, tells", [("float32", True), ("bfloat16", False)])
def test_pairs_are_tried_where_numbers_are_sharp(precision, tells):
    case = case_of("three-kinds")
    computed = {"logits": Computed(case.tensors["logits"], precision)}
    comparison = SimpleNamespace(case=case, evidence=["logits"], computed=computed)
    assert diagnosis.can_tell_pairs(comparison) == tells


def test_no_pairs_are_tried_where_numbers_have_another_shape():
    case = known_bugs.case_of("three-kinds")
    doubled = np.concatenate((case.outputs["logits"],) * 2)
    comparison = compare.examine(case, {"logits": Computed(doubled, "float64")})

    assert diagnosis.diagnose([comparison]).tried == (0, 0)


def test_pairs_of_bugs_that_change_the_number_of_tokens_are_found():
    pair = ("bos-missing", "titles-lowercased")
    comparisons = comparisons_of(exactly_with(pair), "prompts")

    found = [set(bugs) for bugs, _ in diagnosis.diagnose(comparisons).pairs]

    assert set(pair) in found


def unknown_everywhere(value):
    """A port whose every logit is this number."""
    return logits(lambda expected, case: np.full_like(expected, value))


def test_where_logits_alone_were_given_intermediates_are_asked_for(capsys):
    asked = "Give intermediates, too: the first that deviates is where to look."
    assert asked in told(comparisons_of(unknown_everywhere(7.0)), capsys, 0)
    assert asked not in told(comparisons_of(all_tensors_with("scale-twice", ["biases"])), capsys, 0)
    assert asked not in told(comparisons_of(inverted_masks), capsys, 0)


def inverted_masks(case):
    """A port that gives masks alone, each of them wrong."""
    names = [name for name in case.outputs if name.endswith(".mask")]
    return {n: Computed(~case.outputs[n], "float64") for n in names} or None


def test_that_nan_is_compared_with_no_bug_is_said_where_there_is_nan(capsys):
    said = "No bug is compared with NaN, as in "
    assert said in told(comparisons_of(unknown_everywhere(np.nan)), capsys, 0)
    assert said not in told(comparisons_of(unknown_everywhere(7.0)), capsys, 0)


def test_a_remark_on_rounding_is_one_sentence(capsys):
    text = told(comparisons_of(PROBES["float16 saved as float32"].port), capsys)

    assert "every number is one of float16" in text
    assert "?." not in text


def with_model_in_float32(case):
    """A port of the search whose model is in float32; given logits are exact."""
    computed = {}
    for name, values in case.outputs.items():
        if case.config and values.dtype.kind == "f":
            values = values * (1 + 1e-7)
        computed[name] = Computed(values, "float64")
    return computed


def test_rounding_of_a_model_is_told_though_cases_without_a_model_pass():
    comparisons = comparisons_of(with_model_in_float32, "search")
    assert {comparison.is_right for comparison in comparisons} == {True, False}
    (sentence,) = remarks_on_cases.rounding(comparisons)
    assert "in float32 throughout or in part" in sentence


def test_a_pipe_in_place_of_a_dump_is_refused_at_once(tmp_path):
    pipe = tmp_path / "three-kinds.safetensors"
    os.mkfifo(pipe)

    with pytest.raises(FileNotFoundError, match="is no regular file"):
        read_dump(pipe)


def test_the_tolerance_of_tf32_is_an_eighth_of_that_of_bfloat16():
    assert case_of("plain-causal").info["tolerances"]["bfloat16"] == 0.15
    assert compare.tolerance(case_of("plain-causal"), "tf32") == 0.01875
