"""The golden cases, the known bugs and the commands: what files promise and what is printed."""

import hashlib
import json
import re
import shutil
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_tensors_of_torch

from ref import llama_numpy
from ref.golden import __main__ as command
from ref.golden import case as cases
from ref.golden import detection, diagnosis, package, planted, recipes, remarks
from ref.golden.computed import Computed, computed_by_adapter, read_dump
from ref.golden.copies import copy_of
from ref.golden.plants import descriptions
from ref.golden.stages import STAGES, all_bugs

from support import known_bugs
from support.golden import relative
from support.json_schema import breaches
from support.known_bugs import case_of, decisive_outputs

PEERS = Path(__file__).parent / "peers"
GOLDEN = cases.FOLDER.parent
NUM_CASES = len(cases.names())
NUM_OF_MODEL = len(known_bugs.cases_of("model"))


@pytest.fixture(scope="module")
def golden_cases():
    """name -> Case."""
    return {name: case_of(name) for name in cases.names()}


@pytest.fixture(scope="module")
def bugs():
    """id -> what bugs.json says of it."""
    return {bug["id"]: bug for bug in json.loads((GOLDEN / "bugs.json").read_text())}


@pytest.fixture(scope="module")
def listed(bugs):
    """The detection matrix as bugs.json has it: 100 tolerances where a case shows a bug, or 0."""
    matrix = {}
    in_order = cases.names_in_index()
    for bug in all_bugs():
        shown_by = bugs[bug]["shown_by"]
        names = sorted(known_bugs.cases_that_can_show(bug), key=in_order.index)
        matrix[bug] = {name: 100.0 * (name in shown_by) for name in names}
    return matrix


@pytest.fixture(scope="module")
def built():
    """name -> Case, of all cases made anew, without the bugs that they catch."""
    return {case.name: case for stage in recipes.BUILDERS.values() for case in stage.build_all()}


@pytest.fixture(autouse=True)
def little_time_for_pairs(monkeypatch):
    """Pairs of bugs are tried in test_golden_words.py."""
    monkeypatch.setattr(diagnosis, "SECONDS_FOR_PAIRS", 0.1)


@pytest.mark.parametrize("name", [case.name for case in known_bugs.cases_of("model")])
def test_a_copy_of_the_definition_without_a_bug_makes_the_numbers_of_the_case(name):
    case = case_of(name)
    outputs = STAGES["model"].compute(copy_of(llama_numpy), case)
    for tensor in STAGES["model"].decisive:
        if tensor in case.outputs:
            assert relative(outputs[tensor], case.outputs[tensor]) < 1e-12


@pytest.fixture
def check(tmp_path, capsys):
    """check(case, tensors, ...): the exit code for a dump of the tensors, and what is printed."""

    def run(case, tensors, *options):
        path = write_dump(tmp_path, tensors)
        code = command.main(["check", path, "--case", case, *options])
        return code, capsys.readouterr().out

    return run


def write_dump(folder, tensors, name="dump"):
    path = folder / f"{name}.safetensors"
    save_file({name: np.array(tensor) for name, tensor in tensors.items()}, path)
    return str(path)


def write_adapter(folder, text):
    path = folder / "adapter.py"
    path.write_text(text)
    return str(path)


def test_recipes_make_exactly_the_cases_in_the_repository(built):
    assert sorted(built) == cases.names()


@pytest.mark.parametrize("name", cases.names())
def test_the_files_in_the_repository_are_what_the_recipes_make(name, built, golden_cases):
    new, committed = built[name], golden_cases[name]
    filled_by_write = ("catches", "only_here")
    info = {key: value for key, value in committed.info.items() if key not in filled_by_write}
    assert json.loads(json.dumps(new.info)) == info
    assert types_and_shapes(new.tensors) == types_and_shapes(committed.tensors)
    for tensor, expected in committed.tensors.items():
        if expected.dtype.kind != "f" or tensor not in committed.outputs:
            assert np.array_equal(new.tensors[tensor], expected)
        else:  # another BLAS may round the last bits otherwise
            assert relative(new.tensors[tensor].astype(float), expected.astype(float)) < 1e-12


