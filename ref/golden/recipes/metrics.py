"""How metrics.json becomes the golden cases of the stage `metrics`.

A recipe has
    name, what, also_for    as in case.json
    exclude_seen, width, tolerances     the same
    user_ids                of each target
    items                   how many
    title_of                of each item the first one with its title; null: all titles differ
    scores, or lists, with targets      the tensors themselves; null for -inf
    ranks                   or the ranks that the targets are to have; targets and scores are drawn
    returned                so many items have a score above -inf; null: all
    second_scores, second_lists, second_ranks       the same of a second model
    candidates, seen        of each target numbers of items; null: all, none
    draws                   how many; null: no intervals
"""

import numpy as np

from ref.golden.case import Case
from ref.golden.definitions import metrics as definition
from ref.golden.recipes.common import (
    head_of,
    marked,
    names_of_true,
    random_of,
    read_recipes,
    with_outputs,
)
from ref.golden.stages.metrics import compute


def build_all():
    """The cases of the stage `metrics`."""
    return [build(recipe) for recipe in read_recipes("metrics.json")]


def build(recipe):
    """A case from its recipe, filled with the defaults that metrics.json begins with."""
    tensors = inputs(recipe)
    info = {
        **head_of(recipe, "metrics"),
        "needs": needs(recipe),
        "exclude_seen": recipe["exclude_seen"],
        "width": recipe["width"],
        "tolerances": recipe["tolerances"],
        "inputs": list(tensors),
    }
    case = Case(info, tensors)
    return with_outputs(case, compute(definition, case))


def inputs(recipe):
    """The given tensors by name, in order."""
    random = random_of(recipe["name"])
    U, S = len(recipe["user_ids"]), recipe["items"]
    tensors = rankings(recipe, random)
    tensors["title_of"] = np.array(recipe["title_of"] or range(S))
    tensors["user_ids"] = np.array(recipe["user_ids"])
    if "scores" in tensors:
        tensors["candidates"] = np.ones((U, S), bool)
        if recipe["candidates"]:
            tensors["candidates"] = marked(recipe["candidates"], (U, S))
        tensors["seen"] = marked(recipe["seen"] or [], (U, S))
    if recipe["draws"]:
        num_users = len(set(recipe["user_ids"]))
        tensors["draws"] = random.integers(0, num_users, (recipe["draws"], num_users))
    return tensors


def rankings(recipe, random):
    """The targets, and scores or lists of one model or of two."""
    tensors = {"targets": np.array(recipe.get("targets", []), np.int64)}
    if "ranks" in recipe:
        tensors["targets"] = random.permutation(recipe["items"])[: len(recipe["ranks"])]
    for model in ("", "second_"):
        if f"{model}lists" in recipe:
            tensors[f"{model}lists"] = np.array(recipe[f"{model}lists"])
        elif f"{model}scores" in recipe:
            scores = np.array(recipe[f"{model}scores"], float)  # null becomes NaN
            tensors[f"{model}scores"] = np.where(np.isnan(scores), -np.inf, scores)
        elif f"{model}ranks" in recipe:
            ranks = recipe[f"{model}ranks"]
            tensors[f"{model}scores"] = draw_scores(tensors["targets"], ranks, recipe, random)
    for name, tensor in tensors.items():
        if tensor.dtype == float:
            tensors[name] = tensor.astype(np.float32)
    return tensors


def draw_scores(targets, ranks, recipe, random):
    """Scores (targets, items), all different, that give the targets these ranks.

    Rank 1 has the score -0.25, each other a quarter less, -inf from `returned` on.
    """
    scores = np.zeros((len(targets), recipe["items"]))
    for row, target, r in zip(scores, targets, ranks, strict=True):
        order = random.permutation(recipe["items"])
        order = np.insert(order[order != target], r - 1, target)
        row[order] = -0.25 * np.arange(1, len(order) + 1)
        if recipe["returned"]:
            row[order[recipe["returned"] :]] = -np.inf
    return scores


def needs(recipe):
    """What an implementation must be able to do for the case, beyond the plainest."""
    features = {
        "lists": "lists" in recipe,
        "candidates": bool(recipe["candidates"]),
        "shared titles": bool(recipe["title_of"]),
        "seen titles excluded": recipe["exclude_seen"],
        "width": recipe["width"] is not None,
        "several targets a user": len(set(recipe["user_ids"])) < len(recipe["user_ids"]),
        "two models": any(name.startswith("second_") for name in recipe),
        "intervals": recipe["draws"] is not None,
    }
    return names_of_true(features)
