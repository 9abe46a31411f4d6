"""The fields of a Hugging Face `config.json` that this model understands.

What would compute something else is refused; what does not concern the forward pass is ignored.
"""

import json
from dataclasses import asdict
from pathlib import Path

from ref.files import read_json, write_json
from ref.llama import LlamaConfig
from ref.masks import MaskScheme


def parse_config(values, source="config.json"):
    """Read the object of a config.json. Raises ValueError naming `source`, field and value."""
    _refuse_unsupported(values, source)
    if values.get("model_type") == "mistral":
        values = {"num_key_value_heads": 8} | values  # absent means 8 there
    heads = _positive(values, "num_attention_heads", source)
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    config = {name: _positive(values, name, source) for name in sizes}
    if config["num_hidden_layers"] > 10_000:
        raise ValueError(
            f"{source}: num_hidden_layers is {config['num_hidden_layers']}; expected 10000 at most"
        )
    kv_heads = (
        heads
        if values.get("num_key_value_heads") is None
        else _positive(values, "num_key_value_heads", source)
    )
    if values.get("head_dim") is None:
        if config["hidden_size"] % heads:
            raise ValueError(
                f"{source}: hidden_size {config['hidden_size']} is no multiple of {heads} heads"
            )
        head_dim = config["hidden_size"] // heads
    else:
        head_dim = _positive(values, "head_dim", source)
    if heads % kv_heads:
        raise ValueError(
            f"{source}: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
        )
    if head_dim % 2:
        raise ValueError(
            f"{source}: head_dim is {head_dim}; expected an even number (RoPE turns pairs)"
        )
    for name in ("tie_word_embeddings", "attention_bias", "mlp_bias"):
        config[name] = values.get(name, False)
        if type(config[name]) is not bool:
            raise ValueError(f"{source}: {name} is {config[name]!r}; expected true or false")
    return LlamaConfig(
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=_positive(values, "rms_norm_eps", source, 1e-6, float),
        max_position_embeddings=_positive(values, "max_position_embeddings", source, 2048),
        rope_parameters=_rope_parameters(values, source),
        **config,
    )


def config_values(config):
    """The object of a config.json that transformers 4 and 5 both read."""
    rope = dict(config.rope_parameters)
    scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "rope_theta": rope["rope_theta"],
        "rope_scaling": scaling if rope["rope_type"] != "default" else None,
        **asdict(config),
    }


def _positive(values, name, source, default=None, kind=int):
    value = values.get(name, default)
    if type(value) not in (int, kind) or not 0 < value < (2**31 if kind is int else 1e300):
        raise ValueError(
            f"{source}: {name} is {value!r}; expected a positive {'integer' if kind is int else 'number'}"
        )
    return kind(value)


def _refuse_unsupported(values, source):
    if not isinstance(values, dict):
        raise ValueError(f"{source}: holds a {type(values).__name__}; expected an object")
    model_type = values.get("model_type", "llama")
    if model_type not in ("llama", "mistral"):
        raise ValueError(f"{source}: model_type is {model_type!r}; expected 'llama' or 'mistral'")
    window = values.get(
        "sliding_window", 4096 if model_type == "mistral" else None
    )  # as transformers reads it
    if window is not None:
        raise ValueError(
            f"{source}: sliding_window is {window!r}{'' if 'sliding_window' in values else ' (absent means that)'}; only null is "
            f"supported. If no prompt is longer than the window, set it to null and max_position_embeddings to {window!r}"
        )
    for name, only in (_ONLY | (_NO_BIASES if model_type == "mistral" else {})).items():
        if values.get(name, only) != only:
            raise ValueError(
                f"{source}: {name} is {values[name]!r}; only {json.dumps(only)} is supported"
            )
    layers = values.get("layer_types") or []
    if not isinstance(layers, list) or any(layer != "full_attention" for layer in layers):
        raise ValueError(
            f"{source}: layer_types is {layers!r}; expected a list, of 'full_attention' only"
        )


_ONLY = {
    "hidden_act": "silu",
    "quantization_config": None,
    "compression_config": None,
    "partial_rotary_factor": 1,
    "rope_interleaved": False,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
}
_NO_BIASES = {"attention_bias": False, "mlp_bias": False}  # transformers' Mistral ignores both
_ROPE_FIELDS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def _rope_parameters(values, source):
    """The one of rope_parameters (transformers 5) and rope_theta with rope_scaling (4) that is there."""
    read = [
        _read_rope(values, name, source)
        for name in ("rope_parameters", "rope_scaling")
        if values.get(name)
    ]
    if len(read) == 2 and read[0] != read[1]:
        raise ValueError(
            f"{source}: rope_parameters means {read[0]}, but rope_theta and rope_scaling mean {read[1]}"
        )
    return (read or [_read_rope(values, "rope_scaling", source)])[0]


def _read_rope(values, name, source):
    rope = values.get(name) or {}
    if not isinstance(rope, dict):
        raise ValueError(f"{source}: {name} is {rope!r}; expected an object")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in list(_ROPE_FIELDS):
        raise ValueError(f"{source}: rope_type is {kind!r}; expected one of {sorted(_ROPE_FIELDS)}")
    if rope.get("type", kind) != kind:
        raise ValueError(f"{source}: {name} has type {rope['type']!r}, but rope_type {kind!r}")
    theta = values.get("rope_theta", rope.get("rope_theta", 10000.0))
    for both in ("rope_theta", "original_max_position_embeddings"):
        if both in values and rope.get(both, values[both]) != values[both]:
            raise ValueError(f"{source}: {both} is {values[both]!r}, but {rope[both]!r} in {name}")
    names = ("rope_theta", *_ROPE_FIELDS[kind])
    known = {*names, "rope_type", "type", "original_max_position_embeddings"}
    for field_, value in rope.items():
        if field_ not in known and not (field_ == "partial_rotary_factor" and value == 1):
            raise ValueError(
                f"{source}: {name} has {field_} = {value!r}, which rope_type {kind!r} does not use here"
            )
    rope = rope | {"rope_theta": theta}
    rope = {"rope_type": kind} | {name: _positive(rope, name, source, kind=float) for name in names}
    if kind == "llama3" and not rope["low_freq_factor"] < rope["high_freq_factor"]:
        raise ValueError(
            f"{source}: low_freq_factor is {rope['low_freq_factor']}; expected less than high_freq_factor"
        )
    return rope


def read_config(folder):
    """The LlamaConfig and the MaskScheme ("hatllm"; plain causal if absent) of a folder."""
    path = Path(folder) / "config.json"
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    values = read_json(path)
    try:
        scheme = MaskScheme.from_dict(values.get("hatllm", {}))
        config = parse_config(values, path)
        scheme.kinds(config.num_hidden_layers)
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    return config, scheme


def write_config(folder, config, scheme, dtype):
    values = config_values(config) | {
        "torch_dtype": str(dtype).removeprefix("torch."),
        "hatllm": vars(scheme),
    }
    write_json(Path(folder) / "config.json", values)
