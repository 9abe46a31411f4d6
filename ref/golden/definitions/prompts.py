"""From titles to one string, to tokens, to segment ids: the definition, character by character.

A prompt is one string. Its layout says what stands around the titles:

    before | open title close | open title close | ... | after | open title close
    text     item 1             item 2                   text    the target

The string is tokenized whole, and a token belongs where its first character lies. The tokenizer is
given: tokenize(text) returns a list of Token, and bos_id, eos_id, unk_id and piece(id) say more.
T is the number of tokens of a prompt, n that of the items of its history.
"""

import html
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class Task:
    """What a prompt is made of.

    history, target: titles as they are read, oldest first; target is None where there is none.
    layout: the texts around the titles, "" where there is none (before, entry_open, entry_close,
    last_entry_close, after, target_open, target_close), and whether special tokens begin and end
    the sequence (bos, eos). scheme: "delimiters" and "target", each "item" or "text".
    max_length: the most tokens, of which `reserve` are kept free.
    """

    history: list
    target: str | None
    layout: dict
    scheme: dict
    max_length: int
    reserve: int


class Label(NamedTuple):
    """Where a character lies.

    number: 0 text, 1..n an item of the history, n + 1 the target. role: "text", "open", "title" or
    "close".
    """

    number: int
    role: str


class Token(NamedTuple):
    """A token of a string, and the characters [begin, end) that it stands for, in code points.

    begin = end where a token stands for none, or for a part of the character there.
    """

    id: int
    begin: int
    end: int


class PlacedToken(NamedTuple):
    """A token of a prompt: its first character (-1 where it is special) and where it belongs."""

    id: int
    begin: int
    label: Label


TEXT = Label(0, "text")
SPECIAL = -1  # the first character of a token that the string does not hold


def clean(title):
    """A title with its HTML entities decoded, once, and then each run of white space as a space.

    No white space is left at its ends.
    """
    cleaned = ""
    for character in html.unescape(title):
        if not character.isspace():
            cleaned += character
        elif cleaned and cleaned[-1] != " ":
            cleaned += " "
    return cleaned[:-1] if cleaned.endswith(" ") else cleaned


def parts(layout, history, target):
    """The parts of the string in order: a list of (text, Label)."""
    listed = [(layout["before"], TEXT)]
    for number, title in enumerate(history, start=1):
        close = "entry_close" if number < len(history) else "last_entry_close"
        listed += parts_of_item(layout, number, title, ("entry_open", close))
    listed.append((layout["after"], TEXT))
    if target is not None:
        number = len(history) + 1
        listed += parts_of_item(layout, number, target, ("target_open", "target_close"))
    return listed


def parts_of_item(layout, number, title, fields):
    """What opens an item, its title and what closes it; fields: names of the first and the last."""
    opens, closes = fields
    return [
        (layout[opens], Label(number, "open")),
        (title, Label(number, "title")),
        (layout[closes], Label(number, "close")),
    ]


def write_out(listed):
    """The string of some parts, and a list with the Label of each of its characters."""
    text = ""
    labels = []
    for part, label in listed:
        for character in part:
            text += character
            labels.append(label)
    return text, labels


def label_of(token, text, labels):
    """A token belongs where its first character lies."""
    return labels[token.begin]


def place_tokens(listed, tokenizer):
    """The string of some parts and its tokens, a list of PlacedToken."""
    text, labels = write_out(listed)
    placed = []
    for token in tokenizer.tokenize(text):
        placed.append(PlacedToken(token.id, token.begin, label_of(token, text, labels)))
    return text, placed


def with_special_tokens(placed, task, target_number, tokenizer):
    """Put the tokens that begin and end a sequence around others, where the layout wants them.

    The first is text. The last closes the target, and is there only where the target is.
    """
    if task.layout["bos"]:
        placed = [PlacedToken(tokenizer.bos_id, SPECIAL, TEXT), *placed]
    if task.layout["eos"] and task.target is not None:
        end = PlacedToken(tokenizer.eos_id, SPECIAL, Label(target_number, "close"))
        placed = [*placed, end]
    return placed


def segment_id(label, target_number, scheme):
    """The number of an item; 0 for text, and for what the scheme calls text."""
    is_delimiter = label.role in ("open", "close")
    is_target = label.number == target_number
    if is_delimiter and scheme["delimiters"] == "text":
        return 0
    if is_target and scheme["target"] == "text":
        return 0
    return label.number


def count_prompt_tokens(placed, target_number):
    """How many tokens stand before the first one of the target."""
    count = 0
    for token in placed:
        if token.label.number == target_number:
            break
        count += 1
    return count


def fits(placed, task):
    """Whether the model can read so many tokens, and `reserve` more."""
    return len(placed) + task.reserve <= task.max_length


def draft(task, dropped, tokenizer):
    """The string and the placed tokens of a prompt without the `dropped` oldest items."""
    history = [clean(title) for title in task.history][dropped:]
    target = None if task.target is None else clean(task.target)
    text, placed = place_tokens(parts(task.layout, history, target), tokenizer)
    return text, with_special_tokens(placed, task, len(history) + 1, tokenizer)


def prompt(task, tokenizer):
    """The prompt with as many items as fit, the oldest dropped; one is always kept.

    Returns, by name: text, its UTF-8 bytes; begins, input_ids, item_numbers and segment_ids (T,);
    prompt_length and dropped.
    """
    for dropped in range(max(len(task.history), 1)):
        text, placed = draft(task, dropped, tokenizer)
        if fits(placed, task):
            break
    target_number = len(task.history) - dropped + 1
    segment_ids = [segment_id(token.label, target_number, task.scheme) for token in placed]
    return {
        "text": np.frombuffer(text.encode(), np.uint8),
        "begins": np.array([token.begin for token in placed]),
        "input_ids": np.array([token.id for token in placed]),
        "item_numbers": np.array([token.label.number for token in placed]),
        "segment_ids": np.array(segment_ids),
        "prompt_length": np.array(count_prompt_tokens(placed, target_number)),
        "dropped": np.array(dropped),
    }
