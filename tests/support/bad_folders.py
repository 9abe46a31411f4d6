"""Model folders with one fault each: how each is made, and what the error has to say about it."""

import json
import random
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from support.checkpoints import SCALING, edited_json

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
UNREADABLE = "model.safetensors: not a safetensors file"
Q0 = "model.layers.0.self_attn.q_proj.weight"
K0 = "model.layers.0.self_attn.k_proj.weight"
K1 = "model.layers.1.self_attn.k_proj.weight"
NORM = "model.norm.weight"
ABSENT = object()


@dataclass(frozen=True)
class BadFolder:
    """spoil: a function that gets a copy of a good folder. words: what the error has to hold.

    is_sharded: is the good folder one with shards?
    """

    spoil: Callable
    words: tuple
    is_sharded: bool


def config(**changes):
    """Set fields of config.json; ABSENT takes one out."""

    def spoil(folder):
        with edited_json(folder / CONFIG) as values:
            values |= changes
            for name in [name for name, value in values.items() if value is ABSENT]:
                del values[name]

    return spoil


def rope(rope_type, **fields):
    """Set rope_parameters in config.json."""
    values = {"rope_type": rope_type, "rope_theta": 10000.0} | fields
    return config(rope_parameters=values)


def content(name, data):
    """Put other bytes into a file."""
    return lambda folder: (folder / name).write_bytes(data)


def renamed(name):
    """Give another name to model.safetensors."""
    return lambda folder: (folder / WEIGHTS).rename(folder / name)


def removed(name):
    """Remove a file."""
    return lambda folder: (folder / name).unlink()


def cut(end):
    """Keep the bytes of model.safetensors before `end`."""

    def spoil(folder):
        path = folder / WEIGHTS
        path.write_bytes(path.read_bytes()[:end])

    return spoil


def holding(name, number):
    """Put a number into a tensor."""

    def spoil(folder):
        with edited_tensors(folder / WEIGHTS) as tensors:
            tensors[name].view(-1)[3] = number

    return spoil


def stored_as(dtype):
    """Give Q0 another dtype."""

    def spoil(folder):
        with edited_tensors(folder / WEIGHTS) as tensors:
            tensors[Q0] = tensors[Q0].to(dtype)

    return spoil


def placed(name):
    """Let the index place Q0 in another file."""

    def spoil(folder):
        with edited_json(folder / INDEX) as index:
            index["weight_map"][Q0] = name

    return spoil


@contextmanager
def edited_tensors(path):
    """The tensors of a file, written back as they are at the end of the block."""
    tensors = load_file(path)
    yield tensors
    save_file(tensors, path, {"format": "pt"})


def shard_of_q0(folder):
    """The path of the shard that holds Q0."""
    return folder / json.loads((folder / INDEX).read_text())["weight_map"][Q0]


def move_out(path):
    """Move a file out of its folder, beside it; its new path."""
    return Path(shutil.move(path, path.parent.parent / f"{path.parent.name}.safetensors"))


def original_length_in_two_places(folder):
    rope("llama3", **SCALING["llama3"])(folder)
    config(original_max_position_embeddings=16)(folder)


def too_large_for_float32(folder):
    with edited_tensors(folder / WEIGHTS) as tensors:
        tensors[Q0] = tensors[Q0].double() * 1e300


def missing_extra_and_misshapen(folder):
    with edited_tensors(folder / WEIGHTS) as tensors:
        del tensors[K0], tensors[NORM]
        tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(3, 5)
        tensors[K1] = torch.zeros(12, 23)


def names_of_the_model_without_its_head(folder):
    with edited_tensors(folder / WEIGHTS) as tensors:
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)


def newline_in_a_name(folder):
    with edited_tensors(folder / WEIGHTS) as tensors:
        tensors["model\nextra"] = torch.zeros(2)


def shard_above_the_folder(folder):
    placed(f"../{move_out(shard_of_q0(folder)).name}")(folder)


def shard_by_absolute_path(folder):
    placed(str(move_out(shard_of_q0(folder))))(folder)


def first_shard_missing(folder):
    min(folder.glob("model-*")).unlink()


def wrong_shard(folder):
    with edited_json(folder / INDEX) as index:
        index["weight_map"][Q0] = index["weight_map"][NORM]


def one_tensor_in_two_shards(folder):
    shards = sorted(folder.glob("model-*.safetensors"))
    first = load_file(shards[0])
    name = min(first)
    with edited_tensors(shards[-1]) as tensors:
        tensors[name] = first[name]


def link_out_of_the_folder(folder):
    shard = shard_of_q0(folder)
    shard.symlink_to(move_out(shard))


