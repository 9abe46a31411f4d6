"""Golden cases: what is in their files. They are made from recipes by `ref.golden.recipes`."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ref.files import read_json

FOLDER = Path(__file__).parent / "cases"
INPUTS = ("input_ids", "segment_ids", "position_ids", "labels")


@dataclass
class Case:
    """One golden case: `info` is its case.json, `tensors` its tensors.safetensors (empty until it is written)."""

    info: dict
    tensors: dict

    name = property(lambda self: self.info["name"])
    config = property(lambda self: self.info["config"])
    rows = property(lambda self: self.info["rows"])
    decode = property(lambda self: self.info.get("decode"))
    input_ids = property(lambda self: self.tensors["input_ids"])
    segment_ids = property(lambda self: self.tensors["segment_ids"])
    position_ids = property(lambda self: self.tensors["position_ids"])
    labels = property(lambda self: self.tensors["labels"])

    @cached_property
    def scheme(self):
        """The fields of MaskScheme, as attributes."""
        return SimpleNamespace(**self.info["scheme"])

    @cached_property
    def weights(self):
        """Float64, under the names of Hugging Face."""
        start = "weights."
        return {
            n.removeprefix(start): t.astype(float)
            for n, t in self.tensors.items()
            if n.startswith(start)
        }

    @cached_property
    def outputs(self):
        """The expected tensors, in the order of computation."""
        return {name: self.tensors[name] for name in self.info["outputs"]}

    def arguments(self):
        """What `llama_numpy.forward` takes."""
        return dict(
            weights=self.weights,
            config=self.config,
            input_ids=self.input_ids,
            segment_ids=self.segment_ids,
            scheme=self.scheme,
            position_ids=self.position_ids if self.info["positions_given"] else None,
        )


def load(name, folder=FOLDER):
    """Read one case. Raises FileNotFoundError or ValueError, naming the file."""
    if not (Path(folder) / name / "case.json").is_file():
        raise FileNotFoundError(
            f"case {name!r} not found in {folder}; expected one of: {', '.join(names(folder))}"
        )
    path, info = (
        Path(folder) / name / "tensors.safetensors",
        read_json(Path(folder) / name / "case.json"),
    )
    for field, kind in (
        ("name", str),
        ("config", dict),
        ("scheme", dict),
        ("rows", list),
        ("outputs", list),
    ):
        if not isinstance(info.get(field), kind) or not info[field]:
            raise ValueError(
                f"{path.with_name('case.json')}: {field} is {info.get(field)!r}; expected {kind.__name__}"
            )
    try:
        case = Case(info, load_file(path))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: {error}; expected safetensors") from None
    missing = [
        name
        for name in (*INPUTS, *info["outputs"])
        if not isinstance(name, str) or name not in case.tensors
    ]
    if missing:
        raise ValueError(f"{path}: holds no {missing[0]!r}, which case.json lists")
    return case


def names(folder=FOLDER):
    return sorted(path.parent.name for path in Path(folder).glob("*/case.json"))


def segment_ids(row, scheme):
    """The segment ids of a row's tokens: its entries, under the scheme's `delimiters` and `target`."""

    def of(role, entry):
        is_text = role in ("open", "close") and scheme["delimiters"] == "text"
        is_text |= entry > row["history"] and scheme["target"] == "text"
        return -1 if role == "padding" else 0 if is_text else entry

    return [of(role, entry) for role, entry in zip(row["roles"], row["entries"], strict=True)]


def compute(module, case, **changed):
    """Every traced tensor and the loss, by `module`: the definition, or a copy of it with a bug planted."""
    trace = {}
    module.forward(**(case.arguments() | changed), trace=trace)
    trace["loss"] = np.asarray(module.loss(trace["logits"], case.labels))
    return trace
