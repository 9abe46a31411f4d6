"""Checkpoints written by transformers 5, and what three implementations compute from them.

transformers rounds RoPE, norms and softmax to float32 whatever its dtype. Where float64 is compared
it is told (`in_float64`) that float32 is float64, and nothing else of it changes.
"""

import json
import random
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import modeling_rope_utils
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral

from ref import llama_numpy
from ref.checkpoints import load_model
from ref.masks import MaskScheme

from peers.transformers_peer import additive, give_masks
from support.masks import mask_tables

transformers.utils.logging.disable_progress_bar()
LIMITS = {torch.float64: 1e-10, torch.float32: 2e-5}
# fmt: off
AXES = {
    "model": ["llama", "llama", "mistral"],
    "heads": [(4, 4, None), (4, 2, None), (4, 1, None), (6, 2, 10), (2, 1, 8), (8, 4, 6)],
    "tied": [False, True],
    "attention_bias": [False, True],
    "mlp_bias": [False, True],
    "eps": [1e-6, 1e-5, 0.1],
    "rope": ["default", "linear", "llama3"],
    "theta": [10000.0, 500.0, 5e6, 3580165449.0],  # the last: Llama 3 with a million tokens
    "written": ["5", "4 type", "4 rope_type"],
    "stored": ["float32", "float16", "bfloat16"],
    "shards": ["one", "3KB"],
    "scheme": [None, None, (1, 1, True, "visible"), (2, 0, True, "isolated"),
               (0, 2, False, "visible"), (1, 1, False, "isolated")],
}
SCALING = {
    "default": {},
    "linear": {"factor": 4.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 32},
}
# two rows: text, items, text between, the target; and another with padding on the left
SEGMENTS = torch.tensor([
    [0, 0, 1, 1, 1, 2, 2, 2, 0, 3, 3, 3, 3, 0, 0, 4, 4, 4],
    [-1, -1, -1, 0, 1, 1, 2, 2, 2, 2, 3, 3, 0, 4, 4, 5, 5, 5],
])
# fmt: on
INPUT = torch.randint(0, 40, SEGMENTS.shape, generator=torch.Generator().manual_seed(5))
TEXT = torch.zeros_like(SEGMENTS)


@dataclass(frozen=True)
class Variant:
    """One kind of checkpoint, with hidden size 24.

    heads: query heads, key/value heads, head_dim (None: 24 / query heads). eps: of the norms.
    rope, theta: rope_type and rope_theta. written: the version of transformers whose config.json it
        has, and for version 4 the name of the field with the type of RoPE.
    stored: dtype of the file. shards: largest size of a file, or "one".
    scheme: the first fields of the MaskScheme (intra_layers, cross_layers, cross_self, text); with
        None none is written.
    """

    model: str = "llama"
    heads: tuple = (4, 2, None)
    tied: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    eps: float = 1e-5
    rope: str = "default"
    theta: float = 10000.0
    written: str = "5"
    stored: str = "float32"
    shards: str = "one"
    scheme: tuple | None = None
    layers: int = 2

    def __str__(self):
        words = [self.model, "/".join(str(number) for number in self.heads if number)]
        words += [name for name in ("tied", "attention_bias", "mlp_bias") if getattr(self, name)]
        words += [f"eps={self.eps:g}", f"{self.rope}@{self.theta:g}", f"v{self.written}"]
        words += [self.stored, self.shards, f"L={self.layers}"]
        words.append("causal" if self.scheme is None else "-".join(map(str, self.scheme)))
        return " ".join(words)


def variants(number=36):
    """Variants in which each value of an axis is as frequent as the others, in a seeded order."""
    generator = random.Random("checkpoints")
    columns = []
    for values in AXES.values():
        column = [values[i % len(values)] for i in range(number)]
        generator.shuffle(column)
        columns.append(column)
    rows = []
    for i, row in enumerate(zip(*columns)):
        variant = Variant(**dict(zip(AXES, row)), layers=2 + i % 3)
        if variant.model == "mistral":
            variant = replace(variant, attention_bias=False, mlp_bias=False)
        rows.append(variant)
    return rows


def write_checkpoint(folder, variant, vocab_size=40) -> Path:
    """Let transformers write a checkpoint with random weights."""
    model = _random_model(variant, vocab_size).to(getattr(torch, variant.stored))
    shard_size = "1GB" if variant.shards == "one" else variant.shards
    model.save_pretrained(folder, max_shard_size=shard_size)
    with edited_json(Path(folder) / "config.json") as values:
        if variant.scheme:
            fields = ("intra_layers", "cross_layers", "cross_self", "text")
            values["hatllm"] = dict(zip(fields, variant.scheme))
        if variant.written != "5":
            _rewrite_as_version_4(values, variant.written.removeprefix("4 "))
    return Path(folder)


