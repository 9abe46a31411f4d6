"""LoRA against `peft`, against the equation, and what training with it may and may not change."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from ref import lora
from ref.checkpoints import adapters, load_model, save_model
from ref.checkpoints.weights import hf_parameters
from ref.llama import Llama
from ref.masks import MaskScheme

from support.models import config_of, exact_logits, random_model

CAUSAL, HAT = MaskScheme(), MaskScheme(intra_layers=1, cross_layers=1)
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3]])
SEGMENTS = torch.tensor([[0, 1, 1, 1, 2, 2, 3, 3], [1, 1, 2, 2, 2, 3, 3, 4]])
SETTINGS = {  # rank, alpha, targets
    "the default": (4, 8, ["q_proj", "v_proj"]),
    "rank 1": (1, 3, ["q_proj"]),
    "every matrix": (3, 0.5, list(lora.TARGETS)),
    "the MLP alone": (2, 16, ["gate_proj", "up_proj", "down_proj"]),
}


@pytest.fixture(params=("untied", "tied", "biases"))
def base(request, tmp_path):
    """A model folder."""
    changes = {
        "untied": {},
        "tied": {"tie_word_embeddings": True},
        "biases": {"attention_bias": True, "mlp_bias": True},
    }
    save_model(random_model(config_of(**changes[request.param]), HAT), tmp_path / "base")
    return tmp_path / "base"


def randomize(parameters, seed=1):
    """Fill adapter matrices, so that the update is not zero."""
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in sorted(parameters.items()):
        parameter.data = 0.3 * torch.randn(
            parameter.shape, generator=generator, dtype=torch.float64
        ).to(parameter.dtype)


def peft_adapter(base, folder, rank, alpha, targets, dtype=torch.float64):
    """A PEFT model over the base, with random adapters, saved to `folder`; its logits."""
    model = LlamaForCausalLM.from_pretrained(base, dtype=dtype, attn_implementation="eager")
    model = get_peft_model(
        model, LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM")
    )
    randomize({name: p for name, p in model.named_parameters() if ".lora_" in name})
    model.save_pretrained(folder)
    return exact_logits(model, IDS)


@pytest.mark.parametrize("name", SETTINGS)
def test_an_adapter_of_peft_gives_the_same_logits_here(base, tmp_path, name):
    expected = peft_adapter(base, tmp_path / "adapter", *SETTINGS[name])
    model = load_model(tmp_path / "adapter", torch.float64, scheme=CAUSAL)
    torch.testing.assert_close(model(IDS, SEGMENTS), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", SETTINGS)
def test_an_adapter_of_ours_gives_the_same_logits_in_peft(base, tmp_path, name):
    rank, alpha, targets = SETTINGS[name]
    model = load_model(base, torch.float64, scheme=CAUSAL).eval()
    lora.add(model, rank, alpha, targets=targets)
    randomize(adapters.parameters(model))
    adapters.save(model, tmp_path / "adapter", base, rank, alpha, 0.0, targets)
    other = LlamaForCausalLM.from_pretrained(base, dtype=torch.float64, attn_implementation="eager")
    other = PeftModel.from_pretrained(
        other, tmp_path / "adapter", autocast_adapter_dtype=False
    ).eval()
    torch.testing.assert_close(
        model(IDS, SEGMENTS), exact_logits(other, IDS), rtol=1e-10, atol=1e-12
    )


def test_both_write_the_same_tensors(base, tmp_path):
    peft_adapter(base, tmp_path / "theirs", *SETTINGS["every matrix"], dtype=torch.float32)
    rank, alpha, targets = SETTINGS["every matrix"]
    model = load_model(base)
    lora.add(model, rank, alpha, targets=targets)
    adapters.save(model, tmp_path / "ours", base, rank, alpha, 0.0, targets)
    theirs, ours = (
        load_file(tmp_path / who / "adapter_model.safetensors") for who in ("theirs", "ours")
    )
    assert {n: (t.shape, t.dtype) for n, t in theirs.items()} == {
        n: (t.shape, t.dtype) for n, t in ours.items()
    }
    assert {p.name for p in (tmp_path / "ours").iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "config.json",
    }


def test_merging_gives_the_matrices_that_peft_gives(base, tmp_path):
    peft_adapter(base, tmp_path / "adapter", *SETTINGS["every matrix"])
    other = LlamaForCausalLM.from_pretrained(base, dtype=torch.float64)
    other = PeftModel.from_pretrained(other, tmp_path / "adapter").merge_and_unload()
    expected, found = (
        other.state_dict(),
        hf_parameters(load_model(tmp_path / "adapter", torch.float64)),
    )
    assert len(found) > 10 and all(p.requires_grad for p in found.values())
    for name, parameter in found.items():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-12, atol=1e-14)


def test_the_layer_computes_the_equation():
    torch.manual_seed(0)
    linear = torch.nn.Linear(5, 3).double()
    layer, x = lora.LoRALinear(linear, 2, 7, 0.0), torch.randn(4, 5, dtype=torch.float64)
    randomize(dict(layer.named_parameters()))
    W, b, A, B = layer.weight, layer.bias, layer.lora_A.weight, layer.lora_B.weight
    for row, y in zip(x, layer(x)):
        low = [sum(A[r, i] * row[i] for i in range(5)) for r in range(2)]
        expected = [
            sum(W[o, i] * row[i] for i in range(5))
            + b[o]
            + 3.5 * sum(B[o, r] * low[r] for r in range(2))
            for o in range(3)
        ]
        torch.testing.assert_close(y, torch.stack(expected))


def test_the_masks_hold_under_an_adapter_too(base):
    """Under HatLLM's masks, an adapted model and its merged form agree, and differ from plain causal."""
    model = load_model(base, torch.float64).eval()
    lora.add(model, 3, 6, targets=lora.TARGETS)
    randomize(adapters.parameters(model))
    adapted = model(IDS, SEGMENTS)
    lora.merge(model)
    torch.testing.assert_close(model(IDS, SEGMENTS), adapted, rtol=1e-10, atol=1e-10)
    model.scheme = CAUSAL
    assert not torch.allclose(model(IDS, SEGMENTS), adapted, rtol=1e-3)


