"""Model folders as Hugging Face and PEFT lay them out: load_model and save_model."""

from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

from ref.checkpoints import adapters
from ref.checkpoints.config import write_config_json
from ref.checkpoints.weights import (
    copy_tensors,
    find_tensors,
    hf_parameters,
    weight_files,
    write_tensors,
)
from ref.llama import Llama


def load_model(folder, dtype=torch.float32, device="cpu", scheme=None, base=None, dropout=0.0):
    """Load a model folder of Hugging Face, ours or not, as a Llama.

    scheme: replaces the MaskScheme in the folder's config.json ("hatllm"; absent: plain causal).
    base: a folder with only a LoRA adapter names its base model; this folder is taken instead. The
        adapter is merged.
    device: on "meta" the folder is checked, but no weights are read: it takes no memory.
    dropout: as in `Llama`.
    Raises FileNotFoundError or ValueError, naming the file and what is wrong with it.
    """
    config, saved_scheme, source = adapters.read_config(folder, base)
    # on "meta" it takes no memory: the files may not fit the model
    with torch.device("meta"), _WithoutDrawing():
        model = Llama(config, scheme or saved_scheme, dropout=dropout).to(dtype)
    paths = find_tensors(weight_files(source), hf_parameters(model))
    model.to_empty(device=device)
    model.tie_weights()
    copy_tensors(paths, hf_parameters(model))
    if adapters.is_adapter(folder):
        adapters.load(model, folder)
    return model


class _WithoutDrawing(TorchFunctionMode):
    """Leaves tensors alone that are to be drawn at random.

    On "meta" there is nothing to draw, but PyTorch would load its compiler to do it: two seconds.
    """

    def __torch_function__(self, function, types, arguments=(), options=None):
        if function is torch.nn.init.normal_:
            return options["tensor"]
        return function(*arguments, **(options or {}))


def save_model(model, folder, parameters=None):
    """Write config.json and model.safetensors, as transformers' LlamaForCausalLM reads them.

    parameters: {name of Hugging Face: tensor}, to be written instead of the model's own, where
        these are divided over several processes.
    """
    if parameters is None:
        parameters = hf_parameters(model)
    write_config_json(folder, model.config, model.scheme, model.embed_tokens.weight.dtype)
    write_tensors(Path(folder) / "model.safetensors", parameters)
