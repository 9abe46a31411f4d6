"""Plain PyTorch: a Llama of one function, with scaled_dot_product_attention and the masks of `ref.masks`.

python -m ref.golden run tests/peers/sdpa_peer.py
"""

import torch
from torch.nn import functional as F

from ref.masks import MaskScheme, build_masks


def run(case):
    scheme = MaskScheme(**case.info["scheme"])
    masks = build_masks(torch.tensor(case.segment_ids), scheme)  # bool (B, T, T) of each kind
    kinds = scheme.kinds(case.config["num_hidden_layers"])

    def attend(q, k, v, i):
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=masks[kinds[i]][:, None], enable_gqa=True
        )

    logits = llama(case, attend)
    return {
        "logits": logits,
        "loss": F.cross_entropy(
            logits[:, :-1].flatten(0, 1), torch.tensor(case.labels)[:, 1:].flatten()
        ),
    }


@torch.no_grad()
def llama(case, attend):
    """Logits (B, T, V) in float32; attend(q, k, v, layer) is given the rotated heads."""
    config, w = (
        case.config,
        {name: torch.tensor(w, dtype=torch.float32) for name, w in case.weights.items()},
    )

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def norm(x, name):
        return F.rms_norm(x, x.shape[-1:], w[f"{name}.weight"], config["rms_norm_eps"])

    def heads(x):
        return x.unflatten(-1, (-1, config["head_dim"])).transpose(1, 2)  # (B, heads, T, D)

    def rotate(x):
        first, second = x.chunk(2, -1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    angles = torch.tensor(case.position_ids)[:, None, :, None] * frequencies(
        config
    )  # (B, 1, T, D/2)
    cos, sin = angles.cos().float(), angles.sin().float()
    x = w["model.embed_tokens.weight"][torch.tensor(case.input_ids)]  # (B, T, C)
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}"
        normed = norm(x, f"{at}.input_layernorm")
        q, k, v = (heads(linear(normed, f"{at}.self_attn.{p}_proj")) for p in "qkv")
        mixed = attend(rotate(q), rotate(k), v, i).transpose(1, 2).flatten(2)  # (B, T, H * D)
        x = x + linear(mixed, f"{at}.self_attn.o_proj")
        normed = norm(x, f"{at}.post_attention_layernorm")
        gated = F.silu(linear(normed, f"{at}.mlp.gate_proj")) * linear(normed, f"{at}.mlp.up_proj")
        x = x + linear(gated, f"{at}.mlp.down_proj")
    return linear(
        norm(x, "model.norm"), "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
    )


def frequencies(config):
    rope, D = config["rope_scaling"] or {"rope_type": "default"}, config["head_dim"]
    f = config["rope_theta"] ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)  # (D/2,)
    if rope["rope_type"] == "linear":
        return f / rope["factor"]
    if rope["rope_type"] == "llama3":
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        turns = rope["original_max_position_embeddings"] * f / (2 * torch.pi)
        return f * torch.lerp(
            torch.tensor(1 / rope["factor"], dtype=f.dtype),
            torch.ones_like(f),
            ((turns - low) / (high - low)).clamp(0, 1),
        )
    return f
