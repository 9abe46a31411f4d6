"""Model folders of others: every one here is written by transformers 5, and transformers says what it computes.

python tests/test_checkpoints.py prints how far apart the three implementations are, configuration by configuration.

transformers rounds RoPE, norms and softmax to float32 whatever its dtype; where float64 is compared it is told
(`in_float64`) that float32 is float64, and nothing else of it changes.
"""

import io
import json
import random
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import modeling_rope_utils
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral

import evaluate
import train
from ref import cli, llama_numpy
from ref.checkpoints import load_model, save_model
from ref.masks import MaskScheme, build_masks

from peers.transformers_peer import additive, give_masks
from support.commands import run_main
from support.data import MADE_UP, TINY, made_up_rows, write_interactions

transformers.utils.logging.disable_progress_bar()
LIMITS = {torch.float64: 1e-10, torch.float32: 2e-5}
RETURN_LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5}
AXES = {
    "model": ["llama", "llama", "mistral"],
    "heads": [
        (4, 4, None),
        (4, 2, None),
        (4, 1, None),
        (6, 2, 10),
        (2, 1, 8),
        (8, 4, 6),
    ],  # 24 wide: 4, 12 and 3 a head
    "tied": [False, True],
    "attention_bias": [False, True],
    "mlp_bias": [False, True],
    "eps": [1e-6, 1e-5, 0.1],
    "rope": ["default", "linear", "llama3"],
    "theta": [
        10000.0,
        500.0,
        5e6,
        3580165449.0,
    ],  # the last: Llama 3 with a context of a million tokens
    "written": ["5", "4 type", "4 rope_type"],
    "stored": ["float32", "float16", "bfloat16"],
    "shards": ["one", "3KB"],
    "scheme": [
        None,
        None,
        (1, 1, True, "visible"),
        (2, 0, True, "isolated"),
        (0, 2, False, "visible"),
        (1, 1, False, "isolated"),
    ],
}
SCALING = {
    "default": {},
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}
# two rows: text, items, text between, the target; and another with padding on the left
SEGMENTS = torch.tensor(
    [
        [0, 0, 1, 1, 1, 2, 2, 2, 0, 3, 3, 3, 3, 0, 0, 4, 4, 4],
        [-1, -1, -1, 0, 1, 1, 2, 2, 2, 2, 3, 3, 0, 4, 4, 5, 5, 5],
    ]
)
INPUT = torch.randint(0, 40, SEGMENTS.shape, generator=torch.Generator().manual_seed(5))
TEXT = torch.zeros_like(SEGMENTS)


def generated(number=36):
    """Configurations in which every value of every axis stands as often as the others, in a seeded order."""
    drawn = random.Random("checkpoints")
    columns = {
        name: [values[i % len(values)] for i in range(number)] for name, values in AXES.items()
    }
    for column in columns.values():
        drawn.shuffle(column)
    rows = [dict(zip(columns, row)) for row in zip(*columns.values())]
    return [
        row
        | {"layers": 2 + i % 3}
        | ({"attention_bias": False, "mlp_bias": False} if row["model"] == "mistral" else {})
        for i, row in enumerate(rows)
    ]


def named(row):
    heads = "/".join(str(n) for n in row["heads"] if n)
    flags = [name for name in ("tied", "attention_bias", "mlp_bias") if row[name]]
    scheme = "causal" if row["scheme"] is None else "-".join(map(str, row["scheme"]))
    return " ".join(
        [
            row["model"],
            heads,
            *flags,
            f"eps={row['eps']:g}",
            f"{row['rope']}@{row['theta']:g}",
            f"v{row['written']}",
            row["stored"],
            row["shards"],
            f"L={row['layers']}",
            scheme,
        ]
    )


