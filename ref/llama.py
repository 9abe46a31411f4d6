"""A Llama in PyTorch, read from top to bottom, with an explicit attention mask in every layer.

Token embedding; per layer RMSNorm -> attention -> residual -> RMSNorm -> SwiGLU -> residual; final
RMSNorm; output head. Parameters have the names of Hugging Face's `LlamaForCausalLM`, less "model.".

Shapes: B batch, T tokens (of which Q queries when a cache holds the rest), H heads, K kv heads,
D head dim, C hidden, F intermediate, V vocabulary.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recompute

from ref.masks import MaskScheme, build_masks


@dataclass(frozen=True)
class LlamaConfig:
    """Shape and numerics of a Llama, under the names of `transformers.LlamaConfig`.

    rope_parameters: {"rope_type": "default" | "linear" | "llama3", "rope_theta": float, ...}, as
    transformers 5 writes it.
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


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32, or as it is if it is float64: RMSNorm, RoPE and softmax lose too much in 16 bits."""
    return x if x.dtype == torch.float64 else x.float()


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, over the last dimension (Zhang & Sennrich 2019)."""

    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        wide = at_least_float32(x)
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return normed.to(x.dtype) * self.weight


def rope_frequencies(config: LlamaConfig, dtype, device=None) -> Tensor:
    """Angle per position of each of the D/2 pairs, in radians (RoFormer; scaling as in transformers).

    linear: all frequencies divided by `factor`. llama3: wavelengths beyond the original context
    divided by `factor`, short ones kept, a linear blend between the two.
    """
    rope = config.rope_parameters
    pair = torch.arange(0, config.head_dim, 2, dtype=dtype, device=device)  # (D/2,)
    frequencies = rope["rope_theta"] ** (-pair / config.head_dim)
    if rope["rope_type"] == "linear":
        return frequencies / rope["factor"]
    if rope["rope_type"] == "llama3":
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
        keep = ((turns - low) / (high - low)).clamp(0, 1)
        return frequencies * (keep + (1 - keep) / rope["factor"])
    return frequencies


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[i + D/2]) by the angle of their token: the half-split layout.

    x: (B, heads, T, D); cos, sin: (B, 1, T, D/2).
    """
    first, second = x.chunk(2, dim=-1)  # (B, heads, T, D/2) each
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attention_probabilities(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D) + M), the four lines of the equation.

    q: (B, H, Q, D), k: (B, K, T, D), mask M: 0 or -inf, (B, 1, Q, T) -> (B, H, Q, T), at least float32.
    """
    k = k.repeat_interleave(
        q.shape[1] // k.shape[1], dim=1
    )  # query head h uses kv head h // (H / K)
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    return (at_least_float32(scores) + mask).softmax(-1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, implementation: str) -> Tensor:
    """Masked attention, (B, H, Q, D): by PyTorch's fused kernel ("sdpa") or by the equation ("eager")."""
    if implementation == "sdpa":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    return attention_probabilities(q, k, mask).to(v.dtype) @ v.repeat_interleave(
        q.shape[1] // v.shape[1], dim=1
    )


class Dropout(nn.Module):
    """As nn.Dropout, with `p` in steps of 1/256: a random byte an element takes a third of the time on a CPU."""

    def __init__(self, p):
        super().__init__()
        self.zeros = round(p * 256)

    def forward(self, x):
        if not (self.training and self.zeros):
            return x
        if self.zeros > 255:
            return torch.zeros_like(x)
        words = torch.empty(x.numel() // 8 + 1, dtype=torch.int64, device=x.device).random_(
            -(2**63), None
        )
        keep = words.view(torch.uint8)[: x.numel()].view(x.shape) >= self.zeros
        return x * keep * (256 / (256 - self.zeros))


class Attention(nn.Module):
    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        H, K, D, C = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.hidden_size,
        )
        self.layer, self.head_dim = layer, D
        self.q_proj = nn.Linear(C, H * D, bias=config.attention_bias)
        self.k_proj = nn.Linear(C, K * D, bias=config.attention_bias)
        self.v_proj = nn.Linear(C, K * D, bias=config.attention_bias)
        self.o_proj = nn.Linear(H * D, C, bias=config.attention_bias)

    def forward(self, x, mask, cos, sin, cache, implementation):
        q, k, v = (  # (B, H, Q, D), (B, K, Q, D), (B, K, Q, D)
            project(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, K, T, D)
        y = attend(q, k, v, mask, implementation)
        return self.o_proj(y.transpose(1, 2).flatten(2))  # (B, Q, C)


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020): down(silu(gate(x)) * up(x))."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        C, F_ = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(C, F_, bias=config.mlp_bias)
        self.up_proj = nn.Linear(C, F_, bias=config.mlp_bias)
        self.down_proj = nn.Linear(F_, C, bias=config.mlp_bias)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, mask, cos, sin, cache, implementation, dropout):
        x = x + dropout(
            self.self_attn(self.input_layernorm(x), mask, cos, sin, cache, implementation)
        )
        return x + dropout(self.mlp(self.post_attention_layernorm(x)))


