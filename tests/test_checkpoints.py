"""Model folders of others: every one here is written by transformers 5, and transformers says what it computes.

python tests/test_checkpoints.py prints how far apart the three implementations are, configuration by configuration.

transformers rounds RoPE, norms and softmax to float32 whatever its dtype; where float64 is compared it is told
(`in_float64`) that float32 is float64, and nothing else of it changes.
"""

import json
import random
import sys
import tempfile
from contextlib import contextmanager, nullcontext
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import pytest
import torch
import transformers
from peers.transformers_peer import additive, give_masks
from safetensors.torch import load_file
from transformers import modeling_rope_utils
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral

from ref import llama_numpy
from ref.llama import Llama
from ref.masks import MaskScheme, build_masks

transformers.utils.logging.disable_progress_bar()
LIMITS = {torch.float64: 1e-10, torch.float32: 2e-5}
AXES = {
    "model": ["llama", "llama", "mistral"],
    "heads": [(4, 4, None), (4, 2, None), (4, 1, None), (6, 2, 10), (2, 1, 8), (8, 4, 6)],  # 24 wide: 4, 12 and 3 a head
    "tied": [False, True],
    "attention_bias": [False, True],
    "mlp_bias": [False, True],
    "eps": [1e-6, 1e-5, 0.1],
    "rope": ["default", "linear", "llama3"],
    "theta": [10000.0, 500.0, 5e6, 3580165449.0],  # the last: Llama 3 with a context of a million tokens
    "written": ["5", "4 type", "4 rope_type"],
    "stored": ["float32", "float16", "bfloat16"],
    "shards": ["one", "3KB"],
    "scheme": [None, None, (1, 1, True, "visible"), (2, 0, True, "isolated"), (0, 2, False, "visible"),
               (1, 1, False, "isolated")],
}  # fmt: skip
SCALING = {
    "default": {},
    "linear": {"factor": 4.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
}
# two rows: text, items, text between, the target; and another with padding on the left
SEGMENTS = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 2, 0, 3, 3, 3, 3, 0, 0, 4, 4, 4],
                         [-1, -1, -1, 0, 1, 1, 2, 2, 2, 2, 3, 3, 0, 4, 4, 5, 5, 5]])  # fmt: skip
INPUT = torch.randint(0, 40, SEGMENTS.shape, generator=torch.Generator().manual_seed(5))
TEXT = torch.zeros_like(SEGMENTS)


def generated(number=36):
    """Configurations in which every value of every axis stands as often as the others, in a seeded order."""
    drawn = random.Random("checkpoints")
    columns = {name: [values[i % len(values)] for i in range(number)] for name, values in AXES.items()}
    for column in columns.values():
        drawn.shuffle(column)
    rows = [dict(zip(columns, row)) for row in zip(*columns.values())]
    return [row | {"layers": 2 + i % 3} | ({"attention_bias": False, "mlp_bias": False} if row["model"] == "mistral" else {})
            for i, row in enumerate(rows)]  # fmt: skip


def named(row):
    heads = "/".join(str(n) for n in row["heads"] if n)
    flags = [name for name in ("tied", "attention_bias", "mlp_bias") if row[name]]
    scheme = "causal" if row["scheme"] is None else "-".join(map(str, row["scheme"]))
    return " ".join([row["model"], heads, *flags, f"eps={row['eps']:g}", f"{row['rope']}@{row['theta']:g}", f"v{row['written']}",
                     row["stored"], row["shards"], f"L={row['layers']}", scheme])  # fmt: skip


