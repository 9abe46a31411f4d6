"""ref.objective against loops over windows, entries and tokens, one plain forward a window."""

import numpy as np
import pytest
import torch

from ref.loss import Objective
from ref.masks import MaskScheme
from ref.recommender import build_trie
from ref.search.decoder import Decoder
from ref.search.exact import title_log_probs
from ref.settings import Settings

from support.catalogue import TITLES, continuations

WINDOWS = [np.array([7, 9, 7, 2]), np.array([17, 18]), np.array([4, 5, 15, 14, 13, 26])]
CASES = [  # loss, softmax, layout
    ("target", "full", "lines"),
    ("target", "full", "instruction"),
    ("target", "catalogue", "lines"),
    ("target", "catalogue", "instruction"),
    ("titles", "full", "lines"),
    ("titles", "catalogue", "lines"),
    ("all", "full", "lines"),
    ("all", "full", "instruction"),
]
SCHEMES = [
    MaskScheme(),
    MaskScheme(1, 1),
    MaskScheme(1, 2, cross_self=False, text="isolated", delimiters="text", target="text"),
]


@pytest.fixture(scope="session")
def objective_for(encoder_for):
    def make(
        loss,
        softmax="full",
        layout="lines",
        scheme=SCHEMES[1],
        temperature=1.0,
        max_length=512,
        titles=TITLES,
    ):
        encoder = encoder_for(scheme, layout, max_length)
        return Objective(
            encoder,
            build_trie(encoder, titles),
            titles,
            Settings(encoder.layout, softmax, temperature),
            loss,
        )

    return make


def predicted(objective, windows):
    """SPEC section 6 token by token: [(row, place, token, the tokens it is chosen from or None)], and the units."""
    encoder, titles = objective.encoder, objective.titles
    answers = [answer_of(encoder, title) for title in titles]
    out, units = [], 0
    for row, window in enumerate(windows):
        prompt = encoder.encode([titles[e] for e in window[:-1]], titles[window[-1]])
        ids, entry, shown = (
            prompt.input_ids.tolist(),
            prompt.item_numbers.tolist(),
            len(window) - prompt.dropped,
        )
        numbers = {"target": {shown}, "titles": {*range(2, shown + 1)}, "all": {*range(shown + 1)}}[
            objective.loss
        ]
        units += len(ids) - 1 if objective.loss == "all" else len(numbers)
        for place in range(1, len(ids)):
            if entry[place] not in numbers:
                continue
            options = None
            if objective.settings.softmax == "catalogue":
                begin = entry.index(entry[place])
                options = continuations(answers, ids[begin:place])
                if len(options) == 1:
                    continue
            out.append((row, place, ids[place], options))
    return out, units


def answer_of(encoder, title):
    prompt = encoder.encode([title], title)
    return prompt.input_ids[prompt.prompt_length :].tolist()


@torch.no_grad()
def log_probs_by_loop(objective, model, windows):
    out = []
    for row, place, token, options in predicted(objective, windows)[0]:
        window = windows[row]
        prompt = objective.encoder.encode(
            [objective.titles[e] for e in window[:-1]], objective.titles[window[-1]]
        )
        before = torch.tensor([prompt.input_ids[:place].tolist()])
        logits = model(before, torch.tensor([prompt.segment_ids[:place].tolist()]))[0, -1].double()
        logits = logits / objective.settings.temperature
        over = logits if options is None else logits[options]
        out.append(float(logits[token] - over.logsumexp(0)))
    return out


@pytest.mark.parametrize("loss, softmax, layout", CASES)
def test_the_predicted_tokens_are_those_of_the_loop(objective_for, loss, softmax, layout):
    objective = objective_for(loss, softmax, layout)

    batch = objective.batch(WINDOWS)

    wanted, units = predicted(objective, WINDOWS)
    found = zip(
        batch.rows.tolist(),
        batch.columns.tolist(),
        batch.input_ids[batch.rows, batch.columns].tolist(),
    )
    assert sorted(found) == [(row, place, token) for row, place, token, _ in wanted]
    assert batch.num_predicted == units and batch.dropped == 0


def in_order(batch, log_probs):
    """The log-probabilities by row and place, as a loop meets them."""
    return log_probs.detach().numpy()[np.lexsort((batch.columns, batch.rows))]


@pytest.mark.parametrize("scheme", SCHEMES, ids=["plain", "default", "all else"])
@pytest.mark.parametrize("temperature", [1.0, 0.25])
@pytest.mark.parametrize("loss, softmax, layout", CASES)
def test_log_probs_are_those_of_the_loop(
    objective_for, model_for, loss, softmax, layout, temperature, scheme
):
    objective, model = objective_for(loss, softmax, layout, scheme, temperature), model_for(scheme)

    batch = objective.batch(WINDOWS)
    found = objective.token_log_probs(model, batch)

    expected = log_probs_by_loop(objective, model, WINDOWS)
    np.testing.assert_allclose(in_order(batch, found), expected, rtol=1e-10, atol=1e-10)


def test_a_batch_holds_the_prompts_padded_on_the_right(objective_for):
    objective = objective_for("target", layout="instruction")

    batch = objective.batch(WINDOWS)

    prompts = [
        objective.encoder.encode([TITLES[e] for e in w[:-1]], TITLES[w[-1]]) for w in WINDOWS
    ]
    width = max(len(prompt.input_ids) for prompt in prompts)
    for row, prompt in enumerate(prompts):
        padding = width - len(prompt.input_ids)
        assert batch.input_ids[row, : width - padding].tolist() == prompt.input_ids.tolist()
        assert batch.segment_ids[row].tolist() == prompt.segment_ids.tolist() + [-1] * padding
    assert batch.real_tokens == sum(len(prompt.input_ids) for prompt in prompts)