def _random_model(variant, vocab_size):
    """Weights of a size at which mistakes show."""
    generator = torch.Generator().manual_seed(0)
    if variant.model == "llama":
        model = transformers.LlamaForCausalLM(_llama_config(variant, vocab_size))
    else:
        model = transformers.MistralForCausalLM(_mistral_config(variant, vocab_size))
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            parameter.data = 1 + 0.3 * noise
        elif "bias" in name or len(parameter) == vocab_size:
            parameter.data = 0.3 * noise
        else:
            parameter.data = 1.2 / parameter.shape[-1] ** 0.5 * noise
    model.tie_weights()
    return model


def _llama_config(variant, vocab_size):
    fields = _config_fields(variant, vocab_size)
    biases = {"attention_bias": variant.attention_bias, "mlp_bias": variant.mlp_bias}
    return transformers.LlamaConfig(**fields, **biases)


def _mistral_config(variant, vocab_size):
    fields = _config_fields(variant, vocab_size)
    return transformers.MistralConfig(**fields, sliding_window=None)


def _config_fields(variant, vocab_size):
    num_heads, num_kv_heads, head_dim = variant.heads
    rope = {"rope_type": variant.rope, "rope_theta": variant.theta} | SCALING[variant.rope]
    if variant.rope == "llama3":
        # with 2 layers the fastest pair is blended, with more it is kept
        rope["original_max_position_embeddings"] = 2 ** (variant.layers + 2)
    return {
        "vocab_size": vocab_size,
        "hidden_size": 24,
        "intermediate_size": 36,
        "num_hidden_layers": variant.layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": head_dim,
        "rms_norm_eps": variant.eps,
        "tie_word_embeddings": variant.tied,
        "rope_parameters": rope,
        "max_position_embeddings": 512,
    }


def _rewrite_as_version_4(values, name_of_type):
    values["torch_dtype"] = values.pop("dtype")
    rope = values.pop("rope_parameters")
    rope_type = rope.pop("rope_type")
    values["rope_theta"] = rope.pop("rope_theta")
    values["rope_scaling"] = None if rope_type == "default" else {name_of_type: rope_type} | rope


@contextmanager
def edited_json(path):
    """The values of a JSON file, written back as they are at the end of the block."""
    values = json.loads(path.read_text())
    yield values
    path.write_text(json.dumps(values))


@contextmanager
def in_float64():
    """transformers, with float64 wherever its Llama and its Mistral ask for float32."""

    class Widened:
        float = float32 = torch.float64

        def __getattr__(self, name):
            return getattr(torch, name)

    with pytest.MonkeyPatch.context() as patch:
        for module in (modeling_llama, modeling_mistral, modeling_rope_utils):
            patch.setattr(module, "torch", Widened())
        yield


@torch.no_grad()
def logits_of_transformers(folder, dtype, kind=transformers.AutoModelForCausalLM):
    """float64 (B, T, V). Under its own causal mask, or under ours through the hook of the peer."""
    with in_float64() if dtype == torch.float64 else nullcontext():
        model = kind.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
        if segments_of(folder) is TEXT:
            return model(INPUT).logits.double().numpy()
        masks = mask_tables(SEGMENTS.tolist(), scheme_of(folder), len(model.model.layers))
        give_masks(model).update({i: additive(torch.tensor(mask)) for i, mask in enumerate(masks)})
        real = SEGMENTS != -1
        position_ids = (real.cumsum(1) - 1) * real
        return model(INPUT, position_ids=position_ids).logits.double().numpy()


@torch.no_grad()
def logits_of_torch(folder, dtype):
    """float64 (B, T, V), of ref.llama."""
    model = load_model(folder, dtype).eval()
    return model(INPUT, segments_of(folder)).double().numpy()


def logits_of_numpy(folder):
    """float64 (B, T, V), from the files: nothing of ref/ but llama_numpy reads them."""
    config = json.loads((folder / "config.json").read_text())
    weights = {}
    for path in folder.glob("*.safetensors"):
        for name, tensor in load_file(path).items():
            weights[name] = tensor.double().numpy()
    segment_ids = segments_of(folder).numpy()
    return llama_numpy.forward(weights, config, INPUT.numpy(), segment_ids, scheme_of(folder))


def scheme_of(folder):
    """The MaskScheme in config.json."""
    return MaskScheme(**json.loads((Path(folder) / "config.json").read_text()).get("hatllm", {}))


def segments_of(folder):
    """Items and padding where a layer masks items.

    Else one text without padding: there transformers' own mask is the right one.
    """
    scheme = scheme_of(folder)
    return SEGMENTS if scheme.intra_layers + scheme.cross_layers else TEXT


def largest_deviation(folder, logits, expected):
    """The largest deviation at a real token."""
    real = segments_of(folder).numpy() != -1
    return float(np.abs(logits - expected)[real].max())


def deviations(folder):
    """{(implementation, dtype): largest deviation from transformers}."""
    largest = {}
    logits = logits_of_numpy(folder)
    for dtype in LIMITS:
        expected = logits_of_transformers(folder, dtype)
        # not so small that mistakes are lost, nor so large that rounding shows
        assert 1 < np.abs(expected).max() < 10
        largest["torch", dtype] = largest_deviation(
            folder, logits_of_torch(folder, dtype), expected
        )
        largest["numpy", dtype] = largest_deviation(folder, logits, expected)
    return largest
