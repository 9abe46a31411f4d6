"""JAX: the masks, a Llama, its gradients and decoding with a cache, as pure functions, in float64.

    python -m ref.golden run tests/peers/jax_port.py

Nothing here comes from ref. JAX computes in float32 unless `jax_enable_x64` is set before the first
array is made. A port that leaves it out is right, too, and is held to float32's tolerance.

XLA compiles a jitted function anew for each combination of shapes, and of arguments named static.
To compile takes a second, to compute these cases a millisecond. So the layers are a Python loop
over one jitted function, the options of the masks are data, and sizes are rounded up: what is added
is padding. No shape may depend on what is in an array, so the cache has room for all steps
from the start; a token that is not there yet is padding, too.

Shapes: B batch, T tokens, Q queries, H query heads, K key/value heads, D head dim, C hidden,
V vocabulary; when decoding N prompts, P tokens of a prompt, W slots, S steps.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)
# compile in less time what is computed once; not for a model that is to be fast
jax.config.update("jax_disable_most_optimizations", True)

ROWS, LENGTHS = 4, 64  # batches and sequences are padded to a multiple of these
IGNORED = -100  # the label of a token that nobody predicts
PADDING = {"ids": 0, "segment_ids": -1, "position_ids": 0, "labels": IGNORED, "parents": -1}


def run(case):
    """What the port computes for a golden case, by the names of the case's outputs."""
    stages = {"model": run_model, "decoding": run_decoding, "loss": run_loss}
    if case.stage not in stages:
        raise NotImplementedError(f"stage {case.stage}")
    return stages[case.stage](case)


def run_model(case):
    """Logits, loss, and the gradients where the case has them."""
    B, T = case.input_ids.shape
    shape = rounded_up(B, ROWS), rounded_up(T, LENGTHS)
    tokens = {
        "ids": padded("ids", case.input_ids, shape),
        "segment_ids": padded("segment_ids", case.segment_ids, shape),
        "position_ids": padded("position_ids", case.position_ids, shape),
    }
    labels = padded("labels", case.labels, shape)
    network = Network(case)

    def loss_of(weights):
        logits = network.logits(weights, tokens)
        return mean_cross_entropy(logits, labels), logits

    if not any(name.startswith("gradients.") for name in case.outputs):
        loss, logits = loss_of(network.weights)
        return {"logits": logits[:B, :T], "loss": loss}
    (loss, logits), gradients = jax.value_and_grad(loss_of, has_aux=True)(network.weights)
    outputs = {f"gradients.{name}": gradient for name, gradient in gradients.items()}
    return outputs | {"logits": logits[:B, :T], "loss": loss}


def rounded_up(size, multiple):
    """The next multiple."""
    return size + -size % multiple


def padded(kind, values, shape):
    """An array of a kind that PADDING names, padded at its ends to a shape."""
    more = [(0, size - length) for length, size in zip(values.shape, shape)]
    return np.pad(values, more, constant_values=PADDING[kind])


# Masks


@partial(jax.jit, static_argnames="num_queries")
def masks_of(segment_ids, first, num_queries, cross_self, isolated):
    """Who may attend to whom in each kind of layer: {"IN": ..., "OR": ..., "CR": ...}, (B, Q, T).

    segment_ids: int (B, T), -1 padding, 0 text, 1..n + 1 the items. The queries are the tokens with
    index first, first + 1, ...; cross_self, isolated: bool, the scheme's options.
    """
    j = first + jnp.arange(num_queries)[:, None]  # (Q, 1)
    k = jnp.arange(segment_ids.shape[1])  # (T,)
    s_j = jax.lax.dynamic_slice_in_dim(segment_ids, first, num_queries, axis=1)[:, :, None]
    s_k = segment_ids[:, None, :]  # (B, 1, T)
    original = (k <= j) & (s_k != -1) & (s_j != -1)
    item, same = s_j >= 1, s_k == s_j
    hidden_in = jnp.where(isolated, item & ~same, item & (s_k >= 1) & ~same)
    hidden_cr = item & same & ((j != k) | ~cross_self)
    masks = {"IN": original & ~hidden_in, "OR": original, "CR": original & ~hidden_cr}
    for kind, mask in masks.items():
        is_empty = ~mask.any(-1, keepdims=True)  # a query that is padding, or that sees nothing
        masks[kind] = mask | (is_empty & (j == k))
    return masks


