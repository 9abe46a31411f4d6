"""ref.llama against transformers, against a recomputation in float64, and against itself in pieces.

Masks come from `support.masks`, never from ref.masks.
"""

import math

import numpy as np
import pytest
import torch
import transformers

from ref.checkpoints import load_model, save_model
from ref.checkpoints.config import parse_config
from ref.checkpoints.weights import hf_parameters
from ref.llama import Llama
from ref.masks import MaskScheme
from ref.search.cache import KVCache
from ref.search.decoder import cached_hidden_states

from peers.transformers_peer import additive, give_masks
from support.masks import kinds_of, mask_table
from support.models import config_of, random_model

pytestmark = pytest.mark.usefixtures("one_thread")

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LONG_CONTEXT = LLAMA3 | {"original_max_position_embeddings": 64}
ROPES = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "large theta": {"rope_type": "default", "rope_theta": 5e6},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "llama3": {"rope_type": "llama3", "rope_theta": 500.0} | LLAMA3,
    # with frequencies above high_freq_factor too
    "llama3, long context": {"rope_type": "llama3", "rope_theta": 500.0} | LONG_CONTEXT,
}
CONFIGS = {
    "multi head": {"num_key_value_heads": 4},
    "grouped": {"num_key_value_heads": 2},
    "one kv head, head_dim of its own": {
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 10,
    },
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "large eps": {"rms_norm_eps": 0.1},
}
# each of the two, the other as it is by default
VARIANTS = CONFIGS | {name: {"rope_parameters": rope} for name, rope in ROPES.items()}
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
ALL_TEXT = torch.zeros_like(SEGMENTS)


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


def additive_masks(scheme):
    """What each layer of transformers has to add under SEGMENTS: 0 or -inf, (B, 1, T, T)."""
    masks = []
    for kind in kinds_of(scheme, 3):
        tables = [mask_table(kind, row, scheme) for row in SEGMENTS.tolist()]
        masks.append(additive(torch.tensor(tables)))
    return masks


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("shape", CONFIGS)
@torch.no_grad()
def test_plain_causal_logits_are_those_of_transformers(shape, rope):
    model = random_model(config_of(rope_parameters=ROPES[rope], **CONFIGS[shape]))
    input_ids = torch.randint(0, 40, (2, 40), generator=torch.Generator().manual_seed(1))

    logits = model(input_ids, torch.zeros_like(input_ids))

    wanted = peer_of(model)(input_ids=input_ids).logits
    assert_close(logits, wanted, 2e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=named)
@torch.no_grad()
def test_logits_under_masks_are_those_of_transformers_with_a_mask_for_each_layer(scheme, attention):
    model = random_model(config_of(), scheme, attention=attention)
    peer = peer_of(model)
    give_masks(peer).update(enumerate(additive_masks(scheme)))

    logits = model(INPUT, SEGMENTS)

    wanted = peer(input_ids=INPUT, position_ids=POSITIONS).logits
    assert logits.isfinite().all()
    assert_close(logits[REAL], wanted[REAL], 2e-5)


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("scheme", SCHEMES[1:4], ids=named)
@torch.no_grad()
def test_float64_logits_equal_a_recomputation_token_by_token(scheme, rope):
    config = config_of(rope_parameters=ROPES[rope], attention_bias=True, mlp_bias=True, head_dim=6)
    model = random_model(config, scheme, seed=3, dtype=torch.float64)

    logits = model(INPUT, SEGMENTS).numpy()

    for row in range(len(INPUT)):
        sequence = INPUT[row].tolist(), SEGMENTS[row].tolist(), POSITIONS[row].tolist()
        wanted = Recomputation(model).logits(*sequence)
        real = REAL[row].numpy()
        np.testing.assert_allclose(logits[row][real], wanted[real], rtol=1e-11, atol=1e-11)