def make(folder, row, seed=0, vocab_size=40):
    """Write the checkpoint of a configuration: by transformers, with weights of a size at which mistakes show."""
    heads, kv_heads, head_dim = row["heads"]
    scaling = SCALING[row["rope"]]
    if (
        row["rope"] == "llama3"
    ):  # the fastest pair blended in the first third of the configurations, kept in the others
        scaling = scaling | {"original_max_position_embeddings": 2 ** (row["layers"] + 2)}
    kind = {"llama": transformers.LlamaForCausalLM, "mistral": transformers.MistralForCausalLM}[
        row["model"]
    ]
    own = {
        "llama": {"attention_bias": row["attention_bias"], "mlp_bias": row["mlp_bias"]},
        "mistral": {"sliding_window": None},
    }
    config = kind.config_class(
        vocab_size=vocab_size,
        hidden_size=24,
        intermediate_size=36,
        num_hidden_layers=row["layers"],
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=row["eps"],
        tie_word_embeddings=row["tied"],
        rope_parameters={"rope_type": row["rope"], "rope_theta": row["theta"]} | scaling,
        max_position_embeddings=512,
        **own[row["model"]],
    )
    model, drawn = kind(config), torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=drawn)
        p.data = (
            1 + 0.3 * noise
            if "norm" in name
            else (0.3 if "bias" in name or p.shape[0] == vocab_size else 1.2 / p.shape[-1] ** 0.5)
            * noise
        )
    model.tie_weights()
    model.to(getattr(torch, row["stored"])).save_pretrained(
        folder, max_shard_size="1GB" if row["shards"] == "one" else row["shards"]
    )
    change_config(folder, lambda values: as_written(values, row))
    return Path(folder)


def as_written(values, row):
    """The fields of a config.json of transformers 5, as version 4 wrote them if the row says so."""
    if row["scheme"]:
        values["hatllm"] = dict(
            zip(("intra_layers", "cross_layers", "cross_self", "text"), row["scheme"])
        )
    if row["written"] != "5":
        rope, values["torch_dtype"] = values.pop("rope_parameters"), values.pop("dtype")
        kind, values["rope_theta"] = rope.pop("rope_type"), rope.pop("rope_theta")
        values["rope_scaling"] = None if kind == "default" else {row["written"][2:]: kind} | rope
    return values


def change_config(folder, change):
    path = Path(folder) / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


@contextmanager
def in_float64():
    """transformers, with float64 wherever its Llama and its Mistral ask for float32."""

    class Widened:
        float = float32 = torch.float64

        def __getattr__(self, name):
            return getattr(torch, name)

    with pytest.MonkeyPatch.context() as patch:
        for module in (modeling_llama, modeling_mistral, modeling_rope_utils):
            patch.setattr(module, "torch", Widened())
        yield


@torch.no_grad()
def by_transformers(folder, dtype, kind=transformers.AutoModelForCausalLM):
    """Logits float64 (B, T, V): under masks through the peer's hook, or under its own causal mask where no layer has another."""
    with in_float64() if dtype == torch.float64 else nullcontext():
        model = kind.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
        scheme = scheme_of(folder)
        if segments_of(folder) is TEXT:
            return model(INPUT).logits.double().numpy()
        masks = build_masks(SEGMENTS, scheme)
        give_masks(model).update(
            {i: additive(masks[k]) for i, k in enumerate(scheme.kinds(len(model.model.layers)))}
        )
        real = SEGMENTS != -1
        return model(INPUT, position_ids=(real.cumsum(1) - 1) * real).logits.double().numpy()


@torch.no_grad()
def by_torch(folder, dtype):
    model = load_model(folder, dtype).eval()
    return model(INPUT, segments_of(folder)).double().numpy()


def by_numpy(folder):
    """From the files themselves: nothing of ref/ but llama_numpy reads them."""
    config = json.loads((folder / "config.json").read_text())
    tensors = {
        name: t.double().numpy()
        for path in folder.glob("*.safetensors")
        for name, t in load_file(path).items()
    }
    return llama_numpy.forward(
        tensors, config, INPUT.numpy(), segments_of(folder).numpy(), scheme_of(folder)
    )


def scheme_of(folder):
    return MaskScheme(**json.loads((Path(folder) / "config.json").read_text()).get("hatllm", {}))


def segments_of(folder):
    """Items and padding where a layer masks items; one text without padding where transformers' own mask is to do."""
    scheme = scheme_of(folder)
    return SEGMENTS if scheme.intra_layers + scheme.cross_layers else TEXT


def apart(folder, one, other):
    """The largest deviation at a real token."""
    return float(np.abs(one - other)[segments_of(folder).numpy() != -1].max())


def deviations(folder):
    """{(who, dtype): largest deviation from transformers}"""
    found, numpy = {}, by_numpy(folder)
    for dtype in LIMITS:
        wanted = by_transformers(folder, dtype)
        assert (
            1 < np.abs(wanted).max() < 10
        )  # not so small that mistakes are lost, nor so large that rounding shows
        found["torch", dtype] = apart(folder, by_torch(folder, dtype), wanted)
        found["numpy", dtype] = apart(folder, numpy, wanted)
    return found


