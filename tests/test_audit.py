"""The audit of a trained model: what its attention probabilities show of its masks."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from ref import llama_numpy
from ref.golden import __main__ as command
from ref.golden.audit import examine
from ref.golden.audit.bugs import BUGS
from ref.golden.audit.dump import Dump
from ref.golden.audit.report import print_bugs
from ref.golden.copies import copy_of
from ref.masks import MaskScheme, build_masks

from peers.transformers_peer import additive, give_masks

SCHEME = SimpleNamespace(intra_layers=2, cross_layers=3, cross_self=True, text="visible")
OPTIONS = ("--intra-layers", "2", "--cross-layers", "3")
NUM_LAYERS, NUM_HEADS = 8, 3
# Text before, between and after items, padding left and right.
SEGMENT_IDS = np.array(
    [
        [0, 0, 1, 1, 1, 2, 2, 0, 3, 3, 4, 4, 4],
        [-1, -1, 0, 1, 1, 1, 2, 2, 0, 3, 3, 4, 4],
        [1, 1, 2, 2, 0, 3, 3, 3, 0, 4, 4, -1, -1],
    ]
)


def right(copy, case):
    """A plant that plants nothing."""
    return {}


def planted_dump(plant, scheme=SCHEME, scale=1.0, num_queries=SEGMENT_IDS.shape[1]):
    """The Dump of a model with a bug on random scores of this standard deviation."""
    B, T = SEGMENT_IDS.shape
    copy = copy_of(llama_numpy)
    case = SimpleNamespace(
        segment_ids=SEGMENT_IDS,
        position_ids=llama_numpy.count_positions(SEGMENT_IDS),
        scheme=scheme,
        rows=[{"roles": [""] * T}] * B,
    )
    segment_ids = plant(copy, case).get("segment_ids", SEGMENT_IDS)
    random = np.random.default_rng(0)
    weights = {}
    for i, mask in enumerate(copy.layer_masks(segment_ids, NUM_LAYERS, scheme)):
        scores = random.normal(scale=scale, size=(B, NUM_HEADS, T, T))
        probabilities = copy.masked_softmax(scores, mask)[1]
        weights[i] = probabilities[:, :, T - num_queries :].astype(np.float32)
    return Dump(weights, SEGMENT_IDS)


def with_weights(dump, change):
    """The dump with change(weights (B, H, Q, T)) of each layer."""
    weights = {i: change(of_layer.copy()) for i, of_layer in dump.weights.items()}
    return Dump(weights, dump.segment_ids)


def write(folder, dump, name="layers.{}.probabilities", **tensors):
    """A dump as a file, with these tensors in place of its own."""
    own = {name.format(i): np.ascontiguousarray(weights) for i, weights in dump.weights.items()}
    path = folder / "dump.safetensors"
    save_file(own | {"segment_ids": dump.segment_ids} | tensors, path)
    return str(path)


@pytest.fixture
def run(tmp_path, capsys):
    """run(dump, option, ...): exit code and report of the command."""

    def call(dump, *options, **names):
        code = command.main(["audit", write(tmp_path, dump, **names), *OPTIONS, *options])
        return code, capsys.readouterr().out

    return call


@pytest.mark.parametrize("name", ["layers.{}.probabilities", "attentions.{}"])
def test_a_right_model_is_right_under_both_names_of_tensors(name, run):
    code, report = run(planted_dump(right), name=name)
    assert code == 0
    assert "ok    layer 1: IN; the scheme says IN" in report
    assert "ok    layer 7: CR; the scheme says CR" in report
    assert report.endswith("8 of 8 layers are what the scheme says\n")


@pytest.mark.parametrize("cross_self", [True, False])
@pytest.mark.parametrize("text", ["visible", "isolated"])
def test_the_options_of_the_scheme_are_heeded(cross_self, text, run):
    scheme = SimpleNamespace(intra_layers=2, cross_layers=3, cross_self=cross_self, text=text)
    options = ("--cross-self" if cross_self else "--no-cross-self", "--text", text)
    assert run(planted_dump(right, scheme), *options)[0] == 0
    other = ("--no-cross-self" if cross_self else "--cross-self", "--text", text)
    assert run(planted_dump(right, scheme), *other)[0] == 1


def even(weights):
    """Every key that has weight gets the same."""
    return (weights > 0) / (weights > 0).sum(axis=-1, keepdims=True)


def first_head_on_itself(weights):
    weights[:, 0] = np.eye(weights.shape[-1])
    return weights


def every_head_on_itself(weights):
    weights[:] = np.eye(weights.shape[-1])
    return weights


def in_float16(weights):
    return weights.astype(np.float16)


def in_bfloat16(weights):
    return torch.tensor(weights).bfloat16().float().numpy()


def free_at_padding(weights):
    is_padding = (SEGMENT_IDS == -1)[:, None, :, None]
    return np.where(is_padding, 1 / weights.shape[-1], weights)


@pytest.mark.parametrize(
    "change",
    [
        even,
        first_head_on_itself,
        every_head_on_itself,
        in_float16,
        in_bfloat16,
        free_at_padding,
    ],
)
def test_right_masks_are_not_called_wrong_whatever_the_weights_under_them(change):
    result = examine(with_weights(planted_dump(right), change), SCHEME)
    assert result.is_right
    assert result.bugs == []


@pytest.mark.parametrize("scale", [5, 20, 100, 400])
@pytest.mark.parametrize("change", [in_float16, in_bfloat16])
def test_weights_that_are_rounded_to_0_are_not_called_masked(scale, change):
    dump = with_weights(planted_dump(right, scale=scale), change)
    assert sum((weights == 0).sum() for weights in dump.weights.values()) > 2500
    assert examine(dump, SCHEME).is_right


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_of_masks_schedule_or_segments_that_shows_is_named_from_random_weights(bug):
    dump, right_dump = planted_dump(BUGS[bug]), planted_dump(right)
    shows = any(not np.allclose(dump.weights[i], right_dump.weights[i]) for i in dump.weights)
    result = examine(dump, SCHEME)
    assert result.is_right != shows
    assert (bug in result.bugs) == shows
    assert len(result.bugs) <= 6  # that have the same pattern in these prompts


def test_heads_that_differ_are_told_and_no_bug_of_all_heads_is_blamed(run):
    dump, without_masks = planted_dump(right), planted_dump(BUGS["mask-never-applied"])
    dump.weights[1][:, 1] = without_masks.weights[1][:, 1]
    code, report = run(dump)
    assert code == 1
    assert "FAIL  layer 1: OR; the scheme says IN" in report
    assert "the heads differ: IN in [0, 2]; OR in [1]" in report
    assert "No known bug" in report


def test_a_right_model_in_bfloat16_is_told(run):
    assert run(with_weights(planted_dump(right, scale=2), in_bfloat16))[0] == 0


@pytest.mark.parametrize("num_queries", [1, 2])
def test_the_queries_of_a_step_of_decoding_are_the_last_tokens(num_queries):
    planted = planted_dump(BUGS["mask-never-applied"], num_queries=num_queries)
    assert "mask-never-applied" in examine(planted, SCHEME).bugs
    assert examine(planted_dump(right, num_queries=num_queries), SCHEME).is_right


def test_a_weight_where_none_may_lie_is_told_with_its_place(run):
    dump = planted_dump(right)
    dump.weights[0][0, 1, 6, 3] = 0.25  # item 2 looks at item 1 in an IN layer
    code, report = run(dump)
    assert code == 1
    assert "FAIL  layer 0: none of IN, OR and CR; the scheme says IN" in report
    assert "the largest, 0.25, at row 0, head 1, query 6 (segment 2), key 3 (segment 1)" in report
    assert "No known bug of masks, schedule or segments" in report


def test_the_share_of_misplaced_weight_is_that_of_all_weight():
    dump = planted_dump(right)
    dump.weights[0][0, :, 6] = 0
    dump.weights[0][0, :, 6, 3] = 1  # in each head one row, wholly misplaced
    finding = examine(dump, SCHEME).findings[0]
    num_real_rows = 3 * 13 - 4
    assert finding.share == pytest.approx(1 / num_real_rows, rel=1e-5)


def test_a_pair_that_is_0_in_every_head_is_told_as_masked(run):
    dump = planted_dump(right)
    dump.weights[3][0, :, 8, 5] = 0
    code, report = run(dump)
    assert code == 1
    assert "1 pairs that may have weight are masked; the first at row 0, head 0, query 8" in report


def test_pairs_that_may_be_masked_or_rounded_to_0_are_counted(run):
    dump = planted_dump(right)
    dump.weights[3][0, :, 8] = 0
    dump.weights[3][0, :, 8, 8] = 1  # of the nine keys of an OR layer
    code, report = run(dump)
    assert code == 0
    assert "8 pairs that may have weight are 0, rounded or masked" in report


def test_a_scheme_of_more_layers_than_the_model_is_refused_where_all_masks_fit_too():
    all_intra = SimpleNamespace(**vars(SCHEME) | {"intra_layers": NUM_LAYERS, "cross_layers": 0})
    one_more = SimpleNamespace(**vars(all_intra) | {"intra_layers": NUM_LAYERS + 1})
    with pytest.raises(ValueError, match="at most the model's 8 layers"):
        examine(planted_dump(right, all_intra), one_more)


def test_of_the_bugs_that_fit_those_come_first_that_allow_the_fewest_pairs():
    # with scores so far apart most weights are rounded to 0, and bugs fit that allow more
    dump = planted_dump(BUGS["mask-of-first-layer"], scale=300)
    bugs = examine(dump, SCHEME).bugs
    assert len(bugs) > 2
    assert (bugs[0], bugs[-1]) == ("mask-of-first-layer", "mask-added-as-numbers")


def test_a_row_that_does_not_sum_to_1_is_told(run):
    dump = planted_dump(right)
    dump.weights[3][0, 1, 8] *= 0.5
    code, report = run(dump)
    assert code == 1
    assert "1 rows do not sum to 1; the worst sums to 0.5" in report


def test_a_mask_of_minus_ten_is_told_from_a_mask_that_is_ignored(run):
    code, report = run(planted_dump(BUGS["mask-minus-ten"]))
    assert code == 1
    assert "about e^-10 times the others: was a finite number added in place of -inf?" in report
    assert "1. mask-minus-ten (mask)" in report
    assert "2. " not in report


def test_nan_is_told_and_that_of_padding_by_itself(run):
    dump = planted_dump(right)
    dump.weights[0][0, 0, 3] = np.nan
    dump.weights[1][1, 0, 0] = np.nan
    code, report = run(dump)
    assert code == 1
    assert "13 weights are NaN: is there a row without any key?" in report
    assert "13 weights of padding queries are NaN" in report
    assert "6 of 8 layers" in report and "Diagnosis" not in report


def test_layers_that_the_prompt_does_not_tell_apart_are_not_called_right(run):
    one_short_item = np.where(SEGMENT_IDS < 0, -1, 0)
    one_short_item[0, 12] = 1
    with_plain_masks = SimpleNamespace(**vars(SCHEME) | {"intra_layers": 0, "cross_layers": 0})
    weights = planted_dump(right, with_plain_masks).weights
    code, report = run(Dump(weights, one_short_item))
    assert code == 2
    assert "?     layer 0: IN or OR or CR; the scheme says IN" in report
    assert (
        "0 of 8 layers are what the scheme says\nthis prompt does not tell of layers 0, 1" in report
    )


def test_layers_that_the_dump_lacks_are_told_and_counted_by_the_option(run):
    dump = planted_dump(right)
    del dump.weights[7], dump.weights[4]
    code, report = run(dump, "--layers", "8")
    assert code == 0
    assert "6 of 6 layers are what the scheme says\nnot in the dump: layers 4, 7" in report


@pytest.mark.parametrize(
    "num_bugs, words",
    [(2, "tell these apart"), (5, "tell these apart"), (7, "these and 2 more apart")],
)
def test_that_a_dump_does_not_tell_several_bugs_apart_is_said(num_bugs, words, capsys):
    bugs = list(BUGS)[:num_bugs]
    print_bugs(bugs)
    text = capsys.readouterr().out
    assert f"1. {bugs[0]} (" in text
    assert words in text


def test_json_holds_the_same(run):
    code, report = run(planted_dump(BUGS["kinds-exchanged"]), "--json")
    values = json.loads(report, parse_constant=pytest.fail)
    assert code == 1 and not values["is_right"]
    assert values["bugs"] == ["kinds-exchanged"]
    kinds = [finding["kinds"] for finding in values["findings"]]
    assert kinds == [["CR"]] * 2 + [["OR"]] * 3 + [["IN"]] * 3
    assert [f["is_right"] for f in values["findings"]] == [False] * 2 + [True] * 3 + [False] * 3


WEIGHTS = "layers.0.probabilities"


@pytest.mark.parametrize(
    "tensors, message",
    [
        ({"segment_ids": np.zeros((3, 13))}, "segment_ids is float64 (3, 13); expected integers"),
        (
            {"segment_ids": np.zeros(13, int)},
            "segment_ids is int64 (13,); expected integers (B, T)",
        ),
        ({"segment_ids": np.zeros((0, 13), int)}, "expected integers (B, T), at least one"),
        ({"segment_ids": np.full((3, 13), -2)}, "segment_ids has -2; expected -1 or more"),
        ({"segment_ids": np.zeros((3, 13), int)}, "segment_ids holds no item"),
        ({"segment_ids": np.full((3, 13), 2**63, np.uint64)}, "expected -1 or more, below 2^31"),
        ({"segment_ids": np.full((3, 13), 2**31)}, "segment_ids has 2147483648; expected -1"),
        ({"segment_ids": np.ones((3, 9), int)}, "expected (3, heads, queries, 9)"),
        ({WEIGHTS: np.zeros((3, 3, 13, 13), int)}, f"{WEIGHTS} is int64; expected floating"),
        ({WEIGHTS: np.zeros((3, 13, 13))}, "shape (3, 13, 13); expected (3, heads, queries, 13)"),
        ({WEIGHTS: np.zeros((3, 0, 13, 13))}, "shape (3, 0, 13, 13); expected (3, heads, "),
        ({WEIGHTS: np.zeros((3, 3, 0, 13))}, "shape (3, 3, 0, 13); expected (3, heads, queries"),
        ({WEIGHTS: np.zeros((3, 3, 14, 13))}, "shape (3, 3, 14, 13); expected (3, heads, queries"),
        ({WEIGHTS: np.zeros((3, 2, 13, 13))}, "expected one for all"),
        ({WEIGHTS: np.full((3, 3, 13, 13), -4.5)}, "holds -4.5; expected probabilities from 0"),
        ({"attentions.0": np.zeros((3, 3, 13, 13))}, "holds layer 0 twice"),
        ({"attentions.99999999": np.zeros((3, 3, 13, 13))}, "100000000 layers are more than any"),
    ],
)
def test_an_unusable_tensor_is_one_clear_line_and_exit_code_2(tensors, message, tmp_path, capsys):
    path = write(tmp_path, planted_dump(right), **tensors)
    assert_one_line(["audit", path, *OPTIONS], message, capsys)


def test_a_dump_of_one_head_is_read(run):
    dump = planted_dump(right)
    for layer, weights in dump.weights.items():
        dump.weights[layer] = weights[:, :1].copy()
    code, report = run(dump)
    assert code == 0 and "8 of 8 layers are what the scheme says" in report


def assert_one_line(arguments, message, capsys):
    assert command.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_an_unusable_file_or_scheme_is_one_clear_line_and_exit_code_2(tmp_path, capsys):
    path = write(tmp_path, planted_dump(right))
    assert_one_line(["audit", path, *OPTIONS, "--layers", "7"], "dump holds layer 7", capsys)
    too_many = ("--intra-layers", "5", "--cross-layers", "4")
    assert_one_line(["audit", path, *too_many], "at most the model's 8 layers", capsys)
    assert_one_line(["audit", path, *OPTIONS[:2]], "required: --cross-layers", capsys)
    assert_one_line(["audit", path, *OPTIONS[2:]], "required: --intra-layers", capsys)
    assert_one_line(["audit", path + "x", *OPTIONS], "no such file", capsys)
    save_file({"segment_ids": SEGMENT_IDS}, path)
    assert_one_line(["audit", path, *OPTIONS], "expected layers.0.probabilities", capsys)
    save_file({WEIGHTS: np.zeros((3, 3, 13, 13))}, path)
    assert_one_line(["audit", path, *OPTIONS], "holds no segment_ids", capsys)
    (tmp_path / "dump.safetensors").write_bytes(b"\x10")
    assert_one_line(["audit", path, *OPTIONS], "expected a whole safetensors file", capsys)


@pytest.fixture(scope="module")
def model():
    """A Llama of transformers with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=48,
        intermediate_size=48,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=NUM_HEADS,
        num_key_value_heads=1,
        initializer_range=0.3,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def masks():
    """The masks of the scheme, as numbers to add, for each layer."""
    scheme = MaskScheme(intra_layers=2, cross_layers=3)
    of_kind = build_masks(torch.from_numpy(SEGMENT_IDS), scheme)
    return [additive(of_kind[kind]) for kind in scheme.kinds(NUM_LAYERS)]


