"""ref.loss against loops over windows, items and tokens, with a plain forward pass a token."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from ref import chunked, lora
from ref.loss import Objective, child_log_softmax
from ref.masks import MaskScheme
from ref.search.decoder import Decoder
from ref.search.exact import title_log_probs
from ref.settings import Settings
from ref.trie import build_trie

from support.catalogue import TITLES, WINDOWS, continuations

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


@dataclass(frozen=True)
class Predicted:
    """A token that the loss predicts: where it stands, and what it is chosen from.

    options: tokens, or None for the whole vocabulary.
    """

    row: int
    column: int
    token: int
    options: list[int] | None


@pytest.fixture(scope="session")
def objective_for(encoder_for):
    """Makes an Objective over TITLES or other titles."""

    def make(loss, softmax="full", layout="lines", scheme=SCHEMES[1], **options):
        titles = options.get("titles", TITLES)
        encoder = encoder_for(scheme, layout, options.get("max_length", 512))
        settings = Settings(encoder.layout, softmax, options.get("temperature", 1.0))
        return Objective(encoder, build_trie(encoder, titles), titles, settings, loss)

    return make


def encoded(objective, window):
    """The prompt of a window, with its target."""
    *history, target = [objective.titles[title] for title in window]
    return objective.encoder.encode(history, target)


def target_tokens(encoder, title):
    prompt = encoder.encode([title], title)
    return prompt.input_ids[prompt.prompt_length :].tolist()


def predicted_items(objective, window, prompt):
    """The numbers of the items that the loss predicts; with loss "all" also 0, the text."""
    target = len(window) - prompt.dropped
    return {
        "target": [target],
        "titles": [*range(2, target + 1)],
        "all": [*range(target + 1)],
    }[objective.loss]


def predicted_by_loop(objective, windows):
    """What the docstring of ref.loss says, token by token: [Predicted, ...]."""
    catalogue = [target_tokens(objective.encoder, title) for title in objective.titles]
    predicted = []
    for row, window in enumerate(windows):
        prompt = encoded(objective, window)
        input_ids, numbers = prompt.input_ids.tolist(), prompt.item_numbers.tolist()
        items = predicted_items(objective, window, prompt)
        for column in range(1, len(input_ids)):
            if numbers[column] not in items:
                continue
            options = None
            if objective.settings.softmax == "catalogue":
                begin = numbers.index(numbers[column])
                options = continuations(catalogue, input_ids[begin:column])
            if options is None or len(options) > 1:
                predicted.append(Predicted(row, column, input_ids[column], options))
    return predicted


def count_by_loop(objective, windows):
    """What the loss is a mean over: titles, or with loss "all" all tokens but the first."""
    prompts = [encoded(objective, window) for window in windows]
    if objective.loss == "all":
        return sum(len(prompt.input_ids) - 1 for prompt in prompts)
    return sum(len(predicted_items(objective, *pair)) for pair in zip(windows, prompts))


@torch.no_grad()
def log_probs_by_loop(objective, model, windows):
    """The log-probability of each predicted token, from a plain forward pass over those before."""
    log_probs = []
    for predicted in predicted_by_loop(objective, windows):
        prompt = encoded(objective, windows[predicted.row])
        input_ids = torch.tensor([prompt.input_ids[: predicted.column].tolist()])
        segment_ids = torch.tensor([prompt.segment_ids[: predicted.column].tolist()])
        logits = model(input_ids, segment_ids)[0, -1].double() / objective.settings.temperature
        alternatives = logits if predicted.options is None else logits[predicted.options]
        log_probs.append(float(logits[predicted.token] - alternatives.logsumexp(0)))
    return log_probs


@pytest.mark.parametrize("loss, softmax, layout", CASES)
def test_the_predicted_tokens_are_those_of_the_loop(objective_for, loss, softmax, layout):
    objective = objective_for(loss, softmax, layout)

    batch = objective.batch(WINDOWS)

    tokens = batch.input_ids[batch.rows, batch.columns]
    triples = zip(batch.rows.tolist(), batch.columns.tolist(), tokens.tolist())
    wanted = [(p.row, p.column, p.token) for p in predicted_by_loop(objective, WINDOWS)]
    assert sorted(triples) == wanted
    assert batch.num_predicted == count_by_loop(objective, WINDOWS)
    assert batch.dropped == 0


def assert_log_probs_are_those_of_the_loop(objective, model, windows):
    batch = objective.batch(windows)
    log_probs = objective.token_log_probs(model, batch).detach().numpy()
    in_order = np.lexsort((batch.columns, batch.rows))  # by row and column, as a loop meets them
    wanted = log_probs_by_loop(objective, model, windows)
    np.testing.assert_allclose(log_probs[in_order], wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "scheme, temperature",
    list(zip(SCHEMES, (0.25, 1.0, 4.0))),
    ids=["plain", "default", "all else"],
)
@pytest.mark.parametrize("loss, softmax, layout", CASES)
def test_log_probs_are_those_of_the_loop(
    objective_for, model_for, loss, softmax, layout, temperature, scheme
):
    objective = objective_for(loss, softmax, layout, scheme, temperature=temperature)

    assert_log_probs_are_those_of_the_loop(objective, model_for(scheme), WINDOWS)


def test_a_batch_holds_the_prompts_padded_on_the_right(objective_for):
    objective = objective_for("target", layout="instruction")

    batch = objective.batch(WINDOWS)

    prompts = [encoded(objective, window) for window in WINDOWS]
    lengths = [len(prompt.input_ids) for prompt in prompts]
    for row, (prompt, length) in enumerate(zip(prompts, lengths)):
        padding = [-1] * (max(lengths) - length)
        assert batch.input_ids[row, :length].tolist() == prompt.input_ids.tolist()
        assert batch.segment_ids[row].tolist() == prompt.segment_ids.tolist() + padding
    assert batch.real_tokens == sum(lengths)


def test_target_tokens_end_with_the_end_token_and_begin_after_the_prompt(objective_for, tokenizer):
    objective = objective_for("target", layout="instruction")

    batch = objective.batch([np.array([7, 17])])

    tokens = batch.input_ids[0, batch.columns].tolist()
    assert tokens == [*tokenizer.encode('"Jaws"')[0], tokenizer.eos_id]
    length = batch.input_ids.shape[1]
    assert batch.columns.tolist() == [*range(length - len(tokens), length)]


def test_under_the_catalogue_softmax_only_choices_are_predicted(objective_for, tokenizer):
    # after the prompt: J or H; after "Jaws": the end or " 2"
    objective = objective_for("target", "catalogue", titles=["Jaws", "Jaws 2", "Heat"])

    batch = objective.batch([np.array([2, 1])])

    tokens, _ = tokenizer.encode("Jaws 2\n")
    jaws, _ = tokenizer.encode("Jaws")
    assert batch.input_ids[0, batch.columns].tolist() == [tokens[0], tokens[len(jaws)]]
    assert len(tokens) > 2


@pytest.mark.parametrize("loss", ["target", "titles"])
def test_a_catalogue_of_one_title_leaves_nothing_to_predict(objective_for, model_for, loss):
    objective = objective_for(loss, "catalogue", titles=["Heat"])

    batch = objective.batch([np.array([0, 0, 0])])

    assert objective.token_log_probs(model_for(), batch).shape == (0,)
    assert batch.num_predicted == {"target": 1, "titles": 2}[loss]


@pytest.mark.parametrize("softmax", ["full", "catalogue"])
@pytest.mark.parametrize(
    "titles, first_branching_node",
    [(["Alien", "Aliens", "Amadeus"], 1), (["Rocky II", "Rocky III", "Rocky IV"], 6)],
    ids=["the first token branches", "a chain before the first branch"],
)
def test_titles_that_all_begin_alike_have_the_log_probs_of_the_loop_in_training_and_decoding(
    objective_for, model_for, titles, first_branching_node, softmax
):
    objective = objective_for("target", softmax, titles=titles)
    model, trie = model_for(SCHEMES[1]), objective.trie
    assert np.flatnonzero(trie.num_children > 1)[0] == first_branching_node
    windows = [np.array([1, target]) for target in range(3)]

    assert_log_probs_are_those_of_the_loop(objective, model, windows)

    prompts = [objective.encoder.encode([titles[1]])]
    decoded = title_log_probs(Decoder(model, trie, objective.settings), prompts)
    wanted = [sum(log_probs_by_loop(objective, model, [window])) for window in windows]
    np.testing.assert_allclose(decoded[0], wanted, rtol=1e-10)


@pytest.mark.parametrize(
    "softmax, total", [("full", [10, 16]), ("catalogue", [6, 1])], ids=["full", "catalogue"]
)
def test_continuations_share_the_softmax_and_padding_has_probability_0(softmax, total):
    logits = torch.tensor([[1.0, 2, 3, 4], [9, 1, 1, 5]]).log()
    tokens = torch.tensor([[1, 3], [2, 0]])
    real = torch.tensor([[True, True], [True, False]])

    log_probs = child_log_softmax(logits, tokens, real, softmax)

    wanted = torch.tensor([[2.0, 4], [1, 0]]) / torch.tensor(total)[:, None]
    torch.testing.assert_close(log_probs.exp(), wanted)


@pytest.mark.parametrize("loss, softmax, layout", CASES)
def test_items_that_do_not_fit_are_dropped_and_the_rest_predicted_as_without_them(
    objective_for, loss, softmax, layout
):
    window = WINDOWS[2]
    roomy = objective_for(loss, softmax, layout)
    max_length = len(encoded(roomy, window[2:]).input_ids)
    tight = objective_for(loss, softmax, layout, max_length=max_length)

    batch = tight.batch([window])

    wanted = roomy.batch([window[2:]])
    assert batch.dropped == 2
    for name in ("input_ids", "segment_ids", "columns", "rows"):
        assert torch.equal(getattr(batch, name), getattr(wanted, name)), name
    assert batch.num_predicted == wanted.num_predicted
    if softmax == "catalogue":
        assert batch.nodes.tolist() == wanted.nodes.tolist()


def test_dropped_items_are_counted_over_the_batch(objective_for, model_for):
    objective = objective_for("titles", "catalogue", max_length=30)
    windows = [WINDOWS[2], WINDOWS[1], WINDOWS[2], WINDOWS[0]]

    batch = objective.batch(windows)

    dropped = [encoded(objective, window).dropped for window in windows]
    assert dropped[0] == dropped[2] > 0 == dropped[1]
    assert batch.dropped == sum(dropped)
    assert_log_probs_are_those_of_the_loop(objective, model_for(SCHEMES[1]), windows)


@pytest.mark.parametrize("loss, softmax, layout", [case for case in CASES if case[0] == "target"])
def test_training_and_decoding_give_a_title_the_same_probability(
    objective_for, model_for, loss, softmax, layout
):
    scheme = SCHEMES[2]
    objective = objective_for(loss, softmax, layout, scheme, temperature=0.5)
    model = model_for(scheme)
    histories = [[TITLES[title] for title in window[:-1]] for window in WINDOWS]
    prompts = [objective.encoder.encode(history) for history in histories]

    decoded = title_log_probs(Decoder(model, objective.trie, objective.settings), prompts)

    for row, window in enumerate(WINDOWS):
        trained = objective.token_log_probs(model, objective.batch([window])).sum().item()
        assert trained == pytest.approx(decoded[row, window[-1]], abs=1e-10)


@pytest.mark.parametrize("softmax", ["full", "catalogue"])
def test_every_parameter_that_is_used_gets_a_gradient(objective_for, model_for, softmax):
    objective, model = objective_for("titles", softmax), model_for(SCHEMES[1])

    objective.token_log_probs(model, objective.batch(WINDOWS)).sum().backward()

    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def gradients_of(model, loss):
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.autograd.grad(loss, trained)


@pytest.mark.parametrize("loss, softmax, layout", CASES)
@pytest.mark.parametrize("model_is", ["untied", "tied", "adapted"])
def test_training_minimizes_the_sum_of_the_log_probs(
    objective_for, model_for, monkeypatch, loss, softmax, layout, model_is
):
    monkeypatch.setattr(chunked, "ROWS", 10)
    objective = objective_for(loss, softmax, layout, temperature=0.5)
    model = model_for(SCHEMES[1], tie_word_embeddings=model_is == "tied")
    if model_is == "adapted":
        lora.add(model, lora.LoraSettings(rank=2, alpha=4))
    batch = objective.batch(WINDOWS)

    nats = objective.summed_nll(model, batch)

    wanted = -objective.token_log_probs(model, batch).sum()
    torch.testing.assert_close(nats, wanted, rtol=1e-12, atol=0)
    for gradients in zip(gradients_of(model, nats), gradients_of(model, wanted)):
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_the_loss_on_all_tokens_does_not_go_with_the_catalogue_softmax(objective_for):
    with pytest.raises(ValueError, match="--loss all .*--softmax full"):
        objective_for("all", "catalogue")


@pytest.mark.parametrize("softmax", ["full", "catalogue"])
def test_the_loss_on_titles_needs_a_layout_that_writes_history_and_target_alike(
    objective_for, softmax
):
    with pytest.raises(ValueError, match="--loss titles .*'instruction'"):
        objective_for("titles", softmax, "instruction")


@pytest.mark.parametrize("softmax", ["full", "catalogue"])
def test_a_title_whose_tokens_are_not_those_of_the_trie_is_refused(objective_for, softmax):
    objective = objective_for("target", softmax)
    objective.titles = [*TITLES]
    objective.titles[WINDOWS[0][-1]] = "Another (1960)"

    with pytest.raises(ValueError, match=r"title 'Another \(1960\)' has other tokens"):
        objective.batch(WINDOWS)


def test_a_title_of_the_history_whose_tokens_are_not_those_of_the_trie_is_named(objective_for):
    objective = objective_for("titles", "catalogue")
    objective.titles = [*TITLES]
    objective.titles[WINDOWS[2][3]] = "Another (1960)"

    with pytest.raises(ValueError, match=r"title 'Another \(1960\)' has other tokens"):
        objective.batch(WINDOWS)


@pytest.mark.parametrize("softmax", ("full", "catalogue"))
def test_log_probabilities_of_a_model_in_bfloat16_are_normalized_in_float32(
    model_for, objective_for, softmax
):
    objective = objective_for("target", softmax)
    model = model_for(SCHEMES[1], dtype=torch.bfloat16)
    batch = objective.batch([np.array(window) for window in WINDOWS])
    assert objective.token_log_probs(model, batch).dtype == torch.float32
