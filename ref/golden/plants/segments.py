"""Bugs of the segment ids: which item a token belongs to.

A change takes (s, row): s is the list of segment ids of the row's real tokens, row is an object of
`rows` in case.json with the roles of the real tokens only. It returns the list of wrong ids.
"""

from itertools import compress

import numpy as np

from ref.golden.case import segment_ids


def changed_segments(change):
    """Number the real tokens of each row otherwise; padding stays padding."""

    def plant(copy, case):
        changed = case.segment_ids.copy()  # (B, T)
        for s, row in zip(changed, case.rows, strict=True):
            real = s != -1
            real_row = row | {"roles": list(compress(row["roles"], real))}
            s[real] = change(s[real].tolist(), real_row)
        return {"segment_ids": changed}

    return plant


def changed_ids(change):
    """Number the real tokens by their right ids alone: change(id) -> id."""
    return changed_segments(lambda s, row: [change(i) for i in s])


def changed_option(**option):
    """Number the tokens as another scheme says, whatever the scheme of the case is."""

    def plant(copy, case):
        scheme = case.info["scheme"] | option
        return {"segment_ids": np.array([segment_ids(row, scheme) for row in case.rows])}

    return plant


def start_late(s, row):
    """The first token of each run of equal ids becomes text."""
    return [i if previous == i else 0 for previous, i in zip([None, *s], s)]


def start_early(s, row):
    """A token before a token of an item joins that item."""
    return [following if following >= 1 else i for i, following in zip(s, [*s[1:], 0])]


def end_late(s, row):
    """A token after a token of an item joins that item."""
    return [previous if previous >= 1 else i for previous, i in zip([0, *s], s)]


def end_early(s, row):
    """The last token of each run of equal ids becomes text."""
    return [i if following == i else 0 for i, following in zip(s, [*s[1:], None])]


def number_titles(s, row):
    """All occurrences of a title get the number of the first one."""
    first = [0]  # of item n, the number of the first item with its title; text keeps 0
    for title in row["items"]:
        first.append(1 + row["items"].index(title))
    return [first[i] for i in s]


def join_equal_neighbours(s, row):
    """Items next to each other with one title get one number."""
    joined = [0, 1]  # the new number of text and of each item
    for n in range(2, len(row["items"]) + 1):
        is_repeated = row["items"][n - 1] == row["items"][n - 2]
        joined.append(joined[n - 1] if is_repeated else n)
    return [joined[i] for i in s]


def close_into_next_item(s, row):
    is_close = [role == "close" for role in row["roles"]]
    return [i + 1 if i >= 1 and close else i for i, close in zip(s, is_close, strict=True)]


def open_into_item_before(s, row):
    is_open = [role == "open" for role in row["roles"]]
    return [i - 1 if i >= 1 and opens else i for i, opens in zip(s, is_open, strict=True)]


def join_target_and_last_item(s, row):
    if row["history"] == 0:
        return s
    return [min(i, row["history"]) for i in s]


def join_history(s, row):
    return [1 if 1 <= i <= row["history"] else i for i in s]


def number_tokens(s, row):
    return [100 + j if i >= 1 else 0 for j, i in enumerate(s)]


def call_padding_text(copy, case):
    return {"segment_ids": np.maximum(case.segment_ids, 0)}


# Bugs that segment ids alone tell.
SEGMENTS_FROM_IDS = {
    "segments-one-late": changed_segments(lambda s, row: [0, *s[:-1]]),
    "segments-one-early": changed_segments(lambda s, row: [*s[1:], 0]),
    "items-start-late": changed_segments(start_late),
    "items-start-early": changed_segments(start_early),
    "items-end-late": changed_segments(end_late),
    "items-end-early": changed_segments(end_early),
    "text-is-item": changed_ids(lambda i: 99 if i == 0 else i),
    "first-item-is-text": changed_ids(lambda i: max(i - 1, 0)),
    "every-token-is-item": changed_segments(number_tokens),
    "segment-ids-in-int8": changed_ids(lambda i: (i + 128) % 256 - 128),
    "segment-ids-in-uint8": changed_ids(lambda i: i % 256),
    "segments-alternate": changed_ids(lambda i: 1 + i % 2 if i >= 1 else 0),
    "padding-is-text": call_padding_text,
}
# Bugs that need the roles of tokens, or titles, too.
SEGMENTS_FROM_ROWS = {
    "items-by-title": changed_segments(number_titles),
    "equal-neighbours-joined": changed_segments(join_equal_neighbours),
    "target-is-text": changed_option(target="text"),
    "target-is-item": changed_option(target="item"),
    "delimiters-are-text": changed_option(delimiters="text"),
    "delimiters-are-items": changed_option(delimiters="item"),
    "closing-delimiter-to-next-item": changed_segments(close_into_next_item),
    "opening-delimiter-to-item-before": changed_segments(open_into_item_before),
    "target-joins-last-item": changed_segments(join_target_and_last_item),
    "history-is-one-item": changed_segments(join_history),
}
SEGMENTS = SEGMENTS_FROM_IDS | SEGMENTS_FROM_ROWS
