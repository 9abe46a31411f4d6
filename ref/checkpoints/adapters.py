"""LoRA adapters in the files of PEFT: `adapter_config.json` and `adapter_model.safetensors`."""

import os
from pathlib import Path

import torch

from ref import lora
from ref.checkpoints import config as configs
from ref.checkpoints.weights import copy_tensors, find_tensors, hf_parameters, write_tensors
from ref.files import read_json, write_json
from ref.lora import TARGETS

_PREFIX = "base_model.model."  # PEFT puts it before each name


def parameters(model):
    """The A and B matrices under the names of PEFT."""
    return {_PREFIX + name: p for name, p in hf_parameters(model).items() if ".lora_" in name}


def save(model, folder, base, rank, alpha, dropout, targets):
    """Write the adapter alone. base: the folder of the frozen model; it is named in adapter_config.json."""
    configs.write_config(folder, model.config, model.scheme, model.embed_tokens.weight.dtype)
    write_json(
        Path(folder) / "adapter_config.json",
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": str(base),
            "r": rank,
            "lora_alpha": alpha,
            "lora_dropout": dropout,
            "target_modules": list(targets),
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
        },
    )
    write_tensors(Path(folder) / "adapter_model.safetensors", parameters(model))


def base_of(folder, base=None):
    """`folder` itself; where it holds only an adapter, `base` or else the folder that the adapter names."""
    path = Path(folder) / "adapter_config.json"
    whole = [
        name
        for name in ("model.safetensors", "model.safetensors.index.json")
        if (Path(folder) / name).exists()
    ]
    if not path.is_file():
        return folder
    if whole:
        raise ValueError(f"{folder}: holds both an adapter and {whole[0]}; which one is meant?")
    named = base or _read_config(path).get("base_model_name_or_path")
    if not isinstance(named, str | os.PathLike) or not os.path.isdir(named):
        raise FileNotFoundError(
            f"{path}: the base model {named!r} is no folder here; name it with --base"
        )
    return named


def read_config(folder, base=None):
    """(LlamaConfig, MaskScheme, folder of the weights); an adapter folder's config.json, if any, is that of its base."""
    source = base_of(folder, base)
    config, scheme = configs.read_config(source)
    if source != folder and (Path(folder) / "config.json").exists():
        own, scheme = configs.read_config(folder)
        if own != config:
            raise ValueError(
                f"{folder}/config.json does not fit the base model {source}: {own}, but {config} there"
            )
    return config, scheme, source


def load(model, folder):
    """Put the adapter of a folder on a model and merge it. Raises ValueError naming file and field."""
    config = _read_config(Path(folder) / "adapter_config.json")
    path = Path(folder) / "adapter_model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    sizes = config["r"], config["lora_alpha"], 0.0, config["target_modules"]
    with torch.device("meta"):  # no memory before the file is known to fit
        expected = type(model)(model.config, model.scheme)
        lora.add(expected, *sizes)
    files = find_tensors(path, [path], None, parameters(expected))
    lora.add(model, *sizes)
    copy_tensors(files, parameters(model))
    lora.merge(model)
    model.requires_grad_(True)


_HARMLESS = {
    "peft_type",
    "task_type",
    "base_model_name_or_path",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "bias",
    "init_lora_weights",
    "inference_mode",
    "revision",
    "auto_mapping",
    "peft_version",
    "megatron_core",
    "runtime_config",
    "qalora_group_size",
}


def _read_config(path):
    """The object of an adapter_config.json, with every setting refused that would compute something else."""
    config = read_json(path)
    expected = {
        "peft_type": ("LORA",),
        "bias": ("none", None),
        "init_lora_weights": (True, False, None, "gaussian"),
    }
    for name, allowed in expected.items():
        if config.get(name) not in allowed:
            raise ValueError(
                f"{path}: {name} is {config.get(name)!r}; only {allowed[0]!r} is supported"
            )
    for name, value in config.items():
        if name not in _HARMLESS and value:
            raise ValueError(f"{path}: {name} is {value!r}, which is not supported")
    for name, kinds in (("r", int), ("lora_alpha", (int, float))):
        if (
            isinstance(config.get(name), bool)
            or not isinstance(config.get(name), kinds)
            or not 0 < config[name] < 2**31
        ):
            raise ValueError(f"{path}: {name} is {config.get(name)!r}; expected a positive number")
    targets = config.get("target_modules")
    if (
        not isinstance(targets, list)
        or not targets
        or not all(target in TARGETS for target in targets)
    ):
        raise ValueError(
            f"{path}: target_modules is {targets!r}; expected a list of some of {', '.join(TARGETS)}"
        )
    return config
