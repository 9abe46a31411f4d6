"""A Llama in PyTorch, read from top to bottom, with an explicit attention mask in every layer.

Token embedding; per layer RMSNorm -> attention -> residual -> RMSNorm -> SwiGLU -> residual; final
RMSNorm; output head. Parameters have the names of Hugging Face's `LlamaForCausalLM`, less "model.".

Shapes: B batch, T tokens (Q of them queries, where keys and values of the others are cached),
H heads, K kv heads, D head dim, C hidden, V vocabulary.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from ref.masks import MaskScheme, build_masks


@dataclass(frozen=True)
class LlamaConfig:
    """Shape and numerics of a Llama, under the names of `transformers.LlamaConfig`.

    rope_parameters: {"rope_type": "default" | "linear" | "llama3", "rope_theta": float, ...}, as
    transformers 5 writes it. Values are checked where a config.json is read (ref/checkpoints).
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    max_position_embeddings: int = 2048
    rope_parameters: dict = field(
        default_factory=lambda: {"rope_type": "default", "rope_theta": 10000.0}
    )


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type for norms, RoPE and softmax: float32 in place of 16 bits, else the dtype itself."""
    return torch.promote_types(dtype, torch.float32)


def at_least_float32(x: Tensor) -> Tensor:
    """x in the `wide` of its dtype."""
    return x.to(wide(x.dtype))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, over the last dimension (Zhang & Sennrich 2019)."""

    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        y = at_least_float32(x)
        normed = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return normed.to(x.dtype) * self.weight


def rope_frequencies(config: LlamaConfig, dtype, device=None) -> Tensor:
    """Angle per position of each of the D/2 pairs, in radians (RoFormer; scaling: transformers).

    linear: all are divided by `factor`. llama3: a pair that turns fewer than low_freq_factor times
    within the original context has its frequency divided by `factor`; one that turns more than
    high_freq_factor times keeps it; between the two, a linear blend.
    """
    rope = config.rope_parameters
    first_of_pair = torch.arange(0, config.head_dim, 2, dtype=dtype, device=device)  # (D/2,)
    frequencies = rope["rope_theta"] ** (-first_of_pair / config.head_dim)
    if rope["rope_type"] == "linear":
        return frequencies / rope["factor"]
    if rope["rope_type"] == "llama3":
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
        keep = ((turns - low) / (high - low)).clamp(0, 1)  # 1: kept as it is, 0: divided
        return frequencies * (keep + (1 - keep) / rope["factor"])
    if rope["rope_type"] != "default":
        raise ValueError(f"rope_type is {rope['rope_type']!r}; expected default, linear or llama3")
    return frequencies


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the pairs (x[i], x[i + D/2]) by the angle of their token.

    This is the half-split layout of Hugging Face's weights; RoFormer itself pairs x[2i] with
    x[2i + 1]. x: (B, heads, Q, D); rotation: cosines and sines of the angles, (B, 1, Q, D/2) each.
    """
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)  # (B, heads, Q, D/2) each
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attention_probabilities(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D) + M), line by line: keys for all heads, scores, mask, softmax.

    q: (B, H, Q, D), k: (B, K, T, D), mask M: 0 or -inf, (B, 1, Q, T). Returns (B, H, Q, T), at
    least float32. Query head h uses kv head h // (H / K).
    """
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)  # (B, H, T, D)
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    scores = at_least_float32(scores) + mask
    return scores.softmax(-1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, implementation: str) -> Tensor:
    """Masked attention, (B, H, Q, D): PyTorch's fused kernel ("sdpa") or the equation ("eager")."""
    if implementation == "sdpa":
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    probabilities = attention_probabilities(q, k, mask).to(v.dtype)
    return probabilities @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)


