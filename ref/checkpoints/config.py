"""The fields of a Hugging Face `config.json` that this model understands.

What would compute something else is refused; what does not concern the forward pass is ignored.
"""

import json
from dataclasses import asdict
from pathlib import Path

from ref.files import read_json, write_json
from ref.llama import LlamaConfig
from ref.masks import MaskScheme

_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
_FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias")
_MOST_LAYERS = 10_000

# {field: the only value that computes what ref/llama.py computes; absent means it, too}
_ONLY = {
    "hidden_act": "silu",
    "quantization_config": None,
    "compression_config": None,
    "partial_rotary_factor": 1,
    "rope_interleaved": False,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
}
# transformers ignores these two in a Mistral; here they would have an effect
_ONLY_MISTRAL = _ONLY | {"attention_bias": False, "mlp_bias": False}

# {rope_type: the numbers that it needs besides rope_theta; none has a default}
_ROPE_FIELDS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def parse_config(values, source="config.json") -> LlamaConfig:
    """Read the object of a config.json, of transformers 4 or 5.

    Raises ValueError naming `source`, the field and its value, for a field that makes no sense and
    for one that asks for another computation than that of ref/llama.py.
    """
    _refuse_unsupported(values, source)
    if values.get("model_type") == "mistral":
        values = {"num_key_value_heads": 8} | values  # what transformers takes where it is absent
    num_heads = _positive_integer(values, "num_attention_heads", source)
    sizes = {name: _positive_integer(values, name, source) for name in _SIZES}
    _refuse_too_many_layers(sizes["num_hidden_layers"], source)
    return LlamaConfig(
        **sizes,
        num_attention_heads=num_heads,
        **_head_sizes(values, num_heads, sizes["hidden_size"], source),
        **{name: _flag(values, name, source) for name in _FLAGS},
        rms_norm_eps=_positive_number(values, "rms_norm_eps", source, default=1e-6),
        max_position_embeddings=_positive_integer(
            values, "max_position_embeddings", source, default=2048
        ),
        rope_parameters=_rope_parameters(values, source),
    )


def config_values(config: LlamaConfig) -> dict:
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


def read_config_json(folder) -> tuple[LlamaConfig, MaskScheme]:
    """The configuration and the scheme (object "hatllm"; absent: plain causal) of a model folder.

    Raises FileNotFoundError for a file that is missing, ValueError as parse_config does
    and for a scheme that does not fit the model; each names the file.
    """
    path = Path(folder) / "config.json"
    values = read_json(path)
    try:
        scheme = MaskScheme.from_dict(values.get("hatllm", {}))
        config = parse_config(values, path)
        scheme.kinds(config.num_hidden_layers)
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    return config, scheme


def write_config_json(folder, config: LlamaConfig, scheme: MaskScheme, dtype):
    """Write FOLDER/config.json; dtype: that of the weights."""
    values = config_values(config)
    values["torch_dtype"] = str(dtype).removeprefix("torch.")
    values["hatllm"] = asdict(scheme)
    write_json(Path(folder) / "config.json", values)


def _positive_integer(values, name, source, default=None):
    value = values.get(name, default)
    if type(value) is not int or not 0 < value < 2**31:
        raise ValueError(f"{source}: {name} is {value!r}; expected a positive integer")
    return value


def _positive_number(values, name, source, default=None):
    value = values.get(name, default)
    if type(value) not in (int, float) or not 0 < value < 1e300:
        raise ValueError(f"{source}: {name} is {value!r}; expected a positive number")
    return float(value)


def _flag(values, name, source):
    value = values.get(name, False)
    if type(value) is not bool:
        raise ValueError(f"{source}: {name} is {value!r}; expected true or false")
    return value


def _refuse_too_many_layers(num_layers, source):
    if num_layers > _MOST_LAYERS:
        raise ValueError(
            f"{source}: num_hidden_layers is {num_layers}; expected {_MOST_LAYERS} at most"
        )


def _head_sizes(values, num_heads, hidden_size, source):
    if values.get("num_key_value_heads") is None:
        num_kv_heads = num_heads
    else:
        num_kv_heads = _positive_integer(values, "num_key_value_heads", source)
    if values.get("head_dim") is not None:
        head_dim = _positive_integer(values, "head_dim", source)
    elif hidden_size % num_heads == 0:
        head_dim = hidden_size // num_heads
    else:
        raise ValueError(f"{source}: hidden_size {hidden_size} is no multiple of {num_heads} heads")
    if num_heads % num_kv_heads != 0:
        raise ValueError(
            f"{source}: num_attention_heads {num_heads} is no multiple of "
            f"num_key_value_heads {num_kv_heads}"
        )
    if head_dim % 2 != 0:
        raise ValueError(
            f"{source}: head_dim is {head_dim}; expected an even number (RoPE turns pairs)"
        )
    return {"num_key_value_heads": num_kv_heads, "head_dim": head_dim}