@pytest.mark.parametrize("row", generated(), ids=named)
def test_numpy_torch_and_transformers_compute_the_same_from_one_folder(row, tmp_path):
    found = deviations(make(tmp_path, row))

    assert all(deviation <= LIMITS[dtype] for (_, dtype), deviation in found.items()), found


# Out again


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("row", generated()[::3], ids=named)
def test_what_we_save_of_a_checkpoint_computes_the_same_in_transformers(row, dtype, tmp_path):
    source, ours, theirs = make(tmp_path / "source", row), tmp_path / "ours", tmp_path / "theirs"
    save_model(load_model(source, dtype), ours)
    transformers.LlamaForCausalLM.from_pretrained(ours, dtype=dtype).save_pretrained(theirs)

    wanted = by_transformers(source, dtype)
    assert (
        apart(source, by_transformers(ours, dtype, transformers.LlamaForCausalLM), wanted)
        <= RETURN_LIMITS[dtype]
    )
    assert apart(source, by_torch(ours, dtype), wanted) <= RETURN_LIMITS[dtype]
    assert apart(source, by_torch(theirs, dtype), wanted) <= RETURN_LIMITS[dtype]
    assert segments_of(theirs) is segments_of(source)  # transformers keeps "hatllm"


@pytest.mark.parametrize(
    "row", [row for row in generated() if row["rope"] != "default"][::4], ids=named
)
def test_what_we_save_tells_version_4_of_its_rope_too(row, tmp_path):
    source, ours = make(tmp_path / "source", row), tmp_path / "ours"
    save_model(load_model(source), ours)
    change_config(
        ours,
        lambda values: {name: value for name, value in values.items() if name != "rope_parameters"},
    )

    wanted = by_transformers(source, torch.float32)
    assert (
        apart(source, by_transformers(ours, torch.float32), wanted) <= RETURN_LIMITS[torch.float32]
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A function: (dtype, what more to say on the command line) -> the folder that train.py writes, and made-up data."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_interactions(folder / "data", made_up_rows())

    def call(dtype, *arguments):
        out = folder / "-".join((dtype, *(Path(word).name for word in arguments)))
        if not out.exists():
            train.train(
                train.parse_options(
                    list(
                        map(
                            str, ("--data", data, "--out", out, *TINY, "--dtype", dtype, *arguments)
                        )
                    )
                )
            )
        return out, data

    return call


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("layers", ["0", "1"])
def test_what_train_py_writes_computes_the_same_in_transformers_and_comes_back(
    layers, dtype, trained, tmp_path
):
    ours, _ = trained(
        str(dtype).removeprefix("torch."), "--intra-layers", layers, "--cross-layers", layers
    )
    wanted = by_transformers(ours, dtype, transformers.LlamaForCausalLM)
    assert apart(ours, by_torch(ours, dtype), wanted) <= RETURN_LIMITS[dtype]

    transformers.LlamaForCausalLM.from_pretrained(ours, dtype=dtype).save_pretrained(tmp_path)
    assert apart(ours, by_torch(tmp_path, dtype), wanted) <= RETURN_LIMITS[dtype]


def test_what_train_py_makes_of_a_mistral_computes_the_same_in_transformers(trained, tmp_path):
    row = generated()[1]
    assert row["model"] == "mistral"
    tokenizer_folder, _ = trained("float32")
    source = make(tmp_path, row, vocab_size=450)
    shutil.copy(tokenizer_folder / "tokenizer.model", source)
    ours, _ = trained("float32", "--weights", source)

    wanted = by_transformers(ours, torch.float32, transformers.LlamaForCausalLM)
    assert apart(ours, by_torch(ours, torch.float32), wanted) <= RETURN_LIMITS[torch.float32]
    assert apart(ours, by_torch(source, torch.float32), wanted) > 0.01  # it was trained


# Bad folders

ONE, SHARDS, CONFIG, INDEX = "one", "8KB", "config.json", "model.safetensors.index.json"
BASE = {
    "model": "llama",
    "heads": (4, 2, None),
    "tied": False,
    "attention_bias": False,
    "mlp_bias": False,
    "eps": 1e-5,
    "rope": "default",
    "theta": 10000.0,
    "written": "5",
    "stored": "float32",
    "scheme": None,
    "layers": 2,
}
Q0, K1, NORM = (
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.1.self_attn.k_proj.weight",
    "model.norm.weight",
)
ABSENT = object()
BAD = {}  # what is wrong: (which folder of transformers it is made of, how, what the line must hold)


def bad(name, shards, change, *words):
    BAD[name] = shards, change, words


def config(**changes):
    return lambda folder: change_config(
        folder,
        lambda old: {name: value for name, value in (old | changes).items() if value is not ABSENT},
    )


def rope(kind, **more):
    return config(rope_parameters={"rope_type": kind, "rope_theta": 10000.0} | more)


def tensors(change):
    """Change the tensors of model.safetensors; what `change` returns, if a dict, is put among them."""

    def apply(folder):
        found = load_file(folder / "model.safetensors")
        save_file(found | (change(found) or {}), folder / "model.safetensors", {"format": "pt"})

    return apply


def holding(name, value):
    return tensors(lambda found: found[name].view(-1)[3:4].fill_(value) and None)


def cut(at):
    return lambda folder: (path := folder / "model.safetensors").write_bytes(path.read_bytes()[:at])


def content(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def renamed(name):
    return lambda folder: (folder / "model.safetensors").rename(folder / name)


def placed(tensor, file):
    """Let the index place a tensor in another file; `file` gets the folder and {tensor: file}."""

    def apply(folder):
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"][tensor] = file(folder, index["weight_map"])
        (folder / INDEX).write_text(json.dumps(index))

    return apply


def misfit(found):
    del found[NORM]
    return {"model.layers.2.mlp.up_proj.weight": torch.zeros(3, 5), K1: torch.zeros(12, 23)}


def outside(folder, weight_map):
    """Move a shard out of the folder, beside it; its path."""
    return shutil.move(folder / weight_map[Q0], folder.parent / f"{folder.name}.safetensors")


def linked(folder):
    shard = folder / json.loads((folder / INDEX).read_text())["weight_map"][Q0]
    shard.symlink_to(shutil.move(shard, folder.parent / f"{folder.name}.safetensors"))


def twice(folder):
    shards = sorted(folder.glob("model-*.safetensors"))
    first, last = load_file(shards[0]), load_file(shards[-1])
    save_file(last | {min(first): first[min(first)]}, shards[-1], {"format": "pt"})


LLAMA3 = SCALING["llama3"]
bad("yarn", ONE, rope("yarn", factor=4.0), CONFIG, "rope_type", "'yarn'", "llama3")
bad(
    "dynamic, of version 4",
    ONE,
    config(rope_parameters=ABSENT, rope_scaling={"type": "dynamic", "factor": 2.0}),
    CONFIG,
    "'dynamic'",
)
bad(
    "longrope",
    ONE,
    rope("longrope", short_factor=[1.0], long_factor=[2.0]),
    CONFIG,
    "'longrope'",
    "linear",
)
bad(
    "unknown RoPE field",
    ONE,
    rope("linear", factor=2.0, attention_factor=1.5),
    CONFIG,
    "rope_parameters",
    "attention_factor = 1.5",
)
bad("RoPE factor missing", ONE, rope("linear"), CONFIG, "factor is None", "positive number")
bad(
    "partial RoPE",
    ONE,
    rope("default", partial_rotary_factor=0.5),
    CONFIG,
    "partial_rotary_factor = 0.5",
)
bad(
    "two rope_theta",
    ONE,
    config(rope_theta=5e5),
    CONFIG,
    "rope_theta is 500000.0",
    "10000.0 in rope_parameters",
)
bad(
    "two RoPE",
    ONE,
    config(rope_scaling={"rope_type": "linear", "factor": 2.0}),
    CONFIG,
    "rope_parameters",
    "rope_scaling",
    "linear",
)
bad(
    "two rope types",
    ONE,
    config(
        rope_parameters=ABSENT, rope_scaling={"type": "yarn", "rope_type": "linear", "factor": 2.0}
    ),
    CONFIG,
    "rope_scaling",
    "'yarn'",
    "'linear'",
)
bad(
    "two original lengths",
    ONE,
    lambda folder: (
        rope("llama3", **LLAMA3)(folder),
        config(original_max_position_embeddings=16)(folder),
    ),
    CONFIG,
    "original_max_position_embeddings is 16",
    "32 in rope_parameters",
)
bad(
    "llama3 upside down",
    ONE,
    rope("llama3", **LLAMA3 | {"low_freq_factor": 4.0}),
    CONFIG,
    "low_freq_factor is 4.0",
    "high_freq_factor",
)
bad(
    "RoPE of each layer type",
    ONE,
    config(rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 1e4}}),
    CONFIG,
    "rope_parameters",
    "full_attention",
)
bad("sliding window", ONE, config(sliding_window=4096), CONFIG, "sliding_window is 4096", "null")
bad(
    "mistral that says nothing of a window",
    ONE,
    config(model_type="mistral"),
    CONFIG,
    "sliding_window",
    "4096",
    "absent",
    "null",
)
bad(
    "mistral with biases",
    ONE,
    config(model_type="mistral", sliding_window=None, attention_bias=True),
    CONFIG,
    "attention_bias is True",
)
bad("gelu", ONE, config(hidden_act="gelu"), CONFIG, "hidden_act is 'gelu'", '"silu"')
bad(
    "quantized",
    ONE,
    config(quantization_config={"quant_method": "gptq", "bits": 4}),
    CONFIG,
    "quantization_config",
    "gptq",
)
bad(
    "qwen2",
    ONE,
    config(model_type="qwen2"),
    CONFIG,
    "model_type is 'qwen2'",
    "'llama' or 'mistral'",
)
bad(
    "sliding layers",
    ONE,
    config(layer_types=["full_attention", "sliding_attention"]),
    CONFIG,
    "layer_types",
    "sliding_attention",
    "'full_attention'",
)
bad("layer types that are no list", ONE, config(layer_types=7), CONFIG, "layer_types is 7", "list")
bad(
    "layer types in lists",
    ONE,
    config(layer_types=[["full_attention"]]),
    CONFIG,
    "layer_types is [['full_attention']]",
)
bad("odd head_dim", ONE, config(head_dim=5), CONFIG, "head_dim is 5", "even")
bad(
    "query heads no multiple",
    ONE,
    config(num_key_value_heads=3),
    CONFIG,
    "num_attention_heads 4",
    "num_key_value_heads 3",
)
bad(
    "width no multiple",
    ONE,
    config(num_attention_heads=5, num_key_value_heads=5, head_dim=None),
    CONFIG,
    "hidden_size 24",
    "5 heads",
)
for value in (0, -24, "24", True, 24.0, None, 2**40):
    bad(
        f"hidden_size {value!r}",
        ONE,
        config(hidden_size=value),
        CONFIG,
        f"hidden_size is {value!r}",
        "positive integer",
    )
