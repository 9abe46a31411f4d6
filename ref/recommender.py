"""The front door: from a model folder to what is needed to recommend."""

import torch

from ref.checkpoints import load_model
from ref.checkpoints.tokenizers import check_vocabulary, read_tokenizer
from ref.prompt import PromptEncoder
from ref.settings import read_settings


def load(folder, dtype=torch.float32, device="cpu", base=None):
    """(model in eval mode, PromptEncoder, Settings) of a folder; `base` as in load_model."""
    settings, tokenizer = read_settings(folder), read_tokenizer(folder, base)
    model = load_model(folder, dtype=dtype, device=device, base=base).eval()
    check_vocabulary(tokenizer, model.config)
    encoder = PromptEncoder(
        tokenizer, settings.layout, model.scheme, model.config.max_position_embeddings
    )
    return model, encoder, settings
