"""Golden cases: what is in their files. They are made from recipes by `ref.golden.recipes`."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ref.files import read_json

FOLDER = Path(__file__).parent / "cases"
INPUTS = ("input_ids", "segment_ids", "position_ids", "labels")
WEIGHTS = "weights."  # how the names of a case's weights begin
FIELDS = {"name": str, "config": dict, "scheme": dict, "rows": list, "outputs": list}


class Case:
    """One golden case. Shapes: B batch, T tokens.

    info: what case.json holds (see case.schema.json), of which these are fields of their own:
        name, rows, decode (None where the case does not decode),
        config: a dict with the fields of a Hugging Face config.json,
        scheme: the fields of MaskScheme as attributes
    tensors: what tensors.safetensors holds by name, of which these are fields of their own:
        input_ids, segment_ids, position_ids, labels: int64 (B, T),
        weights: float64, by the names of Hugging Face
    """

    def __init__(self, info, tensors):
        self.info = info
        self.name = info["name"]
        self.config = info["config"]
        self.rows = info["rows"]
        self.decode = info.get("decode")
        self.scheme = SimpleNamespace(**info["scheme"])

        self.tensors = tensors
        self.input_ids = tensors["input_ids"]
        self.segment_ids = tensors["segment_ids"]
        self.position_ids = tensors["position_ids"]
        self.labels = tensors["labels"]
        self.weights = {}
        for name, tensor in tensors.items():
            if name.startswith(WEIGHTS):
                self.weights[name.removeprefix(WEIGHTS)] = tensor.astype(float)

    @property
    def outputs(self):
        """The expected tensors by name, in the order of computation."""
        return {name: self.tensors[name] for name in self.info["outputs"]}

    def arguments(self):
        """The arguments of `ref.llama_numpy.forward`."""
        return {
            "weights": self.weights,
            "config": self.config,
            "input_ids": self.input_ids,
            "segment_ids": self.segment_ids,
            "scheme": self.scheme,
            "position_ids": self.position_ids if self.info["positions_given"] else None,
        }


def load(name, folder=FOLDER):
    """The case in `folder`/`name`. Raises FileNotFoundError or ValueError, naming the file."""
    info_path = Path(folder) / name / "case.json"
    if not info_path.is_file():
        raise FileNotFoundError(
            f"case {name!r} not found in {folder}; expected one of: {', '.join(names(folder))}"
        )
    info = read_json(info_path)
    check_fields(info, info_path)
    tensors_path = info_path.with_name("tensors.safetensors")
    try:
        tensors = load_file(tensors_path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{tensors_path}: {error}; expected safetensors") from None
    for tensor in (*INPUTS, *info["outputs"]):
        if not isinstance(tensor, str) or tensor not in tensors:
            raise ValueError(f"{tensors_path}: holds no {tensor!r}, which case.json lists")
    return Case(info, tensors)


def check_fields(info, path):
    """Raise ValueError where case.json lacks a field that the checker needs."""
    for field, kind in FIELDS.items():
        value = info.get(field)
        if not isinstance(value, kind) or not value:
            raise ValueError(f"{path}: {field} is {value!r}; expected {kind.__name__}")


def names(folder=FOLDER):
    """The names of all cases in a folder, sorted."""
    return sorted(path.parent.name for path in Path(folder).glob("*/case.json"))


def segment_ids(row, scheme):
    """The segment ids of a row's tokens, a list: -1 padding, 0 text, 1..n history, n + 1 target.

    `row` is an object of `rows` in case.json. `scheme` is a dict; its `delimiters` and `target` say
    whether these tokens count as text.
    """
    ids = []
    for role, item in zip(row["roles"], row["entries"], strict=True):
        is_delimiter = role in ("open", "close")
        is_target = item > row["history"]
        if role == "padding":
            ids.append(-1)
        elif is_delimiter and scheme["delimiters"] == "text":
            ids.append(0)
        elif is_target and scheme["target"] == "text":
            ids.append(0)
        else:
            ids.append(item)
    return ids


def compute(module, case, **changed):
    """Every intermediate and the loss of a case, by name, in the order of computation.

    `module` is the definition (`ref.llama_numpy`) or a copy of it; `changed` replaces arguments of
    its `forward`.
    """
    trace = {}
    module.forward(**(case.arguments() | changed), trace=trace)
    trace["loss"] = np.asarray(module.loss(trace["logits"], case.labels))
    return trace
