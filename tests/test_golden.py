"""The golden cases, the known bugs and the checker: what the files promise and a person is told."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ref.golden import __main__ as command
from ref.golden import case as cases
from ref.golden import compare, detection, diagnosis, recipes
from ref.golden.plants import descriptions
from ref.golden.stages import STAGES, all_bugs

from support.golden import relative
from support.json_schema import breaches

PEERS = Path(__file__).parent / "peers"
NUM_CASES = len(cases.names())
# The same computation, by two ways of going wrong.
ALIKE = {"decode-plain-causal", "decode-tokens-are-text"}
ONLY_IN_THE_LOSS = {
    "labels-not-shifted",
    "labels-shifted-twice",
    "loss-averaged-per-row",
    "loss-counts-ignored",
}
FAMILIES = ("mask", "schedule", "segments", "positions", "decoding", "numerics", "model", "loss")


@pytest.fixture(scope="module")
def golden_cases():
    """name -> Case."""
    return {name: cases.load(name) for name in cases.names()}


@pytest.fixture(scope="module")
def outputs(golden_cases):
    """(bug, name of case) -> what the bug computes there; the slow part, done once."""
    computed = {}
    for name, case in golden_cases.items():
        for bug in STAGES[case.stage].plants:
            computed[bug, name] = diagnosis.outputs_with(bug, case)
    return computed


@pytest.fixture
def remembered(outputs, monkeypatch):
    """The diagnosis looks the bugs' numbers up in place of computing them again."""
    monkeypatch.setattr(diagnosis, "outputs_with", lambda bug, case: outputs[bug, case.name])