def types_and_shapes(tensors):
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def test_writing_a_case_again_leaves_its_file_where_only_last_bits_differ(tmp_path):
    case = cases.load("first-case")
    recipes.write_case(case, tmp_path)
    before = (tmp_path / "tensors.safetensors").read_bytes()
    case.tensors["logits"] = case.tensors["logits"] * (1 + 1e-15)
    recipes.write_case(case, tmp_path)
    assert (tmp_path / "tensors.safetensors").read_bytes() == before
    case.tensors["logits"] = case.tensors["logits"] * (1 + 1e-9)
    recipes.write_case(case, tmp_path)
    assert (tmp_path / "tensors.safetensors").read_bytes() != before
    case.tensors["logits"] = case.tensors["logits"][:, :1]
    recipes.write_case(case, tmp_path)
    assert load_file(tmp_path / "tensors.safetensors")["logits"].shape[1] == 1


def test_every_case_fits_the_schema_of_its_stage_and_a_wrong_one_does_not(golden_cases):
    for case in golden_cases.values():
        schema = json.loads((GOLDEN / "schemas" / f"{case.stage}.json").read_text())
        assert breaches(case.info, schema) == [], case.name
    schema = json.loads((GOLDEN / "schemas" / "model.json").read_text())
    wrong_fields = {"format": 1, "extra": 1, "catches": [1], "positions_given": 0}
    assert len(breaches(golden_cases["biases"].info | wrong_fields, schema)) == 4


def test_all_cases_together_are_at_most_ten_megabytes():
    sizes = [path.stat().st_size for path in cases.FOLDER.rglob("*") if path.is_file()]
    assert sum(sizes) <= 10_000_000


def test_every_case_is_alone_in_catching_a_bug_or_says_what_else_it_is_for(golden_cases):
    for case in golden_cases.values():
        assert case.info["only_here"] or case.info["also_for"], case.name


def test_every_bug_says_what_it_is_what_it_does_and_how_to_fix_it():
    described = descriptions()
    assert set(described) == set(all_bugs())
    for description in described.values():
        assert set(description) == {"id", "family", "what", "effect", "fix"}
        assert min(len(text) for text in description.values()) > 3


def test_what_is_published_of_a_bug_is_what_is_planted(bugs):
    described = descriptions()
    assert set(bugs) == set(described)
    for name, description in described.items():
        assert {key: bugs[name][key] for key in description} == description


def test_every_bug_is_caught_by_a_case_with_a_hundred_times_its_float32_tolerance(bugs):
    assert set(bugs) == set(all_bugs())
    for bug in bugs.values():
        first_case = case_of(bug["shown_by"][0])
        assert planted.visible_deviation(bug["id"], first_case) >= 100, bug["id"]


def test_every_case_lists_the_bugs_that_the_list_of_bugs_says_it_shows(bugs, golden_cases):
    for name, case in golden_cases.items():
        shown = {bug for bug in bugs if name in bugs[bug]["shown_by"]}
        assert set(case.info["catches"]) == shown, name


def test_the_index_lists_every_case_once_in_the_order_of_the_stages():
    index = json.loads((GOLDEN / "index.json").read_text())
    stages = [entry["stage"] for entry in index]
    assert sorted(entry["name"] for entry in index) == cases.names()
    assert stages == sorted(stages, key=list(STAGES).index)
    for entry in index:
        info = case_of(entry["name"]).info
        assert {key: info[key] for key in ("what", "needs")} == {
            key: entry[key] for key in ("what", "needs")
        }


def test_the_committed_pictures_are_drawn_of_the_committed_cases(listed, tmp_path):
    detection.draw(listed, {info["name"]: info["stage"] for info in cases.infos()}, tmp_path)
    for name in ("detection.svg", "families.svg"):
        assert (tmp_path / name).read_text() == (GOLDEN / name).read_text()


def test_the_picture_of_families_counts_each_bug_once(listed):
    counts = detection.counts_by_family(listed)
    assert sum(sum(of_family) for of_family in counts.values()) == len(listed)
    alone = [bug for bug, sizes in listed.items() if detection.num_detecting(sizes) == 1]
    assert sum(of_family[0] for of_family in counts.values()) == len(alone)