class Attention(nn.Module):
    """Grouped-query attention of one layer; `implementation` as in `attend`."""

    def __init__(self, config: LlamaConfig, implementation):
        super().__init__()
        self.head_dim = config.head_dim
        hidden, bias = config.hidden_size, config.attention_bias
        query_size = config.num_attention_heads * config.head_dim
        key_value_size = config.num_key_value_heads * config.head_dim
        self.implementation = implementation
        self.q_proj = nn.Linear(hidden, query_size, bias)
        self.k_proj = nn.Linear(hidden, key_value_size, bias)
        self.v_proj = nn.Linear(hidden, key_value_size, bias)
        self.o_proj = nn.Linear(query_size, hidden, bias)

    def split_heads(self, x):
        """(B, Q, heads * D) -> (B, heads, Q, D)."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def forward(self, x, mask, rotation, cache=None):
        q = rotate(self.split_heads(self.q_proj(x)), rotation)  # (B, H, Q, D)
        k = rotate(self.split_heads(self.k_proj(x)), rotation)  # (B, K, Q, D)
        v = self.split_heads(self.v_proj(x))  # (B, K, Q, D)
        if cache is not None:
            k, v = cache.update(k, v)  # (B, K, T, D) each
        y = attend(q, k, v, mask, self.implementation)
        return self.o_proj(y.transpose(1, 2).flatten(2))  # (B, Q, C)


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020): down(silu(gate(x)) * up(x))."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        bias = config.mlp_bias
        self.gate_proj = nn.Linear(hidden, inner, bias)
        self.up_proj = nn.Linear(hidden, inner, bias)
        self.down_proj = nn.Linear(inner, hidden, bias)

    def forward(self, x):
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One layer. `Llama.hidden_states` gives it its mask M, 0 or -inf, (B, 1, Q, T), and rotation.

    cache: None, or an object whose update(k, v) stores the keys and values (B, K, Q, D) of the
    tokens in x and gives back all that the layer may look at, (B, K, T, D) each. Only ref/search
    passes one.
    """

    def __init__(self, config: LlamaConfig, implementation, dropout):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, implementation)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, mask, rotation, cache=None):
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), mask, rotation, cache))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


def count_positions(segment_ids: Tensor) -> Tensor:
    """R2: real tokens are counted 0, 1, 2, ... in each row, padding gets 0. int (B, T)."""
    real = segment_ids != -1
    return torch.where(real, real.cumsum(1) - 1, 0)


def additive(allowed: Tensor, dtype) -> Tensor:
    """R5: a boolean mask (B, Q, T) as the M of the equation, 0 or -inf, (B, 1, Q, T)."""
    mask = torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, -math.inf)
    return mask[:, None]


class Llama(nn.Module):
    """The model. `scheme` says which mask each layer gets; `attention` is "sdpa" or "eager".

    dropout: probability, on the embedding and on what each block adds, while training only.
    Matrices are drawn from a normal distribution of standard deviation 0.02, biases as PyTorch
    draws them, both by its global generator.
    Raises ValueError for a scheme that does not fit the number of layers.
    """

    def __init__(self, config: LlamaConfig, scheme=MaskScheme(), attention="sdpa", dropout=0.0):
        super().__init__()
        if attention not in ("sdpa", "eager"):
            raise ValueError(f"attention is {attention!r}; expected 'sdpa' or 'eager'")
        self.config, self.scheme = config, scheme
        self.kinds = scheme.kinds(config.num_hidden_layers)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, attention, dropout) for _ in self.kinds)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.dropout = nn.Dropout(dropout)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
        self.tie_weights()

    def tie_weights(self):
        """Let the output head be the embedding, where the config says so."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, input_ids, segment_ids, position_ids=None) -> Tensor:
        """Logits of the next token at every token, (B, T, V); arguments as in `hidden_states`."""
        return self.lm_head(self.hidden_states(input_ids, segment_ids, position_ids))

    def hidden_states(self, input_ids, segment_ids, position_ids=None) -> Tensor:
        """What the output head reads, (B, T, C).

        input_ids, segment_ids: int (B, T); position_ids: int (B, T), by default `count_positions`.
        """
        if position_ids is None:
            position_ids = count_positions(segment_ids)
        allowed = build_masks(segment_ids, self.scheme)  # {"IN": bool (B, T, T), "OR": ..., ...}
        masks = {kind: additive(allowed[kind], self.norm.weight.dtype) for kind in set(self.kinds)}
        rotation = self.rotation(position_ids)
        x = self.dropout(self.embed_tokens(input_ids))  # (B, T, C)
        for layer, kind in zip(self.layers, self.kinds, strict=True):
            x = layer(x, masks[kind], rotation)
        return self.norm(x)

    def rotation(self, position_ids) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the angles of some tokens, (B, 1, Q, D/2), in the model's dtype.

        position_ids: int (B, Q). The angles are computed in float32 at least.
        """
        weight = self.norm.weight
        frequencies = rope_frequencies(self.config, wide(weight.dtype), weight.device)  # (D/2,)
        angles = position_ids[:, None, :, None] * frequencies
        return angles.cos().to(weight.dtype), angles.sin().to(weight.dtype)
