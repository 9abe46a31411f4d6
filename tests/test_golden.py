"""The golden cases, the known bugs and the checker: what the files promise, and what a person is told."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ref.golden import __main__ as cli
from ref.golden import case as cases
from ref.golden import compare, diagnosis, plants, recipes

from support.golden import relative

PEERS = Path(__file__).parent / "peers"
ALIKE = [
    {"decode-plain-causal", "decode-tokens-are-text"}
]  # the same computation, by two ways of going wrong
ONLY_IN_THE_LOSS = {
    "labels-not-shifted",
    "labels-shifted-twice",
    "loss-averaged-per-row",
    "loss-counts-ignored",
}


@pytest.fixture(scope="module")
def loaded():
    return {name: cases.load(name) for name in cases.names()}


@pytest.fixture(scope="module")
def made(loaded):
    """What each bug computes in each case."""
    return {
        (bug, name): diagnosis.outputs(bug, case)
        for bug in plants.PLANTS
        for name, case in loaded.items()
    }


@pytest.fixture
def remembered(made, monkeypatch):
    monkeypatch.setattr(diagnosis, "outputs", lambda bug, case: made[bug, case.name])


@pytest.fixture(scope="module")
def rewritten(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    recipes.write(folder)
    return folder


def test_the_files_in_the_repository_are_what_write_writes(rewritten):
    assert cases.names(rewritten) == cases.names() and len(cases.names()) >= 24
    for name in cases.names():
        assert (rewritten / name / "case.json").read_text() == (
            cases.FOLDER / name / "case.json"
        ).read_text()
        new, old = (
            load_file(folder / name / "tensors.safetensors") for folder in (rewritten, cases.FOLDER)
        )
        assert {n: (t.dtype, t.shape) for n, t in new.items()} == {
            n: (t.dtype, t.shape) for n, t in old.items()
        }
        for tensor in old:
            if tensor in cases.INPUTS or tensor.startswith("weights."):
                assert np.array_equal(new[tensor], old[tensor])
            else:  # another BLAS may round the last bits otherwise
                assert relative(new[tensor].astype(float), old[tensor].astype(float)) < 1e-12


def breaches(value, schema, at="case.json"):
    """Where a value breaches the parts of JSON Schema that case.schema.json uses."""
    types = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
        "null": type(None),
    }
    wanted = schema.get("type", list(types))
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if not any(
        isinstance(value, types[w]) and (w == "boolean" or not isinstance(value, bool))
        for w in wanted
    ):
        return [f"{at}: {value!r} is no {wanted}"]
    found = (
        []
        if value in schema.get("enum", [value]) and value == schema.get("const", value)
        else [f"{at}: {value!r}"]
    )
    if isinstance(value, dict):
        known = schema.get("properties", {})
        found += [f"{at}: no {name}" for name in schema.get("required", []) if name not in value]
        for name, part in value.items():
            if name not in known and schema.get("additionalProperties") is False:
                found.append(f"{at}: unknown {name}")
            found += breaches(part, known.get(name, {}), f"{at}.{name}")
    if isinstance(value, list):
        for i, part in enumerate(value):
            found += breaches(part, schema.get("items", {}), f"{at}[{i}]")
    return found


def test_every_case_fits_the_schema_and_a_wrong_one_does_not(loaded):
    schema = json.loads((cases.FOLDER.with_name("case.schema.json")).read_text())
    assert [line for case in loaded.values() for line in breaches(case.info, schema)] == []
    wrong = loaded["biases"].info | {"format": 2, "extra": 1, "catches": [1], "positions_given": 0}
    assert len(breaches(wrong, schema)) == 4


def test_all_cases_together_are_at_most_six_megabytes():
    assert (
        sum(path.stat().st_size for path in cases.FOLDER.rglob("*") if path.is_file()) <= 6_000_000
    )


def test_every_bug_is_caught_by_a_case_with_a_hundred_times_its_float32_tolerance(
    remembered, loaded
):
    matrix = diagnosis.detection_matrix(loaded.values())
    assert len(matrix) >= 60
    assert [bug for bug, row in matrix.items() if max(row.values()) < 100] == []
    for name, case in loaded.items():
        assert case.info["catches"] == [bug for bug, row in matrix.items() if row[name] >= 100]


def test_every_case_is_alone_in_catching_a_bug_or_says_what_else_it_is_for(loaded):
    for case in loaded.values():
        assert case.info["only_here"] or case.info["also_for"], case.name


def test_every_bug_says_what_it_is_what_it_does_and_how_to_fix_it():
    texts = diagnosis.texts()
    assert list(texts) == list(plants.PLANTS)
    for text in texts.values():
        assert set(text) == {"id", "family", "what", "effect", "fix"} and all(
            len(value) > 3 for value in text.values()
        )
    assert {text["family"] for text in texts.values()} == {
        "mask",
        "schedule",
        "segments",
        "positions",
        "decoding",
        "numerics",
        "model",
        "loss",
    }


@pytest.mark.parametrize("bug", plants.PLANTS)
def test_a_bug_is_named_first_from_float32_logits_alone(bug, loaded, made, remembered):
    random, examined = np.random.default_rng(0), []
    for name, case in loaded.items():
        logits = made[bug, name]["logits"]
        noise = (
            3e-6
            * np.abs(logits[np.isfinite(logits)]).max(initial=0.0)
            * random.uniform(-1, 1, logits.shape)
        )
        found = {"logits": compare.Found((logits + noise).astype(np.float32), "float32")}
        examined.append((case, found, compare.examine(case, found)))
    equal, _ = diagnosis.diagnose(examined)
    named = {name for name, _ in equal}
    if bug in ONLY_IN_THE_LOSS:
        assert all(result["ok"] for _, _, result in examined)
    else:
        assert equal[0][0] == bug or {equal[0][0], bug} in ALIKE
        assert named == {bug} or named in ALIKE


@pytest.mark.parametrize("bug", sorted(ONLY_IN_THE_LOSS))
def test_a_bug_of_the_loss_is_named_from_the_loss(bug, loaded, made, remembered):
    examined = []
    for name, case in loaded.items():
        found = {"loss": compare.Found(made[bug, name]["loss"], "float64")}
        examined.append((case, found, compare.examine(case, found)))
    assert [name for name, _ in diagnosis.diagnose(examined)[0]] == [bug]


def test_at_least_95_percent_of_bugs_show_in_logits():
    assert len(ONLY_IN_THE_LOSS) <= 0.05 * len(plants.PLANTS)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_transformers_peer_passes_every_case(attention, monkeypatch, capsys):
    monkeypatch.setenv("PEER_ATTENTION", attention)
    assert cli.main(["run", str(PEERS / "transformers_peer.py")]) == 0
    assert (
        f"{len(cases.names())} of {len(cases.names())} cases are right" in capsys.readouterr().out
    )


@pytest.mark.parametrize("peer", ["sdpa_peer.py", "flex_peer.py"])
def test_the_peer_passes_every_case(peer, capsys):
    assert cli.main(["run", str(PEERS / peer)]) == 0
    assert (
        f"{len(cases.names())} of {len(cases.names())} cases are right" in capsys.readouterr().out
    )


def dump(tmp_path, tensors):
    save_file(
        {name: np.array(tensor) for name, tensor in tensors.items()}, tmp_path / "dump.safetensors"
    )
    return str(tmp_path / "dump.safetensors")


def test_a_complete_dump_of_the_right_numbers_passes(tmp_path, loaded, capsys):
    assert (
        cli.main(["check", dump(tmp_path, loaded["gradients"].outputs), "--case", "gradients"]) == 0
    )
    assert "1 of 1 cases are right" in capsys.readouterr().out


def test_the_first_deviating_tensor_is_told_with_its_place_tokens_and_segments(
    tmp_path, loaded, capsys
):
    wrong = {name: tensor.copy() for name, tensor in loaded["three-kinds"].outputs.items()}
    wrong["layers.2.probabilities"][0, 1, 9, 4] += 0.25
    wrong["logits"] += 1
    assert cli.main(["check", dump(tmp_path, wrong), "--case", "three-kinds"]) == 1
    said = capsys.readouterr().out
    assert "layers.2.probabilities deviates by" in said
    assert "layer 2 (OR), row 0, head 1, query 9" in said and "key 4 'Heat' (segment 1)" in said


def test_the_diagnosis_of_one_dump_names_the_bug_and_its_fix(tmp_path, loaded, made, capsys):
    wrong = {"logits": made["kv-heads-tiled", "grouped-query"]["logits"].astype(np.float32)}
    assert cli.main(["check", dump(tmp_path, wrong), "--case", "grouped-query"]) == 1
    said = capsys.readouterr().out
    assert (
        "1. kv-heads-tiled (model)" in said
        and "Fix: Query head h reads head h // (heads / kv_heads)." in said
    )


def test_json_holds_the_results_and_the_diagnosis(tmp_path, loaded, made, capsys):
    wrong = {"logits": made["kv-heads-tiled", "grouped-query"]["logits"]}
    assert cli.main(["check", dump(tmp_path, wrong), "--case", "grouped-query", "--json"]) == 1
    said = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (
        said["diagnosis"][0]["id"] == "kv-heads-tiled"
        and said["cases"][0]["first"]["tensor"] == "logits"
    )


def test_numbers_of_no_known_bug_are_said_to_be_of_none(tmp_path, loaded, capsys):
    wrong = {
        "logits": np.random.default_rng(0).normal(
            size=loaded["plain-causal"].outputs["logits"].shape
        )
    }
    assert cli.main(["check", dump(tmp_path, wrong), "--case", "plain-causal"]) == 1
    assert "No known bug makes these numbers" in capsys.readouterr().out


def test_json_holds_no_constant_that_json_does_not_have(tmp_path, loaded, capsys):
    wrong = np.full_like(loaded["plain-causal"].outputs["logits"], np.nan)
    assert (
        cli.main(["check", dump(tmp_path, {"logits": wrong}), "--case", "plain-causal", "--json"])
        == 1
    )
    first = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["cases"][0]["first"]
    assert first["found"] == "NaN" and first["deviation"] == "Infinity"


def test_nan_is_a_deviation_told_with_its_place(tmp_path, loaded, capsys):
    wrong = loaded["plain-causal"].outputs["logits"].copy()
    wrong[0, 3, 5] = np.nan
    assert cli.main(["check", dump(tmp_path, {"logits": wrong}), "--case", "plain-causal"]) == 1
    said = capsys.readouterr().out
    assert "logits deviates by inf" in said and "nan, expected" in said and "token 3" in said


def test_nan_at_padding_is_a_deviation_and_any_other_number_is_not(tmp_path, loaded, capsys):
    logits = loaded["padding-left-and-right"].outputs["logits"].copy()
    padded = tuple(np.argwhere(loaded["padding-left-and-right"].segment_ids == -1)[0])
    logits[padded] = 7.0
    assert (
        cli.main(["check", dump(tmp_path, {"logits": logits}), "--case", "padding-left-and-right"])
        == 0
    )
    logits[padded] = np.nan
    assert (
        cli.main(["check", dump(tmp_path, {"logits": logits}), "--case", "padding-left-and-right"])
        == 1
    )


def test_float16_is_held_to_the_tolerance_of_bfloat16(tmp_path, loaded, capsys):
    half = loaded["plain-causal"].outputs["logits"].astype(np.float16)
    assert cli.main(["check", dump(tmp_path, {"logits": half}), "--case", "plain-causal"]) == 0
    assert (
        cli.main(
            ["check", dump(tmp_path, {"logits": half.astype(float)}), "--case", "plain-causal"]
        )
        == 1
    )


def cut_short(tmp_path, logits):
    whole = Path(dump(tmp_path, {"logits": logits}))
    whole.write_bytes(whole.read_bytes()[:-9])
    return ["check", str(whole), "--case", "plain-causal"]


def not_safetensors(tmp_path, logits):
    (tmp_path / "notes.txt").write_text("not a dump")
    return ["check", str(tmp_path / "notes.txt"), "--case", "plain-causal"]


def missing_dump(tmp_path, logits):
    return ["check", str(tmp_path / "none.safetensors"), "--case", "plain-causal"]


def unknown_case(tmp_path, logits):
    return ["check", dump(tmp_path, {"logits": logits}), "--case", "nothing"]


def wrong_shape(tmp_path, logits):
    return ["check", dump(tmp_path, {"logits": logits[:, 1:]}), "--case", "plain-causal"]


def unknown_tensors_only(tmp_path, logits):
    return ["check", dump(tmp_path, {"logit": logits}), "--case", "plain-causal"]


def adapter(tmp_path, text):
    (tmp_path / "adapter.py").write_text(text)
    return ["run", str(tmp_path / "adapter.py")]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (cut_short, "expected a whole safetensors file"),
        (not_safetensors, "notes.txt"),
        (missing_dump, "No such file"),
        (unknown_case, "expected one of: biases"),
        (wrong_shape, "shape (1, 13, 33), expected (1, 14, 33)"),
        (unknown_tensors_only, "found logit; expected at least one of"),
        (lambda tmp_path, logits: ["run", str(tmp_path / "none.py")], "none.py: not found"),
        (lambda tmp_path, logits: adapter(tmp_path, "x = 1"), "defines no run"),
        (
            lambda tmp_path, logits: adapter(tmp_path, "import nothing_of_this_name"),
            "raised ModuleNotFoundError",
        ),
        (
            lambda tmp_path, logits: adapter(tmp_path, "def run(case):\n    return None"),
            "raised AttributeError",
        ),
        (
            lambda tmp_path, logits: adapter(
                tmp_path, "def run(case):\n    raise KeyError('mask')"
            ),
            "raised KeyError",
        ),
        (
            lambda tmp_path, logits: adapter(
                tmp_path, "def run(case):\n    raise NotImplementedError"
            ),
            "was skipped",
        ),
    ],
)
def test_unusable_input_is_one_clear_line_and_exit_code_2(
    arguments, said, tmp_path, loaded, capsys
):
    assert cli.main(arguments(tmp_path, loaded["plain-causal"].outputs["logits"])) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_case_that_an_adapter_cannot_run_is_skipped_with_its_reason(tmp_path, capsys):
    some = adapter(
        tmp_path,
        "def run(case):\n    if case.decode:\n        raise NotImplementedError('no cache')\n"
        "    return {'logits': case.outputs['logits']}",
    )
    assert cli.main(some) == 0
    said = capsys.readouterr().out
    assert "skip  decode-steps: no cache" in said and "38 of 38 cases are right, 2 skipped" in said


def test_the_list_tells_what_each_case_catches(capsys):
    assert cli.main(["list"]) == 0
    said = capsys.readouterr().out
    assert all(f"{name}: " in said for name in cases.names()) and "alone: kv-heads-tiled" in said


def test_an_adapter_with_a_bug_is_told_which(tmp_path, capsys):
    adapter = tmp_path / "adapter.py"
    adapter.write_text(
        f"import sys\nsys.path.insert(0, {str(PEERS)!r})\nimport transformers_peer as peer\n"
        "from ref.masks import MaskScheme\n"
        "class Late(MaskScheme):\n"
        "    def kinds(self, L):\n"
        "        return MaskScheme.kinds(self, L)[::-1]\n"
        "peer.MaskScheme = Late\nrun = peer.run\n"
    )
    assert cli.main(["run", str(adapter)]) == 1
    said = capsys.readouterr().out
    assert "1. schedule-reversed (schedule)" in said and "2. " not in said
