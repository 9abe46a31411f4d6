"""How decoding.json becomes the golden cases of the stage `decoding`.

Expected values are those of one pass without a cache for every slot and step.

A recipe has
    name, what, also_for    as in case.json
    config, scheme, tolerances      what differs from the defaults
    prompts                 see rows.py
    pad                     the side at which shorter prompts are padded, "left" or "right"
    steps                   of each step and slot [parent, token], null where nobody is
"""

import numpy as np

from ref import llama_numpy
from ref.golden.case import Case, segment_ids
from ref.golden.definitions.paths import row_along, values_along
from ref.golden.recipes.common import head_of, names_of_true, read_recipes, with_outputs
from ref.golden.recipes.rows import LAYOUTS, make_prompt, padded, row_with_defaults, vocabulary
from ref.golden.recipes.weights import draw_weights, needs

SEGMENT_OF_NOBODY = -1
NOBODY = -1  # as a parent


def build_all():
    """The cases of the stage `decoding`."""
    recipes = read_recipes("decoding.json")
    rows_of = {}
    for recipe in recipes:
        recipe["prompts"] = [row_with_defaults(prompt) for prompt in recipe["prompts"]]
        prompts = [make_prompt(prompt) for prompt in recipe["prompts"]]
        rows_of[recipe["name"]] = padded(prompts, recipe["pad"])
    generated = [token for recipe in recipes for slots in step_tokens(recipe) for token in slots]
    lists = [row["tokens"] for rows in rows_of.values() for row in rows]
    tokens = vocabulary([*lists, filter(None, generated)])
    return [build(recipe, rows_of[recipe["name"]], tokens) for recipe in recipes]


def build(recipe, rows, tokens):
    """A case from its recipe and rows; `tokens` is the vocabulary."""
    config = recipe["config"] | {"vocab_size": len(tokens)}
    info = {
        **head_of(recipe, "decoding"),
        "needs": [*needs(config, recipe["scheme"], rows), *needs_of_steps(recipe)],
        "config": config,
        "scheme": recipe["scheme"],
        "rows": rows,
        "step_tokens": step_tokens(recipe),
        "step_roles": step_roles(recipe),
        "tolerances": recipe["tolerances"],
    }
    parents = parents_of_slots(recipe)
    inputs = inputs_of_prompts(info, tokens) | inputs_of_steps(info, parents, tokens)
    info["inputs"] = list(inputs)
    case = Case(info, inputs | draw_weights(config, recipe["scheme"], recipe["name"]))
    return with_outputs(case, expected_logits(case))


def step_tokens(recipe):
    """The token that each slot is fed at each step, S lists of W strings; None: nobody is there."""
    return [[slot[1] if slot else None for slot in slots] for slots in recipe["steps"]]


def parents_of_slots(recipe):
    """`parents`, (S, W)."""
    return np.array([[slot[0] if slot else NOBODY for slot in slots] for slots in recipe["steps"]])


def needs_of_steps(recipe):
    """What an implementation must be able to do in the steps of the case."""
    parents = parents_of_slots(recipe)
    features = {
        "beams": parents.shape[1] > len(recipe["prompts"]),
        "slots that end": (parents == NOBODY).any(),
    }
    return names_of_true(features)


def step_roles(recipe):
    """The roles of the tokens, in the form of step_tokens: "open", "title" or "close"."""
    opens, _, closes = LAYOUTS[recipe["prompts"][0]["layout"]]
    roles = []
    for step, tokens in enumerate(step_tokens(recipe)):
        role_of_token = {None: None, closes: "close"}
        if step == 0:
            role_of_token[opens] = "open"
        roles.append([role_of_token.get(token, "title") for token in tokens])
    return roles


def inputs_of_prompts(info, tokens):
    """Token ids, segment ids and position ids of the prompts, (N, P) each."""
    segments = np.array([segment_ids(row, info["scheme"]) for row in info["rows"]])
    return {
        "prompt_ids": np.array([[tokens.index(t) for t in row["tokens"]] for row in info["rows"]]),
        "prompt_segment_ids": segments,
        "prompt_position_ids": llama_numpy.count_positions(segments),
    }


def inputs_of_steps(info, parents, tokens):
    """The same of the tokens of each slot and step, (S, W) each, and `parents`."""
    ids, segments, positions = np.zeros((3, *parents.shape), dtype=int)
    segments[:] = SEGMENT_OF_NOBODY
    for step, slot in np.argwhere(parents != NOBODY):
        row = row_along(info, parents, step, slot)
        s = segment_ids(row, info["scheme"])
        ids[step, slot] = tokens.index(row["tokens"][-1])
        segments[step, slot] = s[-1]
        positions[step, slot] = sum(role != "padding" for role in row["roles"][:-1])
    return {
        "step_ids": ids,
        "step_segment_ids": segments,
        "step_position_ids": positions,
        "parents": parents,
    }


def expected_logits(case):
    """Logits of prompts (N, P, V), and of slots at steps (S, W, V): each from one whole pass."""
    prompt_inputs = (case.prompt_ids, case.prompt_segment_ids, case.prompt_position_ids)
    S, W = case.parents.shape
    step_logits = np.zeros((S, W, case.config["vocab_size"]))
    for step, slot in np.argwhere(case.parents != NOBODY):
        kinds = ("ids", "segment_ids", "position_ids")
        of_path = [values_along(case, kind, step, slot)[None] for kind in kinds]
        step_logits[step, slot] = one_pass(case, *of_path)[0, -1]
    return {"prompt_logits": one_pass(case, *prompt_inputs), "step_logits": step_logits}


def one_pass(case, ids, segment_ids, position_ids):
    """Logits (B, T, V) of the definition."""
    return llama_numpy.forward(
        case.weights, case.config, ids, segment_ids, case.scheme, position_ids
    )
