"""Where attention goes: by hand, against loops over the NumPy model, and through evaluate.py."""

import json
import math
import sys
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import evaluate
from ref import llama_numpy, recommender
from ref.checkpoints.config import config_values
from ref.checkpoints.weights import hf_parameters
from ref.data import dataset
from ref.masks import MaskScheme
from ref.report import attention
from ref.report.attention import KEYS, QUERIES

from support.catalogue import TITLES
from support.data import made_up_rows, sentencepiece_model, write_interactions, write_llm
from support.models import config_of, random_model
from support.svg import SVG, texts_of

NAN = math.nan
SAME, OTHER, TEXT, ITSELF = range(4)
HISTORY_TOKENS, LAST_TOKEN, TARGET_TOKENS = range(3)


def tiny_prompt(item_numbers, prompt_length):
    """A prompt of which only the parts matter."""
    numbers = np.array(item_numbers)
    return SimpleNamespace(
        input_ids=np.arange(len(numbers)),
        segment_ids=numbers,
        item_numbers=numbers,
        prompt_length=prompt_length,
    )


# text, two tokens of item 1, one of item 2, the target
FIVE_TOKENS = tiny_prompt([0, 1, 1, 2, 3], prompt_length=4)
TWO_TOKENS = tiny_prompt([1, 2], prompt_length=1)
HISTORIES = [
    ["The King", "Heat", "Toy Story"],
    ["Alien", "Alien"],
    ["Casino Royale"],
    ["Jaws", "Rocky IV", "Lion", "Big Fish", "Rocky IV"],
]


def with_even_attention(model):
    """Without query projections every score is 0: a query spreads evenly over what it may see."""
    for layer in model.layers:
        torch.nn.init.zeros_(layer.self_attn.q_proj.weight)
    return model


def even_model(scheme):
    return with_even_attention(random_model(config_of(), scheme, dtype=torch.float64))


def encoded(encoder):
    """Prompts of HISTORIES, each with a target."""
    return [encoder.encode(history, target) for history, target in zip(HISTORIES, TITLES)]


# layer: share of the history tokens, their per_pair, share of the last token and of the target
# fmt: off
BY_HAND = {
    "IN": (0, [1/9, 0, 4/9, 4/9], [1/3, NAN, 4/9, 4/9], [0, 0, 1/2, 1/2], [0, 0, 1/2, 1/2]),
    "OR": (1, [1/9, 1/6, 13/36, 13/36], [1/3, 1/4, 13/36, 13/36], [0, 1/2, 1/4, 1/4],
           [0, 3/5, 1/5, 1/5]),
    "CR": (2, [0, 1/6, 5/12, 5/12], [NAN, 1/4, 5/12, 5/12], [0, 1/2, 1/4, 1/4],
           [0, 3/5, 1/5, 1/5]),
}
# fmt: on


@pytest.mark.parametrize("kind", BY_HAND)
def test_even_attention_over_five_tokens_worked_by_hand(kind):
    layer, history, history_per_pair, last, target = BY_HAND[kind]
    measured = attention.measure(even_model(MaskScheme(1, 1)), [FIVE_TOKENS])
    assert measured.share.shape == measured.per_pair.shape == (3, 4, 3, 4)
    assert measured.sizes.tolist() == [3, 1, 1]
    assert measured.kinds[layer] == kind
    for head in range(4):
        share, per_pair = measured.share[layer, head], measured.per_pair[layer, head]
        np.testing.assert_allclose(share, [history, last, target], atol=1e-12)
        np.testing.assert_allclose(per_pair[HISTORY_TOKENS], history_per_pair, atol=1e-12)


def test_prompts_are_pooled_query_by_query():
    measured = attention.measure(even_model(MaskScheme()), [FIVE_TOKENS, TWO_TOKENS])
    assert measured.sizes.tolist() == [4, 2, 2]
    history = [1 / 12, 1 / 8, 13 / 48, 25 / 48]
    last = [0, 1 / 4, 1 / 8, 5 / 8]
    target = [0, 11 / 20, 1 / 10, 7 / 20]
    target_per_pair = [NAN, 1.1 / 4, 1 / 5, 0.7 / 2]
    np.testing.assert_allclose(measured.share[0, 0], [history, last, target], atol=1e-12)
    np.testing.assert_allclose(measured.per_pair[0, 0, TARGET_TOKENS], target_per_pair, atol=1e-12)


LAYOUTS = pytest.mark.parametrize("layout", ("lines", "instruction"))


@pytest.fixture
def evenly(model_for, encoder_for):
    """Makes the Attention of an even model with one IN and one CR layer, in a layout."""

    def make(layout):
        scheme = MaskScheme(1, 1)
        model = with_even_attention(model_for(scheme))
        return attention.measure(model, encoded(encoder_for(scheme, layout)))

    return make