bad(
    "vocabulary beyond all memory",
    ONE,
    config(vocab_size=2**31 - 1),
    "model.safetensors",
    "model.embed_tokens.weight is (450, 24)",
    "(2147483647, 24)",
)
bad(
    "a billion layers",
    ONE,
    config(num_hidden_layers=10**9),
    CONFIG,
    "num_hidden_layers is 1000000000",
    "10000 at most",
)
bad(
    "theta infinite",
    ONE,
    rope("default", rope_theta=float("inf")),
    CONFIG,
    "rope_theta is inf",
    "positive number",
)
bad(
    "biases said, none there",
    ONE,
    config(attention_bias=True),
    "model.safetensors",
    "missing model.layers.1.self_attn.o_proj.bias (24,)",
)
bad(
    "tied, with a head",
    ONE,
    config(tie_word_embeddings=True),
    "model.safetensors",
    "unexpected lm_head.weight (450, 24)",
)
bad(
    "unknown mask field",
    ONE,
    config(hatllm={"intra": 1}),
    CONFIG,
    "mask scheme",
    "'intra'",
    "intra_layers",
)
bad(
    "more masks than layers",
    ONE,
    config(hatllm={"intra_layers": 2, "cross_layers": 1}),
    CONFIG,
    "intra_layers 2",
    "cross_layers 1",
    "2 layers",
)
bad(
    "mask scheme that is a list",
    ONE,
    config(hatllm=[1, 1]),
    CONFIG,
    "mask scheme",
    "list",
    "object",
)
bad("no config.json", ONE, lambda folder: (folder / CONFIG).unlink(), CONFIG, "no such file")
bad("broken config.json", ONE, content(CONFIG, b'{"model_type": "llama",'), CONFIG, "broken JSON")
bad("config.json a list", ONE, content(CONFIG, b'["llama"]'), CONFIG, "list", "dict")
bad(
    "a key twice",
    ONE,
    content(CONFIG, b'{"vocab_size": 40, "vocab_size": 41}'),
    CONFIG,
    "twice",
    "vocab_size",
)
bad("folder missing", ONE, shutil.rmtree, "no such folder")
bad("NaN", ONE, holding(K1, float("nan")), "model.safetensors", K1, "not finite")
bad("infinity", ONE, holding(NORM, float("-inf")), "model.safetensors", NORM, "not finite")
bad(
    "too large for float32",
    ONE,
    tensors(lambda found: {Q0: found[Q0].double() * 1e300}),
    Q0,
    "not finite",
    "float32",
)
bad(
    "missing, extra and misshapen",
    ONE,
    tensors(misfit),
    "model.safetensors",
    f"missing {NORM} (24,)",
    "unexpected model.layers.2.mlp.up_proj.weight (3, 5)",
    f"{K1} is (12, 23), expected (12, 24)",
)
bad(
    "a newline in a name",
    ONE,
    tensors(lambda found: {"model\nextra": torch.zeros(2)}),
    "unexpected model",
    "extra (2,)",
)
bad(
    "int8",
    ONE,
    tensors(lambda found: {Q0: found[Q0].to(torch.int8)}),
    "model.safetensors",
    f"{Q0} is I8",
    "BF16",
)
bad(
    "float8",
    ONE,
    tensors(lambda found: {Q0: found[Q0].to(torch.float8_e4m3fn)}),
    "model.safetensors",
    f"{Q0} is F8_E4M3",
    "F16",
)
bad("truncated", ONE, cut(-1), "model.safetensors: not a safetensors file")
bad("truncated in the header", ONE, cut(100), "model.safetensors: not a safetensors file")
bad("empty file", ONE, cut(0), "model.safetensors: not a safetensors file")
bad(
    "random bytes",
    ONE,
    content("model.safetensors", random.Random(0).randbytes(4000)),
    "model.safetensors: not a safetensors file",
)
bad(
    "header of 2^62 bytes",
    ONE,
    content("model.safetensors", (2**62).to_bytes(8, "little") + b"{}"),
    "model.safetensors: not a safetensors file",
)
bad(
    "only pytorch_model.bin",
    ONE,
    renamed("pytorch_model.bin"),
    "model.safetensors: no such file",
    "pytorch_model.bin",
    "pickle",
)
bad("only .pt", ONE, renamed("model.pt"), "model.safetensors: no such file", "model.pt", "pickle")
bad(
    "no weights",
    ONE,
    lambda folder: (folder / "model.safetensors").unlink(),
    "model.safetensors: no such file",
)
bad(
    "../ in the weight map",
    SHARDS,
    placed(Q0, lambda folder, _: f"../{outside(folder, _).name}"),
    INDEX,
    Q0,
    "'../",
    "beside it",
)
bad(
    "absolute path in the weight map",
    SHARDS,
    placed(Q0, lambda *found: str(outside(*found))),
    INDEX,
    Q0,
    "'/",
    "beside it",
)
bad(
    "a pickle in the weight map",
    SHARDS,
    placed(Q0, lambda *_: "pytorch_model.bin"),
    INDEX,
    Q0,
    "'pytorch_model.bin'",
    "safetensors",
)
bad("weight map a list", SHARDS, content(INDEX, b'{"weight_map": ["a"]}'), INDEX, "['a']", "object")
bad("no weight map", SHARDS, content(INDEX, b"{}"), INDEX, "weight_map is None", "object")
bad(
    "shard missing",
    SHARDS,
    lambda folder: min(folder.glob("model-*")).unlink(),
    "model-00001-of-",
    "no such file",
    INDEX,
)
bad(
    "wrong shard in the weight map",
    SHARDS,
    placed(Q0, lambda _, weight_map: weight_map[NORM]),
    f"holds {Q0}",
    INDEX,
    "places in model-0",
)
bad(
    "one tensor in two shards",
    SHARDS,
    twice,
    "model-000",
    "holds ",
    INDEX,
    "places in model-00001-of-",
)
bad(
    "link out of the folder",
    SHARDS,
    linked,
    "model-000",
    "link out of the folder",
    ".safetensors; expected a file",
)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """{ONE, SHARDS: a folder as transformers writes it}"""
    return {
        shards: make(
            tmp_path_factory.mktemp("good") / "model", BASE | {"shards": shards}, vocab_size=450
        )
        for shards in (ONE, SHARDS)
    }