def test_a_bug_that_no_case_detects_is_exit_code_1(listed, monkeypatch, capsys):
    missed = dict.fromkeys(listed["mask-inverted"], 99.9)
    monkeypatch.setattr(
        detection, "detection_matrix", lambda cases: listed | {"mask-inverted": missed}
    )
    assert detection.main([]) == 1
    summary = f"{len(listed) - 1} of {len(listed)} known bugs are detected by {NUM_CASES} cases"
    assert summary in capsys.readouterr().out


@pytest.mark.parametrize(
    "peer", ["sdpa_peer.py", pytest.param("flex_peer.py", marks=pytest.mark.slow)]
)
def test_the_peer_passes_every_case_of_the_model(peer, capsys):
    assert command.main(["run", str(PEERS / peer)]) == 0
    assert f"{NUM_OF_MODEL} of {NUM_OF_MODEL} cases are right" in capsys.readouterr().out


def test_flex_attention_passes_the_cases_that_its_mistakes_show_in(capsys):
    names = """
        three-kinds text-isolated cross-self-off cross-self-off-after-text padding-left-and-right
        padding-inside grouped-query longer-than-128
    """.split()
    only_these = [word for name in names for word in ("--case", name)]
    assert command.main(["run", str(PEERS / "flex_peer.py"), *only_these]) == 0
    assert f"{len(names)} of {len(names)} cases are right" in capsys.readouterr().out


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


def test_the_diagnosis_of_one_dump_names_the_bug_and_its_fix(check):
    logits = decisive_outputs(("kv-heads-tiled",), "grouped-query")["logits"]
    code, report = check("grouped-query", {"logits": logits.astype(np.float32)})
    assert code == 1
    assert "1. kv-heads-tiled (model)" in report
    assert "Fix: Query head h reads head h // (heads / kv_heads)." in report


def test_json_holds_the_results_and_the_diagnosis(check):
    logits = decisive_outputs(("kv-heads-tiled",), "grouped-query")["logits"]
    code, report = check("grouped-query", {"logits": logits}, "--json")
    values = json.loads(report, parse_constant=pytest.fail)
    assert code == 1
    assert values["diagnosis"][0]["bugs"][0]["id"] == "kv-heads-tiled"
    assert values["cases"][0]["first"]["tensor"] == "logits"
    listed_in_the_readme = {"case", "stage", "ok", "compared", "deviating", "unknown", "largest"}
    listed_in_the_readme |= {"first", "remarks", "problem"}
    assert set(values["cases"][0]) == listed_in_the_readme


def test_numbers_of_no_known_bug_are_said_to_be_of_none(golden_cases, check):
    right = golden_cases["plain-causal"].outputs["logits"]
    wrong = np.random.default_rng(0).normal(size=right.shape)
    code, report = check("plain-causal", {"logits": wrong})
    assert code == 1
    assert "No known bug makes these numbers" in report


def test_orders_of_axes_are_not_tried_where_their_number_is_another(monkeypatch):
    tried = []
    monkeypatch.setattr(remarks, "permutations", lambda axes: tried.append(axes) or [])
    case = SimpleNamespace(tensors={"hidden": np.arange(6.0).reshape(2, 3, 1)})
    doubled = 2 * case.tensors["hidden"].reshape([1] * 12 + [6])
    comparison = SimpleNamespace(case=case, computed={"hidden": Computed(doubled, "float64")})
    assert remarks.on_values(comparison, "hidden") == []
    assert tried == []


@pytest.mark.parametrize("axes, is_told", [((0, 2, 1), True), ((0, 1, 2), False)])
def test_json_says_whether_remarks_tell_all(golden_cases, check, axes, is_told):
    wrong = golden_cases["plain-causal"].outputs["logits"].transpose(axes) + (not is_told)
    code, report = check("plain-causal", {"logits": wrong}, "--json")
    assert code == 1
    assert json.loads(report)["diagnosis"][0]["is_told"] == is_told


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
    assert "logits holds NaN, expected" in report
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
    B, T, V = logits.shape
    assert f"shape ({B}, {T - 1}, {V}), expected ({B}, {T}, {V})" in report


def test_float16_is_held_to_the_tolerance_of_bfloat16(golden_cases, check):
    half = golden_cases["plain-causal"].outputs["logits"].astype(np.float16)
    assert check("plain-causal", {"logits": half})[0] == 0
    assert check("plain-causal", {"logits": half.astype(float)})[0] == 1