def kind_of_layer(i, L, scheme):
    """Which of the masks layer i of L has; layer 0 is nearest the embedding."""
    if i < scheme.intra_layers:
        return "IN"
    if i >= L - scheme.cross_layers:
        return "CR"
    return "OR"


# The model. Checkpoints hold weights as (out, in), hence x @ weight.T.


class Network:
    """The model of a golden case. It holds nothing that changes."""

    def __init__(self, case):
        self.config = case.config
        self.scheme = case.scheme
        self.weights = {name: jnp.asarray(weight) for name, weight in case.weights.items()}
        self.turns = frequencies(case.config)

    def logits(self, weights, tokens):
        """Logits (B, T, V) of whole sequences. tokens: ids, segment_ids and position_ids (B, T)."""
        cache = self.empty_cache(*tokens["ids"].shape)
        return self.logits_and_cache(weights, tokens, cache, 0)[0]

    def empty_cache(self, rows, room):
        """Of each layer keys and values, (B, K, T, D) each, of T tokens that are yet to come."""
        heads, size = self.config["num_key_value_heads"], self.config["head_dim"]
        nothing = jnp.zeros((rows, heads, room, size))
        return [(nothing, nothing)] * self.config["num_hidden_layers"]

    def logits_and_cache(self, weights, tokens, cache, first):
        """Logits (B, Q, V) of new tokens, and the cache with their keys and values in it.

        tokens: ids and position_ids (B, Q), segment_ids (B, T) of all that the cache has room for.
        first: the index of the first new token among the T.
        """
        L, Q, eps = len(cache), tokens["ids"].shape[1], self.config["rms_norm_eps"]
        options = self.scheme.cross_self, self.scheme.text == "isolated"
        masks = masks_of(tokens["segment_ids"], first, Q, *options)
        angles = tokens["position_ids"][:, None, :, None] * self.turns  # (B, 1, Q, D/2)
        x = embedding(weights, tokens["ids"])  # (B, Q, C)
        new_cache = []
        for i in range(L):
            mask = masks[kind_of_layer(i, L, self.scheme)]
            place = mask, angles, cache[i], first
            x, keys_and_values = layer(x, below(weights, f"model.layers.{i}."), place, eps)
            new_cache.append(keys_and_values)
        return output_head(x, weights, eps), new_cache


@jax.jit
def embedding(weights, ids):
    """(B, Q) -> (B, Q, C)"""
    return weights["model.embed_tokens.weight"][ids]


@jax.jit
def output_head(x, weights, eps):
    """Logits (B, Q, V) of x (B, Q, C), by the embedding itself where it is tied."""
    head = "lm_head" if "lm_head.weight" in weights else "model.embed_tokens"
    return linear(rms_norm(x, weights, "model.norm", eps), weights, head)


def below(weights, prefix):
    """The weights whose names begin with a prefix, without it."""
    chosen = {}
    for name, weight in weights.items():
        if name.startswith(prefix):
            chosen[name.removeprefix(prefix)] = weight
    return chosen


@jax.jit
def layer(x, weights, place, eps):
    """x (B, Q, C) after one layer, and keys and values, (B, K, T, D) each, with those of x.

    place: mask (B, Q, T), angles (B, 1, Q, D/2), keys and values so far, index of the first query.
    """
    mask, angles, cached, first = place
    D = cached[0].shape[-1]
    normed = rms_norm(x, weights, "input_layernorm", eps)
    q, k, v = rotated_heads(normed, weights, D, angles)
    k = jax.lax.dynamic_update_slice_in_dim(cached[0], k, first, axis=2)
    v = jax.lax.dynamic_update_slice_in_dim(cached[1], v, first, axis=2)
    x = x + linear(attention(q, k, v, mask), weights, "self_attn.o_proj")
    normed = rms_norm(x, weights, "post_attention_layernorm", eps)
    return x + mlp(normed, weights), (k, v)


def linear(x, weights, name):
    """x (..., in) -> (..., out), with a bias where there is one."""
    y = x @ weights[f"{name}.weight"].T
    bias = weights.get(f"{name}.bias")
    return y if bias is None else y + bias


