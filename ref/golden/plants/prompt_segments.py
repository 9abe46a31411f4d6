"""Bugs of the labels: where a token belongs, and how items are numbered.

A way to label takes the definition's arguments: a token, the text, a Label for each of its
characters. A change of the numbers takes a Label, the number of the target n + 1 and the case.
"""

import unicodedata
from collections import Counter

import numpy as np

from ref.golden.definitions import prompts as definition
from ref.golden.definitions.prompts import SPECIAL, TEXT, Label, PlacedToken
from ref.golden.plants.edits import replaced, with_tokenizer

SPACE_MARK = "\u2581"  # how a tokenizer file spells a space
JOINER = "\u200d"


def nearest(labels, index):
    """The label at an index, or at the end that it lies beyond."""
    return labels[min(max(index, 0), len(labels) - 1)]


def of_characters(choose):
    """choose(text, begin, end) -> the index of the character that decides."""
    return replaced(
        label_of=lambda token, text, labels: nearest(labels, choose(text, token.begin, token.end))
    )


def first_that_is_no_space(text, begin, end):
    while begin < end - 1 and text[begin].isspace():
        begin += 1
    return begin


def before_a_space(text, begin, end):
    return begin - 1 if text[begin] == " " else begin


def label_of_most(token, text, labels):
    characters = labels[token.begin : max(token.end, token.begin + 1)]
    return Counter(characters).most_common(1)[0][0]


def text_at_borders(token, text, labels):
    """A token that reaches over a border belongs to neither side."""
    numbers = {label.number for label in labels[token.begin : token.end]}
    return TEXT if len(numbers) > 1 else labels[token.begin]


def text_without_width(token, text, labels):
    return TEXT if token.end == token.begin else labels[token.begin]


def delimiter_before_title(token, text, labels):
    """A token that holds a character of a delimiter is one."""
    for label in labels[token.begin : token.end]:
        if label.role != "title":
            return label
    return labels[token.begin]


def string_in_units(size):
    """The labels are listed for other units than code points; size(text so far, character)."""

    def label_of(token, text, labels):
        of_units = []
        for i, label in enumerate(labels):
            of_units += [label] * size(text[:i], text[i])
        return nearest(of_units, token.begin)

    return replaced(label_of=label_of)


def offsets_in_units(size):
    """The offsets count other units than code points; where a tokenizer makes them."""

    def label_of(token, text, labels):
        offset = sum(size(text[:i], text[i]) for i in range(token.begin))
        return nearest(labels, offset)

    @with_tokenizer
    def plant(copy, case):
        copy.label_of = label_of
        return {}

    return plant


def bytes_of(before, character):
    return len(character.encode())


def utf16_units_of(before, character):
    return len(character.encode("utf-16-le")) // 2


def graphemes_of(before, character):
    """1 where a character begins a new one for a reader, else 0; roughly."""
    is_mark = unicodedata.category(character) in ("Mn", "Me", "Sk") and ord(character) > 127
    is_joined = character == JOINER or before.endswith(JOINER)
    return 0 if before and (is_mark or is_joined) else 1


def counted_offsets(length):
    """The offsets are summed from the tokens' spellings: length(piece) -> characters."""

    @with_tokenizer
    def plant(copy, case):
        def place_tokens(listed, tokenizer):
            text, labels = copy.write_out(listed)
            placed = []
            offset = 0
            for token in tokenizer.tokenize(text):
                placed.append(PlacedToken(token.id, token.begin, nearest(labels, offset)))
                offset += length(tokenizer.piece(token.id))
            return text, placed

        copy.place_tokens = place_tokens
        return {}

    return plant


def length_decoded_alone(piece):
    """A token that is decoded by itself loses the space that it begins with."""
    return 1 if is_byte(piece) else len(piece.removeprefix(SPACE_MARK))


def is_byte(piece):
    return piece.startswith("<0x")


