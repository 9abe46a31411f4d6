"""`model.safetensors`, whole or in shards, as Hugging Face lays it out."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ref.files import read_json, replacing
from ref.training import processes


def find_tensors(whole, paths, weight_map, parameters):
    """{name: file} of the tensors in safetensors files, once they fit `parameters` (name -> tensor, on "meta" too).

    The first three as from weight_files. Raises ValueError naming every missing, extra or misshapen tensor.
    """
    where, found = {}, {}
    for path in paths:
        with _open(path) as file:
            for name in file.keys():
                piece = file.get_slice(name)
                if name.endswith(
                    ".rotary_emb.inv_freq"
                ):  # old conversions keep the RoPE frequencies
                    continue
                if weight_map is not None and weight_map.get(name) != path.name:
                    raise ValueError(
                        f"{path}: holds {name}, which {whole.name} places in {weight_map.get(name)}"
                    )
                where[name], found[name] = path, tuple(piece.get_shape())
                if piece.get_dtype() not in ("F64", "F32", "F16", "BF16"):
                    raise ValueError(
                        f"{path}: {name} is {piece.get_dtype()}; expected F64, F32, F16 or BF16"
                    )
    _refuse_differences(whole, found, {name: tuple(p.shape) for name, p in parameters.items()})
    return where


def copy_tensors(where, parameters):
    """Copy what find_tensors found into `parameters`. Raises ValueError naming a tensor that is not finite."""
    for name, parameter in parameters.items():
        goal, rows = parameter.detach(), max(1, (1 << 21) * len(parameter) // parameter.numel())
        for first in range(0, len(goal), rows):
            part = goal[first : first + rows]
            with _open(
                where[name]
            ) as file:  # anew each time: pages of a mapped file count as memory until it is closed
                part.copy_(file.get_slice(name)[first : first + rows])
            if not part.isfinite().all():
                raise ValueError(
                    f"{where[name]}: {name} holds values that are not finite numbers (in {goal.dtype})"
                )


def _open(path):
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from None


def weight_files(folder):
    """What to name in errors, the files, {tensor: file name} or None: model.safetensors, or the index and its shards."""
    path, index = Path(folder) / "model.safetensors", Path(folder) / "model.safetensors.index.json"
    if path.is_file():
        return path, [path], None
    if not index.is_file():
        pickles = sorted(
            p.name
            for p in Path(folder).iterdir()
            if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")
        )
        why = (
            f"; {pickles[0]} is not read: pickle can run code when it is opened. Convert it to safetensors"
            if pickles
            else ""
        )
        raise FileNotFoundError(f"{path}: no such file{why}")
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict):
        raise ValueError(f"{index}: weight_map is {names!r}; expected an object of file names")
    for tensor, name in names.items():
        if type(name) is not str or Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(
                f"{index}: weight_map places {tensor} in {name!r}; expected the name of a safetensors file beside it"
            )
    shards, home = (
        [Path(folder) / name for name in sorted(set(names.values()))],
        Path(folder).resolve(),
    )
    for shard in shards:
        if not shard.is_file():
            raise FileNotFoundError(f"{shard}: no such file, but {index.name} lists it")
        if shard.resolve().parent not in (
            home,
            home.parent.parent / "blobs",
        ):  # the latter: the cache of Hugging Face
            raise ValueError(
                f"{shard}: is a link out of the folder, to {shard.resolve()}; expected a file"
            )
    return index, shards, names


def _refuse_differences(path, found, expected):
    lines = [f"missing {name} {expected[name]}" for name in expected if name not in found]
    lines += [f"unexpected {name} {found[name]}" for name in found if name not in expected]
    both = [name for name in expected if name in found]
    lines += [
        f"{name} is {found[name]}, expected {expected[name]}"
        for name in both
        if found[name] != expected[name]
    ]
    if lines:
        raise ValueError(f"{path} does not fit config.json: " + "; ".join(lines))


def write_tensors(path, parameters):
    """Write tensors (name -> tensor) as safetensors, atomically."""
    with replacing(path) as beside:
        try:
            save_file(
                {name: processes.whole(p).contiguous() for name, p in parameters.items()},
                beside,
                {"format": "pt"},
            )
        except SafetensorError as error:
            raise OSError(f"{path}: {error}") from None


def hf_parameters(model):
    """The parameters (not copies) under the names of Hugging Face; a tied head is not listed."""
    return {
        name if name.startswith("lm_head.") else f"model.{name}": p
        for name, p in model.named_parameters()
    }
