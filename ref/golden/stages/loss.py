"""The stage `loss`: from logits and the tokens of a catalogue to log-probabilities and the loss."""

from types import SimpleNamespace

import numpy as np

from ref.golden.definitions import loss as definition
from ref.golden.plants.loss_softmax import LOSS_SOFTMAX
from ref.golden.plants.loss_tokens import LOSS_TOKENS
from ref.golden.stages.stage import Stage

OPTIONS = ("loss", "softmax", "temperature")


def compute(copy, case, **changed):
    """What the loss is made of, by name, in the order of computation.

    `changed` replaces tensors or options of the case.
    """
    options = {name: changed.get(name, case.info[name]) for name in OPTIONS}
    tensors = {name: changed.get(name, tensor) for name, tensor in case.inputs.items()}
    return copy.trace(**tensors, options=SimpleNamespace(**options))


def specified(case, name, shape):
    """Log-probabilities are specified where a token is predicted."""
    if name == "token_log_probs":
        return case.tensors["predicted"]
    return np.array(True)


def place(case, name, index):
    """An index in words: row, token and the item that it belongs to."""
    if len(index) < 2:
        return "the whole batch"
    row, t = index[:2]
    token = case.info["vocabulary"][case.input_ids[row, t]]
    words = f"row {row}, token {t} {token!r} (item {case.item_numbers[row, t]})"
    if len(index) == 3:
        words += f", vocabulary {index[2]} {case.info['vocabulary'][index[2]]!r}"
    return words


STAGE = Stage(
    name="loss",
    definition=definition,
    compute=compute,
    plants=LOSS_TOKENS | LOSS_SOFTMAX,
    decisive=("token_log_probs", "loss"),
    specified=specified,
    place=place,
)