def spoilt(good, name, target):
    shards, change, _ = BAD[name]
    shutil.copytree(good[shards], target)
    change(target)
    return target


def line_for(folder):
    """What a command says of the folder before it ends with exit code 2; an error of another kind is raised."""
    said = io.StringIO()
    with redirect_stderr(said), pytest.raises(SystemExit) as ended:
        cli.run("command", lambda: load_model(folder))
    assert ended.value.code == 2
    return said.getvalue()


def test_the_folders_that_are_to_be_spoilt_are_good(good):
    one, shards = (by_torch(folder, torch.float32) for folder in good.values())

    assert len(list(good[SHARDS].glob("model-*"))) > 3 and np.array_equal(one, shards)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_folder_gets_one_line_that_names_the_file_what_was_found_and_what_was_expected(
    good, name, tmp_path
):
    folder = spoilt(good, name, tmp_path / "bad")

    line = line_for(folder)

    assert line.startswith(f"command: {folder}") and len(line.splitlines()) == 1
    assert all(word in line for word in BAD[name][2]), line


BY_COMMAND = {
    "evaluate": [
        "yarn",
        "mistral that says nothing of a window",
        "layer types that are no list",
        "vocabulary beyond all memory",
        "NaN",
        "missing, extra and misshapen",
        "a newline in a name",
        "random bytes",
        "shard missing",
    ],
    "train": [
        "qwen2",
        "more masks than layers",
        "int8",
        "only pytorch_model.bin",
        "folder missing",
        "link out of the folder",
    ],
}


