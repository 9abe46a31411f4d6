"""The golden cases of the loss: against ref.loss, arithmetic by hand and finite differences."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ref.golden import case as cases
from ref.golden.definitions import loss as definition
from ref.golden.stages.loss import compute, place
from ref.loss import Objective
from ref.prompt import Prompt
from ref.settings import Settings
from ref.trie import Trie

NAMES = [info["name"] for info in cases.infos() if info["stage"] == "loss"]
WITH_GRADIENTS = ["loss-gradients-full", "loss-gradients-catalogue"]
# The catalogue "ab", "ac" and "d" with the end token "|": | a b c d are the tokens 0 to 4.
CATALOGUE = [[1, 2, 0], [1, 3, 0], [4, 0]]


@pytest.fixture(params=NAMES)
def case(request):
    return cases.load(request.param)


class PromptsOfCase:
    """In place of a PromptEncoder: the rows of a case, one after the other, without padding."""

    def __init__(self, case):
        is_real = case.item_numbers != -1
        self.rows = iter(zip(case.input_ids, case.item_numbers, is_real, strict=True))

    def encode(self, history, target, check_border):
        ids, numbers, is_real = next(self.rows)
        numbers = numbers[is_real]
        return Prompt("", ids[is_real], numbers, numbers, int((numbers == 0).sum()), 0)


class ModelOfCase:
    """In place of a Llama: its hidden states are the logits of a case, its head changes nothing."""

    def __init__(self, case):
        is_real = torch.from_numpy(case.item_numbers != -1)
        rows = [row[real] for row, real in zip(torch.from_numpy(case.logits).double(), is_real)]
        self.logits = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        self.lm_head = torch.nn.Linear(len(rows[0][0]), len(rows[0][0]), bias=False).double()
        self.lm_head.weight.data = torch.eye(len(rows[0][0])).double()

    def hidden_states(self, input_ids, segment_ids):
        return self.logits


def title_numbers(case):
    """Of each row the titles of its items, as rows of `titles`: [int array, ...]."""
    catalogue = [[token for token in title if token != -1] for title in case.titles.tolist()]
    windows = []
    for ids, numbers in zip(case.input_ids, case.item_numbers, strict=True):
        items = range(1, numbers.max() + 1)
        windows.append(np.array([catalogue.index(ids[numbers == item].tolist()) for item in items]))
    return windows


def project_loss(case):
    """Row and column of each predicted token, its log-probability, and the loss, by ref.loss."""
    info = case.info
    layout = SimpleNamespace(same_everywhere=True)
    catalogue = [[token for token in title if token != -1] for title in case.titles.tolist()]
    trie = Trie(catalogue, catalogue, info["catalogue"])
    settings = Settings(layout, info["softmax"], info["temperature"])
    objective = Objective(PromptsOfCase(case), trie, info["catalogue"], settings, info["loss"])
    batch = objective.batch(title_numbers(case))
    log_probs = objective.token_log_probs(ModelOfCase(case), batch).detach().numpy()
    left = (case.item_numbers != -1).argmax(axis=1)  # padding on the left
    places = (batch.rows.numpy(), batch.columns.numpy() + left[batch.rows])
    return places, log_probs, -log_probs.sum() / batch.num_predicted


def test_the_project_predicts_the_same_tokens_with_the_same_log_probs_and_loss(case):
    places, log_probs, loss = project_loss(case)
    predicted = np.zeros_like(case.tensors["predicted"])
    predicted[places] = True
    np.testing.assert_array_equal(predicted, case.tensors["predicted"])
    expected = case.tensors["token_log_probs"][places]
    np.testing.assert_allclose(log_probs, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(loss, case.tensors["loss"], rtol=1e-12)


def loss_of_ab(loss="target", softmax="catalogue", temperature=1.0, numbers=(1, 1, 2, 2, 2)):
    """Everything computed of "d|ab|" with logits 0, 1, 2, 3, 4 at every position."""
    logits = np.tile(np.arange(5.0), (1, 5, 1))
    titles = np.array([[1, 2, 0], [1, 3, 0], [4, 0, -1]])
    options = SimpleNamespace(loss=loss, softmax=softmax, temperature=temperature)
    ids = np.array([[4, 0, 1, 2, 0]])
    return definition.trace(logits, ids, np.array([numbers]), titles, options)


def test_the_catalogue_softmax_chooses_a_from_a_and_d_then_b_from_b_and_c_and_the_end_is_free():
    outputs = loss_of_ab()
    a_or_d = -np.log(1 + np.exp(4 - 1))
    b_or_c = -np.log(1 + np.exp(3 - 2))
    assert outputs["num_alternatives"].tolist() == [[0, 0, 2, 2, 1]]
    np.testing.assert_allclose(outputs["token_log_probs"], [[0, 0, a_or_d, b_or_c, 0]], rtol=1e-14)
    np.testing.assert_allclose(outputs["loss"], -(a_or_d + b_or_c), rtol=1e-14)


def test_the_full_softmax_counts_the_end_token_and_halves_the_logits_at_temperature_2():
    outputs = loss_of_ab(softmax="full", temperature=2.0)
    of_all = np.log(sum(np.exp(x / 2) for x in range(5)))
    expected = [[0, 0, 0.5 - of_all, 1 - of_all, 0 - of_all]]
    np.testing.assert_allclose(outputs["token_log_probs"], expected, rtol=1e-14)
    np.testing.assert_allclose(outputs["loss"], 3 * of_all - 1.5, rtol=1e-14)


def test_all_is_a_mean_over_four_tokens_of_five():
    outputs = loss_of_ab(loss="all", softmax="full")
    of_all = np.log(sum(np.exp(x) for x in range(5)))
    assert outputs["num_predicted"] == 4
    np.testing.assert_allclose(outputs["loss"], of_all - (0 + 1 + 2 + 0) / 4, rtol=1e-14)


def test_padding_predicts_nothing_and_is_not_predicted():
    outputs = loss_of_ab(loss="all", softmax="full", numbers=(-1, 1, 1, 2, -1))
    assert outputs["predicted"].tolist() == [[False, False, True, True, False]]


@pytest.mark.parametrize("so_far, tokens", [([], [1, 4]), ([1], [2, 3]), ([1, 2], [0]), ([2], [])])
def test_what_continues_a_title_depends_on_its_beginning(so_far, tokens):
    assert definition.continuations(CATALOGUE, so_far) == tokens


@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_the_gradients_are_those_of_finite_differences(name):
    case = cases.load(name)
    logits = case.logits.astype(float)
    expected = np.zeros_like(logits)
    step = 1e-4
    for index in np.ndindex(logits.shape):
        losses = []
        for sign in (1, -1):
            moved = logits.copy()
            moved[index] += sign * step
            losses.append(compute(definition, case, logits=moved)["loss"])
        expected[index] = (losses[0] - losses[1]) / (2 * step)
    np.testing.assert_allclose(case.tensors["gradients.logits"], expected, atol=1e-8)


def test_a_place_is_told_by_row_token_and_item():
    case = cases.load("loss-target-catalogue")
    row, t = 1, 8
    words = place(case, "token_log_probs", (row, t))
    text = case.info["vocabulary"][case.input_ids[row, t]]
    assert words == f"row 1, token 8 {text!r} (item {case.item_numbers[row, t]})"
    assert place(case, "loss", ()) == "the whole batch"
    assert place(case, "gradients.logits", (0, 0, 1)).endswith(", vocabulary 1 '<1>'")