def test_a_fresh_adapter_changes_nothing_and_dropout_is_for_training_only(base):
    model = load_model(base, torch.float64).eval()
    before = model(IDS, SEGMENTS)
    lora.add(model, 4, 8, dropout=0.5)
    assert torch.equal(model(IDS, SEGMENTS), before)
    randomize(adapters.parameters(model))
    assert torch.equal(model(IDS, SEGMENTS), model(IDS, SEGMENTS))
    model.train()
    assert not torch.equal(model(IDS, SEGMENTS), model(IDS, SEGMENTS))


def test_only_the_adapter_is_trained_and_it_all_is(base):
    model = load_model(base)
    lora.add(model, 2, 4)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    layers = range(model.config.num_hidden_layers)
    expected = {
        f"layers.{i}.self_attn.{q}.lora_{m}.weight"
        for i in layers
        for q in ("q_proj", "v_proj")
        for m in "AB"
    }
    assert trained == expected
    randomize(adapters.parameters(model))
    model(IDS, SEGMENTS).square().sum().backward()
    assert all((p.grad is not None) == (name in trained) for name, p in model.named_parameters())
    assert all(p.grad.abs().max() > 0 for p in adapters.parameters(model).values())


def test_a_bfloat16_model_has_a_float32_adapter_and_a_bfloat16_result(base):
    model = load_model(base, torch.bfloat16).eval()
    lora.add(model, 4, 8)
    assert {p.dtype for p in adapters.parameters(model).values()} == {torch.float32}
    assert (
        model.embed_tokens.weight.dtype == torch.bfloat16
        and model(IDS, SEGMENTS).dtype == torch.bfloat16
    )


def test_the_base_can_be_named_by_the_user(base, tmp_path):
    expected = peft_adapter(base, tmp_path / "adapter", *SETTINGS["the default"])
    base.rename(tmp_path / "moved")
    with pytest.raises(
        FileNotFoundError,
        match=r"adapter_config.json: the base model '.*base' is no folder here; .*--base",
    ):
        load_model(tmp_path / "adapter")
    model = load_model(tmp_path / "adapter", torch.float64, scheme=CAUSAL, base=tmp_path / "moved")
    torch.testing.assert_close(model(IDS, SEGMENTS), expected, rtol=1e-10, atol=1e-12)