@pytest.mark.parametrize(
    "script, name", [(script, name) for script, names in BY_COMMAND.items() for name in names]
)
def test_a_command_given_a_bad_folder_says_one_line_and_ends_with_code_2(
    script, name, good, trained, tmp_path, capfd
):
    tokenizer_folder, data = trained("float32")
    folder = spoilt(good, name, tmp_path / "bad")
    for file in ("tokenizer.model", "recommender.json") if folder.exists() else ():
        shutil.copy(tokenizer_folder / file, folder)
    arguments = [
        "--data",
        data,
        "--weights",
        folder,
        *(["--out", tmp_path / "out", *MADE_UP] if script == "train" else []),
    ]
    capfd.readouterr()

    code = run_main({"train": train, "evaluate": evaluate}[script], *arguments)

    said = capfd.readouterr().err
    assert (
        code == 2 and len(said.splitlines()) == 1 and all(word in said for word in BAD[name][2])
    ), said


@pytest.mark.parametrize("script, more", [("evaluate.py", []), ("train.py", ["--out", "{}/out"])])
def test_a_bad_folder_ends_a_process_with_one_line_and_no_traceback(script, more, good, tmp_path):
    folder = spoilt(good, "yarn", tmp_path / "bad")
    arguments = [script, "--weights", folder, *(word.format(tmp_path) for word in more)]

    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 2
    assert (
        done.stderr.startswith(f"{script}: {folder / CONFIG}: rope_type is 'yarn'")
        and done.stderr.count("\n") == 1
    )


