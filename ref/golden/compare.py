"""How far an implementation's tensors are from the expected ones, where first, and which known bug makes the same."""

from collections import namedtuple
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, deserialize

from ref import llama_numpy

AXES = {
    "mask": "row query key",
    "q": "row head token dimension",
    "k": "row kv-head token dimension",
    "v": "row kv-head token dimension",
    "scores": "row head query key",
    "probabilities": "row head query key",
    "logits": "row token vocabulary",
    "loss": "",
}  # all others: row token dimension
PRECISIONS = {
    "float16": "bfloat16",
    "bfloat16": "bfloat16",
    "float32": "float32",
}  # all others: float64
NUMPY = {
    "F64": "f8",
    "F32": "f4",
    "F16": "f2",
    "BF16": "u2",
    "BOOL": "?",
    "U8": "u1",
    "I32": "i4",
    "I64": "i8",
}
Deviation = namedtuple(
    "Deviation", "size at"
)  # relative to the largest expected value; the index of the worst
Found = namedtuple("Found", "values precision")  # an array, and the tolerance that it is held to


def read_dump(path):
    """name -> Found, of a safetensors file. Raises FileNotFoundError or ValueError, naming the file."""
    try:
        tensors = deserialize(Path(path).read_bytes())
    except OSError as error:
        raise FileNotFoundError(f"{path}: {error.strerror}; expected a safetensors file") from None
    except SafetensorError as error:
        raise ValueError(f"{path}: {error}; expected a whole safetensors file") from None
    found = {}
    for name, tensor in tensors:
        if tensor["dtype"] not in NUMPY:
            raise ValueError(
                f"{path}: {name} is {tensor['dtype']}; expected one of {', '.join(NUMPY)}"
            )
        values = np.frombuffer(tensor["data"], NUMPY[tensor["dtype"]]).reshape(tensor["shape"])
        if tensor["dtype"] == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        precision = (
            "bfloat16"
            if tensor["dtype"] == "BF16"
            else PRECISIONS.get(str(values.dtype), "float64")
        )
        found[name] = Found(values, precision)
    return found


def found_by_adapter(arrays):
    """name -> Found, of what an adapter returned: arrays of NumPy, PyTorch or anything that NumPy can read."""
    found = {}
    for name, array in arrays.items():
        precision = PRECISIONS.get(
            str(getattr(array, "dtype", "")).removeprefix("torch."), "float64"
        )
        if hasattr(array, "detach"):
            array = array.detach().cpu().double()
        found[name] = Found(np.asarray(array), precision)
    return found


def deviation(case, name, found, expected):
    """The largest difference at real tokens over the largest expected value; inf where only one is finite."""
    found, expected = np.asarray(found, float), np.asarray(expected, float)
    wrong = (found != expected) & ~(np.isnan(found) & np.isnan(expected))
    axes = AXES.get(name.split(".")[-1], "row token dimension").split()
    if axes and not name.startswith(
        "gradients."
    ):  # what stands at padding is not specified, but finite
        shape = [
            n if axis in ("row", "token", "query") else 1
            for n, axis in zip(found.shape, axes, strict=True)
        ]
        wrong &= (case.segment_ids != -1).reshape(shape) | np.isnan(found)
    if not wrong.any():
        return Deviation(0.0, None)
    finite = np.isfinite(found) & np.isfinite(expected)
    size = np.where(
        finite,
        np.abs(np.subtract(found, expected, where=finite, out=np.zeros(found.shape))),
        np.inf,
    )
    at = np.unravel_index(np.where(wrong, size, -1.0).argmax(), size.shape)
    largest = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
    return Deviation(float(size[at] / (largest or 1.0)), tuple(int(i) for i in at))


def examine(case, found):
    """One case's result, for people and for --json. Raises ValueError where nothing can be compared."""
    known = [name for name in case.outputs if name in found]
    if not known:
        raise ValueError(
            f"case {case.name}: found {', '.join(sorted(found)) or 'no tensor'}; expected at least one "
            f"of {', '.join(case.outputs)}"
        )
    result = {
        "case": case.name,
        "ok": True,
        "compared": known,
        "unknown": sorted(set(found) - set(known)),
        "largest": 0.0,
        "first": None,
    }
    for name in known:
        values, precision = found[name]
        if values.shape != case.outputs[name].shape:
            raise ValueError(
                f"case {case.name}: {name} has shape {values.shape}, expected {case.outputs[name].shape}"
            )
        size, at = deviation(case, name, values, case.outputs[name])
        tolerance = case.info["tolerances"][precision]
        result["largest"] = max(result["largest"], size / tolerance)
        if size > tolerance and result["ok"]:
            result |= {
                "ok": False,
                "first": {
                    "tensor": name,
                    "found": float(values[at]),
                    "expected": float(case.outputs[name][at]),
                    "deviation": size,
                    "tolerance": tolerance,
                    "precision": precision,
                    "where": where(case, name, at),
                },
            }
    return result


def where(case, name, at):
    """The place of index `at` in words: layer and its kind, row, head, and tokens with their segments."""
    parts, words = name.split("."), []
    if parts[0] == "gradients":
        return f"index {list(at)}"
    if parts[0] == "layers":
        kind = llama_numpy.layer_kind(int(parts[1]), case.config["num_hidden_layers"], case.scheme)
        words.append(f"layer {parts[1]} ({kind})")
    for axis, i in zip(AXES.get(parts[-1], "row token dimension").split(), at, strict=True):
        token = ""
        if axis in ("token", "query", "key"):
            token = f" {case.rows[at[0]]['tokens'][i]!r} (segment {case.segment_ids[at[0], i]})"
        words.append(f"{axis} {i}{token}")
    return ", ".join(words) or "the whole batch"
