"""HatLLM's model once more, in NumPy float64: the definition that all else is checked against.

Plain functions on arrays, written from the definition and sharing no code with `ref.masks` or
`ref.llama`. Masks are loops over the predicates, in their letters: slow, and plainly right. R2 to
R5 are rules in the docstring of ref/masks.py; `at` names a layer as its weights do: "layers.0".

    B batch   T tokens   L layers   H query heads   K key/value heads   D head dim   C hidden size
    V vocabulary
"""

from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np

KINDS = ("IN", "OR", "CR")
DEFAULT_SCHEME = {"intra_layers": 0, "cross_layers": 0, "cross_self": True, "text": "visible"}

# Masks: s is one row of segment ids, j the index of a query, k that of a key.


def OR(s, j, k, scheme):
    """The language model's own mask: causal, and nobody attends to padding."""
    return k <= j and s[k] != -1


def IN(s, j, k, scheme):
    """Intra-item: an item's token sees no other item; with text="isolated" its own item only."""
    if scheme.text == "isolated":
        return OR(s, j, k, scheme) and (s[j] < 1 or s[k] == s[j])
    return OR(s, j, k, scheme) and not (s[j] >= 1 and s[k] >= 1 and s[j] != s[k])


def CR(s, j, k, scheme):
    """Cross-item: an item's token sees no token of its own item, but itself with cross_self."""
    if scheme.cross_self:
        return OR(s, j, k, scheme) and not (s[j] >= 1 and s[k] == s[j] and j != k)
    return OR(s, j, k, scheme) and not (s[j] >= 1 and s[k] == s[j])


def layer_kind(i, L, scheme):
    """Which of the three masks layer i of L carries, counted from 0 at the embedding."""
    if i < scheme.intra_layers:
        return "IN"
    if i >= L - scheme.cross_layers:
        return "CR"
    return "OR"


def row_mask(kind, s, scheme):
    """The mask of one row of the batch: bool (T, T), True where query j may attend to key k."""
    # looked up at each call: ref/golden replaces these functions by ones with bugs
    predicate = {"IN": IN, "OR": OR, "CR": CR}[kind]
    allowed = np.zeros((len(s), len(s)), dtype=bool)  # (T, T)
    for j in range(len(s)):
        for k in range(len(s)):
            allowed[j, k] = predicate(s, j, k, scheme)
        if s[j] == -1:
            allowed[j, :] = False  # R3: padding sees none of the others ...
        if not allowed[j].any():
            allowed[j, j] = True  # R3, R4: ... and a row left empty sees itself
    return allowed


def layer_masks(segment_ids, L, scheme):
    """One mask a layer: bool (L, B, T, T). Raises ValueError for a scheme that does not fit L."""
    intra, cross = scheme.intra_layers, scheme.cross_layers
    if intra < 0 or cross < 0 or intra + cross > L:
        raise ValueError(
            f"intra_layers={intra}, cross_layers={cross}: expected two "
            f"counts of at least 0 whose sum is at most the model's {L} layers"
        )
    if scheme.text not in ("visible", "isolated"):
        raise ValueError(f"text={scheme.text!r}: expected 'visible' or 'isolated'")
    kinds = [layer_kind(i, L, scheme) for i in range(L)]
    masks = {
        kind: np.stack([row_mask(kind, s, scheme) for s in segment_ids.tolist()])
        for kind in set(kinds)
    }
    return np.stack([masks[kind] for kind in kinds])  # (L, B, T, T)


def count_positions(segment_ids):
    """Position ids (B, T): real tokens count 0, 1, 2, ...; padding gets 0, moves nobody (R2)."""
    real = segment_ids != -1
    return np.where(real, real.cumsum(axis=1) - 1, 0)


