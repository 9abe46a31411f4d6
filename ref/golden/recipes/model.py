"""How model.json becomes the golden cases of the stage `model`.

A recipe has
    name, what, also_for    as in case.json
    config, scheme, tolerances      what differs from the defaults
    rows                    the batch, see rows.py; each with the title of its `target`
    labels                  "target": the tokens of the target have labels; "all": all real tokens
    positions               position ids (B, T), where they are not those of rule R2
    own_vocabulary          whether the tokens of this case alone have ids
    weight_step, gains      how weights are drawn, see weights.py
    keep                    a pattern; outputs whose names match it are kept
    gradients               whether gradients of the loss are outputs
"""

import re

import numpy as np
import torch

from ref import llama_numpy
from ref.checkpoints.weights import hf_parameters
from ref.golden.case import Case, segment_ids
from ref.golden.recipes.common import head_of, read_recipes, with_outputs
from ref.golden.recipes.rows import make_row, row_with_defaults, vocabulary
from ref.golden.recipes.weights import draw_weights, needs, torch_model
from ref.golden.stages.model import compute

GRADIENTS = "gradients."  # how the names of gradients begin


def build_all():
    """The cases of the stage `model`."""
    recipes = read_recipes("model.json")
    rows_of = {}
    for recipe in recipes:
        rows_of[recipe["name"]] = [make_row(row_with_defaults(row)) for row in recipe["rows"]]
    shared = vocabulary([row["tokens"] for rows in rows_of.values() for row in rows])
    cases = []
    for recipe in recipes:
        rows = rows_of[recipe["name"]]
        of_this_case = vocabulary([row["tokens"] for row in rows])
        tokens = of_this_case if recipe["own_vocabulary"] else shared
        cases.append(build(recipe, rows, tokens))
    return cases


def build(recipe, rows, tokens):
    """A case from its recipe and rows; `tokens` is the vocabulary."""
    config, scheme = recipe["config"] | {"vocab_size": len(tokens)}, recipe["scheme"]
    info = {
        **head_of(recipe, "model"),
        "needs": needs(config, scheme, rows),
        "config": config,
        "scheme": scheme,
        "rows": rows,
        "positions_given": recipe["positions"] is not None,
        "tolerances": recipe["tolerances"],
        "inputs": ["input_ids", "segment_ids", "position_ids", "labels"],
    }
    weights = draw_weights(config, scheme, recipe["name"], recipe["gains"], recipe["weight_step"])
    case = Case(info, inputs(recipe, rows, tokens) | weights)
    outputs = kept_outputs(case, recipe["keep"])
    if recipe["gradients"]:
        outputs |= torch_gradients(case)
    return with_outputs(case, outputs)


def inputs(recipe, rows, tokens):
    """input_ids, segment_ids, position_ids and labels, each (B, T)."""
    input_ids = np.array([[tokens.index(token) for token in row["tokens"]] for row in rows])
    segments = np.array([segment_ids(row, recipe["scheme"]) for row in rows])
    positions = recipe["positions"] or llama_numpy.count_positions(segments)
    is_labelled = [labelled_tokens(row, recipe["labels"]) for row in rows]
    return {
        "input_ids": input_ids,
        "segment_ids": segments,
        "position_ids": np.array(positions),
        "labels": np.where(is_labelled, input_ids, -100),
    }


def labelled_tokens(row, scope):
    """Which tokens of a row have a label: bool, a list.

    Scope "target": those of the target; "all": every real token. Never what only padding could
    predict.
    """
    labelled = []
    role_before = "text"
    for role, item in zip(row["roles"], row["entries"], strict=True):
        is_predicted = role != "padding" and role_before != "padding"
        in_scope = scope == "all" or item == row["history"] + 1
        labelled.append(is_predicted and in_scope)
        role_before = role
    return labelled


def kept_outputs(case, pattern):
    """What the definition computes: the tensors whose names match the pattern."""
    trace = compute(llama_numpy, case)
    return {name: tensor for name, tensor in trace.items() if re.search(pattern, name)}


def torch_gradients(case):
    """Gradients of the loss by the PyTorch model in float64.

    The tests confirm them by finite differences of the NumPy forward pass.
    """
    model = torch_model(case.config, case.info["scheme"])
    for name, parameter in hf_parameters(model).items():
        parameter.data = torch.from_numpy(case.weights[name])
    logits = model(
        torch.from_numpy(case.input_ids),
        torch.from_numpy(case.segment_ids),
        torch.from_numpy(case.position_ids),
    )
    labels = torch.from_numpy(case.labels)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    loss.backward()
    gradients = {}
    for name, parameter in hf_parameters(model).items():
        gradients[GRADIENTS + name] = parameter.grad.numpy()
    return gradients
