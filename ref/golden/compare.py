"""How far the tensors of an implementation are from the expected ones, and where first."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, deserialize

from ref.golden.case import Case
from ref.golden.stages import STAGES

# Of each data type of safetensors: NumPy's name, and the precision whose tolerance it is held to.
DTYPES = {
    "F64": ("f8", "float64"),
    "F32": ("f4", "float32"),
    "F16": ("f2", "bfloat16"),
    "BF16": ("u2", "bfloat16"),  # NumPy has no bfloat16: its bits, see `decoded`
    "BOOL": ("?", "float64"),
    "U8": ("u1", "float64"),
    "I32": ("i4", "float64"),
    "I64": ("i8", "float64"),
}
# The same for the data types of an adapter's arrays; all others are held to float64's tolerance.
PRECISIONS = {"float16": "bfloat16", "bfloat16": "bfloat16", "float32": "float32"}


class Computed(NamedTuple):
    """A tensor of an implementation, and the precision whose tolerance it is held to."""

    values: np.ndarray
    precision: str


class Deviation(NamedTuple):
    """The largest difference over the largest expected value, and the index where it is."""

    size: float
    index: tuple | None  # None where nothing differs


@dataclass
class FirstDeviation:
    """The first tensor, in the order of computation, that deviates by more than its tolerance.

    The values are those at the place of the largest difference, which `where` gives in words.
    """

    tensor: str
    found: float
    expected: float
    deviation: float
    tolerance: float
    precision: str
    where: str


@dataclass
class Comparison:
    """A case beside what an implementation computed for it."""

    case: Case
    computed: dict  # name -> Computed
    compared: list  # names of tensors, in the order of computation
    unknown: list  # names that the case does not have
    largest: float  # deviation, in tolerances
    first: FirstDeviation | None  # None where every tensor is right

    @property
    def is_right(self):
        """Whether every compared tensor is within its tolerance."""
        return self.first is None

    def as_json(self):
        """The fields of `--json`."""
        return {
            "case": self.case.name,
            "ok": self.is_right,
            "compared": self.compared,
            "unknown": self.unknown,
            "largest": self.largest,
            "first": None if self.is_right else asdict(self.first),
        }


def read_dump(path):
    """name -> Computed, of a safetensors file.

    Raises FileNotFoundError or ValueError, naming the file.
    """
    try:
        tensors = deserialize(Path(path).read_bytes())
    except OSError as error:
        raise FileNotFoundError(f"{path}: {error.strerror}; expected a safetensors file") from None
    except SafetensorError as error:
        raise ValueError(f"{path}: {error}; expected a whole safetensors file") from None
    computed = {}
    for name, tensor in tensors:
        if tensor["dtype"] not in DTYPES:
            expected = ", ".join(DTYPES)
            raise ValueError(f"{path}: {name} is {tensor['dtype']}; expected one of {expected}")
        computed[name] = decoded(tensor)
    return computed


def decoded(tensor):
    """A tensor of `safetensors.deserialize` as Computed."""
    dtype, precision = DTYPES[tensor["dtype"]]
    values = np.frombuffer(tensor["data"], dtype).reshape(tensor["shape"])
    if tensor["dtype"] == "BF16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return Computed(values, precision)


def computed_by_adapter(arrays):
    """name -> Computed, of what an adapter returned: NumPy, PyTorch or what NumPy can read."""
    computed = {}
    for name, array in arrays.items():
        dtype = str(getattr(array, "dtype", "")).removeprefix("torch.")
        if hasattr(array, "detach"):
            array = array.detach().cpu().double()
        computed[name] = Computed(np.asarray(array), PRECISIONS.get(dtype, "float64"))
    return computed


def deviation(case, name, values, expected):
    """How far the values of tensor `name` are from the expected ones, where these are specified.

    Whole numbers and truth values must be equal. Returns a Deviation; its size is inf where they
    are not, where only one of two values is finite, where a shape differs, and where a NaN stands,
    be it where any number will do.
    """
    values = np.asarray(values)
    expected = np.asarray(expected)
    if values.shape != expected.shape:
        return Deviation(np.inf, None)
    is_exact = expected.dtype.kind in "biu"
    values = values.astype(float)
    expected = expected.astype(float)
    differs = values != expected
    differs &= STAGES[case.stage].specified(case, name, values.shape) | np.isnan(values)
    if not differs.any():
        return Deviation(0.0, None)
    with np.errstate(invalid="ignore"):  # inf - inf
        difference = np.abs(values - expected)
    both_finite = np.isfinite(values) & np.isfinite(expected)
    difference = np.where(both_finite, difference, np.inf)
    if is_exact:
        difference = np.where(differs, np.inf, 0.0)
    worst = np.where(differs, difference, -1.0).argmax()
    index = tuple(int(i) for i in np.unravel_index(worst, difference.shape))
    largest_expected = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
    return Deviation(float(difference[index] / (largest_expected or 1.0)), index)


def examine(case, computed):
    """Compare all tensors (name -> Computed) that the case has: a Comparison.

    Raises ValueError where nothing can be compared.
    """
    outputs = case.outputs
    compared = [name for name in outputs if name in computed]
    if not compared:
        raise ValueError(
            f"case {case.name}: found {', '.join(sorted(computed)) or 'no tensor'}; "
            f"expected at least one of {', '.join(outputs)}"
        )
    largest, first = 0.0, None
    for name in compared:
        values, precision = computed[name]
        size, index = deviation(case, name, values, outputs[name])
        tolerance = case.info["tolerances"][precision]
        largest = max(largest, size / tolerance)
        if size > tolerance and first is None:
            first = FirstDeviation(
                tensor=name,
                found=number_at(values, index),
                expected=number_at(outputs[name], index),
                deviation=size,
                tolerance=tolerance,
                precision=precision,
                where=where(case, name, values, index),
            )
    unknown = sorted(set(computed) - set(compared))
    return Comparison(case, computed, compared, unknown, largest, first)


def number_at(values, index):
    """A number of a tensor; NaN where the shape is wrong, so that there is no index."""
    return np.nan if index is None else float(values[index])


def where(case, name, values, index):
    """The place of a deviation in words, or what is wrong with the shape."""
    if index is None:
        return f"shape {values.shape}, expected {case.outputs[name].shape}"
    return STAGES[case.stage].place(case, name, index)
