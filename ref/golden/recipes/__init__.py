"""How the golden cases are made: a recipe says what a case is, its stage's definition computes it.

There is one file of recipes and one module for each stage. A module has a function build_all(),
which returns the cases of its stage.
"""

import json
import re
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

from ref.files import read_json
from ref.golden.diagnosis import DETECTED, detected_bugs, detection_matrix
from ref.golden.plants import descriptions
from ref.golden.recipes import decoding, loss, metrics, model, prompts, search

ROOT = Path(__file__).parent.parent
ROUNDING = 1e-12  # of the largest number of a tensor
# Of each stage, in the order of the stages.
BUILDERS = {
    "prompts": prompts,
    "model": model,
    "decoding": decoding,
    "loss": loss,
    "search": search,
    "metrics": metrics,
}


def write(root=ROOT, stages=None):
    """Write the cases of some stages anew; returns how many bytes all cases are then.

    With all stages (None) index.json and bugs.json are written, too.
    """
    cases = []
    for stage in stages or BUILDERS:
        cases += BUILDERS[stage].build_all()
    matrix = detection_matrix(cases)
    folder = Path(root) / "cases"
    for case in cases:
        case.info["catches"] = detected_bugs(matrix, case.name)
        case.info["only_here"] = [
            bug for bug in case.info["catches"] if num_detecting(matrix[bug]) == 1
        ]
        write_case(case, folder / case.name)
    if stages is None:
        write_list(Path(root) / "index.json", [entry_of_index(case) for case in cases])
        write_list(Path(root) / "bugs.json", [entry_of_bug(bug, matrix) for bug in matrix])
    return sum(path.stat().st_size for path in folder.rglob("*.*"))


def names_in_index(root=ROOT):
    """The names of the cases in the order in which to take them."""
    return [entry["name"] for entry in read_json(Path(root) / "index.json", list)]


def entry_of_index(case):
    """What index.json says of a case: enough to choose which to take next."""
    fields = ("name", "stage", "what", "needs")
    num_bytes = sum(tensor.nbytes for tensor in case.tensors.values())
    return {field: case.info[field] for field in fields} | {"bytes": num_bytes}


def entry_of_bug(bug, matrix):
    """What bugs.json says of a bug: its description, and the cases that show it."""
    shown_by = [name for name, size in matrix[bug].items() if size >= DETECTED]
    return descriptions()[bug] | {"shown_by": shown_by}


def write_list(path, entries):
    """A JSON list with an entry a line."""
    lines = [json.dumps(entry, ensure_ascii=False) for entry in entries]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


def num_detecting(sizes):
    """In how many cases a bug shows; sizes: name of case -> deviation in tolerances."""
    return sum(size >= DETECTED for size in sizes.values())


def write_case(case, folder):
    """Write case.json and tensors.safetensors; the latter stays if only last bits would change."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "case.json").write_text(json_text(case.info), encoding="utf-8")
    tensors = {name: np.array(tensor, order="C") for name, tensor in case.tensors.items()}
    path = folder / "tensors.safetensors"
    if not path.is_file() or not are_equal(load_file(path), tensors):
        path.write_bytes(save(tensors))


def are_equal(tensors, others):
    """Whether the tensors of two files are equal, but for what another machine rounds otherwise."""
    if {(name, t.dtype, t.shape) for name, t in tensors.items()} != {
        (name, t.dtype, t.shape) for name, t in others.items()
    }:
        return False
    return all(are_close(tensor, others[name]) for name, tensor in tensors.items())


def are_close(values, others):
    """Whether two tensors of one type differ by rounding in float64 at most."""
    if values.dtype != np.float64:
        return np.array_equal(values, others)
    finite = others[np.isfinite(others)]
    largest = np.abs(finite).max(initial=0.0)
    return np.allclose(values, others, rtol=0, atol=ROUNDING * largest, equal_nan=True)


def json_text(value):
    """Indented JSON in which a list that holds no list and no object stands on one line."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    innermost_list = r"\[\s+([^\[\]{}]*?)\s+\]"

    def on_one_line(match):
        return "[" + re.sub(r"\s*\n\s*", " ", match[1]) + "]"

    return re.sub(innermost_list, on_one_line, text) + "\n"
