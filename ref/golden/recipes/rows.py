"""Rows and prompts of recipes: from titles to tokens, with their roles and item numbers.

A token is a word, a number or a sign, each with the space before it.
"""

import re
from typing import NamedTuple

# What opens an item, what closes it, and what closes the last one of the history and the target.
LAYOUTS = {
    "bare": ("", "", ""),
    "lines": ("", "\n", "\n"),
    "instruction": ('"', '", ', '"'),
}
TOKEN = re.compile(r"\n|, | ?[A-Za-z]+| ?\d+| ?[^\w\s]")
PAD = "<pad>"
PADDING = {"tokens": PAD, "roles": "padding", "entries": 0}  # fields of a row
# What a row, or a prompt, of a recipe may say, and what it says by default.
ROW = {
    "layout": "lines",  # one of LAYOUTS
    "before": "",  # text before the history, and after it
    "after": "",
    "history": [],  # titles
    "repeat": 1,  # so many times in a row
    "left": 0,  # tokens of padding at the left, before the target, and at the right
    "middle": 0,
    "right": 0,
    "holes": [],  # [index, count]: so much padding stands before the token that has this index then
    "opened": False,  # of a prompt: what opens the target stands in it already
}


def row_with_defaults(row):
    """A row or prompt of a recipe with all fields of ROW, and with its whole history.

    Raises ValueError for a field that it cannot have.
    """
    if unknown := row.keys() - ROW.keys() - {"target"}:
        raise ValueError(f"row {row}: unknown fields {sorted(unknown)}")
    fields = ROW | row
    return fields | {"history": fields["history"] * fields["repeat"]}


def vocabulary(lists):
    """Padding, then the tokens of all these lists, sorted: the index of a token is its id."""
    return [PAD, *sorted(set().union(*lists) - {PAD})]


class Piece(NamedTuple):
    """A piece of a prompt: its text, its role, its item (1..n history, n + 1 target, 0 none).

    Padding has tokens and no text.
    """

    text: str
    role: str
    item: int
    tokens: list


def make_row(row):
    """An object of `rows` in case.json, from a row of a recipe: prompt and target."""
    return case_row(row, split_into_pieces(row), [*row["history"], row["target"]])


def make_prompt(row):
    """The same of a prompt without its target."""
    pieces = pieces_of_prompt(row)
    if row["opened"]:
        opens = LAYOUTS[row["layout"]][0]
        pieces.append(piece_of_text(opens, "open", len(row["history"]) + 1))
    return case_row(row, pieces, row["history"])


def case_row(row, pieces, items):
    """An object of `rows` with these pieces and items."""
    return {
        "prompt": "".join(piece.text for piece in pieces),
        "items": items,
        "history": len(row["history"]),
        **token_lists(pieces, row["holes"]),
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
    opens, _, closes_last = LAYOUTS[row["layout"]]
    target = (opens, row["target"], closes_last)
    return [
        *pieces_of_prompt(row),
        padding(row, "middle"),
        *pieces_of_item(target, len(row["history"]) + 1),
        padding(row, "right"),
    ]


def pieces_of_prompt(row):
    """The pieces before the target."""
    opens, closes, closes_last = LAYOUTS[row["layout"]]
    n = len(row["history"])
    pieces = [padding(row, "left"), piece_of_text(row["before"], "text", 0)]
    for item, title in enumerate(row["history"], 1):
        pieces += pieces_of_item((opens, title, closes if item < n else closes_last), item)
    return [*pieces, piece_of_text(row["after"], "text", 0)]


def pieces_of_item(texts, item):
    """Three pieces; texts: what opens the item, its title, what closes it."""
    roles = ("open", "title", "close")
    return [piece_of_text(text, role, item) for text, role in zip(texts, roles, strict=True)]


def piece_of_text(text, role, item):
    """A piece, split into tokens."""
    return Piece(text, role, item, TOKEN.findall(text))


def padding(row, side):
    """The padding that a row has at "left", "middle" (before the target) or "right"."""
    return Piece("", "padding", 0, [PAD] * row[side])


def padded(rows, side):
    """Rows of one length, padded at their "left" or "right"."""
    P = max(len(row["tokens"]) for row in rows)
    longer = []
    for row in rows:
        fields = {}
        for field, filler in PADDING.items():
            missing = [filler] * (P - len(row["tokens"]))
            fields[field] = missing + row[field] if side == "left" else row[field] + missing
        longer.append(row | fields)
    return longer
