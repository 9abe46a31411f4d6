"""What a training predicts, and what its validation measures."""

import numpy as np

from ref.loss import Objective
from ref.trie import build_trie


def prepare_objectives(options, data, encoder, settings):
    """The Objective to train by, and that of validation.

    Raises ValueError if a target fits into no prompt: better now than hours later.
    """
    loss = options.loss
    if loss is None:
        loss = "titles" if settings.layout.same_everywhere else "target"
    trie = build_trie(encoder, data.titles)
    objective = Objective(encoder, trie, data.titles, settings, loss)
    target_objective = Objective(encoder, trie, data.titles, settings, "target")
    validation_targets = data.valid[: options.valid_limit].ends - 1
    places = np.append(validation_targets, data.possible_targets(loss))
    refuse_a_target_that_fits_nowhere(data, places, target_objective)
    if len(data.test):
        refuse_what_cannot_be_evaluated(data, target_objective)
    return objective, target_objective


def refuse_a_target_that_fits_nowhere(data, places, objective):
    """Raise ValueError if a target is too long for a prompt of it and the item before it alone.

    places: of the targets in data.items, int (targets,).
    """
    if len(places):
        tokens = objective.trie.title_lengths[data.items]
        with_the_item_before = tokens[places] + tokens[places - 1]
        longest = places[with_the_item_before.argmax()]  # if these two fit, all do
        objective.batch([data.items[longest - 1 : longest + 1]])


def refuse_what_cannot_be_evaluated(data, objective):
    """Raise ValueError if evaluate.py would find a prompt too long, as it encodes it.

    evaluate.py keeps room for the longest title after each prompt, whatever the target is.
    """
    last_shown = data.items[data.test.ends - 2]
    longest = last_shown[objective.trie.title_lengths[last_shown].argmax()]
    try:
        objective.encoder.encode([data.titles[longest]], reserve=objective.trie.longest)
    except ValueError as error:
        raise ValueError(f"evaluate.py would refuse the model: {error}") from None