def rms_norm(x, weights, name, eps):
    """x over its root mean square, over the last dimension."""
    mean_square = jnp.mean(x * x, axis=-1, keepdims=True)
    return weights[f"{name}.weight"] * x * jax.lax.rsqrt(mean_square + eps)


def mlp(x, weights):
    """SwiGLU: (B, Q, C) -> (B, Q, C)."""
    gate = jax.nn.silu(linear(x, weights, "mlp.gate_proj"))
    return linear(gate * linear(x, weights, "mlp.up_proj"), weights, "mlp.down_proj")


def rotated_heads(x, weights, D, angles):
    """q (B, H, Q, D), k and v (B, K, Q, D) of x (B, Q, C); q and k are rotated."""
    heads = []
    for name in ("q_proj", "k_proj", "v_proj"):
        y = linear(x, weights, f"self_attn.{name}")
        heads.append(y.reshape(*x.shape[:2], -1, D).swapaxes(1, 2))
    q, k, v = heads
    return rotate(q, angles), rotate(k, angles), v


def rotate(x, angles):
    """RoPE in the half-split layout of the checkpoints: the pairs are (d, d + D/2)."""
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attention(q, k, v, mask):
    """(B, Q, H * D); query head h reads key/value head h // (H / K)."""
    B, H, Q, D = q.shape
    grouped = q.reshape(B, k.shape[1], -1, Q, D)  # (B, K, H / K, Q, D)
    scores = jnp.einsum("bkgqd,bktd->bkgqt", grouped, k) / D**0.5
    scores = jnp.where(mask[:, None, None], scores, -jnp.inf)
    probabilities = jax.nn.softmax(scores, axis=-1)
    return jnp.einsum("bkgqt,bktd->bqkgd", probabilities, v).reshape(B, Q, H * D)


def frequencies(config):
    """The angle by which each pair of a head's dimensions turns per position: (D/2,)."""
    D = config["head_dim"]
    rope = config["rope_scaling"] or {"rope_type": "default"}
    plain = config["rope_theta"] ** (-jnp.arange(0, D, 2) / D)
    if rope["rope_type"] == "linear":
        return plain / rope["factor"]
    if rope["rope_type"] == "llama3":
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        turns = rope["original_max_position_embeddings"] * plain / (2 * jnp.pi)
        keep = jnp.clip((turns - low) / (high - low), 0, 1)  # 1: as it was, 0: slowed
        return keep * plain + (1 - keep) * plain / rope["factor"]
    return plain


# Losses


@jax.jit
def mean_cross_entropy(logits, labels):
    """Mean over all labelled tokens of the batch; position t predicts labels[:, t + 1]."""
    labels = labels[:, 1:]
    is_labelled = labels != IGNORED
    log_probs = jax.nn.log_softmax(logits[:, :-1], axis=-1)
    # an index outside of the array raises no error in JAX: it is clamped, or gives NaN
    tokens = jnp.where(is_labelled, labels, 0)[..., None]
    chosen = jnp.take_along_axis(log_probs, tokens, axis=-1)[..., 0]
    return -jnp.mean(chosen, where=is_labelled)


def run_loss(case):
    """What the tokens of titles cost, and the gradient with respect to the logits."""
    B, T, V = case.logits.shape
    in_scope, count = scope(case.item_numbers, case.info["loss"])
    shape = rounded_up(B, ROWS), rounded_up(T, LENGTHS), rounded_up(V, LENGTHS)
    # where nothing is predicted, all tokens are alternatives: a softmax over none has the gradient
    # NaN, also where its value is not used
    is_alternative = np.ones(shape, bool)
    is_alternative[:, :, V:] = False
    if case.info["softmax"] == "catalogue":
        for b, t in np.argwhere(in_scope):
            is_alternative[b, t, :V] = continues_title(case, b, t)
    num_alternatives = np.where(in_scope, is_alternative[:B, :T].sum(-1), 0)
    logits = np.zeros(shape)
    logits[:B, 1:T, :V] = case.logits[:, :-1]  # at t those that choose token t
    tokens = np.zeros(shape[:2], int), np.zeros(shape[:2], bool)
    tokens[0][:B, :T], tokens[1][:B, :T] = case.input_ids, in_scope
    (loss, log_probs), gradient = loss_of_titles(
        logits, is_alternative, tokens, count, case.info["temperature"]
    )
    return {
        "num_alternatives": num_alternatives,
        "predicted": num_alternatives > 1,
        "token_log_probs": log_probs[:B, :T],
        "num_predicted": np.array(count),
        "loss": loss,
        "gradients.logits": np.roll(gradient[:B, :T, :V], -1, axis=1),
    }


