"""The model that a training begins with: that of a folder, or a new one."""

import math
from dataclasses import fields
from functools import partial

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from ref import cli, lora
from ref.checkpoints import adapters, load_model
from ref.checkpoints.config import parse_config
from ref.checkpoints.tokenizers import check_vocabulary, read_tokenizer
from ref.layouts import load_layout
from ref.llama import Llama
from ref.masks import MaskScheme
from ref.overrides import scheme_from
from ref.prompt import PromptEncoder
from ref.settings import Settings, read_settings
from ref.tokenizer import Tokenizer


def prepare_model(options, data):
    """(model, encoder, settings): from --weights, or a new tokenizer and random weights."""
    torch.manual_seed(options.seed)
    if options.weights:
        model, tokenizer, layout = model_from_weights(options)
    else:
        model, tokenizer, layout = new_model(options, data)
    if options.checkpoint_activations:
        recompute_activations(model)
    asked = {field.name: getattr(options, field.name) for field in fields(Settings)}
    settings = Settings(**asked | {"layout": layout})  # options has its name or file
    max_length = model.config.max_position_embeddings
    return model, PromptEncoder(tokenizer, layout, model.scheme, max_length), settings


def recompute_activations(model):
    """Less memory for more time: of each layer keep the input, and compute the rest again.

    The gradients stay the same.
    """
    for layer in model.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def model_from_weights(options):
    """(model, tokenizer, layout) of the folder --weights, with a new adapter for --lora-rank."""
    folder = options.weights
    config, saved_scheme, _ = adapters.read_config(folder, options.base)
    tokenizer = read_tokenizer(folder, options.base)
    check_vocabulary(tokenizer, config)
    if options.layout:
        layout = load_layout(options.layout)
    else:
        layout = read_settings(folder).layout
    if options.lora_rank and adapters.is_adapter(folder):
        raise ValueError(
            f"{folder} is an adapter already; train without --lora-rank to go on from the "
            "merged model"
        )
    scheme = scheme_from(options, saved_scheme)
    dtype = dtype_of_weights(options)
    model = load_model(folder, dtype, options.device, scheme, options.base, dropout=options.dropout)
    if options.lora_rank:
        lora.refuse_a_large_rank(model, lora_settings(options))
        lora.add(model, lora_settings(options))
    return model, tokenizer, layout


def new_model(options, data):
    """(model, tokenizer, layout) with random weights; the tokenizer learns the training titles."""
    scheme = scheme_of_new_model(options)
    layout = load_layout(options.layout or "lines")
    titles = [data.titles[title] for title in np.flatnonzero(data.training_counts())]
    tokenizer = Tokenizer.train(titles, options.vocabulary)
    model = Llama(new_config(options, tokenizer.vocab_size), scheme, dropout=options.dropout)
    return model.to(options.device, dtype_of_weights(options)), tokenizer, layout


def scheme_of_new_model(options):
    """Its MaskScheme: an IN and a CR layer, unless options say otherwise."""
    return scheme_from(options, MaskScheme(intra_layers=1, cross_layers=1))


def new_config(options, vocab_size):
    """A Llama of the asked size; the MLP is 8/3 as wide, rounded up to a multiple of 16."""
    values = {
        "vocab_size": vocab_size,
        "hidden_size": options.hidden_size,
        "intermediate_size": math.ceil(options.hidden_size * 8 / 3 / 16) * 16,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads,
        "tie_word_embeddings": True,
        "max_position_embeddings": 1024,
    }
    return parse_config(values, "the model asked for")


def lora_settings(options):
    targets = [name.strip() for name in options.lora_targets.split(",")]
    return lora.LoraSettings(options.lora_rank, options.lora_alpha, options.lora_dropout, targets)


def is_autocast(options):
    """Multiply in bfloat16 with float32 weights? With LoRA frozen weights are bfloat16 instead."""
    return options.dtype == "bfloat16" and not options.lora_rank


def dtype_of_weights(options):
    return torch.float32 if is_autocast(options) else cli.DTYPES[options.dtype]
