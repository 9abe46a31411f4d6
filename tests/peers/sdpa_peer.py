"""Plain PyTorch: a Llama in a few functions, scaled_dot_product_attention, masks of `ref.masks`.

    python -m ref.golden run tests/peers/sdpa_peer.py

Shapes: B batch, T tokens, H query heads, K key/value heads, D head dim, C hidden, V vocabulary.
"""

import torch
from torch.nn import functional

from ref.masks import MaskScheme, build_masks


def run(case):
    """Logits and loss of a golden case of the stage `model`."""
    if case.stage != "model":
        raise NotImplementedError("only the stage model")
    scheme = MaskScheme(**case.info["scheme"])
    masks = build_masks(torch.tensor(case.segment_ids), scheme)  # bool (B, T, T) of each kind
    kinds = scheme.kinds(case.config["num_hidden_layers"])

    def attend(q, k, v, layer):
        mask = masks[kinds[layer]][:, None]
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)

    logits = llama(case, attend)
    labels = torch.tensor(case.labels)[:, 1:].flatten()
    loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels)
    return {"logits": logits, "loss": loss}


@torch.no_grad()
def llama(case, attend):
    """Logits (B, T, V) in float32.

    attend(q, k, v, layer) -> (B, H, T, D) is given the rotated heads: q (B, H, T, D) and
    k, v (B, K, T, D).
    """
    config = case.config
    weights = {}
    for name, weight in case.weights.items():
        weights[name] = torch.tensor(weight, dtype=torch.float32)
    angles = torch.tensor(case.position_ids)[:, None, :, None] * frequencies(config)
    rotation = angles.cos().float(), angles.sin().float()  # (B, 1, T, D/2) each
    x = weights["model.embed_tokens.weight"][torch.tensor(case.input_ids)]  # (B, T, C)
    for i in range(config["num_hidden_layers"]):
        name = f"model.layers.{i}"
        normed = norm(x, weights, f"{name}.input_layernorm", config)
        q, k, v = rotated_heads(normed, weights, f"{name}.self_attn", config, rotation)
        mixed = attend(q, k, v, i).transpose(1, 2).flatten(2)  # (B, T, H * D)
        x = x + linear(mixed, weights, f"{name}.self_attn.o_proj")
        normed = norm(x, weights, f"{name}.post_attention_layernorm", config)
        x = x + mlp(normed, weights, f"{name}.mlp")
    x = norm(x, weights, "model.norm", config)
    head = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
    return linear(x, weights, head)


def linear(x, weights, name):
    """x (..., in) -> (..., out), with a bias where there is one."""
    return functional.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def norm(x, weights, name, config):
    """RMSNorm over the last dimension."""
    weight = weights[f"{name}.weight"]
    return functional.rms_norm(x, x.shape[-1:], weight, config["rms_norm_eps"])


def mlp(x, weights, name):
    """SwiGLU: (B, T, C) -> (B, T, C)."""
    gate = functional.silu(linear(x, weights, f"{name}.gate_proj"))
    return linear(gate * linear(x, weights, f"{name}.up_proj"), weights, f"{name}.down_proj")


def rotated_heads(x, weights, name, config, rotation):
    """q (B, H, T, D), k and v (B, K, T, D) of x (B, T, C); q and k are rotated."""
    q, k, v = (
        linear(x, weights, f"{name}.{part}").unflatten(-1, (-1, config["head_dim"])).transpose(1, 2)
        for part in ("q_proj", "k_proj", "v_proj")
    )
    return rotate(q, rotation), rotate(k, rotation), v


def rotate(x, rotation):
    """RoPE in the half-split layout: the pairs are (d, d + D/2)."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def frequencies(config):
    """The angle by which each pair of a head's dimensions turns per position: float64 (D/2,)."""
    rope = config["rope_scaling"] or {"rope_type": "default"}
    D = config["head_dim"]
    right = config["rope_theta"] ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
    if rope["rope_type"] == "linear":
        return right / rope["factor"]
    if rope["rope_type"] == "llama3":
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        turns = rope["original_max_position_embeddings"] * right / (2 * torch.pi)
        keep = ((turns - low) / (high - low)).clamp(0, 1)  # 0: slowed, 1: kept
        slowest = torch.tensor(1 / rope["factor"], dtype=right.dtype)
        return right * torch.lerp(slowest, torch.ones_like(right), keep)
    return right