# What is wrong: (how the folder is spoilt, words of the error ...)
# fmt: off
BAD_ROPE = {
    "yarn": (rope("yarn", factor=4.0), CONFIG, "rope_type", "'yarn'", "llama3"),
    "dynamic, of version 4":
        (config(rope_parameters=ABSENT, rope_scaling={"type": "dynamic", "factor": 2.0}),
         CONFIG, "'dynamic'"),
    "longrope":
        (rope("longrope", short_factor=[1.0], long_factor=[2.0]), CONFIG, "'longrope'", "linear"),
    "unknown RoPE field":
        (rope("linear", factor=2.0, attention_factor=1.5),
         CONFIG, "rope_parameters", "attention_factor = 1.5"),
    "RoPE factor missing": (rope("linear"), CONFIG, "factor is None", "positive number"),
    "partial RoPE":
        (rope("default", partial_rotary_factor=0.5), CONFIG, "partial_rotary_factor = 0.5"),
    "two rope_theta":
        (config(rope_theta=5e5), CONFIG, "rope_theta is 500000.0", "10000.0 in rope_parameters"),
    "two RoPE":
        (config(rope_scaling={"rope_type": "linear", "factor": 2.0}),
         CONFIG, "rope_parameters", "rope_scaling", "linear"),
    "two rope types":
        (config(rope_parameters=ABSENT,
                rope_scaling={"type": "yarn", "rope_type": "linear", "factor": 2.0}),
         CONFIG, "rope_scaling", "'yarn'", "'linear'"),
    "two original lengths":
        (original_length_in_two_places,
         CONFIG, "original_max_position_embeddings is 16", "32 in rope_parameters"),
    "an original length that is no integer":
        (rope("llama3", **SCALING["llama3"] | {"original_max_position_embeddings": 32.5}),
         CONFIG, "original_max_position_embeddings is 32.5", "an integer"),
    "llama3 upside down":
        (rope("llama3", **SCALING["llama3"] | {"low_freq_factor": 4.0}),
         CONFIG, "low_freq_factor is 4.0", "high_freq_factor"),
    "RoPE that is no object":
        (config(rope_parameters=7), CONFIG, "rope_parameters is 7", "object"),
    "rope type in a list": (rope(["linear"]), CONFIG, "rope_type is ['linear']", "llama3"),
    "theta a text": (rope("default", rope_theta="big"), CONFIG, "rope_theta is 'big'"),
    "theta infinite":
        (rope("default", rope_theta=float("inf")), CONFIG, "rope_theta is inf", "positive number"),
    "theta NaN, of version 4":
        (config(rope_parameters=ABSENT, rope_theta=float("nan"),
                rope_scaling={"rope_type": "linear", "factor": 2.0}),
         CONFIG, "rope_theta is nan", "positive number"),
    "RoPE of each layer type":
        (config(rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 1e4}}),
         CONFIG, "rope_parameters", "full_attention"),
}
BAD_MODEL_TYPES = {
    "sliding window": (config(sliding_window=4096), CONFIG, "sliding_window is 4096", "null"),
    "mistral that says nothing of a window":
        (config(model_type="mistral"), CONFIG, "sliding_window", "4096", "absent", "null"),
    "mistral with biases":
        (config(model_type="mistral", sliding_window=None, attention_bias=True),
         CONFIG, "attention_bias is True"),
    "gelu": (config(hidden_act="gelu"), CONFIG, "hidden_act is 'gelu'", '"silu"'),
    "quantized":
        (config(quantization_config={"quant_method": "gptq", "bits": 4}),
         CONFIG, "quantization_config", "gptq"),
    "qwen2":
        (config(model_type="qwen2"), CONFIG, "model_type is 'qwen2'", "'llama' or 'mistral'"),
    "sliding layers":
        (config(layer_types=["full_attention", "sliding_attention"]),
         CONFIG, "layer_types", "sliding_attention", "'full_attention'"),
    "layer types that are no list":
        (config(layer_types=7), CONFIG, "layer_types is 7", "list"),
    "layer types in lists":
        (config(layer_types=[["full_attention"]]), CONFIG, "layer_types is [['full_attention']]"),
}
BAD_SIZES = {
    "odd head_dim": (config(head_dim=5), CONFIG, "head_dim is 5", "even"),
    "query heads no multiple":
        (config(num_key_value_heads=3), CONFIG, "num_attention_heads 4", "num_key_value_heads 3"),
    "width no multiple":
        (config(num_attention_heads=5, num_key_value_heads=5, head_dim=None),
         CONFIG, "hidden_size 24", "5 heads"),
    **{f"hidden_size {size!r}":
        (config(hidden_size=size), CONFIG, f"hidden_size is {size!r}", "positive integer")
       for size in (0, -24, "24", True, 24.0, None, 2**40)},
    "vocabulary beyond all memory":
        (config(vocab_size=2**31 - 1),
         WEIGHTS, "model.embed_tokens.weight is (450, 24)", "(2147483647, 24)"),
    "a billion layers":
        (config(num_hidden_layers=10**9),
         CONFIG, "num_hidden_layers is 1000000000", "10000 at most"),
    "eps NaN":
        (config(rms_norm_eps=float("nan")), CONFIG, "rms_norm_eps is nan", "positive number"),
    "flag a text":
        (config(tie_word_embeddings="no"), CONFIG, "tie_word_embeddings is 'no'", "true or false"),
    "biases said, none there":
        (config(attention_bias=True),
         WEIGHTS, "missing model.layers.0.self_attn.q_proj.bias (24,)", "k_proj.bias (12,)",
         "v_proj.bias (12,) and 5 more"),
    "tied, with a head":
        (config(tie_word_embeddings=True),
         WEIGHTS, "unexpected lm_head.weight (450, 24); ",
         "tie_word_embeddings true, so no lm_head is expected; set tie_word_embeddings"),
}
BAD_SCHEMES = {
    "unknown mask field":
        (config(hatllm={"intra": 1}), CONFIG, "mask scheme", "'intra'", "intra_layers"),
    "more masks than layers":
        (config(hatllm={"intra_layers": 2, "cross_layers": 1}),
         CONFIG, "intra_layers 2", "cross_layers 1", "2 layers"),
    "mask scheme that is a list":
        (config(hatllm=[1, 1]), CONFIG, "mask scheme", "found [1, 1]", "object"),
    "mask scheme that is null": (config(hatllm=None), CONFIG, "mask scheme", "found None"),
}
BAD_CONFIG_FILES = {
    "no config.json": (removed(CONFIG), CONFIG, "no such file"),
    "broken config.json": (content(CONFIG, b'{"model_type": "llama",'), CONFIG, "broken JSON"),
    "config.json a list": (content(CONFIG, b'["llama"]'), CONFIG, "an array", "an object"),
    "a key twice":
        (content(CONFIG, b'{"vocab_size": 40, "vocab_size": 41}'), CONFIG, "twice", "vocab_size"),
    "folder missing": (shutil.rmtree, "no such folder"),
}
BAD_TENSORS = {
    "NaN": (holding(K1, float("nan")), WEIGHTS, K1, "not finite"),
    "infinity": (holding(NORM, float("-inf")), WEIGHTS, NORM, "not finite"),
    "too large for float32": (too_large_for_float32, Q0, "not finite", "float32"),
    "missing, extra and misshapen":
        (missing_extra_and_misshapen,
         f"{WEIGHTS} does not fit its configuration: missing {K0} (12, 24), {NORM} (24,); "
         f"unexpected model.layers.2.mlp.up_proj.weight (3, 5); "
         f"{K1} is (12, 23), expected (12, 24)\n"),
    "names without their prefix":
        (names_of_the_model_without_its_head, "missing model.embed_tokens.weight (450, 24), model.",
         " more; unexpected embed_tokens.weight (450, 24), layers."),
    "a newline in a name": (newline_in_a_name, "unexpected model", "extra (2,)"),
    "int8": (stored_as(torch.int8), WEIGHTS, f"{Q0} is I8", "BF16"),
    "float8": (stored_as(torch.float8_e4m3fn), WEIGHTS, f"{Q0} is F8_E4M3", "F16"),
}
BAD_WEIGHT_FILES = {
    "truncated": (cut(-1), UNREADABLE),
    "truncated in the header": (cut(100), UNREADABLE),
    "empty file": (cut(0), UNREADABLE),
    "random bytes": (content(WEIGHTS, random.Random(0).randbytes(4000)), UNREADABLE),
    "header of 2^62 bytes":
        (content(WEIGHTS, (2**62).to_bytes(8, "little") + b"{}"), UNREADABLE),
    "only pytorch_model.bin":
        (renamed("pytorch_model.bin"), f"{WEIGHTS}: no such file", "pytorch_model.bin", "pickle"),
    "only .pt": (renamed("model.pt"), f"{WEIGHTS}: no such file", "model.pt", "pickle"),
    "no weights": (removed(WEIGHTS), f"{WEIGHTS}: no such file"),
}
BAD_SHARDS = {
    "../ in the weight map": (shard_above_the_folder, INDEX, Q0, "'../", "beside it"),
    "absolute path in the weight map": (shard_by_absolute_path, INDEX, Q0, "'/", "beside it"),
    "a pickle in the weight map":
        (placed("pytorch_model.bin"), INDEX, Q0, "'pytorch_model.bin'", "safetensors"),
    "weight map a list": (content(INDEX, b'{"weight_map": ["a"]}'), INDEX, "['a']", "object"),
    "no weight map": (content(INDEX, b"{}"), INDEX, "weight_map is None", "object"),
    "shard missing": (first_shard_missing, "model-00001-of-", "no such file", INDEX),
    "wrong shard in the weight map": (wrong_shard, f"holds {Q0}", INDEX, "places in model-0"),
    "one tensor in two shards":
        (one_tensor_in_two_shards, "model-000", "holds ", INDEX, "places in model-00001-of-"),
    "link out of the folder":
        (link_out_of_the_folder,
         "model-000", "link out of the folder", ".safetensors; expected a file"),
}
# fmt: on
BAD_IN_ONE_FILE = {
    **BAD_ROPE,
    **BAD_MODEL_TYPES,
    **BAD_SIZES,
    **BAD_SCHEMES,
    **BAD_CONFIG_FILES,
    **BAD_TENSORS,
    **BAD_WEIGHT_FILES,
}
BAD_FOLDERS = {
    **{name: BadFolder(row[0], row[1:], False) for name, row in BAD_IN_ONE_FILE.items()},
    **{name: BadFolder(row[0], row[1:], True) for name, row in BAD_SHARDS.items()},
}