def test_a_single_number_fits_in_any_shape(golden_cases, check):
    loss = golden_cases["plain-causal"].outputs["loss"]
    assert check("plain-causal", {"loss": loss.reshape(1, 1)})[0] == 0
    assert check("plain-causal", {"loss": loss.reshape(1, 1) * 1.01})[0] == 1


@pytest.mark.parametrize(
    "precision, code", [("float64", 1), ("float32", 1), ("tf32", 0), ("bfloat16", 0)]
)
def test_precision_holds_every_tensor_to_its_tolerance(precision, code, golden_cases, check):
    logits = golden_cases["plain-causal"].outputs["logits"] * (1 + 1e-3)
    assert check("plain-causal", {"logits": logits}, "--precision", precision)[0] == code


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


def no_case(folder, logits):
    return ["check", write_dump(folder, {"logits": logits})]


def empty_folder(folder, logits):
    return ["check", str(folder)]


def unknown_tensors_only(folder, logits):
    return ["check", write_dump(folder, {"logit": logits}), "--case", "plain-causal"]


def missing_folder(folder, logits):
    return ["check", str(folder / "none")]


def case_and_stage(folder, logits):
    adapter = write_adapter(folder, "def run(case):\n    return {}\n")
    return ["run", adapter, "--case", "biases", "--stage", "decoding"]


def missing_adapter(folder, logits):
    return ["run", str(folder / "none.py")]


def adapter_of_no_known_kind(folder, logits):
    (folder / "adapter.txt").write_text("def run(case):\n    return {}\n")
    return ["run", str(folder / "adapter.txt")]