@LAYOUTS
def test_even_attention_has_no_skew_although_the_same_item_gets_more(evenly, layout):
    measured = evenly(layout)
    skew = measured.skew[:, [HISTORY_TOKENS, TARGET_TOKENS]]
    np.testing.assert_allclose(skew[1], [1, 1], rtol=1e-12)
    assert np.isnan(skew[2]).all()  # a CR layer has no pairs of the same item
    same_item, other_items = measured.per_pair[1, 0, HISTORY_TOKENS, [SAME, OTHER]]
    assert same_item > 1.1 * other_items


@LAYOUTS
def test_skew_is_what_the_mean_head_gives_beyond_even_attention(evenly, layout):
    measured = evenly(layout)
    measured.per_pair[1, 0, :, SAME] *= 3  # one head of four: (3 + 1 + 1 + 1) / 4
    skew = measured.skew[1, [HISTORY_TOKENS, TARGET_TOKENS]]
    np.testing.assert_allclose(skew, 1.5, rtol=1e-12)


def key_class(numbers, j, k):
    """Which of KEYS key k is to query j."""
    if k == j:
        return ITSELF
    if numbers[k] == 0:
        return TEXT
    return SAME if numbers[k] == numbers[j] else OTHER


def query_sets(prompt, j):
    """In which of QUERIES query j is."""
    target = max(prompt.item_numbers)
    is_member = [
        1 <= prompt.item_numbers[j] < target,
        j == prompt.prompt_length - 1,
        prompt.item_numbers[j] == target,
    ]
    return np.flatnonzero(is_member)


def numpy_trace(model, prompt):
    """Probabilities (L, H, T, T) and masks (L, T, T) of all layers, by the NumPy model."""
    weights = {name: p.detach().numpy() for name, p in hf_parameters(model).items()}
    values, trace = config_values(model.config), {}
    ids = prompt.input_ids[None], prompt.segment_ids[None]
    llama_numpy.forward(weights, values, *ids, model.scheme, trace=trace)
    layers = range(len(model.layers))
    probabilities = np.stack([trace[f"layers.{layer}.probabilities"][0] for layer in layers])
    return probabilities, np.stack([trace[f"layers.{layer}.mask"][0] for layer in layers])


def measured_by_loops(model, prompts):
    """The definitions once more: share, per_pair, per_pair of even attention, sizes."""
    num_layers, num_heads = len(model.layers), model.config.num_attention_heads
    mass = np.zeros((num_layers, num_heads, 3, 4))
    pairs, even, sizes = np.zeros((num_layers, 3, 4)), np.zeros((num_layers, 3, 4)), np.zeros(3)
    for prompt in prompts:
        probabilities, masks = numpy_trace(model, prompt)
        evenly = masks / masks.sum(-1, keepdims=True)
        for j in range(len(prompt.input_ids)):
            queries = query_sets(prompt, j)
            sizes[queries] += 1
            for k in range(j + 1):
                key = key_class(prompt.item_numbers, j, k)
                for query in queries:
                    mass[:, :, query, key] += probabilities[:, :, j, k]
                    pairs[:, query, key] += masks[:, j, k]
                    even[:, query, key] += evenly[:, j, k]
    with np.errstate(invalid="ignore"):
        return mass / sizes[:, None], mass / pairs[:, None], even / pairs, sizes


SCHEMES = (
    MaskScheme(),
    MaskScheme(1, 1),
    MaskScheme(2, 1, text="isolated"),
    MaskScheme(1, 2, cross_self=False),
    MaskScheme(1, 1, target="text"),
    MaskScheme(1, 1, delimiters="text"),
)


@LAYOUTS
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_attention_is_that_of_loops_over_the_numpy_model(model_for, encoder_for, scheme, layout):
    model, prompts = model_for(scheme, seed=3), encoded(encoder_for(scheme, layout))
    measured = attention.measure(model, prompts)
    arrays = (measured.share, measured.per_pair, measured.even, measured.sizes)
    for array, expected in zip(arrays, measured_by_loops(model, prompts)):
        np.testing.assert_allclose(array, expected, rtol=1e-10, atol=1e-12)


def test_measuring_leaves_the_model_without_hooks_also_after_an_error(model_for, encoder_for):
    scheme = MaskScheme(1, 1)
    model = model_for(scheme)
    prompt = encoder_for(scheme).encode(HISTORIES[0], "Heat")
    ids = torch.from_numpy(prompt.input_ids)[None], torch.from_numpy(prompt.segment_ids)[None]
    before = model(*ids)
    broken = SimpleNamespace(item_numbers=prompt.item_numbers, prompt_length=prompt.prompt_length)
    with pytest.raises(AttributeError, match="input_ids"):
        attention.measure(model, [prompt, broken])
    assert not any(layer.self_attn._forward_pre_hooks for layer in model.layers)
    assert torch.equal(before, model(*ids))


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    titles = {f"i{number}": title for number, title in enumerate(TITLES)}
    rows = made_up_rows(users=24, items=8)
    return write_interactions(tmp_path_factory.mktemp("attention") / "data", rows, titles)


