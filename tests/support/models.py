"""Tiny models with random weights, and the models of transformers in float64 throughout."""

import pytest
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


def let_float32_mean_float64(monkeypatch):
    """In a float64 model transformers still norms, turns and takes softmax in float32.

    With this it does all that in float64.
    """
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch, "float", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def exact_logits(model, input_ids, **arguments):
    """Logits of a transformers (or peft) Llama of float64 weights, float64 throughout."""
    with pytest.MonkeyPatch.context() as monkeypatch, torch.no_grad():
        let_float32_mean_float64(monkeypatch)
        decoder = next(module for module in model.modules() if hasattr(module, "rotary_emb"))
        # the frequencies that it has were computed in float32
        decoder.rotary_emb = type(decoder.rotary_emb)(decoder.config)
        return model.eval()(input_ids, **arguments).logits
