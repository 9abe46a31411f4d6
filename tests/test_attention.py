"""ref.attention: shares worked by hand, against loops over the NumPy model's probabilities, and through evaluate.py."""

import json
import math
import sys
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import evaluate
from ref import llama_numpy
from ref.checkpoints.config import config_values
from ref.checkpoints.weights import hf_parameters
from ref.masks import MaskScheme
from ref.report import attention

from support.catalogue import TITLES
from support.data import made_up_rows, sentencepiece_model, write_interactions, write_llm
from support.models import config_of, random_model

# text, two tokens of item 1, item 2, the target (item 3); q_proj = 0 makes every score 0, so a query spreads evenly over what it may see
FIVE = SimpleNamespace(
    input_ids=np.arange(5),
    segment_ids=np.array([0, 1, 1, 2, 3]),
    entry=np.array([0, 1, 1, 2, 3]),
    prompt_length=4,
)
TWO = SimpleNamespace(
    input_ids=np.arange(2), segment_ids=np.array([1, 2]), entry=np.array([1, 2]), prompt_length=1
)
NAN = math.nan
HISTORY = [
    ["The King", "Heat", "Toy Story"],
    ["Alien", "Alien"],
    ["Casino Royale"],
    ["Jaws", "Rocky IV", "Lion", "Big Fish", "Rocky IV"],
]


def even(scheme, model=None):
    model = model or random_model(config_of(), scheme, dtype=torch.float64)
    for layer in model.layers:
        torch.nn.init.zeros_(layer.self_attn.q_proj.weight)
    return model


@pytest.mark.parametrize(
    "layer, history, history_per_pair, last, target",
    (
        (
            0,
            [1 / 9, 0, 4 / 9, 4 / 9],
            [1 / 3, NAN, 4 / 9, 4 / 9],
            [0, 0, 1 / 2, 1 / 2],
            [0, 0, 1 / 2, 1 / 2],
        ),  # IN
        (
            1,
            [1 / 9, 1 / 6, 13 / 36, 13 / 36],
            [1 / 3, 1 / 4, 13 / 36, 13 / 36],
            [0, 1 / 2, 1 / 4, 1 / 4],
            [0, 3 / 5, 1 / 5, 1 / 5],
        ),  # OR
        (
            2,
            [0, 1 / 6, 5 / 12, 5 / 12],
            [NAN, 1 / 4, 5 / 12, 5 / 12],
            [0, 1 / 2, 1 / 4, 1 / 4],
            [0, 3 / 5, 1 / 5, 1 / 5],
        ),  # CR
    ),
)
def test_even_attention_over_five_tokens_worked_by_hand(
    layer, history, history_per_pair, last, target
):
    share, per_pair, _, sizes = attention.measure(even(MaskScheme(1, 1)), [FIVE])
    assert share.shape == per_pair.shape == (3, 4, 3, 4) and sizes.tolist() == [3, 1, 1]
    for head in range(4):
        np.testing.assert_allclose(share[layer, head], [history, last, target], atol=1e-12)
        np.testing.assert_allclose(per_pair[layer, head, 0], history_per_pair, atol=1e-12)


def test_prompts_are_pooled_query_by_query():
    share, per_pair, _, sizes = attention.measure(even(MaskScheme()), [FIVE, TWO])
    assert sizes.tolist() == [4, 2, 2]
    np.testing.assert_allclose(
        share[0, 0],
        [[1 / 12, 1 / 8, 13 / 48, 25 / 48], [0, 1 / 4, 1 / 8, 5 / 8], [0, 11 / 20, 1 / 10, 7 / 20]],
        atol=1e-12,
    )
    np.testing.assert_allclose(per_pair[0, 0, 2], [NAN, 1.1 / 4, 1 / 5, 0.7 / 2], atol=1e-12)


