"""ref.llama against transformers, against a float64 re-computation, and against itself in pieces.

Masks come from `support.masks`, never from ref.masks.
"""

import json
import math

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ref.checkpoints import load_model, save_model
from ref.checkpoints.config import parse_config
from ref.checkpoints.weights import hf_parameters
from ref.llama import Llama, LlamaConfig
from ref.masks import MaskScheme
from ref.search.cache import KVCache
from ref.search.decoder import cached_hidden_states

from support.masks import mask_table
from support.models import config_of, random_model

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
ROPES = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "large theta": {"rope_type": "default", "rope_theta": 5e6},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "llama3": {"rope_type": "llama3", "rope_theta": 500.0} | LLAMA3,
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


def peer_of(model):
    """transformers' model with the same weights; its config is written out here, field by field."""
    c = model.config
    config = transformers.LlamaConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.hidden_size,
        intermediate_size=c.intermediate_size,
        num_hidden_layers=c.num_hidden_layers,
        num_attention_heads=c.num_attention_heads,
        num_key_value_heads=c.num_key_value_heads,
        head_dim=c.head_dim,
        rms_norm_eps=c.rms_norm_eps,
        tie_word_embeddings=c.tie_word_embeddings,
        attention_bias=c.attention_bias,
        mlp_bias=c.mlp_bias,
        rope_parameters=dict(c.rope_parameters),
        max_position_embeddings=c.max_position_embeddings,
        attn_implementation="eager",
    )
    peer = transformers.LlamaForCausalLM(config).to(model.norm.weight.dtype)
    missing, unexpected = peer.load_state_dict(hf_parameters(model), strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    return peer.eval()


def give_each_layer_its_mask(peer, segments, scheme):
    """Make decoder layer i of transformers add the mask of kind i, 0 or -inf, in place of its own."""

    def replace(additive):
        return lambda layer, args, kwargs: (args, kwargs | {"attention_mask": additive})

    for layer, kind in zip(peer.model.layers, kinds_of(scheme, len(peer.model.layers))):
        tables = torch.tensor([mask_table(kind, row, scheme) for row in segments.tolist()])
        additive = torch.zeros(tables.shape).masked_fill(~tables, -math.inf)[:, None]
        layer.register_forward_pre_hook(replace(additive.to(peer.dtype)), with_kwargs=True)


def kinds_of(scheme, layers):
    """SPEC section 2, "layer kind"."""
    cross = layers - scheme.cross_layers
    return [
        "IN" if i < scheme.intra_layers else "CR" if i >= cross else "OR" for i in range(layers)
    ]


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("shape", CONFIGS)
@torch.no_grad()
def test_plain_causal_logits_are_those_of_transformers(shape, rope):
    model = random_model(config_of(rope_parameters=ROPES[rope], **CONFIGS[shape]))
    input_ids = torch.randint(0, 40, (2, 40), generator=torch.Generator().manual_seed(1))

    logits = model(input_ids, torch.zeros_like(input_ids))

    wanted = peer_of(model)(input_ids=input_ids).logits
    torch.testing.assert_close(logits, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=named)
@torch.no_grad()
def test_logits_under_masks_are_those_of_transformers_with_a_mask_for_each_layer(scheme, attention):
    model = random_model(config_of(), scheme, attention=attention)
    peer = peer_of(model)
    give_each_layer_its_mask(peer, SEGMENTS, scheme)

    logits = model(INPUT, SEGMENTS)

    wanted = peer(input_ids=INPUT, position_ids=POSITIONS).logits
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[REAL], wanted[REAL], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("scheme", SCHEMES[1:4], ids=named)
@torch.no_grad()
def test_float64_logits_equal_a_recomputation_token_by_token(scheme, rope):
    config = config_of(rope_parameters=ROPES[rope], attention_bias=True, mlp_bias=True, head_dim=6)
    model = random_model(config, scheme, seed=3, dtype=torch.float64)

    logits = model(INPUT, SEGMENTS).numpy()

    for row in range(len(INPUT)):
        wanted = recomputed(
            model, INPUT[row].tolist(), SEGMENTS[row].tolist(), POSITIONS[row].tolist()
        )
        real = REAL[row].numpy()
        np.testing.assert_allclose(logits[row][real], wanted[real], rtol=1e-11, atol=1e-11)


def recomputed(model, tokens, segments, positions):
    """SPEC section 5 in NumPy: one token, one head at a time."""
    w = {name: p.detach().numpy() for name, p in hf_parameters(model).items()}
    c, T = model.config, len(tokens)
    heads, group = range(c.num_attention_heads), c.num_attention_heads // c.num_key_value_heads
    x = [w["model.embed_tokens.weight"][token] for token in tokens]
    for i, kind in enumerate(kinds_of(model.scheme, c.num_hidden_layers)):
        mask = mask_table(kind, segments, model.scheme)

        def linear(name, y, i=i):
            return w[f"model.layers.{i}.{name}.weight"] @ y + w[f"model.layers.{i}.{name}.bias"]

        normed = [rms(y, w[f"model.layers.{i}.input_layernorm.weight"], c.rms_norm_eps) for y in x]
        q, k, v = (
            [linear(f"self_attn.{p}_proj", y).reshape(-1, c.head_dim) for y in normed]
            for p in "qkv"
        )
        q, k = ([[turned(h, p, c) for h in y] for y, p in zip(z, positions)] for z in (q, k))
        for j in range(T):
            seen = [t for t in range(T) if mask[j][t]]
            out = []
            for h in heads:
                weights = [
                    math.exp(q[j][h] @ k[t][h // group] / math.sqrt(c.head_dim)) for t in seen
                ]
                out.append(sum(a * v[t][h // group] for a, t in zip(weights, seen)) / sum(weights))
            x[j] = x[j] + linear("self_attn.o_proj", np.concatenate(out))
            y = rms(x[j], w[f"model.layers.{i}.post_attention_layernorm.weight"], c.rms_norm_eps)
            gate = linear("mlp.gate_proj", y)
            x[j] = x[j] + linear(
                "mlp.down_proj", gate / (1 + np.exp(-gate)) * linear("mlp.up_proj", y)
            )
    return np.array(
        [w["lm_head.weight"] @ rms(y, w["model.norm.weight"], c.rms_norm_eps) for y in x]
    )


def rms(y, weight, eps):
    return y / np.sqrt((y * y).mean() + eps) * weight


def turned(head, position, config):
    """RoPE on one head: the pair (i, i + D/2) as a complex number."""
    rope, half = config.rope_parameters, config.head_dim // 2
    out = np.empty_like(head)
    for i in range(half):
        frequency = rope["rope_theta"] ** (-2 * i / config.head_dim)
        if rope["rope_type"] == "linear":
            frequency /= rope["factor"]
        if rope["rope_type"] == "llama3":
            turns = rope["original_max_position_embeddings"] * frequency / (2 * math.pi)
            low, high = rope["low_freq_factor"], rope["high_freq_factor"]
            share = min(max((turns - low) / (high - low), 0), 1)
            frequency = share * frequency + (1 - share) * frequency / rope["factor"]
        pair = complex(head[i], head[i + half]) * np.exp(1j * position * frequency)
        out[i], out[i + half] = pair.real, pair.imag
    return out


@st.composite
def sequences(draw):
    """Two sequences of one length: left padding, then text and items in any order."""
    length = draw(st.integers(2, 10))
    rows = []
    for _ in range(2):
        left = draw(st.integers(0, length - 1))
        rows.append(
            [-1] * left
            + draw(st.lists(st.integers(0, 3), min_size=length - left, max_size=length - left))
        )
    return torch.tensor(rows)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(sequences(), st.sampled_from(SCHEMES), st.sampled_from(["sdpa", "eager"]), st.data())
@torch.no_grad()
def test_a_sequence_fed_in_chunks_through_a_cache_gives_the_logits_of_the_whole(
    segments, scheme, attention, data
):
    model = random_model(config_of(), scheme, dtype=torch.float64, attention=attention)
    length = segments.shape[1]
    input_ids = INPUT[:, :length]
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1))))
    cache, pieces = KVCache(model.kinds), []

    for begin, end in zip([0, *cuts], [*cuts, length]):
        new = (input_ids[:, begin:end], segments[:, begin:end])
        pieces.append(model.lm_head(cached_hidden_states(model, cache, *new)))

    whole, real = model(input_ids, segments), segments != -1
    torch.testing.assert_close(torch.cat(pieces, dim=1)[real], whole[real], rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_a_forked_cache_leaves_the_one_it_came_from_as_it_was():
    model = random_model(config_of(), MaskScheme(1, 1), dtype=torch.float64)
    whole, cache = model(INPUT, SEGMENTS), KVCache(model.kinds)
    cached_hidden_states(model, cache, INPUT[:, :6], SEGMENTS[:, :6])

    cached_hidden_states(model, cache.fork(), INPUT[:, 2:5], SEGMENTS[:, 2:5])

    rest = model.lm_head(cached_hidden_states(model, cache, INPUT[:, 6:], SEGMENTS[:, 6:]))
    torch.testing.assert_close(rest, whole[:, 6:], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scheme", SCHEMES, ids=named)
@torch.no_grad()
def test_the_fused_kernel_and_the_equation_agree(scheme):
    fused = random_model(config_of(), scheme, dtype=torch.float64)
    equation = random_model(config_of(), scheme, dtype=torch.float64, attention="eager")

    torch.testing.assert_close(
        fused(INPUT, SEGMENTS)[REAL], equation(INPUT, SEGMENTS)[REAL], rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize("scheme", SCHEMES, ids=named)
@pytest.mark.parametrize("side", ["left", "right", "both"])
@torch.no_grad()
def test_padding_and_company_in_the_batch_change_nothing_at_real_tokens(side, scheme):
    model = random_model(config_of(), scheme, dtype=torch.float64)
    left, right = {"left": (5, 0), "right": (0, 5), "both": (2, 3)}[side]
    alone = model(INPUT[:1, :7], SEGMENTS[:1, :7])
    padded = torch.nn.functional.pad(SEGMENTS[:1, :7], (left, right), value=-1)
    input_ids = torch.nn.functional.pad(INPUT[:1, :7], (left, right), value=9)

    together = model(torch.cat((INPUT, input_ids)), torch.cat((SEGMENTS, padded)))

    assert together.isfinite().all()
    torch.testing.assert_close(together[2:, left : left + 7], alone, rtol=1e-11, atol=1e-11)


@torch.no_grad()
def test_position_ids_count_real_tokens_from_zero():
    model = random_model(config_of(), MaskScheme(1, 1))

    counted = model(INPUT, SEGMENTS)

    assert torch.equal(
        counted, model(INPUT, SEGMENTS, POSITIONS)
    )  # to the last bit: RoPE forgives a common shift
    assert not torch.equal(counted[REAL], model(INPUT, SEGMENTS, POSITIONS + 1)[REAL])


@torch.no_grad()
def test_padding_in_the_middle_moves_nobody():
    model = random_model(config_of(), MaskScheme(1, 1), dtype=torch.float64)
    alone = model(INPUT[:1], SEGMENTS[:1])
    order = [0, 1, 2, 3, 3, 3, *range(4, 12)]
    segments = SEGMENTS[:1, order].clone()
    segments[0, 4:6] = -1

    padded = model(INPUT[:1, order], segments)

    torch.testing.assert_close(padded[segments != -1], alone[0], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_without_masked_layers_items_are_text_to_the_last_bit(attention):
    model = random_model(config_of(), MaskScheme(0, 0), attention=attention)

    assert torch.equal(model(INPUT, SEGMENTS), model(INPUT, SEGMENTS.clamp(max=0)))


@pytest.mark.parametrize("scheme", SCHEMES[1:], ids=named)
@torch.no_grad()
def test_without_items_every_scheme_is_the_plain_model_to_the_last_bit(scheme):
    masked, plain = random_model(config_of(), scheme), random_model(config_of())
    text = SEGMENTS.clamp(max=0)

    assert torch.equal(masked(INPUT, text), plain(INPUT, text))
    assert not torch.allclose(
        masked(INPUT, SEGMENTS)[REAL], plain(INPUT, SEGMENTS)[REAL], atol=1e-3
    )


ITEM_2 = torch.tensor([4, 5])  # the places of item 2 in the first row of SEGMENTS
OTHER_ITEMS = torch.tensor([1, 2, 3, 7, 8])  # those of items 1 and 3


@torch.no_grad()
def test_changing_one_item_leaves_the_other_entries_unchanged_in_intra_layers():
    # Text sees items and items see text: with layers enough, text would carry news from item to
    # item. So the first IN layer is looked at with text present, all of them without text.
    changed, items = INPUT.clone(), SEGMENTS.where(SEGMENTS != 0, 1)
    changed[0, ITEM_2] = (INPUT[0, ITEM_2] + 1) % 40
    for layers, segments in ((1, SEGMENTS), (3, items)):
        model = random_model(config_of(num_hidden_layers=layers), MaskScheme(layers, 0))
        before, after = (
            model.hidden_states(INPUT, segments)[0],
            model.hidden_states(changed, segments)[0],
        )
        assert torch.equal(before[OTHER_ITEMS], after[OTHER_ITEMS])
        assert not torch.allclose(before[ITEM_2], after[ITEM_2], atol=1e-3)


@torch.no_grad()
def test_isolated_items_have_the_same_intra_states_wherever_they_stand():
    model = random_model(config_of(), MaskScheme(3, 0, text="isolated"), dtype=torch.float64)
    item = [7, 8, 9]
    early, late = torch.tensor([[*item, 1, 2, 3, 4]]), torch.tensor([[5, 6, 30, 31, *item]])

    first = model.hidden_states(early, torch.tensor([[1, 1, 1, 0, 2, 2, 3]]))[0, :3]
    last = model.hidden_states(late, torch.tensor([[0, 0, 1, 2, 3, 3, 3]]))[0, 4:]

    torch.testing.assert_close(first, last, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("own", [True, False])
@torch.no_grad()
def test_with_cross_layers_alone_an_entry_ends_unaware_of_its_own_earlier_tokens(own):
    model = random_model(config_of(), MaskScheme(0, 3, cross_self=own))
    changed = INPUT.clone()
    changed[0, 7] = (INPUT[0, 7] + 1) % 40  # the first token of item 3, whose last is at 8

    before, after = (
        model.hidden_states(INPUT, SEGMENTS)[0],
        model.hidden_states(changed, SEGMENTS)[0],
    )

    assert torch.equal(before[8], after[8])
    assert not torch.allclose(before[9], after[9], atol=1e-3)


@pytest.mark.parametrize(
    "scheme, seen",
    [
        (MaskScheme(3, 0, text="isolated"), [7, 8]),
        (MaskScheme(0, 3), [0, 1, 2, 3, 4, 5, 6, 8]),
        (MaskScheme(0, 0), [0, 1, 2, 3, 4, 5, 6, 7, 8]),
    ],
    ids=["isolated intra", "cross", "original"],
)
def test_a_gradient_is_exactly_zero_where_every_layer_masks_the_path(scheme, seen):
    model = random_model(config_of(), scheme)
    kept = []
    model.embed_tokens.register_forward_hook(
        lambda module, args, out: (out.retain_grad(), kept.append(out))[1]
    )

    model(INPUT, SEGMENTS)[0, 8].square().sum().backward()

    assert kept[0].grad[0].abs().sum(-1).nonzero()[:, 0].tolist() == seen


def test_dropout_acts_while_training_only():
    model = random_model(config_of(), MaskScheme(1, 1), dropout=0.5)
    plain = random_model(config_of(), MaskScheme(1, 1))

    assert torch.equal(model(INPUT, SEGMENTS), plain(INPUT, SEGMENTS))
    model.train()
    assert not torch.allclose(model(INPUT, SEGMENTS), model(INPUT, SEGMENTS), atol=1e-3)
    plain.train()
    assert torch.equal(plain(INPUT, SEGMENTS), plain.eval()(INPUT, SEGMENTS))


def test_dropout_acts_on_the_embedding_and_on_all_that_a_block_adds():
    model = random_model(config_of(attention_bias=True, mlp_bias=True), dropout=1.0).train()

    hidden = model.hidden_states(INPUT, SEGMENTS)

    assert not hidden.any()


def test_an_unknown_attention_is_refused():
    with pytest.raises(ValueError, match="attention is 'flash'; expected 'sdpa' or 'eager'"):
        Llama(config_of(), attention="flash")


# Folders


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("shape", CONFIGS)
@torch.no_grad()
def test_transformers_reads_what_we_save(shape, rope, tmp_path):
    model = random_model(config_of(rope_parameters=ROPES[rope], **CONFIGS[shape]), MaskScheme(1, 1))
    save_model(model, tmp_path)

    peer, report = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", output_loading_info=True
    )

    assert not any(report.values())
    assert torch.equal(peer(INPUT).logits, peer_of(model)(INPUT).logits)


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("shape", CONFIGS)
@torch.no_grad()
def test_we_read_what_transformers_saves(shape, rope, tmp_path):
    source = random_model(config_of(rope_parameters=ROPES[rope], **CONFIGS[shape]))
    peer = peer_of(source)
    peer.save_pretrained(tmp_path)

    model = load_model(tmp_path).eval()

    assert model.scheme == MaskScheme()
    torch.testing.assert_close(model(INPUT, 0 * INPUT), peer(INPUT).logits, rtol=2e-5, atol=2e-5)


@torch.no_grad()
def test_we_read_shards_that_transformers_saves(tmp_path):
    source = random_model(config_of())
    peer_of(source).save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1

    model = load_model(tmp_path).eval()

    assert torch.equal(model(INPUT, 0 * INPUT), source(INPUT, 0 * INPUT))


def test_a_config_of_transformers_4_gives_the_same_rope_as_one_of_transformers_5():
    old = json.loads(json.dumps(vars(config_of())))
    del old["rope_parameters"]
    old |= {"rope_theta": 500.0, "rope_scaling": {"type": "llama3"} | LLAMA3}

    assert parse_config(old).rope_parameters == ROPES["llama3"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_saved_model_comes_back_with_every_bit_and_its_scheme(dtype, tmp_path):
    scheme = MaskScheme(1, 2, cross_self=False, text="isolated", delimiters="text", target="text")
    model = random_model(config_of(tie_word_embeddings=True), scheme, dtype=dtype)

    save_model(model, tmp_path)
    again = load_model(tmp_path, dtype=dtype)

    assert again.scheme == scheme and again.config == model.config
    assert again.lm_head.weight is again.embed_tokens.weight
    for name, parameter in hf_parameters(model).items():
        assert torch.equal(hf_parameters(again)[name], parameter), name


def test_another_scheme_can_be_given_while_loading(folder):
    assert load_model(folder).scheme == MaskScheme(1, 1)
    assert load_model(folder, scheme=MaskScheme(0, 2)).scheme == MaskScheme(0, 2)


@pytest.fixture
def folder(tmp_path):
    save_model(random_model(config_of(num_hidden_layers=2), MaskScheme(1, 1)), tmp_path)
    return tmp_path


def refusal(folder, kind=ValueError):
    """The one-line message with which the folder is refused."""
    with pytest.raises(kind) as error:
        load_model(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_missing_folder_is_named(tmp_path):
    assert f"{tmp_path / 'none'}: no such folder" == refusal(tmp_path / "none", FileNotFoundError)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()

    assert str(folder / name) in refusal(folder, FileNotFoundError)


@pytest.mark.parametrize("text", ["{", "", '{"vocab_size": 40', "[1]", "nonsense", b"\xff\xfe\x00"])
def test_a_config_that_is_no_json_object_is_named(folder, text):
    (folder / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())

    assert refusal(folder).startswith(f"{folder / 'config.json'}: ")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model_type": "gpt2"}, ["model_type", "gpt2"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu"]),
        ({"sliding_window": 4096}, ["sliding_window", "4096"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config"]),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, ["rope_type", "yarn"]),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
            ["rope_type", "dynamic"],
        ),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, ["factor", "None"]),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": "big"}}, ["rope_theta", "big"]),
        ({"rope_parameters": {"rope_type": ["linear"]}}, ["rope_type", "['linear']"]),
        ({"rope_parameters": 7}, ["rope_parameters", "7"]),
        ({"rope_parameters": None, "rope_scaling": "linear"}, ["rope_scaling", "linear"]),
        ({"vocab_size": 0}, ["vocab_size", "0"]),
        ({"vocab_size": "40"}, ["vocab_size", "'40'"]),
        ({"hidden_size": None}, ["hidden_size", "None"]),
        ({"num_hidden_layers": True}, ["num_hidden_layers", "True"]),
        ({"num_attention_heads": 3}, ["num_attention_heads", "3"]),
        ({"num_attention_heads": 3, "head_dim": None}, ["hidden_size", "3 heads"]),
        ({"head_dim": 5}, ["head_dim", "5"]),
        ({"rms_norm_eps": float("nan")}, ["rms_norm_eps", "nan"]),
        ({"tie_word_embeddings": "no"}, ["tie_word_embeddings", "no"]),
        (
            {"hatllm": {"intra_layers": 2, "cross_layers": 1}},
            ["intra_layers 2", "cross_layers 1", "2 layers"],
        ),
        ({"hatllm": {"text": "hidden"}}, ["text", "hidden"]),
        ({"hatllm": {"intra": 1}}, ["intra"]),
        ({"hatllm": None}, ["mask scheme"]),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_a_config_that_does_not_describe_this_model_is_refused_by_file_field_and_value(
    folder, changes, words
):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    message = refusal(folder)

    assert all(word in message for word in [str(path), *words]), message


def change_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    return str(path)


def test_all_tensors_that_do_not_fit_are_named_in_one_message(folder):
    def change(tensors):
        del tensors["model.norm.weight"], tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(3, 5)
        tensors["lm_head.weight"] = torch.zeros(41, 16)

    path = change_weights(folder, change)

    message = refusal(folder)
    wanted = [
        "model.norm.weight",
        "model.layers.1.mlp.up_proj.weight",
        "model.layers.2.mlp.up_proj.weight",
        "(3, 5)",
    ]
    assert all(
        word in message for word in [path, *wanted, "lm_head.weight", "(41, 16)", "(40, 16)"]
    ), message
    assert "model.layers.0" not in message and "embed_tokens" not in message


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(folder, value):
    def change(tensors):
        tensors["model.layers.1.self_attn.k_proj.weight"][2, 3] = value

    path = change_weights(folder, change)

    message = refusal(folder)
    assert path in message and "model.layers.1.self_attn.k_proj.weight" in message


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_weight_file_is_named(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])

    assert refusal(folder).startswith(f"{path}: not a safetensors file")
