"""What the tests of the oracle share: random models, the PyTorch side of one, and its intermediates by hooks."""

import numpy as np
import torch

from ref import llama_numpy
from ref.checkpoints.config import parse_config
from ref.checkpoints.weights import hf_parameters
from ref.llama import Llama, LlamaConfig, rotate
from ref.masks import MaskScheme, build_masks

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
    """config, scheme, input_ids, segment_ids and weights of a small random model with a random prompt."""
    random = np.random.default_rng(seed)
    L, K, D = (
        int(random.integers(1, 5)),
        int(random.choice([1, 2])),
        int(random.choice([2, 4, 6, 8])),
    )
    H = K * int(random.choice([1, 2, 3]))
    config = {
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
        "rope_parameters": ROPES[random.integers(3)]
        | {"rope_theta": float(random.choice([100.0, 5e5]))},
        "max_position_embeddings": 64,
        "hidden_act": "silu",
        "model_type": "llama",
    }
    intra = int(random.integers(0, L + 1))
    scheme = MaskScheme(
        intra,
        int(random.integers(0, L - intra + 1)),
        cross_self=bool(random.integers(2)),
        text=str(random.choice(["visible", "isolated"])),
    )
    segment_ids = np.array([random_segments(random, 12) for _ in range(int(random.integers(1, 4)))])
    input_ids = random.integers(0, 19, segment_ids.shape)
    model = Llama(parse_config(config), scheme, attention="eager").double()
    weights = {
        name: random.normal(0, 0.5, tuple(p.shape)) for name, p in hf_parameters(model).items()
    }
    return config, scheme, input_ids, segment_ids, weights


def random_segments(random, T):
    """Padding, text and items of random lengths: T segment ids."""
    s, item = [-1] * int(random.integers(0, 3)), 0
    end = T - int(random.integers(0, 3))
    while len(s) < end:
        item, text = item + 1, [0] * int(random.integers(0, 3))
        s += text + [item] * int(random.integers(1, 4))
    return s[:end] + [-1] * (T - end)


def torch_model(config, scheme, weights):
    model = Llama(parse_config(config), scheme, attention="eager").double()
    with torch.no_grad():
        for name, parameter in hf_parameters(model).items():
            parameter.copy_(torch.from_numpy(weights[name]))
    return model


def torch_trace(model, input_ids, segment_ids):
    """Every tensor of the NumPy trace, from the PyTorch model: by hooks, and inside attention once more from them."""
    found, tokens, s = {}, torch.from_numpy(input_ids), torch.from_numpy(segment_ids)
    hooks = [
        module.register_forward_hook(
            lambda module, args, out, name=name: found.update({name: (args, out)})
        )
        for name, module in model.named_modules()
        if name
    ]
    with torch.no_grad():
        logits = model(tokens, s)
    for hook in hooks:
        hook.remove()
    masks = build_masks(s, model.scheme)
    trace = {"embedding": found["embed_tokens"][1], "norm": found["norm"][1], "logits": logits}
    for i, kind in enumerate(model.scheme.kinds(len(model.layers))):
        at, D = f"layers.{i}", model.config.head_dim
        cos, sin = found[f"{at}.self_attn"][0][2:4]
        q, k, v = (
            found[f"{at}.self_attn.{p}_proj"][1].unflatten(-1, (-1, D)).transpose(1, 2)
            for p in "qkv"
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        many = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        scores = (q @ many.mT / D**0.5).masked_fill(~masks[kind][:, None], -torch.inf)
        trace |= {
            f"{at}.mask": masks[kind],
            f"{at}.normed": found[f"{at}.input_layernorm"][1],
            f"{at}.q": q,
            f"{at}.k": k,
            f"{at}.v": v,
            f"{at}.scores": scores,
            f"{at}.probabilities": scores.softmax(-1),
            f"{at}.attention": found[f"{at}.self_attn"][1],
            f"{at}.residual": found[f"{at}.post_attention_layernorm"][0][0],
            f"{at}.mlp": found[f"{at}.mlp"][1],
            f"{at}.output": found[at][1],
        }
    return {name: tensor.numpy() for name, tensor in trace.items()}


def numpy_trace(config, scheme, input_ids, segment_ids, weights):
    trace = {}
    llama_numpy.forward(weights, config, input_ids, segment_ids, scheme, trace=trace)
    return trace


def relative(found, expected):
    """The largest difference over the largest finite expected value; inf where infinities differ."""
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(found)):
        return np.inf
    largest = np.abs(expected[finite]).max(initial=0.0)
    return np.abs(np.where(finite, found, 0.0) - np.where(finite, expected, 0.0)).max() / (
        largest or 1.0
    )
