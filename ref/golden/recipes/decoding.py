"""How decoding.json becomes the golden cases of the stage `decoding`.

Expected values are those of one pass without a cache for every slot and step. The functions that
make prompts and weights are those of the stage `model`.
"""

import numpy as np

from ref import llama_numpy
from ref.golden.case import Case, segment_ids
from ref.golden.definitions.paths import row_along, values_along
from ref.golden.recipes.common import head_of, names_of_true, with_outputs
from ref.golden.recipes.model import (
    LAYOUTS,
    PAD,
    PADDING,
    draw_weights,
    needs,
    piece_of_text,
    pieces_of_prompt,
    read_recipes,
    token_lists,
)

SEGMENT_OF_NOBODY = -1
NOBODY = -1  # as a parent


def build_all():
    """The cases of the stage `decoding`."""
    recipes = read_recipes("decoding.json")
    tokens = vocabulary(recipes)
    return [build(recipe, tokens) for recipe in recipes]


def vocabulary(recipes):
    """Padding, then the tokens of all recipes, sorted: the index of a token is its id."""
    tokens = set()
    for recipe in recipes:
        for row in recipe["prompts"]:
            tokens.update(make_row(row)["tokens"])
        for slots in step_tokens(recipe):
            tokens.update(slots)
    return [PAD, *sorted(tokens - {PAD, None})]


def build(recipe, tokens):
    """A case from its recipe; `tokens` is the vocabulary."""
    config = recipe["config"] | {"vocab_size": len(tokens)}
    rows = padded([make_row(row) for row in recipe["prompts"]], recipe.get("pad", "left"))
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
    case = Case(info, inputs | draw_weights(config, recipe))
    return with_outputs(case, expected_logits(case))


def make_row(row):
    """An object of `rows` in case.json, a prompt, from one of a recipe's `prompts`.

    `opened`: what opens the target stands in the prompt already.
    """
    pieces = pieces_of_prompt(row)
    if row.get("opened"):
        opens = LAYOUTS[row["layout"]][0]
        pieces.append(piece_of_text(opens, "open", len(row["history"]) + 1))
    return {
        "prompt": "".join(piece.text for piece in pieces),
        "items": row["history"],
        "history": len(row["history"]),
        **token_lists(pieces, row.get("holes", [])),
    }


def padded(rows, side):
    """Rows of one length, padded at their "left" or "right"."""
    P = max(len(row["tokens"]) for row in rows)
    longer = []
    for row in rows:
        fields = {}
        for field, filler in PADDING.items():
            padding = [filler] * (P - len(row["tokens"]))
            fields[field] = padding + row[field] if side == "left" else row[field] + padding
        longer.append(row | fields)
    return longer


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
    opens, _, closes = LAYOUTS[recipe["prompts"][0].get("layout", "lines")]
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