def test_a_number_may_be_written_as_a_long_integer(good, tmp_path):
    folder = shutil.copytree(good[ONE], tmp_path / "m")
    config(rms_norm_eps=10**30)(folder)
    assert load_model(folder)(torch.tensor([[1, 2]]), torch.tensor([[0, 1]])).isfinite().all()


def test_the_rope_frequencies_of_old_conversions_are_passed_over(good, tmp_path):
    for shards, folder in good.items():
        copy = shutil.copytree(folder, tmp_path / shards)
        path = min(copy.glob("*.safetensors"))
        save_file(
            load_file(path) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3)}, path
        )
        assert np.array_equal(by_torch(copy, torch.float32), by_torch(folder, torch.float32))


def test_a_folder_of_the_hugging_face_cache_whose_files_are_links_is_read(good, tmp_path):
    snapshot, blobs = tmp_path / "snapshots" / "0123abcd", tmp_path / "blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    for path in good[SHARDS].iterdir():
        shutil.copy(path, blobs / f"of-{path.name}")
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"of-{path.name}")

    assert np.array_equal(by_torch(snapshot, torch.float32), by_torch(good[SHARDS], torch.float32))


# Memory

MEASURE = """
import sys, torch
from ref.checkpoints import load_model
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
before = peak()
model = load_model(sys.argv[1], getattr(torch, sys.argv[2])) if len(sys.argv) > 1 else None
print(before, peak(), sum(p.nbytes for p in model.parameters()) if model else 0)
"""