def test_target_tokens_end_with_the_end_token_and_begin_behind_the_prompt(objective_for, tokenizer):
    objective = objective_for("target", layout="instruction")

    batch = objective.batch([np.array([7, 17])])

    tokens = batch.input_ids[0, batch.columns].tolist()
    assert tokens == [*tokenizer.encode('"Jaws"')[0], tokenizer.eos_id]
    assert batch.columns.tolist() == list(
        range(batch.input_ids.shape[1] - len(tokens), batch.input_ids.shape[1])
    )


def test_under_the_catalogue_softmax_only_choices_are_predicted(objective_for, tokenizer):
    titles = ["Jaws", "Jaws 2", "Heat"]  # behind the prompt: J or H; behind "Jaws": the end or " 2"

    batch = objective_for("target", "catalogue", titles=titles).batch([np.array([2, 1])])

    chosen = tokenizer.pieces(batch.input_ids[0, batch.columns].tolist())
    every = tokenizer.pieces(tokenizer.encode("Jaws 2\n")[0])
    assert chosen == [every[0], every[len(tokenizer.encode("Jaws")[0])]]
    assert len(every) > 2


@pytest.mark.parametrize("loss", ["target", "titles"])
def test_a_catalogue_of_one_title_leaves_nothing_to_predict(objective_for, model_for, loss):
    objective = objective_for(loss, "catalogue", titles=["Heat"])

    batch = objective.batch([np.array([0, 0, 0])])

    assert objective.token_log_probs(model_for(), batch).shape == (0,)
    assert batch.num_predicted == {"target": 1, "titles": 2}[loss]


@pytest.mark.parametrize("loss, softmax, layout", CASES)
def test_entries_that_do_not_fit_are_dropped_and_the_rest_predicted_as_before(
    objective_for, loss, softmax, layout
):
    window = WINDOWS[2]
    short_prompt = objective_for(loss, softmax, layout).encoder.encode(
        [TITLES[e] for e in window[2:-1]], TITLES[window[-1]]
    )
    short = objective_for(loss, softmax, layout, max_length=len(short_prompt.input_ids))

    batch = short.batch([window])

    wanted = objective_for(loss, softmax, layout).batch([window[2:]])
    assert batch.dropped == 2
    for name in ("input_ids", "segment_ids", "columns", "rows"):
        assert torch.equal(getattr(batch, name), getattr(wanted, name)), name
    assert batch.num_predicted == wanted.num_predicted
    assert softmax == "full" or batch.nodes.tolist() == wanted.nodes.tolist()


def test_dropped_entries_are_counted_over_the_batch(objective_for, model_for):
    objective, model = objective_for("titles", "catalogue", max_length=30), model_for(SCHEMES[1])
    windows = [WINDOWS[2], WINDOWS[1], WINDOWS[2], WINDOWS[0]]

    batch = objective.batch(windows)

    alone = [
        objective.encoder.encode([TITLES[e] for e in w[:-1]], TITLES[w[-1]]).dropped
        for w in windows
    ]
    assert batch.dropped == sum(alone) and alone[0] == alone[2] > 0 == alone[1]
    found = in_order(batch, objective.token_log_probs(model, batch))
    np.testing.assert_allclose(
        found, log_probs_by_loop(objective, model, windows), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("loss, softmax, layout", [case for case in CASES if case[0] == "target"])
def test_training_and_decoding_give_a_title_the_same_probability(
    objective_for, model_for, loss, softmax, layout
):
    scheme = SCHEMES[2]
    objective, model = (
        objective_for(loss, softmax, layout, scheme, temperature=0.5),
        model_for(scheme),
    )
    prompts = [objective.encoder.encode([TITLES[e] for e in window[:-1]]) for window in WINDOWS]

    decoder = Decoder(model, objective.trie, objective.settings)
    decoded = title_log_probs(decoder, prompts)

    for row, window in enumerate(WINDOWS):
        trained = objective.token_log_probs(model, objective.batch([window])).sum().item()
        assert trained == pytest.approx(decoded[row, window[-1]], abs=1e-10)


@pytest.mark.parametrize("softmax", ["full", "catalogue"])
def test_every_parameter_that_is_used_gets_a_gradient(objective_for, model_for, softmax):
    objective, model = objective_for("titles", softmax), model_for(SCHEMES[1])

    objective.token_log_probs(model, objective.batch(WINDOWS)).sum().backward()

    assert all(
        p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0
        for p in model.parameters()
    )


def test_the_loss_on_all_tokens_does_not_go_with_the_catalogue_softmax(objective_for):
    with pytest.raises(ValueError, match="--loss all .*--softmax full"):
        objective_for("all", "catalogue")


@pytest.mark.parametrize("softmax", ["full", "catalogue"])
def test_the_loss_on_titles_needs_a_layout_that_writes_entry_and_target_alike(
    objective_for, softmax
):
    with pytest.raises(ValueError, match="--loss titles .*'instruction'"):
        objective_for("titles", softmax, "instruction")


@pytest.mark.parametrize("softmax", ["full", "catalogue"])
def test_a_title_whose_tokens_are_not_those_of_the_trie_is_refused(objective_for, softmax):
    objective = objective_for("target", softmax)
    objective.titles = TITLES[::-1]

    with pytest.raises(ValueError, match="reads titles in another way"):
        objective.batch(WINDOWS)
