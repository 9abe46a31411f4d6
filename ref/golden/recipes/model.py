"""How model.json becomes the golden cases of the stage `model`."""

import re
from typing import NamedTuple

import numpy as np
import torch

from ref import llama_numpy
from ref.checkpoints.config import parse_config
from ref.checkpoints.weights import hf_parameters
from ref.golden.case import WEIGHTS, Case, segment_ids
from ref.golden.recipes.common import head_of, names_of_true, random_of, read, with_outputs
from ref.golden.stages.model import compute
from ref.llama import Llama
from ref.masks import MaskScheme

# What opens an item, what closes it, and what closes the last one of the history and the target.
LAYOUTS = {
    "bare": ("", "", ""),
    "lines": ("", "\n", "\n"),
    "instruction": ('"', '", ', '"'),
}
TOKEN = re.compile(r"\n|, | ?[A-Za-z]+| ?\d+| ?[^\w\s]")
PAD = "<pad>"
PADDING = {"tokens": PAD, "roles": "padding", "entries": 0}  # fields of a row
GRADIENTS = "gradients."  # how the names of gradients begin


class Piece(NamedTuple):
    """A piece of a prompt: its text, its role, its item (1..n history, n + 1 target, 0 none).

    Padding has tokens and no text.
    """

    text: str
    role: str
    item: int
    tokens: list


def build_all():
    """The cases of the stage `model`."""
    recipes = read_recipes("model.json")
    shared = vocabulary(recipes)
    cases = []
    for recipe in recipes:
        tokens = vocabulary([recipe]) if recipe.get("own_vocabulary") else shared
        cases.append(build(recipe, tokens))
    return cases


def read_recipes(file_name):
    """The recipes of a JSON file beside this one, filled with the defaults that it begins with."""
    content = read(file_name)
    filled = []
    for recipe in content["recipes"]:
        fields = {}
        for field, default in content["defaults"].items():
            fields[field] = default | recipe.get(field, {})
        for field in ("rows", "prompts"):
            if field in recipe:
                fields[field] = [with_repeated_history(row) for row in recipe[field]]
        filled.append(recipe | fields)
    return filled


def with_repeated_history(row):
    """A row of a recipe whose `history` is what it says, `repeat` times in a row."""
    return row | {"history": row["history"] * row.get("repeat", 1)}


def vocabulary(recipes):
    """Padding, then the tokens of all recipes, sorted: the index of a token is its id."""
    tokens = set()
    for recipe in recipes:
        for row in recipe["rows"]:
            for piece in split_into_pieces(row):
                tokens.update(piece.tokens)
    return [PAD, *sorted(tokens - {PAD})]


def build(recipe, tokens):
    """A case from its recipe; `tokens` is the vocabulary."""
    config = recipe["config"] | {"vocab_size": len(tokens)}
    rows = [make_row(row) for row in recipe["rows"]]
    info = {
        **head_of(recipe, "model"),
        "needs": needs(config, recipe["scheme"], rows),
        "config": config,
        "scheme": recipe["scheme"],
        "rows": rows,
        "positions_given": "positions" in recipe,
        "tolerances": recipe["tolerances"],
        "inputs": ["input_ids", "segment_ids", "position_ids", "labels"],
    }
    case = Case(info, inputs(recipe, rows, tokens) | draw_weights(config, recipe))
    outputs = kept_outputs(case, recipe.get("keep", ""))
    if recipe.get("gradients"):
        outputs |= torch_gradients(case)
    return with_outputs(case, outputs)


def needs(config, scheme, rows):
    """What an implementation must be able to do for the case, beyond the plainest Llama."""
    rope = config["rope_scaling"] or {"rope_type": None}
    is_padded = any("padding" in row["roles"] for row in rows)
    features = {
        "grouped heads": config["num_key_value_heads"] < config["num_attention_heads"],
        "head_dim": config["head_dim"] * config["num_attention_heads"] != config["hidden_size"],
        "biases": config["attention_bias"] or config["mlp_bias"],
        "tied embeddings": config["tie_word_embeddings"],
        "rope linear": rope["rope_type"] == "linear",
        "rope llama3": rope["rope_type"] == "llama3",
        "padding": is_padded,
        "several rows": len(rows) > 1,
        "cross_self false": not scheme["cross_self"],
        "text isolated": scheme["text"] == "isolated",
    }
    return names_of_true(features)


