"""ref.llama against transformers with a mask for each layer, and against itself in pieces.

Masks come from `support.masks`, never from ref.masks.
"""

import pytest
import torch
import transformers

from ref.checkpoints import load_model, save_model
from ref.checkpoints.config import parse_config
from ref.checkpoints.weights import hf_parameters
from ref.llama import Llama, RMSNorm, attention_probabilities
from ref.llama import additive as additive_mask
from ref.masks import MaskScheme

from peers.transformers_peer import additive, give_masks
from support.masks import mask_tables
from support.models import config_of, random_model

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
SCHEMES = [
    MaskScheme(),
    MaskScheme(1, 1),
    MaskScheme(2, 1, text="isolated"),
    MaskScheme(1, 2, cross_self=False),
    MaskScheme(3, 0),
    MaskScheme(0, 3, cross_self=False, text="isolated"),
]
# text, three items with text between, the target; and the same length with padding on the left
SEGMENTS = torch.tensor(
    [[0, 1, 1, 1, 2, 2, 0, 3, 3, 0, 4, 4], [-1, -1, -1, 1, 1, 2, 2, 2, 3, 4, 4, 4]]
)
INPUT = torch.randint(0, 40, SEGMENTS.shape, generator=torch.Generator().manual_seed(5))
POSITIONS = torch.tensor([[*range(12)], [0, 0, 0, *range(9)]])
REAL = SEGMENTS != -1


def named(scheme):
    return f"{scheme.intra_layers}-{scheme.cross_layers}-{scheme.text}-self-{scheme.cross_self}"


def assert_close(tensor, wanted, tolerance):
    torch.testing.assert_close(tensor, wanted, rtol=tolerance, atol=tolerance)


def differ(tensor, other):
    """Do they differ by more than rounding?"""
    return not torch.allclose(tensor, other, atol=1e-3)


def peer_of(model):
    """The model of transformers with the same weights."""
    # the fields of LlamaConfig have the names that transformers gives them
    values = vars(model.config) | {"rope_parameters": dict(model.config.rope_parameters)}
    config = transformers.LlamaConfig(**values, attn_implementation="eager")
    peer = transformers.LlamaForCausalLM(config).to(model.norm.weight.dtype)
    missing, unexpected = peer.load_state_dict(hf_parameters(model), strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    return peer.eval()


def test_a_rope_that_is_not_known_is_refused():
    config = config_of(rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0})
    with pytest.raises(ValueError, match="rope_type is 'yarn'; expected default, linear"):
        Llama(config).eval()(INPUT, SEGMENTS)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=named)
@torch.no_grad()
def test_logits_under_masks_are_those_of_transformers_with_a_mask_for_each_layer(scheme, attention):
    model = random_model(config_of(), scheme, attention=attention)
    peer = peer_of(model)
    masks = mask_tables(SEGMENTS.tolist(), scheme, num_layers=3)
    give_masks(peer).update({i: additive(torch.tensor(mask)) for i, mask in enumerate(masks)})

    logits = model(INPUT, SEGMENTS)

    wanted = peer(input_ids=INPUT, position_ids=POSITIONS).logits
    assert logits.isfinite().all()
    assert_close(logits[REAL], wanted[REAL], 2e-5)


@torch.no_grad()
def test_position_ids_count_real_tokens_from_zero():
    model = random_model(config_of(), MaskScheme(1, 1))

    counted = model(INPUT, SEGMENTS)

    # to the last bit, because RoPE forgives a common shift
    assert torch.equal(counted, model(INPUT, SEGMENTS, POSITIONS))
    assert not torch.equal(counted[REAL], model(INPUT, SEGMENTS, POSITIONS + 1)[REAL])


@torch.no_grad()
def test_padding_in_the_middle_moves_nobody():
    model = random_model(config_of(), MaskScheme(1, 1), dtype=torch.float64)
    alone = model(INPUT[:1], SEGMENTS[:1])
    order = [0, 1, 2, 3, 3, 3, *range(4, 12)]
    segments = SEGMENTS[:1, order].clone()
    segments[0, 4:6] = -1

    padded = model(INPUT[:1, order], segments)

    assert_close(padded[segments != -1], alone[0], 1e-11)