@with_tokenizer
def searched_pieces(copy, case):
    """Each piece is searched from the end of the one before; what is not found stays there."""

    def place_tokens(listed, tokenizer):
        text, labels = copy.write_out(listed)
        placed = []
        offset = 0
        for token in tokenizer.tokenize(text):
            piece = tokenizer.piece(token.id).replace(SPACE_MARK, " ")
            begin = text.find(piece, offset)
            if begin == -1:
                begin = offset
            else:
                offset = begin + len(piece)
            placed.append(PlacedToken(token.id, token.begin, nearest(labels, begin)))
        return text, placed

    copy.place_tokens = place_tokens
    return {}


@with_tokenizer
def counted_by_prefixes(copy, case):
    """A part has as many tokens as the string up to its end has more than that up to its begin."""

    def place_tokens(listed, tokenizer):
        text, labels = copy.write_out(listed)
        of_tokens = []
        for i, label in enumerate(labels):
            is_end = i + 1 == len(labels) or labels[i + 1] != label
            if is_end:
                num_more = len(tokenizer.tokenize(text[: i + 1])) - len(of_tokens)
                of_tokens += [label] * num_more
        placed = []
        for i, token in enumerate(tokenizer.tokenize(text)):
            placed.append(PlacedToken(token.id, token.begin, nearest(of_tokens, i)))
        return text, placed

    copy.place_tokens = place_tokens
    return {}


@with_tokenizer
def dummy_prefix_counted(copy, case):
    """The space that the tokenizer puts in front counts as a character of the text."""

    def place_tokens(listed, tokenizer):
        text, labels = copy.write_out(listed)
        tokens = tokenizer.tokenize(text)
        spelled = "".join(tokenizer.piece(token.id) for token in tokens)
        is_shifted = spelled.startswith(SPACE_MARK) and not text.startswith((" ", SPACE_MARK))
        placed = []
        for i, token in enumerate(tokens):
            shifted = token.begin + 1 if is_shifted and i > 0 else token.begin
            placed.append(PlacedToken(token.id, token.begin, nearest(labels, shifted)))
        return text, placed

    copy.place_tokens = place_tokens
    return {}


def searched_titles(find):
    """Titles are searched in the string: find(text, title, end of the one before) -> begin."""

    def plant(copy, case):
        right_write = copy.write_out

        def write_out(listed):
            text, labels = right_write(listed)
            labels = [label if label.role != "title" else TEXT for label in labels]
            end = 0
            for part, label in listed:
                if label.role != "title":
                    continue
                begin = find(text, part, end)
                end = begin + len(part)
                labels[begin:end] = [label] * len(part)
            return text, labels

        copy.write_out = write_out
        return {}

    return plant


def count_at_delimiters(copy, case):
    """The number of an item of the history grows wherever the string holds a closing delimiter."""
    right_write = copy.write_out
    close = case.info["layout"]["entry_close"]

    def write_out(listed):
        text, labels = right_write(listed)
        last = max(label.number for label in labels)
        counted = []
        number = 1
        for i, label in enumerate(labels):
            is_history = 1 <= label.number and label.number < last
            counted.append(Label(number, label.role) if is_history else label)
            if close and is_history and text[: i + 1].endswith(close):
                number += 1
        return text, counted

    copy.write_out = write_out
    return {}


def target_after_first_found(find):
    """The target begins where the text after the history is found in the string."""

    def plant(copy, case):
        right_write = copy.write_out
        after = case.info["layout"]["after"]

        def write_out(listed):
            text, labels = right_write(listed)
            if after and case.info["target"] is not None:
                begin = find(text, after) + len(after)
                number = labels[-1].number
                for i in range(begin, len(labels)):
                    labels[i] = Label(number, labels[i].role)
            return text, labels

        copy.write_out = write_out
        return {}

    return plant


def changed_parts(change):
    """Other labels for the parts: change(listed) -> listed."""

    def plant(copy, case):
        right_parts = copy.parts
        copy.parts = lambda *arguments: change(right_parts(*arguments))
        return {}

    return plant


def before_joins_first(listed):
    return [(listed[0][0], Label(1, "open")), *listed[1:]]