def scope(item_numbers, loss):
    """Which tokens are predicted, bool (B, T), and what the loss is a mean over.

    item_numbers: int (B, T), -1 padding, 0 text, 1..n the history, n + 1 the target.
    """
    real = item_numbers != -1
    first = {"all": 0, "titles": 2, "target": item_numbers.max(1, keepdims=True)}[loss]
    in_scope = real & (item_numbers >= first)
    in_scope[:, 1:] &= real[:, :-1]
    in_scope[:, 0] = False  # nothing stands before it
    if loss == "all":
        return in_scope, in_scope.sum()
    rows, columns = np.nonzero(in_scope)
    return in_scope, len(set(zip(rows.tolist(), item_numbers[rows, columns].tolist())))


def continues_title(case, b, t):
    """Which tokens continue a title of the catalogue from where that of token t stands: (V,)."""
    same_item = case.item_numbers[b, :t] == case.item_numbers[b, t]
    so_far = case.input_ids[b, :t][same_item]
    begins_so = (case.titles[:, : len(so_far)] == so_far).all(1)
    continues = np.zeros(case.logits.shape[-1], bool)
    next_tokens = case.titles[begins_so, len(so_far)]
    continues[next_tokens[next_tokens != -1]] = True
    return continues


@jax.jit
@partial(jax.value_and_grad, has_aux=True)
def loss_of_titles(logits, is_alternative, tokens, count, temperature):
    """((loss, log-probabilities (B, T)), gradient (B, T, V)); logits at t choose the token at t.

    tokens: ids, and whether they are predicted, (B, T) each.
    """
    ids, in_scope = tokens
    log_probs = jax.nn.log_softmax(logits / temperature, axis=-1, where=is_alternative)
    chosen = jnp.take_along_axis(log_probs, ids[..., None], axis=-1)[..., 0]
    chosen = jnp.where(in_scope, chosen, 0)
    return -chosen.sum() / count, chosen


# Decoding


def run_decoding(case):
    """Logits of the prompts, then of one token a slot and step."""
    network = Network(case)
    (N, P), (S, W) = case.prompt_ids.shape, case.step_ids.shape
    prompts = inputs_of(case, "prompt_", (rounded_up(N, ROWS), rounded_up(P + S, LENGTHS)))
    steps = inputs_of(case, "step_", (S, rounded_up(W, ROWS)))
    all_parents = padded("parents", case.parents, steps["ids"].shape)
    segment_ids = prompts["segment_ids"]
    cache = network.empty_cache(*segment_ids.shape)
    logits, cache = network.logits_and_cache(network.weights, prompts, cache, 0)
    prompt_logits, step_logits = logits[:N, :P], []
    for t in range(S):
        # in a slot that nobody is in, any row may stand: its segment id says that it is padding
        parents = np.maximum(all_parents[t], 0)
        segment_ids = segment_ids[parents]
        segment_ids[:, P + t] = steps["segment_ids"][t]
        cache = reordered(cache, parents)
        tokens = {
            "ids": steps["ids"][t][:, None],
            "segment_ids": segment_ids,
            "position_ids": steps["position_ids"][t][:, None],
        }
        logits, cache = network.logits_and_cache(network.weights, tokens, cache, P + t)
        step_logits.append(logits[:W, 0])
    return {"prompt_logits": prompt_logits, "step_logits": np.stack(step_logits)}


def inputs_of(case, prefix, shape):
    """Ids, segment ids and position ids of prompts or of steps, padded to a shape."""
    inputs = {}
    for kind in ("ids", "segment_ids", "position_ids"):
        inputs[kind] = padded(kind, case.inputs[prefix + kind], shape)
    return inputs


@jax.jit
def reordered(cache, parents):
    """The cache whose row w is row parents[w] of the old one."""
    return [(k[parents], v[parents]) for k, v in cache]
