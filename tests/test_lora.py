"""LoRA against `peft`, against the equation, and what training with it may and may not change."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from ref import lora
from ref.checkpoints import adapters, load_model, save_model
from ref.checkpoints.adapters import adapter_parameters
from ref.checkpoints.weights import hf_parameters
from ref.lora import LoraSettings
from ref.masks import MaskScheme

from support.checkpoints import in_float64
from support.models import config_of, random_model

CAUSAL = MaskScheme()
HAT = MaskScheme(intra_layers=1, cross_layers=1)
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3]])
SEGMENTS = torch.tensor([[0, 1, 1, 1, 2, 2, 3, 3], [1, 1, 2, 2, 2, 3, 3, 4]])
DEFAULT = LoraSettings(4, 8)
EVERY_MATRIX = LoraSettings(3, 0.5, targets=lora.TARGETS)
SETTINGS = {
    "the default": DEFAULT,
    "rank 1": LoraSettings(1, 3, targets=("q_proj",)),
    "every matrix": EVERY_MATRIX,
    "the MLP alone": LoraSettings(2, 16, targets=("gate_proj", "up_proj", "down_proj")),
}
BASES = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
}


@pytest.fixture(params=BASES)
def base(request, tmp_path):
    """A model folder."""
    save_model(random_model(config_of(**BASES[request.param]), HAT), tmp_path / "base")
    return tmp_path / "base"


def randomize(parameters):
    """Fill adapter matrices, so that the update is not zero."""
    generator = torch.Generator().manual_seed(1)
    for _, parameter in sorted(parameters.items()):
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = (0.3 * noise).to(parameter.dtype)


def adapted_model(base, settings, dtype=torch.float32, scheme=None):
    """A model in eval mode with a random adapter that is not merged."""
    model = load_model(base, dtype, scheme=scheme).eval()
    lora.add(model, settings)
    randomize(adapter_parameters(model))
    return model


def exact_logits(model):
    """Logits of a model of transformers or PEFT whose weights are float64, float64 throughout."""
    with in_float64(), torch.no_grad():
        decoder = next(module for module in model.modules() if hasattr(module, "rotary_emb"))
        # the frequencies that it has were computed in float32
        decoder.rotary_emb = type(decoder.rotary_emb)(decoder.config)
        return model.eval()(IDS).logits


def write_peft_adapter(base, folder, settings, dtype=torch.float64):
    """Let PEFT save a random adapter; the logits of the base model with it."""
    model = LlamaForCausalLM.from_pretrained(base, dtype=dtype, attn_implementation="eager")
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=list(settings.targets),
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, config)
    randomize({name: p for name, p in model.named_parameters() if ".lora_" in name})
    model.save_pretrained(folder)
    return exact_logits(model)


def read_peft_adapter(base, folder):
    """The base model in transformers, under the adapter, all in float64."""
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float64, attn_implementation="eager")
    return PeftModel.from_pretrained(model, folder, autocast_adapter_dtype=False).eval()


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_an_adapter_of_peft_gives_the_same_logits_here(base, tmp_path, settings):
    expected = write_peft_adapter(base, tmp_path / "adapter", settings)

    model = load_model(tmp_path / "adapter", torch.float64, scheme=CAUSAL)

    torch.testing.assert_close(model(IDS, SEGMENTS), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_an_adapter_of_ours_gives_the_same_logits_in_peft(base, tmp_path, settings):
    model = adapted_model(base, settings, torch.float64, CAUSAL)
    adapters.save(model, tmp_path / "adapter", base, settings)

    expected = exact_logits(read_peft_adapter(base, tmp_path / "adapter"))

    torch.testing.assert_close(model(IDS, SEGMENTS), expected, rtol=1e-10, atol=1e-12)


def test_both_write_the_same_tensors(base, tmp_path):
    write_peft_adapter(base, tmp_path / "theirs", EVERY_MATRIX, torch.float32)
    adapters.save(adapted_model(base, EVERY_MATRIX), tmp_path / "ours", base, EVERY_MATRIX)

    theirs = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    ours = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name].shape, ours[name].dtype) == (tensor.shape, tensor.dtype), name


def test_an_adapter_folder_holds_three_files(base, tmp_path):
    adapters.save(adapted_model(base, DEFAULT), tmp_path / "adapter", base, DEFAULT)

    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert names == {"adapter_model.safetensors", "adapter_config.json", "config.json"}


def test_parameters_given_by_name_are_written_instead_of_the_models_own(base, tmp_path):
    model = adapted_model(base, DEFAULT)
    parameters = {name: p + 1 for name, p in adapter_parameters(model).items()}

    adapters.save(model, tmp_path, base, DEFAULT, parameters)

    written = load_file(tmp_path / "adapter_model.safetensors")
    assert written.keys() == parameters.keys()
    assert all(torch.equal(written[name], parameters[name]) for name in written)


def test_merging_gives_the_matrices_that_peft_gives(base, tmp_path):
    write_peft_adapter(base, tmp_path / "adapter", EVERY_MATRIX)
    merged = read_peft_adapter(base, tmp_path / "adapter").merge_and_unload()
    expected = merged.state_dict()

    parameters = hf_parameters(load_model(tmp_path / "adapter", torch.float64))

    assert len(parameters) > 10 and all(p.requires_grad for p in parameters.values())
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-12, atol=1e-14)


def dot(row, column):
    """A sum of products, number by number."""
    return sum(a * b for a, b in zip(row, column))


def test_the_layer_computes_the_equation():
    torch.manual_seed(0)
    layer = lora.LoRALinear(torch.nn.Linear(5, 3).double(), LoraSettings(2, 7))
    randomize(dict(layer.named_parameters()))
    W, b, A, B = layer.weight, layer.bias, layer.lora_A.weight, layer.lora_B.weight
    x = torch.randn(4, 5, dtype=torch.float64)

    for row, y in zip(x, layer(x)):
        low = [dot(A[r], row) for r in range(2)]
        expected = [dot(W[o], row) + b[o] + 7 / 2 * dot(B[o], low) for o in range(3)]
        torch.testing.assert_close(y, torch.stack(expected))


def test_an_adapted_model_and_its_merged_form_agree_under_the_masks(base):
    model = adapted_model(base, EVERY_MATRIX, torch.float64)
    assert model.scheme == HAT
    adapted = model(IDS, SEGMENTS)

    lora.merge(model)

    torch.testing.assert_close(model(IDS, SEGMENTS), adapted, rtol=1e-10, atol=1e-10)


def test_a_fresh_adapter_changes_nothing(base):
    model = load_model(base, torch.float64).eval()
    before = model(IDS, SEGMENTS)

    lora.add(model, LoraSettings(4, 8, dropout=0.5))

    assert torch.equal(model(IDS, SEGMENTS), before)


def test_dropout_is_for_training_only(base):
    model = adapted_model(base, LoraSettings(4, 8, dropout=0.5), torch.float64)
    assert torch.equal(model(IDS, SEGMENTS), model(IDS, SEGMENTS))

    model.train()

    assert not torch.equal(model(IDS, SEGMENTS), model(IDS, SEGMENTS))


def test_only_the_adapter_is_trained(base):
    model = load_model(base)
    lora.add(model, LoraSettings(2, 4))

    trained = {name for name, p in model.named_parameters() if p.requires_grad}

    expected = set()
    for layer in range(model.config.num_hidden_layers):
        for projection in ("q_proj", "v_proj"):
            name = f"layers.{layer}.self_attn.{projection}"
            expected |= {f"{name}.lora_A.weight", f"{name}.lora_B.weight"}
    assert trained == expected


def test_the_gradient_reaches_all_of_the_adapter_and_nothing_else(base):
    model = adapted_model(base, LoraSettings(2, 4))

    model(IDS, SEGMENTS).square().sum().backward()

    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            assert parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name


def test_a_bfloat16_model_has_a_float32_adapter_and_a_bfloat16_result(base):
    model = adapted_model(base, DEFAULT, torch.bfloat16)

    assert {p.dtype for p in adapter_parameters(model).values()} == {torch.float32}
    assert model.embed_tokens.weight.dtype == torch.bfloat16
    assert model(IDS, SEGMENTS).dtype == torch.bfloat16


def test_the_base_can_be_named_by_the_user(base, tmp_path):
    adapter = tmp_path / "adapter"
    expected = write_peft_adapter(base, adapter, DEFAULT)
    base.rename(tmp_path / "moved")

    model = load_model(adapter, torch.float64, scheme=CAUSAL, base=tmp_path / "moved")

    torch.testing.assert_close(model(IDS, SEGMENTS), expected, rtol=1e-10, atol=1e-12)


def test_a_base_that_is_missing_is_named_with_the_remedy(base, tmp_path):
    write_peft_adapter(base, tmp_path / "adapter", DEFAULT)
    base.rename(tmp_path / "moved")

    message = r"adapter_config.json: the base model '.*base' is no folder here; .*--base"
    with pytest.raises(FileNotFoundError, match=message):
        load_model(tmp_path / "adapter")


def test_an_adapter_of_peft_keeps_the_scheme_of_its_base(base, tmp_path):
    write_peft_adapter(base, tmp_path / "adapter", DEFAULT)

    assert load_model(tmp_path / "adapter").scheme == HAT


def test_an_adapter_of_ours_has_a_scheme_of_its_own(base, tmp_path):
    scheme = MaskScheme(cross_layers=2)
    model = adapted_model(base, DEFAULT, scheme=scheme)
    adapters.save(model, tmp_path / "adapter", base, DEFAULT)

    assert load_model(tmp_path / "adapter").scheme == scheme


@pytest.fixture
def adapter(tmp_path):
    """A folder as PEFT writes it."""
    save_model(random_model(config_of()), tmp_path / "base")
    write_peft_adapter(tmp_path / "base", tmp_path / "adapter", DEFAULT)
    return tmp_path / "adapter"


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


@pytest.mark.parametrize("field, value", BAD_FIELDS.items(), ids=BAD_FIELDS)
def test_an_adapter_setting_that_computes_something_else_is_refused_by_name(adapter, field, value):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))

    with pytest.raises(ValueError) as error:
        load_model(adapter)

    for fragment in (str(path), field, repr(value)):
        assert fragment in str(error.value)


def test_a_rank_that_would_only_take_memory_is_refused(adapter):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 2**30}))
    with pytest.raises(ValueError, match="adapter_config.json: LoRA rank is 1073741824; expected"):
        load_model(adapter)


A0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def missing(tensors):
    del tensors[A0]


def extra(tensors):
    tensors["more"] = torch.zeros(2)


def misshapen(tensors):
    tensors[A0] = tensors[A0][:3]


def not_finite(tensors):
    tensors[A0] *= torch.nan


@pytest.mark.parametrize(
    "change, fragment",
    [
        (missing, rf"missing {A0} \(4, 16\)"),
        (extra, r"unexpected more \(2,\)"),
        (misshapen, r"q_proj.lora_A.weight is \(3, 16\), expected \(4, 16\)"),
        (not_finite, "not finite"),
    ],
)
def test_adapter_tensors_that_do_not_fit_are_named(adapter, change, fragment):
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)

    with pytest.raises(ValueError, match=fragment) as error:
        load_model(adapter)

    assert str(path) in str(error.value)


def test_a_folder_with_a_model_and_an_adapter_is_ambiguous(base):
    write_peft_adapter(base, base, DEFAULT)

    with pytest.raises(ValueError, match="both an adapter and model.safetensors"):
        load_model(base)


def test_an_adapter_for_another_base_is_refused(base, tmp_path):
    adapters.save(adapted_model(base, DEFAULT), tmp_path / "adapter", base, DEFAULT)
    save_model(random_model(config_of(rms_norm_eps=0.01)), tmp_path / "other")

    message = "does not fit the base model .*other: rms_norm_eps is 1e-06, but 0.01 there"
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "adapter", base=tmp_path / "other")


def test_an_adapter_whose_base_is_an_adapter_itself_is_refused(base, tmp_path):
    adapters.save(adapted_model(base, DEFAULT), tmp_path / "first", base, DEFAULT)
    adapters.save(adapted_model(base, DEFAULT), tmp_path / "second", tmp_path / "first", DEFAULT)

    with pytest.raises(ValueError, match="the base model .*first is an adapter itself; merge it"):
        load_model(tmp_path / "second")


def test_unknown_targets_are_refused():
    settings = LoraSettings(2, 4, targets=["q_proj", "lm_head"])

    message = r"LoRA targets are \['q_proj', 'lm_head'\]; expected some of q_proj, k_proj"
    with pytest.raises(ValueError, match=message):
        lora.add(random_model(config_of()), settings)


def test_a_new_adapter_changes_nothing_and_spreads_as_a_new_linear_layer_does():
    torch.manual_seed(0)
    layer = lora.LoRALinear(torch.nn.Linear(400, 30), LoraSettings(50, 100))
    limit = 400**-0.5  # of a uniform distribution, as torch.nn.Linear draws its weights
    largest = layer.lora_A.weight.abs().max().item()
    assert 0.999 * limit < largest <= limit
    assert not layer.lora_B.weight.any()
