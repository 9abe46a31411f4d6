"""The front door: a model folder that recommends."""

import torch

from ref.checkpoints import load_model
from ref.checkpoints.tokenizers import check_vocabulary, read_tokenizer
from ref.prompt import PromptEncoder
from ref.settings import read_settings
from ref.trie import Trie


def load(folder, dtype=torch.float32, device="cpu", base=None):
    """(model in eval mode, its PromptEncoder, its Settings) of a folder; `base` as in load_model."""
    settings, tokenizer = read_settings(folder), read_tokenizer(folder, base)
    model = load_model(folder, dtype=dtype, device=device, base=base).eval()
    check_vocabulary(tokenizer, model.config)
    encoder = PromptEncoder(
        tokenizer, settings.layout, model.scheme, model.config.max_position_embeddings
    )
    return model, encoder, settings


def build_trie(encoder: PromptEncoder, titles) -> Trie:
    """The catalogue's trie: for each title the tokens that answer a prompt with it."""
    pairs = [encoder.encode_target(title) for title in titles]
    return Trie([ids for ids, _ in pairs], [segments > 0 for _, segments in pairs], titles)
