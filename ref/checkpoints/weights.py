"""`model.safetensors`, in one file or in shards, as Hugging Face lays it out.

Reading takes three steps, so that a folder that does not fit is refused before memory is taken:
`weight_files` finds the files, `find_tensors` checks names, types and shapes, and `copy_tensors`
copies slice by slice.
"""

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ref.files import read_json, replacing, short_list

_DTYPES = ("F64", "F32", "F16", "BF16")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_NUMBERS_AT_ONCE = 1 << 21


@dataclass(frozen=True)
class WeightFiles:
    """The safetensors files of a model.

    source: the file that errors name: the only one, or the index of the shards.
    weight_map: {tensor: file name}, as the index says; None where there is no index.
    """

    source: Path
    paths: list[Path]
    weight_map: dict[str, str] | None = None


def hf_parameters(model):
    """The parameters (not copies) under the names of Hugging Face; a tied head is not listed."""
    return {_hf_name(name): parameter for name, parameter in model.named_parameters()}


def _hf_name(name):
    return name if name.startswith("lm_head.") else f"model.{name}"


def weight_files(folder) -> WeightFiles:
    """Find model.safetensors in a folder, or else model.safetensors.index.json and its shards.

    Raises FileNotFoundError or ValueError naming the file that is missing or refused.
    """
    path = Path(folder) / "model.safetensors"
    index = Path(folder) / "model.safetensors.index.json"
    if path.is_file():
        return WeightFiles(path, [path])
    if index.is_file():
        return _indexed_files(index)
    raise FileNotFoundError(f"{path}: no such file{_remark_on_pickles(folder)}")


def _remark_on_pickles(folder):
    pickles = sorted(path.name for path in Path(folder).iterdir() if path.suffix in _PICKLES)
    if not pickles:
        return ""
    return (
        f"; {pickles[0]} is not read: pickle can run code when it is opened. "
        "Convert it to safetensors"
    )


def _indexed_files(index):
    weight_map = _read_weight_map(index)
    shards = [index.parent / name for name in sorted(set(weight_map.values()))]
    for shard in shards:
        _refuse_missing_or_foreign(shard, index)
    return WeightFiles(index, shards, weight_map)


def _read_weight_map(index):
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{index}: weight_map is {weight_map!r}; expected an object of file names")
    for tensor, name in weight_map.items():
        if not _is_name_of_shard(name):
            raise ValueError(
                f"{index}: weight_map places {tensor} in {name!r}; "
                "expected the name of a safetensors file beside it"
            )
    return weight_map


def _is_name_of_shard(name):
    return type(name) is str and Path(name).name == name and name.endswith(".safetensors")


def _refuse_missing_or_foreign(shard, index):
    """A file of the folder or a link into the cache of Hugging Face is read, nothing else."""
    if not shard.is_file():
        raise FileNotFoundError(f"{shard}: no such file, but {index.name} lists it")
    folder = index.parent.resolve()
    cache = folder.parent.parent / "blobs"  # a folder of the cache is CACHE/snapshots/COMMIT
    if shard.resolve().parent not in (folder, cache):
        raise ValueError(
            f"{shard}: is a link out of the folder, to {shard.resolve()}; expected a file"
        )


def find_tensors(files: WeightFiles, parameters):
    """{tensor: path of its file}, once the files are known to fit.

    parameters: {name: tensor}, on "meta" too; only their shapes are read.
    Raises ValueError naming a file, or the first of the missing, extra and misshapen tensors.
    """
    paths = {}
    shapes = {}
    for path in files.paths:
        for name, shape, dtype in _headers(path):
            _refuse_other_shard(name, path, files)
            if dtype not in _DTYPES:
                raise ValueError(f"{path}: {name} is {dtype}; expected F64, F32, F16 or BF16")
            paths[name] = path
            shapes[name] = shape
    expected = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    _refuse_differences(files.source, shapes, expected)
    return paths


def _headers(path):
    """(name, shape, dtype) of each tensor of a file, without reading its numbers."""
    with _open(path) as file:
        for name in file.keys():
            if name.endswith(".rotary_emb.inv_freq"):
                continue  # old conversions keep the RoPE frequencies, which config.json says too
            header = file.get_slice(name)
            yield name, tuple(header.get_shape()), header.get_dtype()


def _open(path):
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from None


def _refuse_other_shard(name, path, files):
    if files.weight_map is None:
        return
    listed = files.weight_map.get(name)
    if listed != path.name:
        raise ValueError(f"{path}: holds {name}, which {files.source.name} places in {listed}")


def _refuse_differences(source, shapes, expected):
    missing = [f"{name} {shape}" for name, shape in expected.items() if name not in shapes]
    unexpected = [f"{name} {shape}" for name, shape in shapes.items() if name not in expected]
    misshapen = [
        f"{name} is {shapes[name]}, expected {shape}"
        for name, shape in expected.items()
        if shapes.get(name, shape) != shape
    ]
    differences = []
    if missing:
        differences.append(f"missing {short_list(missing)}")
    if unexpected:
        differences.append(f"unexpected {short_list(unexpected)}")
    if "lm_head.weight" in shapes.keys() - expected.keys():
        differences.append(
            "config.json has tie_word_embeddings true, so no lm_head is expected; "
            "set tie_word_embeddings to false to use this one"
        )
    if misshapen:
        differences.append(short_list(misshapen))
    if differences:
        raise ValueError(f"{source} does not fit its configuration: " + "; ".join(differences))


def copy_tensors(paths, parameters):
    """Copy the tensors that `find_tensors` found into `parameters` ({name: tensor}), converted.

    Takes little memory beside theirs. Nothing is read for a parameter on "meta".
    Raises ValueError naming a tensor that is not finite.
    """
    for name, parameter in parameters.items():
        if parameter.is_meta:
            continue
        destination = parameter.detach()
        num_rows = max(1, _NUMBERS_AT_ONCE * len(destination) // destination.numel())
        for first in range(0, len(destination), num_rows):
            rows = slice(first, first + num_rows)
            # Opened anew for each slice: the pages of a mapped file count as memory until it is
            # closed.
            with _open(paths[name]) as file:
                destination[rows].copy_(file.get_slice(name)[rows])
            if not destination[rows].isfinite().all():
                raise ValueError(
                    f"{paths[name]}: {name} holds values that are not finite numbers "
                    f"(in {destination.dtype})"
                )


def write_tensors(path, tensors):
    """Write {name: tensor} as one safetensors file, atomically. Raises OSError naming it."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as unfinished:
        try:
            save_file(tensors, unfinished, {"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"{path}: {error}") from None
