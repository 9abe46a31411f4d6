"""What the tests of both implementations share: random models, and every intermediate of either.

Letters: B batch, T tokens, L layers, H query heads, K key/value heads, D head dim.
"""

import numpy as np
import torch

from ref import llama_numpy
from ref.checkpoints.config import parse_config
from ref.checkpoints.weights import hf_parameters
from ref.llama import Llama, attention_probabilities, rotate
from ref.masks import MaskScheme

ROPES = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 3.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 24,
    },
]


def random_case(seed):
    """config, scheme, input_ids, segment_ids and weights of a small model with a random prompt."""
    random = np.random.default_rng(seed)
    config = random_config(random)
    scheme = random_scheme(random, config["num_hidden_layers"])
    B = int(random.integers(1, 4))
    segment_ids = np.array([random_segments(random, 12) for _ in range(B)])
    input_ids = random.integers(0, config["vocab_size"], segment_ids.shape)
    model = Llama(parse_config(config), scheme, attention="eager")
    weights = {}
    for name, parameter in hf_parameters(model).items():
        weights[name] = random.normal(0, 0.5, tuple(parameter.shape))
    return config, scheme, input_ids, segment_ids, weights


def random_config(random):
    """A config.json as a dict; `random` is NumPy's generator."""
    L = int(random.integers(1, 5))
    K = int(random.choice([1, 2]))
    D = int(random.choice([2, 4, 6, 8]))
    H = K * int(random.choice([1, 2, 3]))
    return {
        "vocab_size": 19,
        "hidden_size": H * int(random.choice([3, 4])),
        "intermediate_size": 10,
        "num_hidden_layers": L,
        "num_attention_heads": H,
        "num_key_value_heads": K,
        "head_dim": D,
        "rms_norm_eps": float(random.choice([1e-6, 1e-2])),
        "attention_bias": bool(random.integers(2)),
        "mlp_bias": bool(random.integers(2)),
        "tie_word_embeddings": bool(random.integers(2)),
        "rope_parameters": random_rope(random),
        "max_position_embeddings": 64,
        "hidden_act": "silu",
        "model_type": "llama",
    }


def random_rope(random):
    """The rope_parameters of a config.json."""
    rope = ROPES[random.integers(len(ROPES))]
    return rope | {"rope_theta": float(random.choice([100.0, 5e5]))}


def random_scheme(random, L):
    """A MaskScheme that L layers can carry."""
    intra_layers = int(random.integers(0, L + 1))
    return MaskScheme(
        intra_layers,
        cross_layers=int(random.integers(0, L - intra_layers + 1)),
        cross_self=bool(random.integers(2)),
        text=str(random.choice(["visible", "isolated"])),
    )


def random_segments(random, T):
    """T segment ids: text and items of random lengths, padding on either side."""
    segment_ids = [-1] * int(random.integers(0, 3))
    end = T - int(random.integers(0, 3))
    item = 0
    while len(segment_ids) < end:
        item += 1
        segment_ids += [0] * int(random.integers(0, 3))
        segment_ids += [item] * int(random.integers(1, 4))
    return segment_ids[:end] + [-1] * (T - end)


def torch_model(config, scheme, weights, attention="eager"):
    """The PyTorch model in float64 with these weights."""
    model = Llama(parse_config(config), scheme, attention).double()
    with torch.no_grad():
        for name, parameter in hf_parameters(model).items():
            parameter.copy_(torch.from_numpy(weights[name]))
    return model


def numpy_trace(config, scheme, input_ids, segment_ids, weights):
    """Every intermediate of the definition, by name."""
    trace = {}
    llama_numpy.forward(weights, config, input_ids, segment_ids, scheme, trace=trace)
    return trace


@torch.no_grad()
def torch_trace(model, input_ids, segment_ids):
    """The same intermediates of the PyTorch model, under the same names, as arrays.

    They are what its modules took and gave; what happens inside attention is computed once more
    from that.
    """
    segment_ids = torch.from_numpy(segment_ids)
    arguments, outputs = recorded_calls(model, torch.from_numpy(input_ids), segment_ids)
    trace = {"embedding": outputs["embed_tokens"], "norm": outputs["norm"], "logits": outputs[""]}
    for i, layer in enumerate(model.layers):
        name = f"layers.{i}"
        x, mask, rotation, _ = arguments[f"{name}.self_attn"]
        values = {
            "mask": mask[:, 0] == 0,
            "normed": x,
            "attention": outputs[f"{name}.self_attn"],
            "residual": arguments[f"{name}.post_attention_layernorm"][0],
            "mlp": outputs[f"{name}.mlp"],
            "output": outputs[name],
        }
        values |= inside_attention(layer.self_attn, x, mask, rotation)
        for part, value in values.items():
            trace[f"{name}.{part}"] = value
    return {name: tensor.numpy() for name, tensor in trace.items()}


def recorded_calls(model, *arguments):
    """The arguments and the output of each module by its name, "" for the model itself."""
    inputs, outputs, hooks = {}, {}, []
    for name, module in model.named_modules():

        def record(module, arguments, output, name=name):
            inputs[name], outputs[name] = arguments, output

        hooks.append(module.register_forward_hook(record))
    model(*arguments)
    for hook in hooks:
        hook.remove()
    return inputs, outputs


def inside_attention(attention, x, mask, rotation):
    """q, k, v, scores and probabilities of an Attention, which was given x, mask and rotation."""
    q = rotate(attention.split_heads(attention.q_proj(x)), rotation)  # (B, H, T, D)
    k = rotate(attention.split_heads(attention.k_proj(x)), rotation)  # (B, K, T, D)
    v = attention.split_heads(attention.v_proj(x))  # (B, K, T, D)
    scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).mT / q.shape[-1] ** 0.5
    probabilities = attention_probabilities(q, k, mask)  # (B, H, T, T)
    return {"q": q, "k": k, "v": v, "scores": scores + mask, "probabilities": probabilities}


def relative(values, expected):
    """The largest difference over the largest finite expected value; inf if infinities differ."""
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(values)):
        return np.inf
    difference = np.abs(np.where(finite, values, 0.0) - np.where(finite, expected, 0.0))
    largest = np.abs(expected[finite]).max(initial=0.0)
    return difference.max() / (largest or 1.0)