def test_an_adapter_of_peft_keeps_the_scheme_of_its_base_and_ours_has_its_own(base, tmp_path):
    peft_adapter(base, tmp_path / "theirs", *SETTINGS["the default"])
    assert load_model(tmp_path / "theirs").scheme == HAT
    model = load_model(base, scheme=MaskScheme(cross_layers=2))
    lora.add(model, 2, 4)
    adapters.save(model, tmp_path / "ours", base, 2, 4, 0.0, ["q_proj", "v_proj"])
    assert load_model(tmp_path / "ours").scheme == MaskScheme(cross_layers=2)


BAD_FIELDS = {
    "use_rslora": True,
    "use_dora": True,
    "bias": "all",
    "fan_in_fan_out": True,
    "modules_to_save": ["lm_head"],
    "rank_pattern": {"q_proj": 3},
    "alpha_pattern": {"q_proj": 3},
    "layers_to_transform": [0],
    "init_lora_weights": "pissa",
    "peft_type": "PREFIX_TUNING",
    "r": 0,
    "lora_alpha": "8",
    "target_modules": ".*_proj",
    "use_something_new": 1,
}


@pytest.mark.parametrize("field", BAD_FIELDS)
def test_an_adapter_setting_that_computes_something_else_is_refused_by_name(tmp_path, field):
    save_model(random_model(config_of()), tmp_path / "base")
    peft_adapter(tmp_path / "base", tmp_path / "adapter", *SETTINGS["the default"])
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: BAD_FIELDS[field]}))
    with pytest.raises(ValueError) as error:
        load_model(tmp_path / "adapter")
    assert (
        str(path) in str(error.value)
        and field in str(error.value)
        and repr(BAD_FIELDS[field]) in str(error.value)
    )


@pytest.mark.parametrize(
    "change, fragment",
    (
        (
            "missing",
            r"missing base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight \(4, 16\)",
        ),
        ("extra", r"unexpected more \(2,\)"),
        ("shape", r"q_proj.lora_A.weight is \(3, 16\), expected \(4, 16\)"),
        ("nan", "not finite"),
    ),
)
def test_adapter_tensors_that_do_not_fit_are_named(tmp_path, change, fragment):
    save_model(random_model(config_of()), tmp_path / "base")
    peft_adapter(tmp_path / "base", tmp_path / "adapter", *SETTINGS["the default"])
    path, name = (
        tmp_path / "adapter" / "adapter_model.safetensors",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
    )
    tensors = load_file(path)
    a = tensors.pop(name)
    tensors |= {
        "missing": {},
        "extra": {name: a, "more": torch.zeros(2)},
        "shape": {name: a[:3]},
        "nan": {name: a * torch.nan},
    }[change]
    save_file(tensors, path)
    with pytest.raises(ValueError, match=fragment) as error:
        load_model(tmp_path / "adapter")
    assert str(path) in str(error.value)


def test_a_folder_with_a_model_and_an_adapter_is_ambiguous(base, tmp_path):
    peft_adapter(base, base, *SETTINGS["the default"])
    with pytest.raises(ValueError, match="both an adapter and model.safetensors"):
        load_model(base)


def test_an_adapter_for_another_base_is_refused(base, tmp_path):
    model = load_model(base)
    lora.add(model, 2, 4)
    adapters.save(model, tmp_path / "adapter", base, 2, 4, 0.0, ["q_proj", "v_proj"])
    save_model(random_model(config_of(rms_norm_eps=0.01)), tmp_path / "other")
    with pytest.raises(ValueError, match="config.json does not fit the base model .*other"):
        load_model(tmp_path / "adapter", base=tmp_path / "other")


def test_unknown_targets_are_refused():
    with pytest.raises(
        ValueError,
        match=r"LoRA targets are \['q_proj', 'lm_head'\]; expected some of q_proj, k_proj",
    ):
        lora.add(random_model(config_of()), 2, 4, targets=["q_proj", "lm_head"])
