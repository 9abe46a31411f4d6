"""LoRA adapters in the files of PEFT: `adapter_config.json` and `adapter_model.safetensors`."""

import os
import re
from dataclasses import fields
from pathlib import Path

from ref import lora
from ref.checkpoints.config import read_config_json, write_config_json
from ref.checkpoints.weights import (
    WeightFiles,
    copy_tensors,
    find_tensors,
    hf_parameters,
    write_tensors,
)
from ref.files import read_json, write_json
from ref.lora import LoraSettings

_CONFIG = "adapter_config.json"
_TENSORS = "adapter_model.safetensors"
_PREFIX = "base_model.model."  # PEFT puts it before the name of each tensor

# {field: values that compute what ref/lora.py computes}; None also stands for an absent field
_SUPPORTED = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "init_lora_weights": (True, False, None, "gaussian"),
}
# Fields that are read, or that do not change the result. All others have to be empty or false.
# fmt: off
_HARMLESS = {
    "peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout",
    "target_modules", "bias", "init_lora_weights", "inference_mode", "revision", "auto_mapping",
    "peft_version", "megatron_core", "runtime_config", "qalora_group_size",
}
# fmt: on


def adapter_parameters(model):
    """The A and B matrices (not copies) under the names of PEFT."""
    return {
        _PREFIX + name: parameter
        for name, parameter in hf_parameters(model).items()
        if ".lora_" in name
    }


def save(model, folder, base, settings: LoraSettings, parameters=None):
    """Write the adapter alone: adapter_config.json, adapter_model.safetensors and config.json.

    base: the folder of the frozen model, which adapter_config.json names.
    parameters: {name of PEFT: tensor}, to be written instead of the model's own, where these are
        divided over several processes.
    """
    if parameters is None:
        parameters = adapter_parameters(model)
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "target_modules": list(settings.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    write_config_json(folder, model.config, model.scheme, model.embed_tokens.weight.dtype)
    write_json(Path(folder) / _CONFIG, values)
    write_tensors(Path(folder) / _TENSORS, parameters)


def is_adapter(folder) -> bool:
    """Does a folder hold a LoRA adapter?"""
    return (Path(folder) / _CONFIG).is_file()


def base_of(folder, base=None):
    """The folder with the weights: `folder` itself, or that of the base model of an adapter.

    base: taken instead of the folder that the adapter names.
    Raises ValueError for a folder with both, and for a base where there is no adapter;
    FileNotFoundError where a folder is missing.
    """
    path = Path(folder) / _CONFIG
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{folder}: no such folder{_hub_remedy(folder)}")
    if not is_adapter(folder):
        if base is not None:
            raise ValueError(f"{folder}: is no adapter, so the base {base} has no effect; drop it")
        return folder
    for name in ("model.safetensors", "model.safetensors.index.json"):
        if (Path(folder) / name).exists():
            raise ValueError(f"{folder}: holds both an adapter and {name}; which one is meant?")
    source = base or _read_adapter_config(path).get("base_model_name_or_path")
    if not isinstance(source, str | os.PathLike) or not os.path.isdir(source):
        raise FileNotFoundError(
            f"{path}: the base model {source!r} is no folder here; name it with --base"
            + _hub_remedy(source)
        )
    if is_adapter(source):
        raise ValueError(
            f"{path}: the base model {source} is an adapter itself; merge it into its own base, "
            "and name the folder of the merged model with --base"
        )
    return source


def _hub_remedy(name):
    """What to do if a name is that of a model on the Hugging Face hub; "" if it cannot be one."""
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(name)):
        return ""
    return (
        "; models of the Hugging Face hub are not downloaded: "
        f"hf download {name} --local-dir FOLDER makes a folder of one"
    )


def read_config(folder, base):
    """(LlamaConfig, MaskScheme, folder of the weights) of a model folder or an adapter's folder.

    An adapter has the configuration of its base model, and a scheme of its own if it has a
    config.json. Raises FileNotFoundError or ValueError naming the file; a ValueError too where the
    adapter's config.json is not that of the base model.
    """
    source = base_of(folder, base)
    config, scheme = read_config_json(source)
    if is_adapter(folder) and (Path(folder) / "config.json").exists():
        adapter_config, scheme = read_config_json(folder)
        differences = [
            f"{field.name} is {getattr(adapter_config, field.name)}, but "
            f"{getattr(config, field.name)} there"
            for field in fields(config)
            if getattr(adapter_config, field.name) != getattr(config, field.name)
        ]
        if differences:
            raise ValueError(
                f"{folder}/config.json does not fit the base model {source}: "
                + "; ".join(differences)
            )
    return config, scheme, source


def load(model, folder):
    """Put the adapter of a folder on a model and merge it.

    Raises FileNotFoundError or ValueError naming the file and what is wrong with it.
    """
    config = Path(folder) / _CONFIG
    values = _read_adapter_config(config)
    path = Path(folder) / _TENSORS
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    settings = LoraSettings(values["r"], values["lora_alpha"], 0.0, values["target_modules"])
    try:
        lora.refuse_a_large_rank(model, settings)
    except ValueError as error:
        raise ValueError(f"{config}: {error}") from None
    lora.add(model, settings)
    paths = find_tensors(WeightFiles(path, [path]), adapter_parameters(model))
    copy_tensors(paths, adapter_parameters(model))
    lora.merge(model)
    model.requires_grad_(True)


def _read_adapter_config(path):
    """The object of an adapter_config.json; what would compute something else is refused."""
    values = read_json(path)
    for name, supported in _SUPPORTED.items():
        if values.get(name) not in supported:
            raise ValueError(
                f"{path}: {name} is {values.get(name)!r}; only {supported[0]!r} is supported"
            )
    for name, value in values.items():
        if name not in _HARMLESS and value:
            raise ValueError(f"{path}: {name} is {value!r}, which is not supported")
    _refuse_unless_positive(values, "r", (int,), path)
    _refuse_unless_positive(values, "lora_alpha", (int, float), path)
    _refuse_unknown_targets(values, path)
    return values


def _refuse_unless_positive(values, name, types, path):
    value = values.get(name)
    if type(value) not in types or not 0 < value < 2**31:
        raise ValueError(f"{path}: {name} is {value!r}; expected a positive number")


def _refuse_unknown_targets(values, path):
    targets = values.get("target_modules")
    is_list = isinstance(targets, list) and len(targets) > 0
    if not is_list or not all(target in lora.TARGETS for target in targets):
        raise ValueError(
            f"{path}: target_modules is {targets!r}; "
            f"expected a list of some of {', '.join(lora.TARGETS)}"
        )
