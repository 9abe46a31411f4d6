"""How loss.json becomes the golden cases of the stage `loss`.

A title's tokens are its words, numbers and signs, and a newline, the end token.

A recipe has
    name, what, also_for    as in case.json
    loss, softmax, temperature, tolerances      the same
    rows                    see rows.py, each with the title of its `target`
    catalogue               titles, to which `numbered_titles` more are added ("Volume 1", ...)
    unused_tokens           so many tokens of the vocabulary stand nowhere
    logits_mean, logits_deviation       of the random logits
    gradients               whether those of the logits are an output
"""

import numpy as np

from ref.golden.case import Case
from ref.golden.definitions import loss as definition
from ref.golden.recipes.common import (
    filled_up,
    head_of,
    names_of_true,
    random_of,
    read_recipes,
    truncated_to_bfloat16,
    with_outputs,
)
from ref.golden.recipes.rows import PAD, TOKEN, make_row, padded, row_with_defaults
from ref.golden.stages.loss import compute

END = "\n"
PADDING = -1  # item number of a padding token, and what follows a short title


def build_all():
    """The cases of the stage `loss`."""
    recipes = read_recipes("loss.json")
    for recipe in recipes:
        numbers = range(1, recipe["numbered_titles"] + 1)
        recipe["catalogue"] = recipe["catalogue"] + [f"Volume {number}" for number in numbers]
    return [build(recipe) for recipe in recipes]


def build(recipe):
    """A case from its recipe, filled with the defaults that loss.json begins with."""
    rows = padded([make_row(row_with_defaults(row)) for row in recipe["rows"]], "right")
    vocabulary = vocabulary_of(recipe, rows)
    info = {
        **head_of(recipe, "loss"),
        "needs": needs(recipe, rows),
        "loss": recipe["loss"],
        "softmax": recipe["softmax"],
        "temperature": recipe["temperature"],
        "catalogue": recipe["catalogue"],
        "vocabulary": vocabulary,
        "tolerances": recipe["tolerances"],
        "inputs": ["logits", "input_ids", "item_numbers", "titles"],
    }
    ids = np.array([[vocabulary.index(token) for token in row["tokens"]] for row in rows])
    titles = []
    for title in recipe["catalogue"]:
        titles.append([vocabulary.index(token) for token in tokens_of_title(title)])
    tensors = {
        "logits": draw_logits((*ids.shape, len(vocabulary)), recipe),
        "input_ids": ids,
        "item_numbers": np.array([item_numbers(row) for row in rows]),
        "titles": filled_up(titles, PADDING),
    }
    case = Case(info, tensors)
    outputs = compute(definition, case)
    if not recipe["gradients"]:
        del outputs["gradients.logits"]
    return with_outputs(case, outputs)


def item_numbers(row):
    """The item number of each token of a row."""
    entries = zip(row["entries"], row["roles"], strict=True)
    return [PADDING if role == "padding" else item for item, role in entries]


def tokens_of_title(title):
    return [*TOKEN.findall(title), END]


def vocabulary_of(recipe, rows):
    """Padding, tokens that nobody uses, then those of rows and catalogue, sorted."""
    used = {token for row in rows for token in row["tokens"]}
    for title in recipe["catalogue"]:
        used.update(tokens_of_title(title))
    unused = [f"<{number}>" for number in range(1, recipe["unused_tokens"] + 1)]
    return [PAD, *unused, *sorted(used - {PAD})]


def draw_logits(shape, recipe):
    """Random logits, the same in every run: float32, but exact in bfloat16."""
    random = random_of(recipe["name"])
    logits = recipe["logits_mean"] + recipe["logits_deviation"] * random.standard_normal(shape)
    return truncated_to_bfloat16(logits)


def needs(recipe, rows):
    """What an implementation must be able to do for the case, beyond the plainest."""
    features = {
        "catalogue softmax": recipe["softmax"] == "catalogue",
        "temperature": recipe["temperature"] != 1,
        "padding": any("padding" in row["roles"] for row in rows),
        "several rows": len(rows) > 1,
    }
    return names_of_true(features)