@pytest.fixture(scope="module")
def causal_folder(tmp_path_factory):
    tokenizer = sentencepiece_model(TITLES, 320)
    return write_llm(tmp_path_factory.mktemp("attention") / "causal", tokenizer)


@pytest.fixture(scope="module")
def hat_folder(tmp_path_factory):
    tokenizer = sentencepiece_model(TITLES, 320)
    folder = tmp_path_factory.mktemp("attention") / "hat"
    return write_llm(folder, tokenizer, scheme=MaskScheme(1, 1))


def evaluate_attention(monkeypatch, *arguments):
    arguments = ["evaluate.py", "--attention", *map(str, arguments)]
    monkeypatch.setattr(sys, "argv", arguments)
    assert not evaluate.main()


@pytest.fixture
def report(data_folder, causal_folder, hat_folder, tmp_path, monkeypatch, capsys):
    """What evaluate.py --attention writes for two models: values, picture, printed text."""
    values, picture = tmp_path / "report.json", tmp_path / "picture.svg"
    models = ("--weights", causal_folder, hat_folder)
    files = ("--json", values, "--svg", picture)
    evaluate_attention(monkeypatch, "--data", data_folder, *models, "--limit", 4, *files)
    printed = capsys.readouterr().out
    return SimpleNamespace(
        models=json.loads(values.read_text())["models"],
        num_users=json.loads(values.read_text())["users"],
        paths=[values, picture],
        svg=ElementTree.fromstring(picture.read_text()),
        printed=printed,
    )


def test_the_values_are_of_each_model_in_turn(causal_folder, hat_folder, report):
    assert report.num_users == 4
    assert list(report.models) == [str(causal_folder), str(hat_folder)]
    causal, hat = report.models.values()
    assert causal["kinds"] == ["OR", "OR"]
    assert hat["kinds"] == ["IN", "CR"]
    for model in (causal, hat):
        assert np.shape(model["share"]) == (2, 2, 3, 4)
        np.testing.assert_allclose(np.sum(model["share"], -1), 1, rtol=1e-6)


def test_what_was_written_is_said_at_the_end(report):
    lines = [f"wrote {path}" for path in report.paths]
    assert report.printed.splitlines()[-2:] == lines


def test_the_table_says_what_the_values_say(report):
    for name, model in report.models.items():
        assert name in report.printed
        for row in np.mean(model["share"], axis=1).reshape(-1, 4):  # of a layer, from queries
            assert "".join(f"{value:>12.4f}" for value in row) in report.printed


def test_the_picture_says_what_the_values_say(report):
    rects = [rect for rect in report.svg.iter(SVG + "rect")]
    widths = [float(rect.get("width")) for rect in rects if rect.get("height") == "12"]
    expected = []
    for model in report.models.values():
        share = np.array(model["share"])  # (L, H, 3, 4)
        stripes = share.transpose(2, 0, 1, 3).reshape(-1, 4)
        expected += [width for width in stripes.ravel() * 150 if width >= 0.05]
    squares_of_legend = [12] * len(KEYS)
    np.testing.assert_allclose(widths, expected + squares_of_legend, atol=0.0501)
    ticks = [text for text in texts_of(report.svg) if text.endswith("%")]
    assert ticks == ["0%", "50%", "100%"] * 3 * len(report.models)


def test_the_report_is_of_the_prompts_of_the_users(data_folder, hat_folder, tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    inputs = ("--data", data_folder, "--weights", hat_folder)
    evaluate_attention(monkeypatch, *inputs, "--limit", 6, "--json", path)
    model, encoder, _ = recommender.load_model_and_encoder(hat_folder)
    data = dataset.load(data_folder, 10, 10, 5)
    prompts = []
    for start, end in zip(data.test.starts[:6], data.test.ends[:6]):
        *history, target = [data.titles[title] for title in data.items[start:end]]
        prompts.append(encoder.encode(history, target))
    share, *_ = measured_by_loops(model.double(), prompts)
    reported = json.loads(path.read_text())["models"][str(hat_folder)]
    assert len(reported["sizes"]) == len(QUERIES)
    np.testing.assert_allclose(reported["share"], share, atol=1e-5)


def test_a_picture_without_attention_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--svg", "picture.svg"])
    with pytest.raises(ValueError, match="--svg needs --attention"):
        evaluate.main()