def rope_settings(config):
    """theta and the scaling's fields, from a config.json of transformers 5 or 4."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    rope.setdefault("rope_type", rope.get("type", "default"))
    return rope


def rope_frequencies(config):
    """The angle by which each pair of a head's dimensions turns per position: (D/2,)."""
    rope, D = rope_settings(config), head_dim(config)
    frequencies = 1.0 / rope["rope_theta"] ** (np.arange(0, D, 2) / D)  # (D/2,)
    if rope["rope_type"] == "default":
        return frequencies
    if rope["rope_type"] == "linear":
        return frequencies / rope["factor"]
    if rope["rope_type"] == "llama3":
        return llama3_frequencies(frequencies, rope)
    raise ValueError(f"rope_type {rope['rope_type']!r}: expected 'default', 'linear' or 'llama3'")


def llama3_frequencies(frequencies, rope):
    """Llama 3.1: slow pairs are slowed by `factor`, fast ones kept, those between blended."""
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    # turns of each pair within the context that the model was first trained on
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)  # 0: slowed; 1: kept
    return keep * frequencies + (1 - keep) * frequencies / rope["factor"]


def rope_angles(position_ids, frequencies):
    """The angle of each pair of each token: (B, T, D/2)."""
    return position_ids[:, :, None] * frequencies


def rotate(x, angles):
    """Turn the pairs (d, d + D/2) of x (B, heads, T, D): the half-split layout of checkpoints."""
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]  # (B, 1, T, D/2)
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]  # (B, heads, T, D/2) each
    turned = [first * cos - second * sin, second * cos + first * sin]
    return np.concatenate(turned, axis=-1)  # (B, heads, T, D)


