"""Bugs of the string and of its tokens: how titles are cleaned, joined and tokenized.

A way to clean takes a title as it is read. A change of the task takes a Task, and returns another.
"""

import html
import re
import unicodedata
from dataclasses import replace
from html.entities import name2codepoint

from ref.golden.definitions import prompts as definition
from ref.golden.definitions.prompts import SPECIAL, TEXT, Label, PlacedToken, Token
from ref.golden.plants.edits import replaced, with_tokenizer

SPACES = r"\s+"
ASCII_SPACES = r"[ \t\n\r\f\v]+"
BYTE = re.compile(r"<0x..>")  # how a tokenizer file spells the token of a byte


def cleaned_but_for(characters):
    """Some characters do not count as white space."""

    def clean(title):
        decoded = html.unescape(title)
        spaces = {c for c in decoded if c.isspace()} - set(characters)
        return re.sub(f"[{''.join(spaces)} ]+", " ", decoded).strip(" ")

    return replaced(clean=clean)


def changed_after_cleaning(change):
    """Titles are changed once they are clean."""
    return replaced(clean=lambda title: change(definition.clean(title)))


def changed_task(change):
    """The prompt of another task is made."""

    def plant(copy, case):
        right_prompt = copy.prompt
        copy.prompt = lambda task, tokenizer: right_prompt(change(task), tokenizer)
        return {}

    return plant


def changed_layout(change):
    """`change` takes the fields of a layout, and returns those that differ."""
    return changed_task(lambda task: replace(task, layout=task.layout | change(task.layout)))


def without_format_characters(title):
    return definition.clean(re.sub("[\u200b\u200d\ufeff]", "", title))


def spaces_before_entities(title):
    return html.unescape(re.sub(SPACES, " ", title).strip())


def with_numbers_as_code_points(title):
    """&#150; is U+0096, not the dash of windows-1252."""
    return definition.clean(re.sub(r"&#(1[2-5]\d);", lambda number: chr(int(number[1])), title))


def with_names_of_html4(title):
    """Only the names of HTML 4 are decoded, and numbers."""

    def decoded(entity):
        return html.unescape(entity[0]) if entity[1] in name2codepoint else f"&amp;{entity[1]};"

    return definition.clean(re.sub(r"&([A-Za-z]\w*);", decoded, title))


def with_semicolons(title):
    """Entities are decoded only where a semicolon ends them."""
    return definition.clean(re.sub(r"&(?!#?\w+;)", "&amp;", title))


def read_as_template(title):
    return re.sub(r"(\$|%|{|})\1", r"\1", title)


def read_escapes(title):
    return title.replace("\\n", "\n").replace("\\t", "\t")


def target_not_cleaned(copy, case):
    """Only the titles of the history are cleaned."""
    right_parts = copy.parts
    raw = case.info["target"]

    def parts(layout, history, target):
        return right_parts(layout, history, raw)

    copy.parts = parts
    return {}


def without_repetitions(task):
    """Of equal titles only the first is kept."""
    return replace(task, history=list(dict.fromkeys(task.history)))


def field_of_last_entry(layout):
    return {"last_entry_close": layout["entry_close"]}


def field_of_other_entries(layout):
    return {"entry_close": layout["last_entry_close"]}


def target_like_an_entry(layout):
    return {
        "target_open": layout["entry_open"],
        "target_close": layout["last_entry_close"],
    }


def stripped_texts(layout):
    return {name: text.strip() for name, text in layout.items() if isinstance(text, str)}


def cleaned_texts(layout):
    """Entities decoded, runs of white space but newlines made one space."""
    cleaned = {}
    for name, text in layout.items():
        if isinstance(text, str):
            cleaned[name] = re.sub(" +", " ", html.unescape(text))
    return cleaned


def no_text_around_nothing(task):
    if task.history:
        return task
    return replace(task, layout=task.layout | {"before": "", "after": ""})


def open_target_without_title(copy, case):
    right_parts = copy.parts

    def parts(layout, history, target):
        listed = right_parts(layout, history, target)
        if target is None:
            listed.append((layout["target_open"], Label(len(history) + 1, "open")))
        return listed

    copy.parts = parts
    return {}


def tokenized_in_pieces(split):
    """The parts are tokenized in several strings; split(parts) -> a list of lists of parts."""

    @with_tokenizer
    def plant(copy, case):
        right_place = copy.place_tokens

        def place_tokens(listed, tokenizer):
            whole_text = ""
            tokens = []
            for some in split(listed):
                text, placed = right_place(some, tokenizer)
                for token in placed:
                    tokens.append(token._replace(begin=token.begin + len(whole_text)))
                whole_text += text
            return whole_text, tokens

        copy.place_tokens = place_tokens
        return {}

    return plant