class Llama(nn.Module):
    """The model. `scheme` says which mask each layer gets; `attention` is "sdpa" or "eager".

    dropout: probability, on the embedding and on what each block adds, while training only.
    checkpoint_activations, if set True: training keeps each block's input only and computes the rest again.
    Weights are drawn from N(0, 0.02) by torch's global generator.
    """

    def __init__(
        self, config: LlamaConfig, scheme: MaskScheme = MaskScheme(), attention="sdpa", dropout=0.0
    ):
        super().__init__()
        if attention not in ("sdpa", "eager"):
            raise ValueError(f"attention is {attention!r}; expected 'sdpa' or 'eager'")
        self.config, self.scheme, self.attention, self.checkpoint_activations = (
            config,
            scheme,
            attention,
            False,
        )
        scheme.kinds(config.num_hidden_layers)  # refuses a scheme that does not fit
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.dropout = Dropout(dropout)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
        self._tie()

    def _tie(self):
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, input_ids, segment_ids, position_ids=None, cache=None, order=None) -> Tensor:
        """Logits of the next token at every token.

        input_ids, segment_ids: int (B, Q); position_ids: int (B, Q), by default real tokens are
        counted 0, 1, 2, ... and padding gets 0. cache: a KVCache that holds the tokens before these
        and receives these. order: see `build_masks`, (B or 1, Q, T) with T = cached + Q tokens.
        Returns (B, Q, V).
        """
        return self.lm_head(self.hidden_states(input_ids, segment_ids, position_ids, cache, order))

    def hidden_states(
        self,
        input_ids,
        segment_ids,
        position_ids=None,
        cache=None,
        order=None,
        after_intra=None,
        stop=None,
    ):
        """What the output head reads, (B, Q, C); arguments as in `forward`.

        after_intra: what the IN layers give, (B, Q, C), where that is known: the model starts behind them.
        stop: give what comes out of the first `stop` layers instead.
        """
        Q = input_ids.shape[1]
        if cache is not None:
            segment_ids = torch.cat(
                (cache.segment_ids.to(segment_ids), segment_ids), dim=1
            )  # (B, T)
            cache.segment_ids = segment_ids
            if order is None:
                T = segment_ids.shape[1]
                order = torch.ones(1, Q, T, dtype=torch.bool, device=input_ids.device).tril(T - Q)
        if position_ids is None:
            real = segment_ids != -1
            position_ids = ((real.cumsum(1) - 1) * real)[:, -Q:]
        kinds = self.scheme.kinds(len(self.layers))
        masks = build_masks(segment_ids, self.scheme, order)
        for kind in set(kinds):  # M of the equation: 0 or -inf, (B, 1, Q, T)
            allowed = (
                masks[kind]
                if cache is None
                else cache.columns(kind, kinds.index(kind), masks[kind])
            )
            masks[kind] = torch.zeros_like(allowed, dtype=self.norm.weight.dtype).masked_fill_(
                ~allowed, -math.inf
            )[:, None]
        cos, sin = self._rope(position_ids)
        x = (
            self.dropout(self.embed_tokens(input_ids)) if after_intra is None else after_intra
        )  # (B, Q, C)
        for number in range(
            0 if after_intra is None else self.scheme.intra_layers,
            len(kinds) if stop is None else stop,
        ):
            layer, arguments = (
                self.layers[number],
                (x, masks[kinds[number]], cos, sin, cache, self.attention, self.dropout),
            )
            again = self.checkpoint_activations and self.training
            x = recompute(layer, *arguments, use_reentrant=False) if again else layer(*arguments)
        return self.norm(x) if stop is None else x

    def _rope(self, position_ids):
        weight = self.embed_tokens.weight
        frequencies = rope_frequencies(
            self.config, torch.promote_types(weight.dtype, torch.float32), weight.device
        )
        angles = position_ids[:, None, :, None] * frequencies  # (B, 1, Q, D/2)
        return angles.cos().to(weight.dtype), angles.sin().to(weight.dtype)
