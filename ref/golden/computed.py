"""What an implementation computed: arrays by name, of a dump or of an adapter."""

from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, deserialize

from ref.files import read_bytes

# Of each data type of safetensors: NumPy's name, and the precision whose tolerance it is held to.
DTYPES = {
    "F64": ("f8", "float64"),
    "F32": ("f4", "float32"),
    "F16": ("f2", "bfloat16"),
    "BF16": ("u2", "bfloat16"),  # NumPy has no bfloat16: its bits, see `decoded`
    "BOOL": ("?", "float64"),
    "U8": ("u1", "float64"),
    "I8": ("i1", "float64"),
    "U16": ("u2", "float64"),
    "I16": ("i2", "float64"),
    "U32": ("u4", "float64"),
    "I32": ("i4", "float64"),
    "U64": ("u8", "float64"),
    "I64": ("i8", "float64"),
}
# The same for the data types of an adapter's arrays, whose names may be longer (torch.float32,
# mlx.core.float32); all others are held to float64's tolerance.
PRECISIONS = {"bfloat16": "bfloat16", "float16": "bfloat16", "float32": "float32"}
# What --precision takes, the most exact first.
ALL_PRECISIONS = ("float64", "float32", "tf32", "bfloat16")
# So many of the lower bits of a float32 are 0 if a number is one of these types.
BFLOAT16_BITS, FLOAT16_BITS = 16, 13


class Computed(NamedTuple):
    """A tensor of an implementation, and the precision whose tolerance it is held to."""

    values: np.ndarray
    precision: str


def read_dump(path):
    """name -> Computed, of a safetensors file.

    Raises OSError or ValueError, naming the file.
    """
    try:
        tensors = deserialize(read_bytes(path))
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
    """name -> Computed, of what an adapter returned: NumPy, PyTorch or what NumPy can read.

    A string becomes its bytes in UTF-8. Raises ValueError where something is no tensor of numbers.
    """
    if not hasattr(arrays, "items"):
        raise ValueError(
            f"run(case) returned {type(arrays).__name__}; "
            "expected a mapping from tensor names to arrays"
        )
    computed = {}
    for name, array in arrays.items():
        values = as_numpy(array)
        if values.dtype.kind not in "biuf":
            raise ValueError(f"{name} is an array of {values.dtype}; expected numbers")
        computed[str(name)] = Computed(values, precision_of(array))
    return computed


def precision_of(array):
    """The precision to whose tolerance an adapter's array is held."""
    dtype = str(getattr(array, "dtype", ""))
    return next((PRECISIONS[name] for name in PRECISIONS if name in dtype), "float64")


def as_numpy(array):
    """A NumPy array of what an adapter may return: a tensor of PyTorch, a string, an array."""
    if isinstance(array, str):
        return np.frombuffer(array.encode(), dtype=np.uint8)
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        if array.dtype.is_floating_point:
            array = array.double()
    array = np.asarray(array).copy()  # an adapter may use its memory again for the next case
    if array.dtype.name == "bfloat16":  # JAX's, which NumPy does not count among numbers
        array = array.astype(np.float32)
    return array


def held_to(computed, precision):
    """name -> Computed, held to the tolerance of another precision; None leaves all as it is."""
    if precision is None:
        return computed
    return {name: tensor._replace(precision=precision) for name, tensor in computed.items()}


def has_zero_bits(values, num_bits):
    """Whether so many of the lower bits of float32 are 0 in every number."""
    values = np.asarray(values)
    single = values.astype(np.float32)
    if not (single == values)[np.isfinite(values)].all():
        return False
    return not (single.view(np.uint32)[np.isfinite(values)] & ((1 << num_bits) - 1)).any()