@pytest.fixture(scope="module")
def matrix(golden_cases, outputs):
    """The detection matrix."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diagnosis, "outputs_with", lambda bug, case: outputs[bug, case.name])
        return diagnosis.detection_matrix(golden_cases.values())


@pytest.fixture(scope="module")
def rewritten(tmp_path_factory):
    """A folder into which every case was written anew."""
    folder = tmp_path_factory.mktemp("cases")
    recipes.write(folder)
    return folder / "cases"


@pytest.fixture
def check(tmp_path, capsys):
    """check(case, tensors, ...): the exit code for a dump of the tensors, and what is printed."""

    def run(case, tensors, *options):
        path = write_dump(tmp_path, tensors)
        code = command.main(["check", path, "--case", case, *options])
        return code, capsys.readouterr().out

    return run


def write_dump(folder, tensors):
    path = folder / "dump.safetensors"
    save_file({name: np.array(tensor) for name, tensor in tensors.items()}, path)
    return str(path)


def write_adapter(folder, text):
    path = folder / "adapter.py"
    path.write_text(text)
    return str(path)


def test_there_are_at_least_24_cases_and_write_writes_no_others(rewritten):
    assert NUM_CASES >= 24
    assert cases.names(rewritten) == cases.names()


@pytest.mark.parametrize("name", cases.names())
def test_the_files_in_the_repository_are_what_write_writes(name, rewritten):
    new, committed = rewritten / name, cases.FOLDER / name
    assert (new / "case.json").read_text() == (committed / "case.json").read_text()
    new_tensors = load_file(new / "tensors.safetensors")
    committed_tensors = load_file(committed / "tensors.safetensors")
    assert types_and_shapes(new_tensors) == types_and_shapes(committed_tensors)
    expected_outputs = cases.load(name).outputs
    for tensor, expected in committed_tensors.items():
        if tensor not in expected_outputs:
            assert np.array_equal(new_tensors[tensor], expected)
        else:  # another BLAS may round the last bits otherwise
            assert relative(new_tensors[tensor].astype(float), expected.astype(float)) < 1e-12


def types_and_shapes(tensors):
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def test_every_case_fits_the_schema_and_a_wrong_one_does_not(golden_cases):
    schemas = cases.FOLDER.with_name("schemas")
    for case in golden_cases.values():
        schema = json.loads((schemas / f"{case.stage}.json").read_text())
        assert breaches(case.info, schema) == []
    schema = json.loads((schemas / "model.json").read_text())
    wrong_fields = {"format": 1, "extra": 1, "catches": [1], "positions_given": 0}
    assert len(breaches(golden_cases["biases"].info | wrong_fields, schema)) == 4


def test_all_cases_together_are_at_most_six_megabytes():
    sizes = [path.stat().st_size for path in cases.FOLDER.rglob("*") if path.is_file()]
    assert sum(sizes) <= 6_000_000


def test_every_case_is_alone_in_catching_a_bug_or_says_what_else_it_is_for(golden_cases):
    for case in golden_cases.values():
        assert case.info["only_here"] or case.info["also_for"], case.name


def test_every_bug_says_what_it_is_what_it_does_and_how_to_fix_it():
    described = descriptions()
    assert list(described) == list(all_bugs())
    for description in described.values():
        assert set(description) == {"id", "family", "what", "effect", "fix"}
        assert min(len(text) for text in description.values()) > 3
    families = {description["family"] for description in described.values()}
    assert families == set(FAMILIES)


def test_the_readme_links_only_files_that_exist():
    readme = cases.FOLDER.with_name("README.md")
    links = [part.split(")")[0] for part in readme.read_text().split("](")[1:]]
    assert len(links) >= 5
    assert [link for link in links if not (readme.parent / link).exists()] == []


def test_every_bug_is_caught_by_a_case_with_a_hundred_times_its_float32_tolerance(matrix):
    assert len(matrix) >= 60
    assert [bug for bug, sizes in matrix.items() if max(sizes.values()) < 100] == []


def test_every_case_lists_the_bugs_that_it_catches(matrix, golden_cases):
    for name, case in golden_cases.items():
        assert case.info["catches"] == [bug for bug in matrix if matrix[bug][name] >= 100]


def test_the_committed_picture_is_what_the_command_draws(matrix, tmp_path, monkeypatch):
    monkeypatch.setattr(diagnosis, "detection_matrix", lambda cases: matrix)
    picture = tmp_path / "detection.svg"
    assert detection.main(["--svg", str(picture)]) == 0
    assert picture.read_text() == cases.FOLDER.with_name("detection.svg").read_text()


def test_a_bug_that_no_case_detects_is_exit_code_1(matrix, monkeypatch, capsys):
    missed = dict.fromkeys(matrix["mask-inverted"], 99.9)
    monkeypatch.setattr(
        diagnosis, "detection_matrix", lambda cases: matrix | {"mask-inverted": missed}
    )
    assert detection.main([]) == 1
    summary = f"{len(matrix) - 1} of {len(matrix)} known bugs are detected by {NUM_CASES} cases"
    assert summary in capsys.readouterr().out


def comparisons_of(golden_cases, outputs, bug, tensor, change):
    """An implementation with a bug, of which one tensor is known, compared with all cases."""
    comparisons = []
    for name, case in golden_cases.items():
        computed = {tensor: change(outputs[bug, name][tensor])}
        comparisons.append(compare.examine(case, computed))
    return comparisons


def with_float32_noise(logits, random):
    """As of an implementation in float32: errors of a third of the tolerance."""
    largest = np.abs(logits[np.isfinite(logits)]).max(initial=0.0)
    noise = 3e-6 * largest * random.uniform(-1, 1, logits.shape)
    return compare.Computed((logits + noise).astype(np.float32), "float32")


@pytest.mark.parametrize("bug", [bug for bug in all_bugs() if bug not in ONLY_IN_THE_LOSS])
def test_a_bug_is_named_from_float32_logits_alone(bug, golden_cases, outputs, remembered):
    random = np.random.default_rng(0)
    comparisons = comparisons_of(
        golden_cases, outputs, bug, "logits", lambda logits: with_float32_noise(logits, random)
    )
    named = {name for name, _ in diagnosis.diagnose(comparisons).equal}
    assert named == (ALIKE if bug in ALIKE else {bug})


@pytest.mark.parametrize("bug", sorted(ONLY_IN_THE_LOSS))
def test_a_bug_of_the_loss_leaves_the_logits_right(bug, golden_cases, outputs):
    random = np.random.default_rng(0)
    comparisons = comparisons_of(
        golden_cases, outputs, bug, "logits", lambda logits: with_float32_noise(logits, random)
    )
    assert all(comparison.is_right for comparison in comparisons)


@pytest.mark.parametrize("bug", sorted(ONLY_IN_THE_LOSS))
def test_a_bug_of_the_loss_is_named_from_the_loss(bug, golden_cases, outputs, remembered):
    comparisons = comparisons_of(
        golden_cases, outputs, bug, "loss", lambda loss: compare.Computed(loss, "float64")
    )
    assert [name for name, _ in diagnosis.diagnose(comparisons).equal] == [bug]


def test_at_least_95_percent_of_bugs_show_in_logits():
    assert len(ONLY_IN_THE_LOSS) <= 0.05 * len(all_bugs())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_transformers_peer_passes_every_case(attention, monkeypatch, capsys):
    monkeypatch.setenv("PEER_ATTENTION", attention)
    assert command.main(["run", str(PEERS / "transformers_peer.py")]) == 0
    assert f"{NUM_CASES} of {NUM_CASES} cases are right" in capsys.readouterr().out


@pytest.mark.parametrize("peer", ["sdpa_peer.py", "flex_peer.py"])
def test_the_peer_passes_every_case(peer, capsys):
    assert command.main(["run", str(PEERS / peer)]) == 0
    assert f"{NUM_CASES} of {NUM_CASES} cases are right" in capsys.readouterr().out


def test_a_complete_dump_of_the_right_numbers_passes(golden_cases, check):
    code, report = check("gradients", golden_cases["gradients"].outputs)
    assert code == 0
    assert "1 of 1 cases are right" in report


def test_the_first_deviating_tensor_is_told_with_its_place_tokens_and_segments(golden_cases, check):
    wrong = {name: tensor.copy() for name, tensor in golden_cases["three-kinds"].outputs.items()}
    wrong["layers.2.probabilities"][0, 1, 9, 4] += 0.25
    wrong["logits"] += 1
    code, report = check("three-kinds", wrong)
    assert code == 1
    assert "layers.2.probabilities deviates by" in report
    assert "layer 2 (OR), row 0, head 1, query 9" in report
    assert "key 4 'Heat' (segment 1)" in report


def test_the_diagnosis_of_one_dump_names_the_bug_and_its_fix(outputs, check):
    logits = outputs["kv-heads-tiled", "grouped-query"]["logits"]
    code, report = check("grouped-query", {"logits": logits.astype(np.float32)})
    assert code == 1
    assert "1. kv-heads-tiled (model)" in report
    assert "Fix: Query head h reads head h // (heads / kv_heads)." in report


def test_json_holds_the_results_and_the_diagnosis(outputs, check):
    logits = outputs["kv-heads-tiled", "grouped-query"]["logits"]
    code, report = check("grouped-query", {"logits": logits}, "--json")
    values = json.loads(report, parse_constant=pytest.fail)
    assert code == 1
    assert values["diagnosis"][0]["id"] == "kv-heads-tiled"
    assert values["cases"][0]["first"]["tensor"] == "logits"


def test_numbers_of_no_known_bug_are_said_to_be_of_none(golden_cases, check):
    right = golden_cases["plain-causal"].outputs["logits"]
    wrong = np.random.default_rng(0).normal(size=right.shape)
    code, report = check("plain-causal", {"logits": wrong})
    assert code == 1
    assert "No known bug makes these numbers" in report


def test_json_holds_no_constant_that_json_does_not_have(golden_cases, check):
    wrong = np.full_like(golden_cases["plain-causal"].outputs["logits"], np.nan)
    code, report = check("plain-causal", {"logits": wrong}, "--json")
    first = json.loads(report, parse_constant=pytest.fail)["cases"][0]["first"]
    assert code == 1
    assert first["found"] == "NaN"
    assert first["deviation"] == "Infinity"


def test_nan_is_a_deviation_told_with_its_place(golden_cases, check):
    wrong = golden_cases["plain-causal"].outputs["logits"].copy()
    wrong[0, 3, 5] = np.nan
    code, report = check("plain-causal", {"logits": wrong})
    assert code == 1
    assert "logits deviates by inf" in report
    assert "nan, expected" in report
    assert "token 3" in report


@pytest.mark.parametrize("value, code", [(7.0, 0), (np.nan, 1)])
def test_padding_may_hold_any_number_but_nan(value, code, golden_cases, check):
    case = golden_cases["padding-left-and-right"]
    logits = case.outputs["logits"].copy()
    row, token = np.argwhere(case.segment_ids == -1)[0]
    logits[row, token] = value
    assert check(case.name, {"logits": logits})[0] == code


def test_a_wrong_shape_is_a_deviation_that_says_both_shapes(golden_cases, check):
    logits = golden_cases["plain-causal"].outputs["logits"]
    code, report = check("plain-causal", {"logits": logits[:, 1:]})
    assert code == 1
    assert "shape (1, 13, 33), expected (1, 14, 33)" in report


def test_float16_is_held_to_the_tolerance_of_bfloat16(golden_cases, check):
    half = golden_cases["plain-causal"].outputs["logits"].astype(np.float16)
    assert check("plain-causal", {"logits": half})[0] == 0
    assert check("plain-causal", {"logits": half.astype(float)})[0] == 1


def cut_short(folder, logits):
    path = Path(write_dump(folder, {"logits": logits}))
    path.write_bytes(path.read_bytes()[:-9])
    return ["check", str(path), "--case", "plain-causal"]


def not_safetensors(folder, logits):
    path = folder / "notes.txt"
    path.write_text("not a dump")
    return ["check", str(path), "--case", "plain-causal"]


def missing_dump(folder, logits):
    return ["check", str(folder / "none.safetensors"), "--case", "plain-causal"]


def unknown_case(folder, logits):
    return ["check", write_dump(folder, {"logits": logits}), "--case", "nothing"]


def unknown_tensors_only(folder, logits):
    return ["check", write_dump(folder, {"logit": logits}), "--case", "plain-causal"]


def missing_adapter(folder, logits):
    return ["run", str(folder / "none.py")]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (cut_short, "expected a whole safetensors file"),
        (not_safetensors, "notes.txt"),
        (missing_dump, "No such file"),
        (unknown_case, "expected one of: biases"),
        (unknown_tensors_only, "found logit; expected at least one of"),
        (missing_adapter, "none.py: not found"),
    ],
)
def test_an_unusable_file_is_one_clear_line_and_exit_code_2(
    arguments, message, tmp_path, golden_cases, capsys
):
    logits = golden_cases["plain-causal"].outputs["logits"]
    assert command.main(arguments(tmp_path, logits)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "text, message",
    [
        ("x = 1", "defines no run"),
        ("import nothing_of_this_name", "raised ModuleNotFoundError"),
        ("def run(case):\n    return None", "raised AttributeError"),
        ("def run(case):\n    raise KeyError('mask')", "raised KeyError"),
        ("def run(case):\n    raise NotImplementedError", "was skipped"),
    ],
)
def test_an_unusable_adapter_is_one_clear_line_and_exit_code_2(text, message, tmp_path, capsys):
    assert command.main(["run", write_adapter(tmp_path, text)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_case_that_an_adapter_cannot_run_is_skipped_with_its_reason(tmp_path, capsys):
    adapter = write_adapter(
        tmp_path,
        "def run(case):\n"
        "    if case.decode:\n"
        "        raise NotImplementedError('no cache')\n"
        "    return {'logits': case.outputs['logits']}\n",
    )
    assert command.main(["run", adapter]) == 0
    report = capsys.readouterr().out
    assert "skip  decode-steps: no cache" in report
    assert "38 of 38 cases are right, 2 skipped" in report


def test_an_adapter_with_a_bug_is_told_which(tmp_path, capsys):
    adapter = write_adapter(
        tmp_path,
        f"import sys\n"
        f"sys.path.insert(0, {str(PEERS)!r})\n"
        f"import transformers_peer as peer\n"
        f"from ref.masks import MaskScheme\n"
        f"class Reversed(MaskScheme):\n"
        f"    def kinds(self, num_layers):\n"
        f"        return MaskScheme.kinds(self, num_layers)[::-1]\n"
        f"peer.MaskScheme = Reversed\n"
        f"run = peer.run\n",
    )
    assert command.main(["run", adapter]) == 1
    report = capsys.readouterr().out
    assert "1. schedule-reversed (schedule)" in report
    assert "2. " not in report


def test_the_list_tells_what_each_case_catches(capsys):
    assert command.main(["list"]) == 0
    report = capsys.readouterr().out
    assert all(f"{name}: " in report for name in cases.names())
    assert "alone: kv-heads-tiled" in report