@pytest.mark.parametrize("layout", ("lines", "instruction"))
def test_even_attention_has_no_skew_and_attention_that_is_not_has_what_it_gives_more(
    model_for, encoder_for, layout
):
    encoder = encoder_for(MaskScheme(1, 1), layout)
    prompts = [encoder.encode(history, TITLES[place]) for place, history in enumerate(HISTORY)]
    _, per_pair, found, _ = attention.measure(
        even(MaskScheme(1, 1), model_for(MaskScheme(1, 1))), prompts
    )
    np.testing.assert_allclose(
        attention.skew(per_pair, found)[[1, 2]][:, [0, 2]], [[1, 1], [NAN, NAN]], rtol=1e-12
    )
    assert per_pair[1, 0, 0, 0] > 1.1 * per_pair[1, 0, 0, 1]  # which is not 1 itself
    per_pair[1, 0, :, 0] *= 3  # one head of four
    np.testing.assert_allclose(attention.skew(per_pair, found)[1, [0, 2]], 1.5, rtol=1e-12)


def looped(model, prompts):
    """The definitions once more, as loops over the probabilities and masks of the NumPy model."""
    L, H = len(model.layers), model.config.num_attention_heads
    mass, pairs, even, sizes = (
        np.zeros((L, H, 3, 4)),
        np.zeros((L, H, 3, 4)),
        np.zeros((L, 3, 4)),
        [0, 0, 0],
    )
    weights = {name: p.detach().numpy() for name, p in hf_parameters(model).items()}
    for prompt in prompts:
        trace = {}
        llama_numpy.forward(
            weights,
            config_values(model.config),
            prompt.input_ids[None],
            prompt.segment_ids[None],
            model.scheme,
            trace=trace,
        )
        e, n = prompt.entry.tolist(), max(prompt.entry) - 1
        for j in range(len(e)):
            member = [1 <= e[j] <= n, j == prompt.prompt_length - 1, e[j] == n + 1]
            sizes = [size + one for size, one in zip(sizes, member)]
            for k in range(j + 1):
                c = 3 if k == j else 2 if e[k] == 0 else 0 if e[k] == e[j] else 1
                for q in np.flatnonzero(member):
                    for i in range(L):
                        mass[i, :, q, c] += trace[f"layers.{i}.probabilities"][0, :, j, k]
                        allowed = trace[f"layers.{i}.mask"][0, j]
                        pairs[i, :, q, c] += allowed[k]
                        even[i, q, c] += allowed[k] / sum(allowed)
    with np.errstate(invalid="ignore"):
        return mass / np.array(sizes)[:, None], mass / pairs, even / pairs[:, 0], sizes


SCHEMES = (
    MaskScheme(),
    MaskScheme(1, 1),
    MaskScheme(2, 1, text="isolated"),
    MaskScheme(1, 2, cross_self=False),
    MaskScheme(1, 1, target="text"),
    MaskScheme(1, 1, delimiters="text"),
)


@pytest.mark.parametrize("layout", ("lines", "instruction"))
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_shares_are_those_of_loops_over_the_numpy_model(model_for, encoder_for, scheme, layout):
    model, encoder = model_for(scheme, seed=3), encoder_for(scheme, layout)
    prompts = [encoder.encode(history, TITLES[place]) for place, history in enumerate(HISTORY)]
    found, expected = attention.measure(model, prompts), looped(model, prompts)
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layout", ("lines", "instruction"))
def test_the_four_shares_sum_to_one_and_masks_leave_nothing(model_for, encoder_for, layout):
    model, encoder = model_for(MaskScheme(1, 1)), encoder_for(MaskScheme(1, 1), layout)
    prompts = [encoder.encode(history, TITLES[place]) for place, history in enumerate(HISTORY)]
    share, per_pair, *_ = attention.measure(model, prompts)
    np.testing.assert_allclose(share.sum(-1), 1, atol=1e-12)
    same, other, text, _ = range(4)
    assert (share[0, :, :, other][:, [0, 2]] == 0).all() and np.isnan(
        per_pair[0, :, 0, other]
    ).all()  # IN
    assert (share[2, :, :, same] == 0).all() and np.isnan(per_pair[2, :, 0, same]).all()  # CR
    assert (share[1, :, [0, 2]][..., :2] > 0).all()  # OR
    assert ((share[:, :, :, text] > 0) == (layout == "instruction")).all()


