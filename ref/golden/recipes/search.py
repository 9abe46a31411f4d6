"""How search.json becomes the golden cases of the stage `search`.

A recipe with `table` makes a table of logits, so that no model is needed and ties are exact; one
with `prompts` makes a model, as in the stage `decoding`. Shapes: N prompts, P tokens of each,
S titles of at most M tokens, R prefixes, V vocabulary.

A recipe has
    name, what, also_for    as in case.json
    width, softmax, temperature, tolerances     the same
    excluded                of each prompt the numbers of the titles that its list may not hold
    table                   see TABLE; or else
    prompts, pad, config, scheme    as in decoding.json
    titles                  the catalogue
    draw                    changes the random weights or logits
"""

import numpy as np

from ref import llama_numpy
from ref.golden.case import Case, segment_ids
from ref.golden.definitions import search as definition
from ref.golden.recipes.common import (
    filled_up,
    head_of,
    marked,
    names_of_true,
    random_of,
    read_recipes,
    truncated_to_bfloat16,
    with_outputs,
)
from ref.golden.recipes.rows import (
    LAYOUTS,
    make_prompt,
    padded,
    pieces_of_item,
    row_with_defaults,
    token_lists,
    vocabulary,
)
from ref.golden.recipes.weights import draw_weights, needs
from ref.golden.stages.search import compute

FILLER = -1  # after the last token of a title or prefix
# What the `table` of a recipe may say, and what it says by default. It gives `vocab_size`, and
# either `titles`, lists of tokens, or `pairs`, see titles_of_table.
TABLE = {
    "prompts": 1,
    "scale": 2.0,  # logits are scale · (a number with deviation 1) + shift
    "shift": 0.0,
    "favour": [],  # [number of a title, what is added to the logits of its tokens]
    "set": [],  # [prefix, {token: logit}] for all prompts; for one, its number comes third
}


def build_all():
    """The cases of the stage `search`."""
    return [build(recipe) for recipe in read_recipes("search.json")]


def build(recipe):
    """A case from its recipe."""
    fields, inputs, weights = table(recipe) if "table" in recipe else model(recipe)
    inputs["excluded"] = marked(recipe["excluded"], shape_of_excluded(inputs))
    info = {
        **head_of(recipe, "search"),
        "needs": fields.pop("needs") + needs_of_search(recipe),
        "width": recipe["width"],
        "softmax": recipe["softmax"],
        "temperature": recipe["temperature"],
        **fields,
        "tolerances": recipe["tolerances"],
        "inputs": list(inputs),
    }
    case = Case(info, inputs | weights)
    return with_outputs(case, compute(definition, case))


def needs_of_search(recipe):
    """What an implementation must be able to do for the case, beyond the plainest search."""
    features = {
        "catalogue softmax": recipe["softmax"] == "catalogue",
        "temperature": recipe["temperature"] != 1.0,
        "excluded titles": bool(recipe["excluded"]),
    }
    return names_of_true(features)


def shape_of_excluded(inputs):
    """(N, S)."""
    of_prompts = inputs.get("prompt_ids", inputs.get("prefix_logits"))
    return len(of_prompts), len(inputs["titles"])


# A table of logits


def table(recipe):
    """The fields, inputs and weights of a case with a table of logits."""
    fields = TABLE | recipe["table"]
    titles = [tuple(title) for title in titles_of_table(fields)]
    prefixes = sorted(prefixes_of(titles), key=lambda prefix: (len(prefix), prefix))
    N = fields["prompts"]
    inputs = {
        "titles": filled_up(titles, FILLER),
        "prefixes": filled_up(prefixes, FILLER),
        "prefix_logits": draw_logits(fields, recipe["name"] + recipe["draw"], prefixes),
    }
    return {"needs": ["several rows"] if N > 1 else []}, inputs, {}


def titles_of_table(fields):
    """The titles of a recipe: given, or every pair of a first and a second token, and the end."""
    if "titles" in fields:
        return fields["titles"]
    num_first, num_second = fields["pairs"]
    titles = []
    for first in range(num_first):
        for second in range(num_second):
            titles.append((2 + first, 2 + num_first + second, 1))
    return titles


def prefixes_of(titles):
    """The prefixes after which a token of a title is chosen: all but the whole titles."""
    return {title[:length] for title in titles for length in range(len(title))}


def draw_logits(fields, name_of_draw, prefixes):
    """Random logits float32 (N, R, V), the same in every run, with those that the recipe sets.

    fields: those of TABLE. Like weights the logits are exact in bfloat16.
    """
    N = fields["prompts"]
    random = random_of(name_of_draw)
    logits = random.standard_normal((N, len(prefixes), fields["vocab_size"]))
    logits = logits * fields["scale"] + fields["shift"]
    for number, more in fields["favour"]:
        title = tuple(fields["titles"][number])
        for length, token in enumerate(title):
            logits[:, prefixes.index(title[:length]), token] += more
    for prefix, values, *prompt in fields["set"]:
        of_prompts = prompt or range(N)
        for token, value in values.items():
            logits[of_prompts, prefixes.index(tuple(prefix)), int(token)] = value
    return truncated_to_bfloat16(logits)


# A model


def model(recipe):
    """The fields, inputs and weights of a case with a model."""
    prompts = [row_with_defaults(prompt) for prompt in recipe["prompts"]]
    rows = padded([make_prompt(prompt) for prompt in prompts], recipe["pad"])
    titles = [title_row(title, prompts[0]["layout"]) for title in recipe["titles"]]
    tokens = vocabulary([row["tokens"] for row in rows + titles])
    scheme, config = recipe["scheme"], recipe["config"] | {"vocab_size": len(tokens)}
    segments = np.array([segment_ids(row, scheme) for row in rows])
    inputs = {
        "titles": filled_up([ids(row, tokens) for row in titles], FILLER),
        "title_in_item": filled_up([in_item(row, scheme) for row in titles], filler=False),
        "prompt_ids": np.array([ids(row, tokens) for row in rows]),
        "prompt_segment_ids": segments,
        "prompt_position_ids": llama_numpy.count_positions(segments),
    }
    fields = {
        "needs": needs(config, scheme, rows),
        "config": config,
        "scheme": scheme,
        "rows": rows,
        "catalogue": recipe["titles"],
    }
    return fields, inputs, draw_weights(config, scheme, recipe["name"] + recipe["draw"])


def title_row(title, layout):
    """The tokens and roles of a title after a prompt without history: it is item number 1."""
    opens, _, closes = LAYOUTS[layout]
    pieces = pieces_of_item((opens, title, closes), 1)
    return {"history": 0, **token_lists(pieces, [])}


def ids(row, tokens):
    return [tokens.index(token) for token in row["tokens"]]


def in_item(row, scheme):
    """Which tokens of a title have the segment of the target; the others are text."""
    return [segment == 1 for segment in segment_ids(row, scheme)]
