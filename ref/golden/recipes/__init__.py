"""How the golden cases are made: a recipe says what a case is, its stage's definition computes it.

There is one file of recipes and one module for each stage. A module has a function build_all(),
which returns the cases of its stage.
"""

import json
import re
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

from ref.golden import case as cases
from ref.golden import detection
from ref.golden.planted import detected_bugs, detection_matrix
from ref.golden.plants import descriptions
from ref.golden.recipes import decoding, loss, metrics, model, prompts, search
from ref.golden.stages import STAGES, all_bugs

ROUNDING = 1e-12  # of the largest number of a tensor
BUILDERS = {
    "prompts": prompts,
    "model": model,
    "decoding": decoding,
    "loss": loss,
    "search": search,
    "metrics": metrics,
}


def write(root=cases.GOLDEN, stages=None):
    """Write the cases of some stages anew, or of all, and the two lists, index.json and bugs.json.

    With the cases of all stages, the two pictures of the README, too. Returns how many bytes all
    cases are then. Raises ValueError for a folder of other files.
    """
    refuse_a_folder_of_others(root)
    built = []
    for stage in stages or STAGES:
        built += BUILDERS[stage].build_all()
    matrix = detection_matrix(built)
    for case in built:
        case.info["catches"] = detected_bugs(matrix, case.name)
    folder = Path(root) / "cases"
    for case in built:
        case.info["only_here"] = bugs_caught_alone(case, built)
        write_case(case, folder / case.name)
    write_lists(root, [case.name for case in built])
    if not stages:
        detection.draw(matrix, {case.name: case.stage for case in built}, root)
    return sum(path.stat().st_size for path in folder.rglob("*.*"))


def refuse_a_folder_of_others(root):
    """Raise ValueError for a folder in which something stands, but no golden cases."""
    if Path(root).is_dir() and any(Path(root).iterdir()) and not cases.names_in_index(root):
        raise ValueError(
            f"{root}: is not empty, and holds no golden cases; choose another --folder"
        )


def write_lists(root, names_in_order):
    """Write index.json and bugs.json from the files of the cases, also of those not written now.

    Within a stage `names_in_order` come first, then those that the index has already.
    """
    names = list(dict.fromkeys([*names_in_order, *cases.names_in_index(root)]))
    stages = list(STAGES)
    infos = [info for info in cases.infos(Path(root) / "cases") if info["name"] in names]
    infos.sort(key=lambda info: (stages.index(info["stage"]), names.index(info["name"])))
    write_list(Path(root) / "index.json", [entry_of_index(info, root) for info in infos])
    write_list(Path(root) / "bugs.json", [entry_of_bug(bug, infos) for bug in all_bugs()])


def entry_of_index(info, root):
    """What index.json says of a case: enough to choose which to take next."""
    fields = ("name", "stage", "what", "needs")
    tensors = Path(root) / "cases" / info["name"] / "tensors.safetensors"
    return {field: info[field] for field in fields} | {"bytes": tensors.stat().st_size}


def entry_of_bug(bug, infos):
    """What bugs.json says of a bug: its description, and the cases that show it."""
    shown_by = [info["name"] for info in infos if bug in info["catches"]]
    return descriptions()[bug] | {"shown_by": shown_by}


def write_list(path, entries):
    """A JSON list with an entry a line."""
    lines = [json.dumps(entry, ensure_ascii=False) for entry in entries]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


def bugs_caught_alone(case, built):
    """The bugs that a case catches, and no other case of its stage."""
    others = [other for other in built if other.stage == case.stage and other is not case]
    caught_by_others = {bug for other in others for bug in other.info["catches"]}
    return [bug for bug in case.info["catches"] if bug not in caught_by_others]


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