def after_joins(offset):
    """The text after the history joins an item: the last one (0) or the target (1)."""

    def change(listed):
        history = [label.number for _, label in listed[: last_text(listed)]]
        label = Label(max(history, default=0) + offset, "close" if offset == 0 else "open")
        changed = list(listed)
        changed[last_text(listed)] = (listed[last_text(listed)][0], label)
        return changed

    return change


def last_text(listed):
    """Where the text after the history stands among the parts."""
    return max((i for i, (_, label) in enumerate(listed) if label == TEXT), default=0)


def close_to_next(listed):
    """What closes an item of the history joins the next one."""
    changed = []
    for i, (text, label) in enumerate(listed):
        is_between = label.role == "close" and i < last_text(listed) - 1
        changed.append((text, Label(label.number + 1, "open") if is_between else label))
    return changed


def open_to_item_before(listed):
    changed = []
    for text, label in listed:
        is_between = label.role == "open" and label.number > 1
        changed.append((text, Label(label.number - 1, "close") if is_between else label))
    return changed


def changed_numbers(change):
    """change(label, target_number, case) -> the segment id, before the scheme is applied."""

    def plant(copy, case):
        def segment_id(label, target_number, scheme):
            right = definition.segment_id(label, target_number, scheme)
            return change(label, target_number, case) if right >= 1 else right

        copy.segment_id = segment_id
        return {}

    return plant


def catalogue_id(label, target_number, case):
    return int(case.item_ids[position(label, target_number, case)])


def position(label, target_number, case):
    """Of which title of the case a label is: 0 is the oldest, whether it was dropped or not."""
    num_dropped = len(case.info["history"]) + 1 - target_number
    return min(num_dropped + label.number - 1, len(case.item_ids) - 1)


def first_with_its_title(label, target_number, case):
    num_dropped = len(case.info["history"]) + 1 - target_number
    ids = case.item_ids[num_dropped:].tolist()
    return 1 + ids.index(ids[min(label.number, len(ids)) - 1])


def neighbours_joined(label, target_number, case):
    num_dropped = len(case.info["history"]) + 1 - target_number
    ids = case.item_ids[num_dropped:][: label.number]
    return 1 + int((np.diff(ids) != 0).sum())


def newest_is_1(label, target_number, case):
    return label.number if label.number == target_number else target_number - label.number


def keep_dropped(label, target_number, case):
    return 1 + position(label, target_number, case)


def target_keeps_dropped(label, target_number, case):
    is_target = label.number == target_number
    return keep_dropped(label, target_number, case) if is_target else label.number


def target_is(number):
    """The target has another number: number(target_number)."""

    def change(label, target_number, case):
        return number(target_number) if label.number == target_number else label.number

    return changed_numbers(change)


def bos_without_segment(copy, case):
    """The first token is put before the ids, but no segment id before the others."""
    right_special = copy.with_special_tokens

    def with_special_tokens(placed, task, target_number, tokenizer):
        placed = right_special(placed, task, target_number, tokenizer)
        if not placed or placed[0].begin != SPECIAL or not task.layout["bos"]:
            return placed
        labels = [token.label for token in placed[1:]] + [TEXT]
        return [token._replace(label=label) for token, label in zip(placed, labels, strict=True)]

    copy.with_special_tokens = with_special_tokens
    return {}


def option_ignored(**option):
    """The segment ids of another scheme, whatever the case says."""

    def segment_id(label, target_number, scheme):
        return definition.segment_id(label, target_number, scheme | option)

    return replaced(segment_id=segment_id)


def text_only_if(is_text):
    """Of delimiters that are text some stay items: is_text(label, target_number) -> bool."""

    def segment_id(label, target_number, scheme):
        is_delimiter = label.role in ("open", "close")
        if is_delimiter and not is_text(label, target_number):
            scheme = scheme | {"delimiters": "item"}
        return definition.segment_id(label, target_number, scheme)

    return replaced(segment_id=segment_id)