def dump_of(attentions):
    return Dump(dict(enumerate(a.numpy() for a in attentions)), SEGMENT_IDS)


INPUT_IDS = torch.arange(SEGMENT_IDS.size).reshape(SEGMENT_IDS.shape)


@torch.no_grad()
def test_a_mask_for_each_layer_by_hooks_is_right_in_transformers(model, masks, run):
    hooked = LlamaForCausalLM(model.config).eval()
    give_masks(hooked).update(enumerate(masks))
    attentions = hooked(INPUT_IDS, output_attentions=True).attentions
    assert run(dump_of(attentions))[0] == 0


@torch.no_grad()
def test_transformers_ignores_an_argument_that_it_does_not_know_and_the_audit_tells(
    model, masks, run
):
    attention_mask = torch.from_numpy(SEGMENT_IDS != -1)
    output = model(
        INPUT_IDS, attention_mask=attention_mask, layer_masks=masks, output_attentions=True
    )
    code, report = run(dump_of(output.attentions))
    assert code == 1
    assert all(f"FAIL  layer {i}: OR; the scheme says" in report for i in (0, 1, 5, 6, 7))
    assert "3 of 8 layers are what the scheme says" in report
    assert "1. mask-never-applied (mask)" in report


@torch.no_grad()
def test_transformers_gives_one_mask_to_all_layers_and_the_audit_tells(model, masks, run):
    output = model(INPUT_IDS, attention_mask=masks[0], output_attentions=True)
    code, report = run(dump_of(output.attentions))
    assert code == 1
    assert all(f"FAIL  layer {i}: IN; the scheme says" in report for i in range(2, 8))
    assert "1. mask-of-first-layer (schedule)" in report


@torch.no_grad()
def test_transformers_decodes_without_masks_that_only_the_prompt_was_given_and_the_audit_tells(
    model, masks
):
    hooked = LlamaForCausalLM(model.config).eval()
    mask_of_layer = give_masks(hooked)
    mask_of_layer.update((i, mask[:1, :, :-1, :-1]) for i, mask in enumerate(masks))
    cache = hooked(INPUT_IDS[:1, :-1], use_cache=True).past_key_values
    mask_of_layer.update(dict.fromkeys(range(NUM_LAYERS)))
    output = hooked(INPUT_IDS[:1, -1:], past_key_values=cache, output_attentions=True)
    weights = dict(enumerate(a.numpy() for a in output.attentions))
    result = examine(Dump(weights, SEGMENT_IDS[:1]), SCHEME)
    assert not result.is_right
    assert result.bugs[0] == "mask-never-applied"