def archive_of_no_known_kind(folder, logits):
    return ["pack", str(folder / "golden.rar")]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (cut_short, "expected a whole safetensors file"),
        (not_safetensors, "notes.txt"),
        (missing_dump, "no such file"),
        (unknown_case, "expected one of: biases"),
        (no_case, "expected --case NAME"),
        (empty_folder, "holds no NAME.safetensors"),
        (unknown_tensors_only, "found logit; expected at least one of"),
        (missing_folder, "none: not found; expected a dump or a folder of dumps"),
        (case_and_stage, "--case and --stage: give one of them"),
        (missing_adapter, "none.py: not found"),
        (adapter_of_no_known_kind, "adapter.txt: expected a file whose name ends in .py"),
        (archive_of_no_known_kind, "ends in .tar.gz or .zip"),
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
        ("import sys\nsys.exit(3)", "raised SystemExit: 3"),
        ("def run(case):\n    return None", "returned NoneType; expected a mapping"),
        ("def run(case):\n    raise KeyError('mask')", "raised KeyError"),
        ("def run(case):\n    raise NotImplementedError", "was skipped"),
    ],
)
def test_an_unusable_adapter_is_one_clear_line_and_exit_code_2(text, message, tmp_path, capsys):
    adapter = write_adapter(tmp_path, text)
    assert command.main(["run", adapter, "--stage", "model"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "fails, message",
    [
        ("raise KeyError('mask')", "run(case) raised KeyError: 'mask', at adapter.py:3\n"),
        ("assert False", "run(case) raised AssertionError, at adapter.py:3\n"),
        ("import sys; sys.exit(4)", "run(case) raised SystemExit: 4, at adapter.py:3\n"),
        ("raise Speechless", "run(case) raised Speechless, at adapter.py:3\n"),
        ("raise ValueError('x' * 10_000)", "run(case) raised ValueError: xxx"),
        ("return {'logits': Exits()}", "SystemExit: 0"),
        ("return {'logits': case.outputs['logits'] * 1j}", "an array of complex128"),
        ("return {'logits': [[1.0], 'a', None]}", "inhomogeneous"),
        ("return {'logits': case.outputs['logits'].astype(object)}", "an array of object"),
        ("return {}", "found no tensor"),
        ("return {'logit': case.outputs['logits']}", "found logit; expected at least one of"),
        ("case.tensors['labels'][:] = 0", "read-only"),
    ],
)
def test_a_case_that_fails_does_not_lose_the_results_of_the_others(
    fails, message, tmp_path, capsys
):
    adapter = write_adapter(
        tmp_path,
        f"def run(case):\n"
        f"    if case.name == 'three-kinds':\n"
        f"        {fails}\n"
        f"    return {{'logits': case.outputs['logits']}}\n"
        f"class Speechless(Exception):\n"
        f"    def __str__(self): raise self\n"
        f"class Exits:\n"
        f"    def __array__(self, *_, **__): raise SystemExit(0)\n",
    )
    assert command.main(["run", adapter, "--case", "three-kinds", "--case", "biases"]) == 1
    report = capsys.readouterr().out
    assert message in report
    assert "1 of 2 cases are right, 1 could not be compared" in report
    assert max(map(len, report.splitlines())) < 700


def test_an_adapter_may_use_the_memory_of_its_arrays_again():
    array = np.ones(3)
    computed = computed_by_adapter({"logits": array})
    array[:] = 0
    assert computed["logits"].values.tolist() == [1, 1, 1]


def test_an_error_names_the_innermost_line_of_the_files_beside_the_adapter(tmp_path, capsys):
    (tmp_path / "failing_port.py").write_text("import json\ndef logits():\n    json.loads('')\n")
    text = "import failing_port\ndef run(case):\n    return {'logits': failing_port.logits()}\n"
    adapter = write_adapter(tmp_path, text)
    assert command.main(["run", adapter, "--case", "biases"]) == 2
    assert "(char 0), at failing_port.py:3" in capsys.readouterr().err


def test_numbers_of_a_dump_in_bfloat16_are_taken_as_such(tmp_path):
    numbers = torch.tensor([[1.5, -2.25, 1e-30]], dtype=torch.bfloat16)
    save_tensors_of_torch({"logits": numbers}, tmp_path / "dump.safetensors")
    values, precision = read_dump(tmp_path / "dump.safetensors")["logits"]
    assert values.tolist() == numbers.tolist() and precision == "bfloat16"


def test_numbers_of_jax_in_bfloat16_are_taken_as_such():
    computed = computed_by_adapter({"logits": jax.numpy.full((1, 2), 1.5, "bfloat16")})
    values, precision = computed["logits"]
    assert values.tolist() == [[1.5, 1.5]] and precision == "bfloat16"


class ArrayOfAnotherLibrary:
    """What NumPy can read, with a dtype that prints as other libraries print theirs."""

    def __init__(self, dtype):
        self.dtype = dtype

    def __array__(self, dtype=None, copy=None):
        return np.ones((1, 2), np.float32)


@pytest.mark.parametrize(
    "dtype, precision",
    [
        ("mlx.core.float32", "float32"),
        ("<dtype: 'float32'>", "float32"),
        ("mlx.core.bfloat16", "bfloat16"),
        ("<dtype: 'float16'>", "bfloat16"),
        ("float64", "float64"),
        ("int32", "float64"),
    ],
)
def test_the_precision_is_that_of_the_array_however_its_type_is_spelled(dtype, precision):
    computed = computed_by_adapter({"logits": ArrayOfAnotherLibrary(dtype)})
    assert computed["logits"].precision == precision


@pytest.fixture
def few_recipes(built, listed, monkeypatch):
    """One recipe, of the metrics, and a detection matrix of its case alone."""
    few = {stage: SimpleNamespace(build_all=lambda: []) for stage in recipes.BUILDERS}
    few["metrics"] = SimpleNamespace(build_all=lambda: [built["metrics-ties"]])
    monkeypatch.setattr(recipes, "BUILDERS", few)
    monkeypatch.setattr(recipes, "detection_matrix", lambda cases: of_one_case(listed))


def test_the_command_write_makes_the_cases_of_a_stage(few_recipes, tmp_path, capsys):
    assert command.main(["write", "--folder", str(tmp_path), "--stage", "metrics"]) == 0
    assert "bytes of cases" in capsys.readouterr().out
    (written,) = tmp_path.glob("cases/*/tensors.safetensors")
    assert written.read_bytes() == (GOLDEN / written.relative_to(tmp_path)).read_bytes()
    assert json.loads(written.with_name("case.json").read_text())["name"] == "metrics-ties"


def test_the_command_write_draws_the_pictures_where_it_writes_all_stages(
    few_recipes, tmp_path, capsys
):
    detected, by_family = tmp_path / "detection.svg", tmp_path / "families.svg"
    assert command.main(["write", "--folder", str(tmp_path), "--stage", "metrics"]) == 0
    assert "run `write` without --stage" in capsys.readouterr().out
    assert not detected.exists() and not by_family.exists()
    assert command.main(["write", "--folder", str(tmp_path)]) == 0
    assert "--stage" not in capsys.readouterr().out
    assert "metrics-ties" in detected.read_text()
    assert "known bugs by family" in by_family.read_text()


def of_one_case(matrix):
    name = "metrics-ties"
    return {bug: {name: sizes[name]} for bug, sizes in matrix.items() if name in sizes}


@pytest.mark.parametrize(
    "name, text, message",
    [("bugs.json", '{"mine": 1}', "is not empty"), ("index.json", "[1]", "is no list of golden")],
)
def test_the_command_write_leaves_a_folder_of_other_files_alone(
    name, text, message, tmp_path, capsys
):
    (tmp_path / name).write_text(text)
    assert command.main(["write", "--folder", str(tmp_path), "--stage", "metrics"]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == text


def test_where_an_adapter_skips_all_cases_a_reason_is_told(tmp_path, capsys):
    text = "def run(case):\n    raise NotImplementedError('no layouts yet')\n"
    adapter = write_adapter(tmp_path, text)
    assert command.main(["run", adapter, "--case", "biases"]) == 2
    assert "every case was skipped (biases: no layouts yet)" in capsys.readouterr().err


def test_an_adapter_imports_its_neighbours_and_what_it_prints_is_no_part_of_the_report(
    tmp_path, capsys
):
    (tmp_path / "neighbour_of_adapter.py").write_text("TENSOR = 'logits'\n")
    adapter = write_adapter(
        tmp_path,
        "import neighbour_of_adapter\n"
        "def run(case):\n"
        "    print('a word')\n"
        "    name = neighbour_of_adapter.TENSOR\n"
        "    return {name: case.outputs[name]}\n",
    )
    assert command.main(["run", adapter, "--case", "biases", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["cases"][0]["ok"]
    assert "a word" in printed.err


def test_a_case_that_an_adapter_cannot_run_is_skipped_with_its_reason(tmp_path, capsys):
    adapter = write_adapter(
        tmp_path,
        "def run(case):\n"
        "    if case.name == 'biases':\n"
        "        raise NotImplementedError('no biases')\n"
        "    return {'logits': case.outputs['logits']}\n",
    )
    assert command.main(["run", adapter, "--stage", "model"]) == 0
    report = capsys.readouterr().out
    assert "skip  biases: no biases" in report
    summary = f"{NUM_OF_MODEL - 1} of {NUM_OF_MODEL - 1} cases are right, 1 skipped"
    assert report.splitlines()[-1] == summary


def test_a_case_that_holds_none_of_what_an_adapter_returns_is_skipped(tmp_path, capsys):
    adapter = write_adapter(
        tmp_path,
        "def run(case):\n"
        "    return {n: v for n, v in case.outputs.items() if n.endswith('.mask')}"
        " or {'layers.0.mask': case.input_ids}\n",
    )
    assert command.main(["run", adapter, "--stage", "model"]) == 0
    *_, skipped, summary = capsys.readouterr().out.splitlines()
    assert skipped.endswith(": it holds none of what was returned: layers.0.mask")
    assert summary == f"{NUM_OF_MODEL - 4} of {NUM_OF_MODEL - 4} cases are right, 4 skipped"


def test_of_many_skipped_cases_the_first_are_named_and_the_others_counted(tmp_path, capsys):
    adapter = write_adapter(
        tmp_path,
        "def run(case):\n"
        "    if case.name != 'biases':\n"
        "        raise NotImplementedError('later')\n"
        "    return {'logits': case.outputs['logits']}\n",
    )
    assert command.main(["run", adapter, "--stage", "model"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("skip")]
    assert line.endswith(f" and {NUM_OF_MODEL - 4} more: later")
    assert line.count(",") == 2


def test_a_folder_of_dumps_gives_one_diagnosis_over_all(tmp_path, capsys):
    for case in known_bugs.cases_of("model"):
        logits = decisive_outputs(("schedule-reversed",), case.name)["logits"]
        write_dump(tmp_path, {"logits": logits.astype(np.float32)}, case.name)
    write_dump(tmp_path, {"logits": logits}, "no-case")
    assert command.main(["check", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert "1. schedule-reversed (schedule)" in printed.out
    assert "2. " not in printed.out
    assert f", {NUM_CASES - NUM_OF_MODEL} skipped" in printed.out
    assert "there is no case 'no-case'" in printed.err


def test_the_name_of_a_dump_cannot_steer_a_terminal(tmp_path, golden_cases, capsys):
    right = {"logits": golden_cases["biases"].outputs["logits"]}
    write_dump(tmp_path, right, "biases")
    write_dump(tmp_path, right, "\x1b[31m")
    assert command.main(["check", str(tmp_path)]) == 0
    error = capsys.readouterr().err
    assert "\x1b" not in error and "\\x1b[31m.safetensors: there is no case" in error


def test_a_file_with_the_name_of_a_case_is_compared_with_it(tmp_path, golden_cases):
    right = write_dump(tmp_path, {"logits": golden_cases["biases"].outputs["logits"]}, "biases")
    assert command.main(["check", right]) == 0


def test_the_list_tells_what_each_case_catches(capsys):
    assert command.main(["list"]) == 0
    report = capsys.readouterr().out
    assert all(f"{name} (" in report for name in cases.names())
    assert "alone: kv-heads-tiled" in report


def test_the_list_for_programs_says_as_much(capsys):
    assert command.main(["list", "--json", "--stage", "model"]) == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert list(listed) == [i["name"] for i in command.infos_in_order(["model"])]
    for name, entry in listed.items():
        assert entry == {field: case_of(name).info[field] for field in entry}
        assert set(entry) == {
            *("name", "stage", "what", "needs", "catches", "only_here", "also_for")
        }


@pytest.mark.parametrize("name", ["golden.tar.gz", "golden.zip"])
def test_the_archive_is_the_same_each_time_and_its_sums_are_those_of_its_files(name, tmp_path):
    version, count = package.pack(tmp_path / name)
    first = (tmp_path / name).read_bytes()
    assert package.pack(tmp_path / name) == (version, count)
    assert (tmp_path / name).read_bytes() == first
    unpack(tmp_path / name, tmp_path)
    folder = tmp_path / "hatllm-golden"
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    assert len(lines) == count - 2
    for line in lines:
        digest, path = line.split("  ")
        assert hashlib.sha256((folder / path).read_bytes()).hexdigest() == digest


def unpack(path, folder):
    if path.suffix == ".zip":
        zipfile.ZipFile(path).extractall(folder)
    else:
        tarfile.open(path).extractall(folder, filter="data")


def test_the_readme_prints_the_first_case_as_it_is(golden_cases):
    readme = (GOLDEN / "README.md").read_text()
    block = readme.split("### A first case")[1].split("By hand")[0]
    printed = {}
    for line in re.sub(r"\n {8,}", " ", block).splitlines():
        if " = " in line and line.startswith("    "):
            name, values = line.strip().split(" = ")
            printed[name] = np.array(json.loads(values.replace("-inf", "-Infinity")))
    tensors = golden_cases["first-case"].tensors
    assert set(printed) == set(tensors)
    for name, values in printed.items():
        assert np.allclose(values, tensors[name].reshape(values.shape), rtol=0, atol=0.5001e-4)


@pytest.mark.parametrize(
    "field, value, expected",
    [("scheme", 7, "dict"), ("config", [], "dict"), ("rows", {}, "list"), ("inputs", None, "list")],
)
def test_a_case_with_a_field_of_a_wrong_type_is_refused_by_name(tmp_path, field, value, expected):
    shutil.copytree(cases.FOLDER / "biases", tmp_path / "case")
    path = tmp_path / "case" / "case.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))

    with pytest.raises(ValueError, match=rf"case\.json: {field} is .*; expected {expected}"):
        cases.load("case", tmp_path)


def test_a_case_that_lists_a_tensor_which_its_file_lacks_is_refused_by_name(tmp_path):
    shutil.copytree(cases.FOLDER / "biases", tmp_path / "case")
    path = tmp_path / "case" / "case.json"
    info = json.loads(path.read_text())
    info["outputs"].append("layers.99.q")
    path.write_text(json.dumps(info))

    with pytest.raises(ValueError, match=r"tensors\.safetensors: holds no 'layers\.99\.q'"):
        cases.load("case", tmp_path)