def only_title_of_target_is_text(label, target_number, scheme):
    if label.role != "title":
        scheme = scheme | {"target": "item"}
    return definition.segment_id(label, target_number, scheme)


SEGMENTS = {
    "string-indexed-by-bytes": string_in_units(bytes_of),
    "string-indexed-by-utf16": string_in_units(utf16_units_of),
    "string-indexed-by-graphemes": string_in_units(graphemes_of),
    "offsets-in-bytes": offsets_in_units(bytes_of),
    "offsets-in-utf16": offsets_in_units(utf16_units_of),
    "offsets-from-spellings": counted_offsets(len),
    "byte-tokens-count-as-characters": counted_offsets(
        lambda piece: 1 if is_byte(piece) else len(piece)
    ),
    "offsets-from-tokens-decoded-alone": counted_offsets(length_decoded_alone),
    "borders-from-lengths-of-prefixes": counted_by_prefixes,
    "dummy-prefix-counted": dummy_prefix_counted,
    "pieces-searched": searched_pieces,
    "titles-searched-from-start": searched_titles(lambda text, title, end: text.find(title)),
    "titles-searched-in-order": searched_titles(lambda text, title, end: text.find(title, end)),
    "items-counted-at-delimiters": count_at_delimiters,
    "target-behind-first-after": target_after_first_found(str.find),
    "offsets-one-late": of_characters(lambda text, begin, end: begin + 1),
    "offsets-one-early": of_characters(lambda text, begin, end: begin - 1),
    "last-character-decides": of_characters(lambda text, begin, end: max(begin, end - 1)),
    "end-decides": of_characters(lambda text, begin, end: end),
    "middle-character-decides": of_characters(lambda text, begin, end: (begin + end) // 2),
    "most-characters-decide": replaced(label_of=label_of_most),
    "space-skipped": of_characters(first_that_is_no_space),
    "space-to-item-before": of_characters(before_a_space),
    "text-where-borders-are-crossed": replaced(label_of=text_at_borders),
    "text-without-width": replaced(label_of=text_without_width),
    "delimiter-before-title": replaced(label_of=delimiter_before_title),
    "before-joins-first-item": changed_parts(before_joins_first),
    "after-joins-last-item": changed_parts(after_joins(0)),
    "after-joins-target": changed_parts(after_joins(1)),
    "close-joins-next-item": changed_parts(close_to_next),
    "open-joins-item-before": changed_parts(open_to_item_before),
    "catalogue-ids-as-segments": changed_numbers(catalogue_id),
    "equal-titles-share-a-number": changed_numbers(first_with_its_title),
    "equal-neighbours-share-a-number": changed_numbers(neighbours_joined),
    "numbered-from-0": changed_numbers(lambda label, number, case: label.number - 1),
    "newest-is-number-1": changed_numbers(newest_is_1),
    "dropped-are-numbered": changed_numbers(keep_dropped),
    "target-numbered-before-dropping": changed_numbers(target_keeps_dropped),
    "target-is-number-11": target_is(lambda number: 11),
    "target-has-number-of-last": target_is(lambda number: max(number - 1, 1)),
    "target-is-one-too-far": target_is(lambda number: number + 1),
    "segments-in-signed-bytes": changed_numbers(
        lambda label, number, case: (label.number + 128) % 256 - 128
    ),
    "segments-in-unsigned-bytes": changed_numbers(lambda label, number, case: label.number % 256),
    "segments-before-bos": bos_without_segment,
    "delimiters-never-text": option_ignored(delimiters="item"),
    "delimiters-always-text": option_ignored(delimiters="text"),
    "target-never-text": option_ignored(target="item"),
    "target-always-text": option_ignored(target="text"),
    "only-closing-is-text": text_only_if(lambda label, number: label.role == "close"),
    "only-opening-is-text": text_only_if(lambda label, number: label.role == "open"),
    "delimiters-of-target-never-text": text_only_if(lambda label, number: label.number != number),
    "only-title-of-target-is-text": replaced(segment_id=only_title_of_target_is_text),
}
