"""What the masks save: a cache without what no target looks at, and items computed once, against the plain forward pass."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_search import HISTORIES

import evaluate
import train
from ref.checkpoints.config import parse_config
from ref.checkpoints.weights import hf_parameters
from ref.golden import case as cases
from ref.llama import Llama, LlamaConfig
from ref.masks import MaskScheme
from ref.layouts import LAYOUTS
from ref.recommender import build_trie
from ref.search.cache import KVCache, drop_what_no_target_sees
from ref.search.beam import beam_search
from ref.search.decoder import Decoder, cached_hidden_states
from ref.search.exact import title_log_probs
from ref.search.item_states import ItemStates
from ref.settings import Settings

from support.catalogue import TITLES
from support.commands import run_main
from support.data import TINY, write_interactions
from support.models import config_of, random_model

ISOLATED = MaskScheme(2, 1, text="isolated")


def generated_logits(model, input_ids, segment_ids, start, positions=None):
    """Logits of tokens `start`... of one row: the prompt at once, the cache pruned, then token by token."""
    cache = KVCache(model.kinds)
    ends = [start, *range(start + 1, input_ids.shape[1] + 1)]
    logits = []
    for begin, end in zip([0, *ends], ends):
        given = None if positions is None else positions[:, begin:end]
        new = (input_ids[:, begin:end], segment_ids[:, begin:end], given)
        logits.append(model.lm_head(cached_hidden_states(model, cache, *new)))
        if begin == 0:
            drop_what_no_target_sees(cache, model.scheme)
    return torch.cat(logits, dim=1)[:, start:], cache


def random_segments(rng, scheme):
    """Padding, text and entries of random lengths, then the target, with what the scheme calls text made text; its start."""
    entries = [-1] * rng.randrange(3) + [0] * rng.randrange(3)
    for number in range(1, rng.randrange(1, 5)):
        entries += [number] * rng.randrange(1, 4) + [0] * (rng.random() < 0.3)
    entries += [0] * (1 + rng.randrange(2))
    target = [max(entries) + 1] * rng.randrange(1, 5)
    if scheme.delimiters == "text":
        target[-1] = 0
    return entries + ([0] * len(target) if scheme.target == "text" else target), len(entries)


@pytest.mark.parametrize("seed", range(40))
def test_with_a_pruned_cache_generated_tokens_have_the_logits_of_the_plain_pass(seed):
    rng = random.Random(seed)
    intra, cross = rng.randrange(4), rng.randrange(2)
    scheme = MaskScheme(
        intra,
        cross,
        rng.random() < 0.5,
        *(rng.choice(pair) for pair in (("visible", "isolated"), *[("item", "item", "text")] * 2)),
    )
    model = random_model(config_of(num_hidden_layers=4), scheme, seed, torch.float64)
    segments, start = random_segments(rng, scheme)
    ids = torch.tensor([[rng.randrange(40) for _ in segments]])
    found, _ = generated_logits(model, ids, torch.tensor([segments]), start)
    torch.testing.assert_close(
        found, model(ids, torch.tensor([segments]))[:, start:], rtol=1e-10, atol=1e-12
    )


def golden_rows():
    """(case, row) of every golden case whose target stands behind all else."""
    for name in cases.names():
        case = cases.load(name)
        for row, values in enumerate(case.rows):
            if values["entries"][-1] > values["history"]:
                yield pytest.param(case, row, id=f"{name}-{row}")


@pytest.mark.parametrize("case, row", list(golden_rows()))
def test_with_a_pruned_cache_targets_have_the_logits_of_the_golden_cases(case, row):
    model = Llama(parse_config(case.config), MaskScheme(**case.info["scheme"])).double().eval()
    for name, parameter in hf_parameters(model).items():
        parameter.data = torch.from_numpy(case.weights[name])
    ids, segments, positions = (
        torch.tensor(a[row : row + 1])
        for a in (case.input_ids, case.segment_ids, case.position_ids)
    )
    start = case.rows[row]["entries"].index(case.rows[row]["history"] + 1)
    found, _ = generated_logits(model, ids, segments, start, positions)
    expected = torch.tensor(case.outputs["logits"][row : row + 1, start:])
    assert (found - expected).abs().max() <= case.info["tolerances"][
        "float64"
    ] * expected.abs().max()


@pytest.mark.parametrize(
    "scheme, text",
    [
        (MaskScheme(1, 2), 2),
        (MaskScheme(1, 2, text="isolated"), 0),
        (MaskScheme(1, 2, cross_self=False), 2),
    ],
)
def test_intra_layers_hold_text_and_target_alone_and_cross_layers_the_prompt_alone(scheme, text):
    model = random_model(config_of(num_hidden_layers=4), scheme)
    _, cache = generated_logits(
        model, torch.arange(9)[None], torch.tensor([[0, 1, 1, 2, 2, 0, 3, 3, 3]]), 6
    )
    assert [layer.keys.shape[2] for layer in cache.layers] == [text + 3, 9, 6, 6]


@pytest.mark.parametrize(
    "scheme", [MaskScheme(1, 2, delimiters="text"), MaskScheme(1, 2, target="text")]
)
def test_nothing_is_dropped_where_generated_tokens_may_be_text(scheme):
    model = random_model(config_of(num_hidden_layers=4), scheme)
    _, cache = generated_logits(
        model, torch.arange(9)[None], torch.tensor([[0, 1, 1, 2, 2, 0, 3, 3, 0]]), 6
    )
    assert [layer.keys.shape[2] for layer in cache.layers] == [9, 9, 9, 9]


@pytest.fixture
def two_decoders(encoder_for, model_for):
    """Without and with cached items."""

    def make(scheme=ISOLATED, seed=0, softmax="catalogue"):
        model, encoder = model_for(scheme, seed, num_hidden_layers=4), encoder_for(scheme)
        trie = build_trie(encoder, TITLES)
        items = ItemStates(model, encoder, TITLES, batch_size=7)
        return encoder, [
            Decoder(model, trie, Settings(LAYOUTS["lines"], softmax), cached)
            for cached in (None, items)
        ]

    return make


@pytest.mark.parametrize("softmax", ["full", "catalogue"])
@pytest.mark.parametrize(
    "scheme", [ISOLATED, MaskScheme(4, text="isolated"), MaskScheme(1, 3, False, text="isolated")]
)
def test_cached_items_change_no_log_probability_and_no_list(two_decoders, scheme, softmax):
    rng = random.Random(scheme.intra_layers)
    histories = HISTORIES + [rng.choices(TITLES, k=rng.randrange(1, 11)) for _ in range(20)]
    encoder, (plain, cached) = two_decoders(scheme, softmax=softmax)
    prompts = [encoder.encode(history) for history in histories]
    np.testing.assert_allclose(
        title_log_probs(cached, prompts), title_log_probs(plain, prompts), rtol=1e-10
    )
    wanted, found = beam_search(plain, prompts, 5), beam_search(cached, prompts, 5)
    assert [[title for title, _ in one] for one in found] == [
        [title for title, _ in one] for one in wanted
    ]


def test_the_prompt_starts_behind_the_intra_layers(two_decoders, monkeypatch):
    encoder, (_, cached) = two_decoders()
    monkeypatch.setattr(cached.model.layers[0], "forward", None)
    monkeypatch.setattr(cached.model.layers[1], "forward", None)
    assert cached.read_prompts([encoder.encode(["Heat", "Jaws"])])[1].isfinite().all()
    with pytest.raises(TypeError):
        cached.model.layers[0](None)


def test_an_entry_that_is_no_title_of_the_catalogue_is_named(two_decoders):
    encoder, (_, cached) = two_decoders()
    with pytest.raises(ValueError, match="no title of the catalogue: 'Heat.nSomething else"):
        beam_search(cached, [encoder.encode(["Heat", "Something else"])], 3)


@pytest.mark.parametrize(
    "change", [{"text": "visible"}, {"delimiters": "text"}, {"target": "text"}, {"intra_layers": 0}]
)
def test_cached_items_are_refused_under_other_schemes(encoder_for, model_for, change):
    scheme = replace(ISOLATED, **change)
    with pytest.raises(
        ValueError,
        match="--cache-items needs IN layers with text='isolated'.*" + next(iter(change)),
    ):
        ItemStates(model_for(scheme), encoder_for(scheme), TITLES)


def test_cached_items_are_refused_in_a_layout_with_text(encoder_for, model_for):
    with pytest.raises(ValueError, match="without text around the items; 'instruction' has some"):
        ItemStates(model_for(ISOLATED), encoder_for(ISOLATED, "instruction"), TITLES)


@pytest.mark.parametrize("ranking", ["beam", "full", "sampled"])
def test_evaluation_with_cached_items_reports_the_same(tmp_path, run, ranking):
    rng = random.Random(0)
    data = write_interactions(
        tmp_path / "data",
        [(f"u{u}", f"i{rng.randrange(7)}", t) for u in range(24) for t in range(9)],
    )
    assert (
        run_main(
            train,
            "--data",
            data,
            "--out",
            tmp_path / "m",
            *TINY,
            "--text",
            "isolated",
            "--intra-layers",
            1,
        )
        == 0
    )
    reports = []
    for more in ((), ("--cache-items",)):
        code, _, err = run(
            evaluate,
            "--data",
            data,
            "--weights",
            tmp_path / "m",
            "--ranking",
            ranking,
            "--negatives",
            3,
            "--json",
            tmp_path / "r.json",
            *more,
        )
        assert (code, err) == (0, "")
        reports.append(json.loads((tmp_path / "r.json").read_text()))
    assert reports[0]["ranks"] == reports[1]["ranks"]