def head_dim(config):
    """The size of a head, which need not be hidden_size / heads."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def rms_norm(x, weight, eps):
    """x over its root mean square, eps under the root."""
    return weight * x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)


def linear(x, weights, name, bias):
    """x (..., in) times the stored (out, in) weight, plus the bias if there is one: (..., out)."""
    y = x @ weights[f"{name}.weight"].T
    return y + weights[f"{name}.bias"] if bias else y


def silu(x):
    return x / (1 + np.exp(-x))


def split_heads(x, D):
    """(B, T, heads * D) -> (B, heads, T, D)"""
    B, T, _ = x.shape
    return x.reshape(B, T, -1, D).transpose(0, 2, 1, 3)


def merge_heads(x):
    """(B, heads, T, D) -> (B, T, heads * D)"""
    B, _, T, _ = x.shape
    return x.transpose(0, 2, 1, 3).reshape(B, T, -1)


def share_heads(x, H):
    """(B, K, T, D) -> (B, H, T, D): query head h reads key/value head h // (H / K)."""
    return np.repeat(x, H // x.shape[1], axis=1)


def masked_softmax(scores, mask):
    """Scores, -inf where the mask (B, T, T) forbids (R5), and their softmax: (B, H, T, T) each."""
    scores = np.where(mask[:, None], scores, -np.inf)
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return scores, e / e.sum(axis=-1, keepdims=True)


def project(x, angles, weights, config, at, trace):
    """Queries (B, H, T, D), keys and values (B, K, T, D) of layer `at`; the first two rotated."""
    D, bias = head_dim(config), config.get("attention_bias", False)
    q, k, v = (
        split_heads(linear(x, weights, f"model.{at}.self_attn.{p}_proj", bias), D) for p in "qkv"
    )
    q = trace[f"{at}.q"] = rotate(q, angles)
    k = trace[f"{at}.k"] = rotate(k, angles)
    trace[f"{at}.v"] = v
    return q, k, v


def attend(q, k, v, mask, at, trace):
    """What each query reads of the values, all heads side by side: (B, T, H * D)."""
    H, D = q.shape[1], q.shape[-1]
    scores = q @ share_heads(k, H).swapaxes(-1, -2) / np.sqrt(D)  # (B, H, T, T)
    trace[f"{at}.scores"], probabilities = masked_softmax(scores, mask)
    trace[f"{at}.probabilities"] = probabilities  # (B, H, T, T)
    return merge_heads(probabilities @ share_heads(v, H))


def attention(x, mask, angles, weights, config, at, trace):
    """Grouped-query attention of layer `at` on x (B, T, C) under mask (B, T, T): (B, T, C)."""
    bias = config.get("attention_bias", False)
    q, k, v = project(x, angles, weights, config, at, trace)
    mixed = attend(q, k, v, mask, at, trace)  # (B, T, H * D)
    return linear(mixed, weights, f"model.{at}.self_attn.o_proj", bias)  # (B, T, C)


def mlp(x, weights, config, at):
    """SwiGLU: (B, T, C) -> (B, T, C)."""
    name, bias = f"model.{at}.mlp", config.get("mlp_bias", False)
    gate = silu(linear(x, weights, f"{name}.gate_proj", bias))  # (B, T, intermediate)
    up = linear(x, weights, f"{name}.up_proj", bias)  # (B, T, intermediate)
    return linear(gate * up, weights, f"{name}.down_proj", bias)


def layer(x, mask, angles, weights, config, at, trace):
    """One block: norm, attention, residual; norm, SwiGLU, residual: (B, T, C) -> (B, T, C)."""
    eps = config["rms_norm_eps"]
    normed = rms_norm(x, weights[f"model.{at}.input_layernorm.weight"], eps)
    trace[f"{at}.normed"] = normed
    attended = attention(normed, mask, angles, weights, config, at, trace)
    trace[f"{at}.attention"] = attended
    x = trace[f"{at}.residual"] = x + attended
    normed = rms_norm(x, weights[f"model.{at}.post_attention_layernorm.weight"], eps)
    change = trace[f"{at}.mlp"] = mlp(normed, weights, config, at)
    x = trace[f"{at}.output"] = x + change
    return x


def forward(weights, config, input_ids, segment_ids, scheme, position_ids=None, trace=None):
    """Logits, float64 (B, T, V), of a Llama under the scheme's masks.

    weights: arrays under the names of Hugging Face. input_ids and segment_ids are (B, T);
    segment_ids: -1 padding, 0 text, 1..n history, n+1 target. `config` has the fields of a Hugging
    Face config.json, `scheme` those of `MaskScheme`, as attributes or as a mapping. A dict given as
    `trace` receives, in the order of computation: the mask of each layer, embedding; of each layer
    normed (before attention), q and k (rotated), v, scores, probabilities, attention, residual, mlp
    and output; norm and logits.
    """
    trace = {} if trace is None else trace
    weights = {name: np.asarray(weight, dtype=np.float64) for name, weight in weights.items()}
    segment_ids, L = np.asarray(segment_ids), config["num_hidden_layers"]
    if isinstance(scheme, Mapping):
        scheme = SimpleNamespace(**{**DEFAULT_SCHEME, **scheme})
    if position_ids is None:
        position_ids = count_positions(segment_ids)
    masks = layer_masks(segment_ids, L, scheme)  # (L, B, T, T)
    trace.update({f"layers.{i}.mask": masks[i] for i in range(L)})
    angles = rope_angles(np.asarray(position_ids), rope_frequencies(config))  # (B, T, D/2)
    x = weights["model.embed_tokens.weight"][np.asarray(input_ids)]  # (B, T, C)
    trace["embedding"] = x
    for i in range(L):
        x = layer(x, masks[i], angles, weights, config, f"layers.{i}", trace)
    x = trace["norm"] = rms_norm(x, weights["model.norm.weight"], config["rms_norm_eps"])
    head = "model.embed_tokens" if config.get("tie_word_embeddings", False) else "lm_head"
    trace["logits"] = linear(x, weights, head, bias=False)  # (B, T, V)
    return trace["logits"]


def loss(logits, labels):
    """Mean cross-entropy over all labelled tokens of the batch; t predicts labels[:, t + 1].

    A label of -100 is none. Raises ValueError where there are no others.
    """
    logits, labels = logits[:, :-1], np.asarray(labels)[:, 1:]  # (B, T-1, V), (B, T-1)
    kept = labels != -100
    if not kept.any():
        raise ValueError("labels: all are -100 (ignored), expected at least one token to predict")
    tokens = np.where(kept, labels, 0)[..., None]
    chosen = np.take_along_axis(logits, tokens, axis=-1)[..., 0]  # (B, T-1)
    top = logits.max(axis=-1)
    log_total = top + np.log(np.exp(logits - top[..., None]).sum(axis=-1))  # (B, T-1)
    return (log_total - chosen)[kept].mean()