def make(folder, row, seed=0):
    """Write the checkpoint of a configuration: by transformers, with weights of a size at which mistakes show."""
    heads, kv_heads, head_dim = row["heads"]
    kind = {"llama": transformers.LlamaForCausalLM, "mistral": transformers.MistralForCausalLM}[row["model"]]
    own = {"llama": {"attention_bias": row["attention_bias"], "mlp_bias": row["mlp_bias"]}, "mistral": {"sliding_window": None}}
    config = kind.config_class(
        vocab_size=40, hidden_size=24, intermediate_size=36, num_hidden_layers=row["layers"], num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=head_dim, rms_norm_eps=row["eps"], tie_word_embeddings=row["tied"],
        rope_parameters={"rope_type": row["rope"], "rope_theta": row["theta"]} | SCALING[row["rope"]],
        max_position_embeddings=128, **own[row["model"]],
    )  # fmt: skip
    model, drawn = kind(config), torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=drawn)
        p.data = 1 + 0.3 * noise if "norm" in name else (0.3 if "bias" in name or p.shape[0] == 40 else 1.2 / p.shape[-1] ** 0.5) * noise
    model.tie_weights()
    model.to(getattr(torch, row["stored"])).save_pretrained(folder, max_shard_size="1GB" if row["shards"] == "one" else row["shards"])
    change_config(folder, lambda values: as_written(values, row))
    return Path(folder)


def as_written(values, row):
    """The fields of a config.json of transformers 5, as version 4 wrote them if the row says so."""
    if row["scheme"]:
        values["hatllm"] = dict(zip(("intra_layers", "cross_layers", "cross_self", "text"), row["scheme"]))
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
    """Logits float64 (B, T, V): under masks through the peer's hook, or under its own causal mask if no scheme is named."""
    with in_float64() if dtype == torch.float64 else nullcontext():
        model = kind.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
        scheme = json.loads((Path(folder) / "config.json").read_text()).get("hatllm")
        if scheme is None:
            return model(INPUT).logits.double().numpy()
        masks, scheme = build_masks(SEGMENTS, MaskScheme(**scheme)), MaskScheme(**scheme)
        give_masks(model).update({i: additive(masks[k]) for i, k in enumerate(scheme.kinds(len(model.model.layers)))})
        real = SEGMENTS != -1
        return model(INPUT, position_ids=(real.cumsum(1) - 1) * real).logits.double().numpy()


@torch.no_grad()
def by_torch(folder, dtype):
    model = Llama.from_pretrained(folder, dtype).eval()
    return model(INPUT, segments_of(folder)).double().numpy()


def by_numpy(folder):
    """From the files themselves: nothing of ref/ but llama_numpy reads them."""
    config = json.loads((folder / "config.json").read_text())
    tensors = {name: t.double().numpy() for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}
    return llama_numpy.forward(tensors, config, INPUT.numpy(), segments_of(folder).numpy(), config.get("hatllm", {}))


def segments_of(folder):
    return SEGMENTS if "hatllm" in json.loads((Path(folder) / "config.json").read_text()) else TEXT


def apart(folder, one, other):
    """The largest deviation at a real token."""
    return float(np.abs(one - other)[segments_of(folder).numpy() != -1].max())


def deviations(folder):
    """{(who, dtype): largest deviation from transformers}"""
    found, numpy = {}, by_numpy(folder)
    for dtype in LIMITS:
        wanted = by_transformers(folder, dtype)
        assert 1 < np.abs(wanted).max() < 10  # not so small that mistakes are lost, nor so large that rounding shows
        found["torch", dtype] = apart(folder, by_torch(folder, dtype), wanted)
        found["numpy", dtype] = apart(folder, numpy, wanted)
    return found


@pytest.mark.parametrize("row", generated(), ids=named)
def test_numpy_torch_and_transformers_compute_the_same_from_one_folder(row, tmp_path):
    found = deviations(make(tmp_path, row))

    assert all(deviation <= LIMITS[dtype] for (_, dtype), deviation in found.items()), found


def main():
    rows, worst = generated(), {}
    print(f"{'':3}{'torch 64':>9}{'numpy 64':>9}{'torch 32':>9}{'numpy 32':>9}  largest deviations from transformers in float64, float32")
    for number, row in enumerate(rows, start=1):
        with tempfile.TemporaryDirectory() as folder:
            found = deviations(make(folder, row))
        worst = {key: max(value, worst.get(key, 0)) for key, value in found.items()}
        print(f"{number:2} " + "".join(f"{value:9.1e}" for value in found.values()) + "  " + named(row))
    print("   " + "".join(f"{value:9.1e}" for value in worst.values()) + f"  the largest of {len(rows)} configurations")


if __name__ == "__main__":
    main()