def measured(*arguments):
    """(before, peak, size of the model), bytes; VmHWM is of the process alone, ru_maxrss may be its parent's."""
    command = [sys.executable, "-c", MEASURE, *map(str, arguments)]
    return [
        int(word)
        for word in subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()
    ]


def write_large(folder, megabytes, stored):
    """A checkpoint of random numbers with the names and shapes of transformers' model, written tensor by tensor."""
    width = 1024
    config = transformers.LlamaConfig(
        vocab_size=32000,
        hidden_size=width,
        intermediate_size=4 * width,
        num_attention_heads=16,
        num_key_value_heads=4,
        dtype=stored,
    )
    layer, ends = width * width * (2.5 + 12), 2 * 32000 * width
    config.num_hidden_layers = round(
        (megabytes * 1e6 / torch.empty(0, dtype=getattr(torch, stored)).itemsize - ends) / layer
    )
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {
            name: p.shape for name, p in transformers.LlamaForCausalLM(config).named_parameters()
        }
    stream_tensors(folder / "model.safetensors", shapes, getattr(torch, stored))


def stream_tensors(path, shapes, dtype):
    """A safetensors file, never more than a tensor of which is in memory."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + shape.numel() * dtype.itemsize
        header[name] = {
            "dtype": {2: "BF16", 4: "F32"}[dtype.itemsize],
            "shape": list(shape),
            "data_offsets": [begin, end],
        }
    head = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for shape in shapes.values():
            file.write((torch.rand(shape) - 0.5).to(dtype).view(torch.uint8).numpy().data)


def test_loading_takes_little_more_memory_than_the_model_itself(good, tmp_path):
    write_large(tmp_path, 330, "float32")
    for dtype in ("float32", "bfloat16"):
        _, peak_of_a_tiny_model, _ = measured(good[ONE], dtype)
        _, peak, size = measured(tmp_path, dtype)

        assert size == pytest.approx(330e6 if dtype == "float32" else 165e6, rel=0.1)
        assert (
            peak - peak_of_a_tiny_model <= 1.15 * size + 25e6
        )  # the whole embedding mapped would be 131e6 more


@pytest.mark.slow
@pytest.mark.parametrize(
    "stored, dtype", [("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "float32")]
)
def test_loading_a_gigabyte_peaks_within_115_percent_of_the_model_and_400_megabytes(
    stored, dtype, tmp_path
):
    write_large(tmp_path, 1000, stored)

    before, peak, size = measured(tmp_path, dtype)

    print(
        f"{stored} file loaded as {dtype}: model {size / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB, of which {before / 1e6:.0f} before loading"
    )
    assert peak <= 1.15 * size + 400e6


def main():
    rows, worst = generated(), {}
    print(
        f"{'':3}{'torch 64':>9}{'numpy 64':>9}{'torch 32':>9}{'numpy 32':>9}  largest deviations from transformers in float64, float32"
    )
    for number, row in enumerate(rows, start=1):
        with tempfile.TemporaryDirectory() as folder:
            found = deviations(make(folder, row))
        worst = {key: max(value, worst.get(key, 0)) for key, value in found.items()}
        print(
            f"{number:2} "
            + "".join(f"{value:9.1e}" for value in found.values())
            + "  "
            + named(row)
        )
    print(
        "   "
        + "".join(f"{value:9.1e}" for value in worst.values())
        + f"  the largest of {len(rows)} configurations\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        good = {
            shards: make(Path(folder) / shards, BASE | {"shards": shards}, vocab_size=450)
            for shards in (ONE, SHARDS)
        }
        for number, name in enumerate(BAD, start=1):
            line = line_for(spoilt(good, name, Path(folder) / "bad")).strip()
            print(
                f"{number:2} {name:38} {line.removeprefix('command: ').replace(folder + '/', '')}"
            )
            shutil.rmtree(Path(folder) / "bad", ignore_errors=True)


if __name__ == "__main__":
    main()