def test_measuring_leaves_the_model_without_hooks_also_after_an_error(model_for, encoder_for):
    model = model_for(MaskScheme(1, 1))
    prompt = encoder_for(MaskScheme(1, 1)).encode(HISTORY[0], "Heat")
    before = model(
        torch.from_numpy(prompt.input_ids)[None], torch.from_numpy(prompt.segment_ids)[None]
    )
    with pytest.raises(AttributeError):
        attention.measure(model, [prompt, None])
    assert not any(layer.self_attn._forward_pre_hooks for layer in model.layers)
    assert torch.equal(
        before,
        model(torch.from_numpy(prompt.input_ids)[None], torch.from_numpy(prompt.segment_ids)[None]),
    )


# --- evaluate.py --attention


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A data folder and two plain language models, plain causal and with masks."""
    base = tmp_path_factory.mktemp("attention")
    data = write_interactions(
        base / "data",
        made_up_rows(users=24, items=8),
        {f"i{number}": title for number, title in enumerate(TITLES)},
    )
    tokenizer = sentencepiece_model(TITLES, 320)
    return (
        data,
        write_llm(base / "causal", tokenizer),
        write_llm(base / "hat", tokenizer, scheme=MaskScheme(1, 1)),
    )


def evaluated(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
    return evaluate.main()


@pytest.fixture
def report(folders, tmp_path, monkeypatch, capsys):
    data, *models = folders
    files = tmp_path / "report.json", tmp_path / "picture.svg"
    assert not evaluated(
        monkeypatch,
        "--data",
        data,
        "--weights",
        *models,
        "--attention",
        "--limit",
        4,
        "--json",
        files[0],
        "--svg",
        files[1],
    )
    return json.loads(files[0].read_text()), files[1].read_text(), capsys.readouterr().out


def test_report_table_and_picture_say_the_same(folders, report):
    values, svg, text = report
    assert values["users"] == 4 and list(values["models"]) == [
        str(folder) for folder in folders[1:]
    ]
    assert [model["kinds"] for model in values["models"].values()] == [["OR", "OR"], ["IN", "CR"]]
    rects = [
        rect
        for rect in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}rect")
        if rect.get("height") == "12" and rect.get("x")
    ]
    drawn = iter([float(rect.get("width")) for rect in rects])
    for name, model in values["models"].items():
        share = np.array(model["share"])
        assert share.shape == (2, 2, 3, 4) and np.allclose(share.sum(-1), 1) and name in text
        for row in share.mean(1).transpose(1, 0, 2).reshape(-1, 4):
            assert "".join(f"{value:>12.4f}" for value in row) in text
        for q in range(3):
            for stripe in share[:, :, q].reshape(-1, 4):
                wide = [width for width in stripe * 150 if width >= 0.05]
                np.testing.assert_allclose([next(drawn) for _ in wide], wide, atol=0.0501)
    assert len(list(drawn)) == 4  # the legend


def test_the_shares_of_the_report_are_those_of_the_prompts_of_the_users(
    folders, tmp_path, monkeypatch
):
    data, _, hat = folders
    evaluated(
        monkeypatch,
        "--data",
        data,
        "--weights",
        hat,
        "--attention",
        "--json",
        tmp_path / "report.json",
    )
    model, encoder, _ = evaluate.recommender.load(hat)
    loaded = evaluate.dataset.load(data, 10, 10, 5)
    windows = [
        loaded.entries[start:end] for start, end in zip(loaded.test.starts, loaded.test.ends)
    ]
    prompts = [
        encoder.encode([loaded.titles[i] for i in window[:-1]], loaded.titles[window[-1]])
        for window in windows
    ]
    found = json.loads((tmp_path / "report.json").read_text())["models"][str(hat)]
    np.testing.assert_allclose(found["share"], looped(model.double(), prompts)[0], atol=1e-5)


def test_a_picture_without_attention_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="--svg belongs to --attention"):
        evaluated(monkeypatch, "--svg", "picture.svg")