class Recomputation:
    """The Llama of ref/llama.py in NumPy, one token and one head at a time; biases everywhere."""

    def __init__(self, model):
        self.scheme = model.scheme
        self.config = model.config
        self.weights = {name: p.detach().numpy() for name, p in hf_parameters(model).items()}

    def logits(self, tokens, segments, positions):
        x = [self.weights["model.embed_tokens.weight"][token] for token in tokens]
        for i, kind in enumerate(kinds_of(self.scheme, self.config.num_hidden_layers)):
            mask = mask_table(kind, segments, self.scheme)
            attended = self.attention(f"model.layers.{i}", x, mask, positions)
            x = [before + change for before, change in zip(x, attended)]
            x = [y + self.mlp(f"model.layers.{i}", y) for y in x]
        return np.array([self.weights["lm_head.weight"] @ self.norm("model.norm", y) for y in x])

    def attention(self, layer, x, mask, positions):
        """What attention adds to each token."""
        q, k, v = [], [], []  # a list of tokens, each a list of heads
        for y, position in zip(x, positions):
            y = self.norm(f"{layer}.input_layernorm", y)
            q.append(self.turned_heads(f"{layer}.self_attn.q_proj", y, position))
            k.append(self.turned_heads(f"{layer}.self_attn.k_proj", y, position))
            v.append(self.heads(f"{layer}.self_attn.v_proj", y))
        group = self.config.num_attention_heads // self.config.num_key_value_heads
        added = []
        for j in range(len(x)):
            seen = [t for t in range(len(x)) if mask[j][t]]
            heads = []
            for h, query in enumerate(q[j]):
                keys = [k[t][h // group] for t in seen]
                values = [v[t][h // group] for t in seen]
                heads.append(attended(query, keys, values))
            added.append(self.linear(f"{layer}.self_attn.o_proj", np.concatenate(heads)))
        return added

    def mlp(self, layer, y):
        """What the MLP adds to a token."""
        y = self.norm(f"{layer}.post_attention_layernorm", y)
        gate = self.linear(f"{layer}.mlp.gate_proj", y)
        silu = gate / (1 + np.exp(-gate))
        return self.linear(f"{layer}.mlp.down_proj", silu * self.linear(f"{layer}.mlp.up_proj", y))

    def heads(self, name, y):
        return self.linear(name, y).reshape(-1, self.config.head_dim)

    def turned_heads(self, name, y, position):
        return [turned(head, position, self.config) for head in self.heads(name, y)]

    def linear(self, name, y):
        return self.weights[f"{name}.weight"] @ y + self.weights[f"{name}.bias"]

    def norm(self, name, y):
        root = np.sqrt((y * y).mean() + self.config.rms_norm_eps)
        return y / root * self.weights[f"{name}.weight"]


def attended(query, keys, values):
    """The values of one head, weighted by the softmax of its scores."""
    weights = [math.exp(query @ key / math.sqrt(len(query))) for key in keys]
    return sum(weight * value for weight, value in zip(weights, values)) / sum(weights)


def turned(head, position, config):
    """RoPE on one head: the pair (i, i + D/2) as a complex number."""
    half = config.head_dim // 2
    out = np.empty_like(head)
    for i in range(half):
        angle = position * frequency_of(i, config)
        pair = complex(head[i], head[i + half]) * np.exp(1j * angle)
        out[i], out[i + half] = pair.real, pair.imag
    return out


def frequency_of(pair, config):
    """The angle per position of one pair."""
    rope = config.rope_parameters
    frequency = rope["rope_theta"] ** (-2 * pair / config.head_dim)
    if rope["rope_type"] == "linear":
        return frequency / rope["factor"]
    if rope["rope_type"] == "llama3":
        turns = rope["original_max_position_embeddings"] * frequency / (2 * math.pi)
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        kept = min(max((turns - low) / (high - low), 0), 1)
        return kept * frequency + (1 - kept) * frequency / rope["factor"]
    return frequency


@torch.no_grad()
def test_a_forked_cache_leaves_the_one_it_came_from_as_it_was():
    model = random_model(config_of(), MaskScheme(1, 1), dtype=torch.float64)
    cache = KVCache(model.kinds)
    cached_hidden_states(model, cache, INPUT[:, :6], SEGMENTS[:, :6])

    cached_hidden_states(model, cache.fork(), INPUT[:, 2:5], SEGMENTS[:, 2:5])

    rest = cached_hidden_states(model, cache, INPUT[:, 6:], SEGMENTS[:, 6:])
    assert_close(model.lm_head(rest), model(INPUT, SEGMENTS)[:, 6:], 1e-10)


@pytest.mark.parametrize("scheme", SCHEMES, ids=named)
@torch.no_grad()
def test_the_fused_kernel_and_the_equation_agree(scheme):
    fused = random_model(config_of(), scheme, dtype=torch.float64)
    equation = random_model(config_of(), scheme, dtype=torch.float64, attention="eager")

    assert_close(fused(INPUT, SEGMENTS)[REAL], equation(INPUT, SEGMENTS)[REAL], 1e-11)


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


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_transformers_reads_what_we_save(variant, tmp_path):
    model = random_model(config_of(**VARIANTS[variant]), MaskScheme(1, 1))
    save_model(model, tmp_path)

    peer, report = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", output_loading_info=True
    )

    assert not any(report.values())
    assert torch.equal(peer(INPUT).logits, peer_of(model)(INPUT).logits)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_we_read_what_transformers_saves(variant, tmp_path):
    source = random_model(config_of(**VARIANTS[variant]))
    peer = peer_of(source)
    peer.save_pretrained(tmp_path)

    model = load_model(tmp_path).eval()

    assert model.scheme == MaskScheme()
    assert_close(model(INPUT, ALL_TEXT), peer(INPUT).logits, 2e-5)


@torch.no_grad()
def test_we_read_shards_that_transformers_saves(tmp_path):
    source = random_model(config_of())
    peer_of(source).save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1

    model = load_model(tmp_path).eval()

    assert torch.equal(model(INPUT, ALL_TEXT), source(INPUT, ALL_TEXT))


def test_a_config_of_transformers_4_gives_the_same_rope_as_one_of_transformers_5():
    old = dict(vars(config_of()))
    del old["rope_parameters"]
    old |= {"rope_theta": 500.0, "rope_scaling": {"type": "llama3"} | LLAMA3}

    assert parse_config(old).rope_parameters == ROPES["llama3"]


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
