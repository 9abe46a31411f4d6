"""Model folders: `config.json` and `model.safetensors`, as Hugging Face lays them out."""

from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ref.config import LlamaConfig
from ref.files import read_json, write_atomically, write_json
from ref.masks import MaskScheme


def read_config(folder):
    """The LlamaConfig and the MaskScheme ("hatllm"; plain causal if absent) of a folder."""
    path = Path(folder) / "config.json"
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    values = read_json(path)
    try:
        scheme = MaskScheme.from_dict(values.get("hatllm", {}))
        config = LlamaConfig.from_dict(values, path)
        scheme.kinds(config.num_hidden_layers)
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    return config, scheme


def read_weights(folder, parameters):
    """Copy the tensors of model.safetensors, or of its shards, into `parameters` (name -> tensor).

    Raises ValueError naming every missing, extra or misshapen tensor, and any that is not finite.
    """
    whole, paths = _weight_files(folder)
    with ExitStack() as stack:
        where = {}  # tensor name -> (its file, opened; the path of it)
        for path in paths:
            try:
                file = stack.enter_context(safe_open(path, "pt"))
            except SafetensorError as error:
                raise ValueError(f"{path}: not a safetensors file: {error}") from None
            where |= {name: (file, path) for name in file.keys()}
        found = {name: tuple(file.get_slice(name).get_shape()) for name, (file, _) in where.items()}
        _refuse_differences(whole, found, {name: tuple(p.shape) for name, p in parameters.items()})
        for name, parameter in parameters.items():
            file, path = where[name]
            tensor = file.get_tensor(name)
            if not tensor.is_floating_point() or not tensor.isfinite().all():
                raise ValueError(f"{path}: {name} ({tensor.dtype}) holds values that are not finite numbers")
            with torch.no_grad():
                parameter.copy_(tensor)


def _weight_files(folder):
    """What to name in errors, and the files: model.safetensors, or the shards that its index lists."""
    path, index = Path(folder) / "model.safetensors", Path(folder) / "model.safetensors.index.json"
    if path.is_file():
        return path, [path]
    if not index.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(type(name) is str and Path(name).name == name for name in names.values()):
        raise ValueError(f"{index}: weight_map is no object of file names")
    shards = [Path(folder) / name for name in sorted(set(names.values()))]
    for shard in shards:
        if not shard.is_file():
            raise FileNotFoundError(f"{shard}: no such file, but {index.name} lists it")
    return index, shards


def _refuse_differences(path, found, expected):
    lines = [f"missing {name} {expected[name]}" for name in expected if name not in found]
    lines += [f"unexpected {name} {found[name]}" for name in found if name not in expected]
    lines += [
        f"{name} is {found[name]}, expected {expected[name]}"
        for name in expected
        if name in found and found[name] != expected[name]
    ]
    if lines:
        raise ValueError(f"{path} does not fit config.json: " + "; ".join(lines))


def write(folder, config, scheme, parameters):
    """Write config.json, then model.safetensors, each atomically."""
    dtype = str(next(iter(parameters.values())).dtype).removeprefix("torch.")
    values = config.to_dict() | {"torch_dtype": dtype, "hatllm": vars(scheme)}
    write_json(Path(folder) / "config.json", values)
    tensors = {name: p.detach().cpu().contiguous() for name, p in parameters.items()}
    write_atomically(Path(folder) / "model.safetensors", save(tensors, {"format": "pt"}))