def inputs(recipe, rows, tokens):
    """input_ids, segment_ids, position_ids and labels, each (B, T)."""
    input_ids = np.array([[tokens.index(token) for token in row["tokens"]] for row in rows])
    segments = np.array([segment_ids(row, recipe["scheme"]) for row in rows])
    counted = llama_numpy.count_positions(segments)
    scope = recipe.get("labels", "target")
    is_labelled = [labelled_tokens(row, scope) for row in rows]
    return {
        "input_ids": input_ids,
        "segment_ids": segments,
        "position_ids": np.array(recipe.get("positions", counted)),
        "labels": np.where(is_labelled, input_ids, -100),
    }


def make_row(row):
    """An object of `rows` in case.json, from a row of a recipe."""
    pieces = split_into_pieces(row)
    return {
        "prompt": "".join(piece.text for piece in pieces),
        "items": [*row["history"], row["target"]],
        "history": len(row["history"]),
        **token_lists(pieces, row.get("holes", [])),
    }


def token_lists(pieces, holes):
    """The fields `tokens`, `roles` and `entries` of a row.

    holes: [index, count] each: so much padding stands before the token that has this index then.
    """
    fields = {"tokens": [], "roles": [], "entries": []}
    for piece in pieces:
        fields["tokens"] += piece.tokens
        fields["roles"] += [piece.role] * len(piece.tokens)
        fields["entries"] += [piece.item] * len(piece.tokens)
    for index, count in holes:
        for field, filler in PADDING.items():
            fields[field][index:index] = [filler] * count
    return fields


def split_into_pieces(row):
    """The pieces of a row of a recipe, in order: a list of Piece."""
    opens, _, closes_last = LAYOUTS[row.get("layout", "lines")]
    target = (opens, row["target"], closes_last)
    return [
        *pieces_of_prompt(row),
        padding(row, "middle"),
        *pieces_of_item(target, len(row["history"]) + 1),
        padding(row, "right"),
    ]


def pieces_of_prompt(row):
    """The pieces before the target."""
    opens, closes, closes_last = LAYOUTS[row.get("layout", "lines")]
    n = len(row["history"])
    pieces = [padding(row, "left"), piece_of_text(row.get("before", ""), "text", 0)]
    for item, title in enumerate(row["history"], 1):
        pieces += pieces_of_item((opens, title, closes if item < n else closes_last), item)
    return [*pieces, piece_of_text(row.get("after", ""), "text", 0)]


def pieces_of_item(texts, item):
    """Three pieces; texts: what opens the item, its title, what closes it."""
    roles = ("open", "title", "close")
    return [piece_of_text(text, role, item) for text, role in zip(texts, roles, strict=True)]


def piece_of_text(text, role, item):
    """A token is a word, a number or a sign, each with the space before it."""
    return Piece(text, role, item, TOKEN.findall(text))


def padding(row, side):
    """The padding that a row has at "left", "middle" (before the target) or "right"."""
    return Piece("", "padding", 0, [PAD] * row.get(side, 0))


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


def draw_weights(config, recipe):
    """Random weights by name, the same in every run.

    They are float32 but exact in bfloat16, so that every precision reads the same numbers.
    """
    random = random_of(recipe["name"])
    gains = recipe.get("gains", {})
    weights = {}
    for name, parameter in hf_parameters(torch_model(config, recipe["scheme"])).items():
        weight = random.standard_normal(tuple(parameter.shape))
        weight = scaled(weight, name, gains)
        if "weight_step" in recipe:  # a number that is easily printed and read
            weight = recipe["weight_step"] * np.round(weight / recipe["weight_step"]) + 0.0
        weights[WEIGHTS + name] = truncated_to_bfloat16(weight)
    return weights


def scaled(weight, name, gains):
    """A weight drawn with deviation 1, with the deviation that its place in the model needs."""
    part = name.split(".")[-2]
    if weight.ndim == 2 and part != "embed_tokens":
        usual_gain = 1.4 if part in ("q_proj", "k_proj") else 1.0  # sharper attention
        return weight * (weight.shape[1] ** -0.5 * gains.get(part, usual_gain))
    if name.endswith(".bias"):
        return 0.5 * weight
    if weight.ndim == 1:
        return 1 + 0.2 * weight
    return weight


def truncated_to_bfloat16(weight):
    """float32 whose lower 16 bits are 0."""
    bits = weight.astype(np.float32).view(np.uint32)
    return (bits & 0xFFFF0000).view(np.float32)


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


def torch_model(config, scheme):
    """The PyTorch model in float64, with random weights."""
    return Llama(parse_config(config), MaskScheme(**scheme), attention="eager").double()
