"""Decoding with a cache as ports do it: the prompts in one pass, then step by step a token a slot.

What is right is `ref.llama_numpy` in one pass without a cache, from which the expected values come;
the tests show that both agree in every case. Plants alter a copy of this module, or of its two
models: a port may have a kernel for prompts and another for steps, with mistakes in one or both.

    N prompts   P tokens of a prompt   W slots   S steps   L layers   H heads   K key/value heads
    D head dim   C hidden size   V vocabulary
    B rows, N or W   Q new tokens of a row, P or 1   T tokens of a row so far
"""

from functools import partial

import numpy as np

from ref import llama_numpy
from ref.golden.copies import copy_of
from ref.golden.definitions.passes import Cache

prompt_model = copy_of(llama_numpy)
step_model = copy_of(llama_numpy)


def decode(prompts, steps, parents, networks):
    """Logits of the prompts, (N, P, V), and of the steps, (S, W, V).

    prompts: Tokens (N, P). steps: S times Tokens (W, 1). parents: (S, W), whose cache each slot
    continues, -1 where nobody is in it. networks: the Network of prompts and that of steps.
    """
    cache = Cache(np.zeros((len(prompts.ids), 0), int))
    prompt_logits = run(prompt_model, prompts, cache, networks[0])
    step_logits = []
    for tokens, parents_of_step in zip(steps, parents, strict=True):
        cache = reorder(cache, parents_of_step)
        step_logits.append(run(step_model, tokens, cache, networks[1])[:, -1])
    return {"prompt_logits": prompt_logits, "step_logits": np.stack(step_logits)}


def reorder(cache, parents):
    """The cache whose row w is row parents[w] of the old one; an empty slot takes any row."""
    rows = np.maximum(parents, 0)
    return Cache(
        segment_ids=reorder_segments(cache.segment_ids, rows),
        keys={at: reorder_tensor(k, rows, at) for at, k in cache.keys.items()},
        values={at: reorder_tensor(v, rows, at) for at, v in cache.values.items()},
    )


def reorder_segments(segment_ids, rows):
    """(B, T) -> (W, T)"""
    return segment_ids[rows]


def reorder_tensor(tensor, rows, at):
    """Keys or values of layer `at`: (B, K, T, D) -> (W, K, T, D)."""
    return tensor[rows]


def run(model, tokens, cache, network):
    """Logits (B, Q, V) of new tokens, whose keys, values and segment ids the cache takes in."""
    weights, config = network.weights, network.config
    cache.segment_ids = np.concatenate([cache.segment_ids, tokens.segment_ids], axis=1)
    masks = mask_rows(model, cache.segment_ids, tokens.ids.shape[1], network)  # (L, B, Q, T)
    angles = model.rope_angles(tokens.position_ids, model.rope_frequencies(config))
    model.attention = partial(attention, model, cache)  # the layers of the model call it
    x = weights["model.embed_tokens.weight"][tokens.ids]  # (B, Q, C)
    for i, mask in enumerate(masks):
        x = model.layer(x, mask, angles, weights, config, f"layers.{i}", trace={})
    x = model.rms_norm(x, weights["model.norm.weight"], config["rms_norm_eps"])
    head = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
    return model.linear(x, weights, head, bias=False)


def mask_rows(model, segment_ids, Q, network):
    """The last Q rows of the masks over all tokens so far: bool (L, B, Q, T)."""
    L = network.config["num_hidden_layers"]
    return model.layer_masks(segment_ids, L, network.scheme)[:, :, -Q:]


def attention(model, cache, x, mask, angles, weights, config, at, trace):
    """Attention of layer `at` of x (B, Q, C) to all that the cache holds: (B, Q, C)."""
    q, k, v = model.project(x, angles, weights, config, at, trace)
    k, v = store(cache, k, v, at)
    mixed = model.attend(q, k, v, mask, at, trace)  # (B, Q, H * D)
    return model.linear(mixed, weights, f"model.{at}.self_attn.o_proj", config["attention_bias"])


def store(cache, k, v, at):
    """Put k and v (B, K, Q, D) after what the cache holds of layer `at`; returns all of it."""
    if at in cache.keys:
        k = np.concatenate([cache.keys[at], k], axis=2)
        v = np.concatenate([cache.values[at], v], axis=2)
    cache.keys[at], cache.values[at] = k, v
    return k, v