def _refuse_unsupported(values, source):
    model_type = values.get("model_type", "llama")
    if model_type not in ("llama", "mistral"):
        raise ValueError(f"{source}: model_type is {model_type!r}; expected 'llama' or 'mistral'")
    _refuse_sliding_window(values, model_type, source)
    only_values = _ONLY_MISTRAL if model_type == "mistral" else _ONLY
    for name, only in only_values.items():
        if values.get(name, only) != only:
            raise ValueError(
                f"{source}: {name} is {values[name]!r}; only {json.dumps(only)} is supported"
            )
    _refuse_sliding_layers(values, source)


def _refuse_sliding_window(values, model_type, source):
    # where it is absent, transformers takes 4096 for a Mistral
    window = values.get("sliding_window", 4096 if model_type == "mistral" else None)
    if window is None:
        return
    remark = "" if "sliding_window" in values else " (absent means that)"
    raise ValueError(
        f"{source}: sliding_window is {window!r}{remark}; only null is supported. If no prompt is "
        f"longer than the window, set it to null and max_position_embeddings to {window!r}"
    )


def _refuse_sliding_layers(values, source):
    layers = values.get("layer_types") or []
    if not isinstance(layers, list) or any(layer != "full_attention" for layer in layers):
        raise ValueError(
            f"{source}: layer_types is {layers!r}; expected a list, of 'full_attention' only"
        )


def _rope_parameters(values, source):
    """RoPE in one object. transformers 5 writes "rope_parameters"; transformers 4 writes the field
    "rope_theta", and all else into "rope_scaling". A file with both must mean the same in both."""
    objects = [name for name in ("rope_parameters", "rope_scaling") if values.get(name)]
    if not objects:
        return _read_rope(values, "rope_scaling", source)
    readings = [_read_rope(values, name, source) for name in objects]
    if len(readings) == 2 and readings[0] != readings[1]:
        raise ValueError(
            f"{source}: rope_parameters means {readings[0]}, "
            f"but rope_theta and rope_scaling mean {readings[1]}"
        )
    return readings[0]


def _read_rope(values, name, source):
    rope = values.get(name) or {}
    if not isinstance(rope, dict):
        raise ValueError(f"{source}: {name} is {rope!r}; expected an object")
    rope_type = _read_rope_type(rope, name, source)
    _refuse_contradictions(values, rope, name, source)
    _refuse_unknown_rope_fields(rope, rope_type, name, source)
    numbers = rope | {"rope_theta": values.get("rope_theta", rope.get("rope_theta", 10000.0))}
    reading = {"rope_type": rope_type}
    for field in ("rope_theta", *_ROPE_FIELDS[rope_type]):
        reading[field] = _positive_number(numbers, field, source)
    if "original_max_position_embeddings" in reading:  # transformers complains of a fraction
        reading["original_max_position_embeddings"] = _original_length(reading, source)
    if rope_type == "llama3" and not reading["low_freq_factor"] < reading["high_freq_factor"]:
        raise ValueError(
            f"{source}: low_freq_factor is {reading['low_freq_factor']}; "
            "expected less than high_freq_factor"
        )
    return reading


def _original_length(reading, source):
    length = reading["original_max_position_embeddings"]
    if not length.is_integer():
        raise ValueError(
            f"{source}: original_max_position_embeddings is {length}; expected an integer"
        )
    return int(length)


def _read_rope_type(rope, name, source):
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in list(_ROPE_FIELDS):  # a list: what cannot be hashed may stand there
        raise ValueError(
            f"{source}: rope_type is {rope_type!r}; expected one of {sorted(_ROPE_FIELDS)}"
        )
    if rope.get("type", rope_type) != rope_type:
        raise ValueError(f"{source}: {name} has type {rope['type']!r}, but rope_type {rope_type!r}")
    return rope_type


def _refuse_contradictions(values, rope, name, source):
    for field in ("rope_theta", "original_max_position_embeddings"):
        if field in values and field in rope and values[field] != rope[field]:
            raise ValueError(
                f"{source}: {field} is {values[field]!r}, but {rope[field]!r} in {name}"
            )


def _refuse_unknown_rope_fields(rope, rope_type, name, source):
    known = {"rope_type", "type", "rope_theta", "original_max_position_embeddings"}
    known |= set(_ROPE_FIELDS[rope_type])
    for field, value in rope.items():
        if field == "partial_rotary_factor" and value == 1:
            continue
        if field not in known:
            raise ValueError(
                f"{source}: {name} has {field} = {value!r}, "
                f"which rope_type {rope_type!r} does not use here"
            )