def one_by_one(listed):
    return [[part] for part in listed if part[0]]


def item_by_item(listed):
    pieces = []
    for part in listed:
        number = part[1].number
        if pieces and pieces[-1][-1][1].number == number:
            pieces[-1].append(part)
        else:
            pieces.append([part])
    return pieces


def target_apart(listed):
    """Two lists: the parts up to the last one that is text, and those that follow it."""
    last_text = max((i for i, (_, label) in enumerate(listed) if label == TEXT), default=-1)
    return [some for some in (listed[: last_text + 1], listed[last_text + 1 :]) if some]


def changed_tokens(change):
    """change(tokenizer, text) -> the tokens of a text; where the tokenizer is given, a file."""

    @with_tokenizer
    def plant(copy, case):
        right_place = copy.place_tokens

        def place_tokens(listed, tokenizer):
            return right_place(listed, Changed(tokenizer, change))

        copy.place_tokens = place_tokens
        return {}

    return plant


class Changed:
    """A tokenizer whose tokens are changed."""

    def __init__(self, tokenizer, change):
        self.tokenizer = tokenizer
        self.change = change
        self.piece = tokenizer.piece

    def tokenize(self, text):
        return self.change(self.tokenizer, text)


def read_special_tokens(tokenizer, text):
    """What is spelled like a special token becomes one."""
    specials = {}
    for token_id in (tokenizer.bos_id, tokenizer.eos_id):
        specials[tokenizer.piece(token_id)] = token_id
    tokens = []
    offset = 0
    for piece in re.split(f"({'|'.join(specials)})", text):
        if piece in specials:
            tokens.append(Token(specials[piece], offset, offset + len(piece)))
        else:
            for token in tokenizer.tokenize(piece):
                tokens.append(Token(token.id, token.begin + offset, token.end + offset))
        offset += len(piece)
    return tokens


def join_bytes(tokenizer, text):
    """A run of bytes becomes the unknown token."""
    tokens = []
    for token in tokenizer.tokenize(text):
        is_byte = BYTE.fullmatch(tokenizer.piece(token.id)) is not None
        if not is_byte:
            tokens.append(token)
        elif not tokens or tokens[-1].id != tokenizer.unk_id:
            tokens.append(token._replace(id=tokenizer.unk_id))
    return tokens


def space_in_front(tokenizer, text):
    tokens = []
    for token in tokenizer.tokenize(" " + text):
        tokens.append(Token(token.id, max(token.begin - 1, 0), max(token.end - 1, 0)))
    return tokens


def bos_twice(placed, task, target_number, tokenizer):
    placed = definition.with_special_tokens(placed, task, target_number, tokenizer)
    return [placed[0], *placed] if task.layout["bos"] else placed


def end_without_target(placed, task, target_number, tokenizer):
    placed = definition.with_special_tokens(placed, task, target_number, tokenizer)
    if task.target is None and task.layout["eos"]:
        placed = [*placed, PlacedToken(tokenizer.eos_id, SPECIAL, Label(target_number, "close"))]
    return placed


def relabelled_special_tokens(name, label):
    """The special token of a field of the layout, "bos" or "eos", belongs elsewhere.

    label(target_number) -> Label.
    """

    def change(placed, task, target_number, tokenizer):
        placed = definition.with_special_tokens(placed, task, target_number, tokenizer)
        place = 0 if name == "bos" else len(placed) - 1
        if placed[place].begin == SPECIAL:
            placed[place] = placed[place]._replace(label=label(target_number))
        return placed

    return replaced(with_special_tokens=change)


def at_first_character(placed, task, target_number, tokenizer):
    """The special tokens lie at the first character of the string."""
    if not placed:
        return placed
    label = placed[0].label
    placed = definition.with_special_tokens(placed, task, target_number, tokenizer)
    tokens = []
    for token in placed:
        tokens.append(token._replace(label=label) if token.begin == SPECIAL else token)
    return tokens


@with_tokenizer
def special_ids_of_llama(copy, case):
    right_special = copy.with_special_tokens

    def with_special_tokens(placed, task, target_number, tokenizer):
        placed = right_special(placed, task, target_number, tokenizer)
        new_ids = {tokenizer.bos_id: 1, tokenizer.eos_id: 2}
        tokens = []
        for token in placed:
            is_special = token.begin == SPECIAL
            tokens.append(token._replace(id=new_ids[token.id]) if is_special else token)
        return tokens

    copy.with_special_tokens = with_special_tokens
    return {}