def test_angles_far_into_a_prompt_are_right_to_the_rounding_of_bfloat16():
    model = random_model(config_of(), dtype=torch.bfloat16)
    positions = torch.arange(1000)

    cos, sin = model.rotation(positions[None])

    width = model.config.head_dim
    frequencies = 10000.0 ** (-torch.arange(0, width, 2).double() / width)
    angles = positions[None, None, :, None] * frequencies
    assert_close(cos.double(), angles.cos(), 0.01)
    assert_close(sin.double(), angles.sin(), 0.01)


def test_dropout_acts_while_training_only():
    model = random_model(config_of(), MaskScheme(1, 1), dropout=0.5)
    plain = random_model(config_of(), MaskScheme(1, 1))

    without = plain(INPUT, SEGMENTS)
    assert torch.equal(model(INPUT, SEGMENTS), without)
    model.train()
    assert differ(model(INPUT, SEGMENTS), model(INPUT, SEGMENTS))
    plain.train()
    assert torch.equal(plain(INPUT, SEGMENTS), without)


def test_dropout_acts_on_the_embedding_and_on_all_that_a_block_adds():
    model = random_model(config_of(attention_bias=True, mlp_bias=True), dropout=1.0).train()

    hidden = model.hidden_states(INPUT, SEGMENTS)

    assert not hidden.any()


@pytest.mark.parametrize("attention, runs_kernel", [("sdpa", True), ("eager", False)])
def test_the_fused_kernel_runs_where_it_is_asked_for_alone(monkeypatch, attention, runs_kernel):
    kernel = torch.nn.functional.scaled_dot_product_attention
    calls = []

    def counted(*arguments, **options):
        calls.append(arguments)
        return kernel(*arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    random_model(config_of(), attention=attention)(INPUT, SEGMENTS)

    assert bool(calls) == runs_kernel


def test_an_unknown_attention_is_refused():
    with pytest.raises(ValueError, match="attention is 'flash'; expected 'sdpa' or 'eager'"):
        Llama(config_of(), attention="flash")


def test_a_config_of_transformers_4_gives_the_same_rope_as_one_of_transformers_5():
    old = dict(vars(config_of()))
    del old["rope_parameters"]
    old |= {"rope_theta": 500.0, "rope_scaling": {"type": "llama3"} | LLAMA3}

    new = {"rope_type": "llama3", "rope_theta": 500.0} | LLAMA3
    assert parse_config(old).rope_parameters == new


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_saved_model_comes_back_with_every_bit_and_its_scheme(dtype, tmp_path):
    scheme = MaskScheme(1, 2, cross_self=False, text="isolated", delimiters="text", target="text")
    model = random_model(config_of(tie_word_embeddings=True), scheme, dtype=dtype)

    save_model(model, tmp_path)
    again = load_model(tmp_path, dtype=dtype)

    assert again.scheme == scheme
    assert again.config == model.config
    assert again.lm_head.weight is again.embed_tokens.weight
    for name, parameter in hf_parameters(model).items():
        assert torch.equal(hf_parameters(again)[name], parameter), name


def test_another_scheme_can_be_given_while_loading(tmp_path):
    save_model(random_model(config_of(), MaskScheme(1, 1)), tmp_path)

    assert load_model(tmp_path).scheme == MaskScheme(1, 1)
    assert load_model(tmp_path, scheme=MaskScheme(0, 2)).scheme == MaskScheme(0, 2)


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16, torch.float16))
def test_a_masked_score_is_minus_infinity_in_every_type(dtype):
    mask = additive_mask(torch.tensor([[[True, False]]]), dtype)
    assert mask.dtype == dtype and mask.tolist() == [[[[0.0, -torch.inf]]]]


def test_the_norm_of_bfloat16_is_computed_in_float32_and_rounded_before_the_weight():
    random = torch.Generator().manual_seed(0)
    norm = RMSNorm(96, 1e-6).bfloat16()
    norm.weight.data.uniform_(0.5, 2, generator=random)
    x = torch.randn(64, 96, generator=random).bfloat16()
    wide = x.double()
    normed = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    expected = normed.bfloat16().double() * norm.weight.double()
    assert torch.equal(norm(x), expected.bfloat16())


def test_the_softmax_of_bfloat16_is_in_float32():
    q, k = torch.randn(2, 1, 4, 5, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    probabilities = attention_probabilities(q, k, torch.zeros(1, 1, 5, 5, dtype=torch.bfloat16))
    assert probabilities.dtype == torch.float32
    assert_close(probabilities.sum(-1), torch.ones(1, 4, 5), 1e-6)
