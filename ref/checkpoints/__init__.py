"""Model folders as Hugging Face and PEFT lay them out: load_model and save_model."""

from pathlib import Path

import torch

from ref.checkpoints import adapters
from ref.checkpoints.config import write_config
from ref.checkpoints.weights import (
    copy_tensors,
    find_tensors,
    hf_parameters,
    weight_files,
    write_tensors,
)
from ref.llama import Llama


def load_model(
    folder, dtype=torch.float32, device="cpu", scheme=None, base=None, attention="sdpa", dropout=0.0
):
    """Load a Hugging Face folder. `scheme` replaces the one in its config.json ("hatllm").

    A folder with only a LoRA adapter names its base model, unless `base` (a folder) does; the adapter is merged.
    Raises FileNotFoundError or ValueError, naming the file and what is wrong with it.
    """
    config, saved_scheme, source = adapters.read_config(folder, base)
    with torch.device("meta"):  # no memory for random weights
        model = Llama(config, scheme or saved_scheme, attention, dropout).to(dtype)
    files = find_tensors(*weight_files(source), hf_parameters(model))  # may refuse: no memory yet
    model.to_empty(device=device)._tie()
    copy_tensors(files, hf_parameters(model))
    if source != folder:
        adapters.load(model, folder)
    return model


def save_model(model, folder):
    """Write config.json and model.safetensors; transformers' LlamaForCausalLM loads them unchanged."""
    parameters = hf_parameters(model)
    write_config(folder, model.config, model.scheme, next(iter(parameters.values())).dtype)
    write_tensors(Path(folder) / "model.safetensors", parameters)