STRINGS = {
    "titles-not-cleaned": replaced(clean=lambda title: title),
    "entities-left": replaced(clean=lambda title: re.sub(SPACES, " ", title).strip()),
    "entities-decoded-twice": replaced(clean=lambda title: definition.clean(html.unescape(title))),
    "entities-need-semicolon": replaced(clean=with_semicolons),
    "entities-decoded-last": replaced(clean=spaces_before_entities),
    "entities-of-windows-left": replaced(clean=with_numbers_as_code_points),
    "entities-of-html4-alone": replaced(clean=with_names_of_html4),
    "runs-of-spaces-left": replaced(clean=lambda title: html.unescape(title).strip()),
    "ends-not-stripped": replaced(clean=lambda title: re.sub(SPACES, " ", html.unescape(title))),
    "only-ascii-spaces": replaced(
        clean=lambda title: re.sub(ASCII_SPACES, " ", html.unescape(title)).strip(" ")
    ),
    "next-line-is-no-space": cleaned_but_for("\x85"),
    "no-break-spaces-are-no-space": cleaned_but_for("\xa0\u2007\u202f"),
    "information-separators-are-no-space": cleaned_but_for("\x1c\x1d\x1e\x1f"),
    "byte-order-mark-is-space": replaced(
        clean=lambda title: definition.clean(html.unescape(title).replace("\ufeff", " "))
    ),
    "format-characters-removed": replaced(clean=without_format_characters),
    "titles-lowercased": changed_after_cleaning(str.lower),
    "titles-in-nfc": changed_after_cleaning(lambda title: unicodedata.normalize("NFC", title)),
    "titles-in-nfd": changed_after_cleaning(lambda title: unicodedata.normalize("NFD", title)),
    "titles-in-nfkc": changed_after_cleaning(lambda title: unicodedata.normalize("NFKC", title)),
    "quotes-escaped": changed_after_cleaning(lambda title: title.replace('"', '\\"')),
    "quotes-stripped": changed_after_cleaning(lambda title: title.strip('"')),
    "titles-cut-at-64": changed_after_cleaning(lambda title: title[:64]),
    "titles-read-as-templates": changed_after_cleaning(read_as_template),
    "backslashes-read-as-escapes": changed_after_cleaning(read_escapes),
    "target-not-cleaned": target_not_cleaned,
    "layout-texts-cleaned": changed_layout(cleaned_texts),
    "layout-texts-stripped": changed_layout(stripped_texts),
    "last-entry-closed-like-others": changed_layout(field_of_last_entry),
    "entries-closed-like-last": changed_layout(field_of_other_entries),
    "target-delimited-like-entry": changed_layout(target_like_an_entry),
    "target-opened-without-title": open_target_without_title,
    "no-text-around-empty-history": changed_task(no_text_around_nothing),
    "history-newest-first": changed_task(lambda task: replace(task, history=task.history[::-1])),
    "history-cut-at-ten": changed_task(lambda task: replace(task, history=task.history[-10:])),
    "repeated-titles-once": changed_task(without_repetitions),
    "parts-tokenized-one-by-one": tokenized_in_pieces(one_by_one),
    "entries-tokenized-one-by-one": tokenized_in_pieces(item_by_item),
    "target-tokenized-apart": tokenized_in_pieces(target_apart),
    "special-tokens-read-in-titles": changed_tokens(read_special_tokens),
    "bytes-are-unknown": changed_tokens(join_bytes),
    "space-in-front": changed_tokens(space_in_front),
    "bos-missing": changed_layout(lambda layout: {"bos": False}),
    "bos-always": changed_layout(lambda layout: {"bos": True}),
    "bos-twice": replaced(with_special_tokens=bos_twice),
    "bos-in-first-item": relabelled_special_tokens("bos", lambda number: Label(1, "open")),
    "bos-is-padding": relabelled_special_tokens("bos", lambda number: Label(-1, "text")),
    "eos-missing": changed_layout(lambda layout: {"eos": False}),
    "eos-always": changed_layout(lambda layout: {"eos": True}),
    "eos-without-target": replaced(with_special_tokens=end_without_target),
    "eos-is-text": relabelled_special_tokens("eos", lambda number: TEXT),
    "eos-is-padding": relabelled_special_tokens("eos", lambda number: Label(-1, "text")),
    "eos-is-title": relabelled_special_tokens("eos", lambda number: Label(number, "title")),
    "eos-is-next-item": relabelled_special_tokens("eos", lambda number: Label(number + 1, "title")),
    "special-tokens-at-first-character": replaced(with_special_tokens=at_first_character),
    "special-ids-of-llama": special_ids_of_llama,
}
