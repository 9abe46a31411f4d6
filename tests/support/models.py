"""Tiny models with random weights."""

import torch

from ref.llama import Llama, LlamaConfig
from ref.masks import MaskScheme


def config_of(**changes):
    """A tiny LlamaConfig."""
    values = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
    }
    return LlamaConfig(**values | changes)


def random_model(config, scheme=MaskScheme(), seed=0, dtype=torch.float32, **options):
    """A model in eval mode whose weights are large enough for every mask to show in the logits."""
    model = Llama(config, scheme, **options)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        weight = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if "norm" in name:
            weight += 1
        parameter.data = weight.to(dtype)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    return model.eval()
