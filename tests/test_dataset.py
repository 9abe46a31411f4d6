"""The three readers, the split, and the training windows, against loops over SPEC section 6."""

import gzip
import json

import numpy as np
import pytest

from ref.data import dataset
from ref.data.dataset import clean_title, load

from support.data import *  # noqa: F403
from support.data import (
    TITLES,
    csv_bytes,
    made_up_rows,
    presplit_rows,
    write_interactions,
    write_presplit,
)

LOSSES = ("target", "all", "titles")


def made_up(folder, **options):
    return load(folder, **{"min_item": 1, "min_user": 3} | options)


def shown(data, windows):
    """The titles of each window."""
    return [
        [data.titles[entry] for entry in data.entries[start:end]]
        for start, end in zip(windows.starts, windows.ends)
    ]


def sequences_by_hand(rows):
    """Each user's item ids: the users as they first appear, entries by time, ties by place in the file."""
    sequences = {}
    for place, (user, item, time) in enumerate(rows):
        sequences.setdefault(user, []).append((time, place, item))
    return [[item for _, _, item in sorted(sequence)] for sequence in sequences.values()]


def own_items(users=5, entries=9):
    """Rows and titles in which every entry has an item of its own, named USER-PLACE IN TIME."""
    rows = [
        (f"u{user}", f"{user}-{place}", place) for user in range(users) for place in range(entries)
    ]
    return rows[::-1], {item: f"title {item}" for _, item, _ in rows}


def titles_of(sequence):
    return [TITLES[int(item[1:])] for item in sequence]


# --- the split


def test_the_last_entry_is_the_test_target_and_the_one_before_it_the_validation_target(
    interactions_folder,
):
    data = made_up(interactions_folder, history=4)
    sequences = [titles_of(s) for s in sequences_by_hand(made_up_rows())]
    assert shown(data, data.test) == [s[-5:] for s in sequences]
    assert shown(data, data.valid) == [s[:-1][-5:] for s in sequences]
    assert shown(data, data.train) == [s[:-2] for s in sequences]


def test_entries_of_the_same_time_stay_in_the_order_of_the_file(tmp_path):
    rows = [
        ("u", "i3", 7),
        ("u", "i1", 7),
        ("v", "i5", 7),
        ("u", "i2", 7),
        ("u", "i0", 6),
        ("v", "i4", 7),
        ("v", "i6", 7),
    ]
    data = made_up(write_interactions(tmp_path / "ties", rows))
    assert shown(data, data.test) == [
        [TITLES[i] for i in (0, 3, 1, 2)],
        [TITLES[i] for i in (5, 4, 6)],
    ]


def test_times_are_ordered_as_numbers_and_not_as_text(tmp_path):
    rows = [("u", "i0", 100), ("u", "i1", 9), ("u", "i2", 10), ("u", "i3", 10**17)]
    data = made_up(write_interactions(tmp_path / "numbers", rows))
    assert shown(data, data.test) == [[TITLES[i] for i in (1, 2, 0, 3)]]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("history", (1, 3, 10))
def test_no_training_window_holds_a_validation_or_test_target(tmp_path, loss, history):
    rows, titles = own_items()
    data = made_up(write_interactions(tmp_path / "own", rows, titles), history=history)
    seen = {
        t
        for seed in range(20)
        for w in shown(data, data.training_windows(loss, np.random.default_rng(seed)))
        for t in w
    }
    assert seen and seen <= {f"title {user}-{place}" for user in range(5) for place in range(7)}
    if loss == "titles":
        assert seen == {f"title {user}-{place}" for user in range(5) for place in range(7)}


def test_no_history_holds_its_target_or_anything_later(tmp_path):
    rows, titles = own_items()
    data = made_up(write_interactions(tmp_path / "own", rows, titles), history=3)
    for windows, place in ((data.valid, 7), (data.test, 8)):
        expected = [
            [f"title {user}-{p}" for p in range(place - 3, place + 1)] for user in range(4, -1, -1)
        ]
        assert shown(data, windows) == expected


def test_training_counts_leave_out_validation_and_test(tmp_path):
    rows, titles = own_items()
    data = made_up(write_interactions(tmp_path / "own", rows, titles))
    counts = dict(zip(data.titles, data.training_counts().tolist()))
    assert counts == {title: int(int(title[-1]) < 7) for title in titles.values()}


def test_training_counts_are_those_of_a_loop(interactions_folder):
    data = made_up(interactions_folder)
    train = [title for s in sequences_by_hand(made_up_rows()) for title in titles_of(s)[:-2]]
    assert data.training_counts().tolist() == [train.count(title) for title in data.titles]


# --- training windows


def lengths_of(*lengths):
    return [
        (f"u{user}", f"i{(user + place) % len(TITLES)}", place)
        for user, length in enumerate(lengths)
        for place in range(length)
    ]


@pytest.mark.parametrize("history", (1, 2, 3, 10, 50))
def test_prefix_windows_are_those_of_a_loop(tmp_path, history):
    rows = lengths_of(3, 5, 6, 7, 8, 16, 30)
    data = made_up(write_interactions(tmp_path / "prefixes", rows), history=history)
    expected = []
    for sequence in (titles_of(s)[:-2] for s in sequences_by_hand(rows)):
        for target in range(4, len(sequence)):
            expected.append(sequence[max(target - history, 0) : target + 1])
    for loss in ("target", "all"):
        assert shown(data, data.training_windows(loss, np.random.default_rng(0))) == expected


@pytest.mark.parametrize("history", (1, 2, 3, 10, 50))
def test_title_windows_predict_every_entry_but_the_first_exactly_once(tmp_path, history):
    data = made_up(
        write_interactions(tmp_path / "titles", lengths_of(3, 4, 5, 14, 15, 16, 30)),
        history=history,
    )
    expected = sorted(
        p for s, e in zip(data.train.starts, data.train.ends) for p in range(s + 1, e)
    )
    for seed in range(30):
        windows = data.training_windows("titles", np.random.default_rng(seed))
        assert (
            sorted(p for s, e in zip(windows.starts, windows.ends) for p in range(s + 1, e))
            == expected
        )
        assert (windows.ends - windows.starts <= history + 1).all()


class FixedOffset:
    """A generator that draws the same offset for every sequence."""

    def __init__(self, offset):
        self.offset = offset

    def integers(self, low, high, size):
        assert low <= self.offset < high
        return np.full(size, self.offset)


@pytest.mark.parametrize("offset", range(4))
def test_title_windows_of_an_offset_are_those_of_a_loop(tmp_path, offset):
    rows, history = lengths_of(3, 4, 5, 6, 7, 8, 9, 10, 19), 4
    data = made_up(write_interactions(tmp_path / "offsets", rows), history=history)
    expected = []
    for sequence in (titles_of(s)[:-2] for s in sequences_by_hand(rows)):
        cut = offset  # the entry that one window ends with and the next begins with
        pieces = [sequence[: cut + 1]]
        while cut < len(sequence) - 1:
            pieces.append(sequence[cut : cut + history + 1])
            cut += history
        expected += [piece for piece in pieces if len(piece) > 1]
    assert shown(data, data.training_windows("titles", FixedOffset(offset))) == expected


def test_the_offset_of_title_windows_is_drawn_for_each_sequence(tmp_path):
    data = made_up(write_interactions(tmp_path / "drawn", lengths_of(*[40] * 100)), history=10)
    windows = data.training_windows("titles", np.random.default_rng(0))
    first = [int(min(e - s for e in windows.ends if s < e) - 1) for s in data.train.starts]
    assert set(first) == set(range(1, 11))


# --- filters


def filtered_by_hand(rows, min_item, min_user):
    while True:
        items, users = [row[1] for row in rows], [row[0] for row in rows]
        kept = [
            row
            for row in rows
            if items.count(row[1]) >= min_item and users.count(row[0]) >= min_user
        ]
        if kept == rows:
            return rows
        rows = kept


@pytest.mark.parametrize("min_item, min_user", ((1, 3), (4, 3), (5, 4), (6, 5), (3, 7)))
def test_filters_hold_for_items_and_users_at_once(tmp_path, min_item, min_user):
    rows = made_up_rows(users=14, entries=9, seed=3)[:115]
    kept = filtered_by_hand(rows, min_item, min_user)
    data = load(
        write_interactions(tmp_path / "filtered", rows),
        history=50,
        min_item=min_item,
        min_user=min_user,
    )
    expected = [titles_of(s) for s in sequences_by_hand(kept)]
    assert sorted(shown(data, data.test)) == sorted(expected)
    assert set(data.titles) == {title for s in expected for title in s}


def test_a_filter_that_removes_in_turns_removes_all_that_it_must(tmp_path):
    rows = [
        (user, item, 1)
        for user, items in {"u": "abcd", "v": "abcd", "w": "cde", "x": "ef"}.items()
        for item in items
    ]
    data = load(
        write_interactions(tmp_path / "turns", rows, {i: i for i in "abcdef"}),
        min_item=2,
        min_user=3,
    )
    assert data.titles == ["a", "b", "c", "d"]
    assert shown(data, data.test) == [["a", "b", "c", "d"], ["a", "b", "c", "d"]]


# --- titles


@pytest.mark.parametrize(
    "raw, cleaned",
    (
        ("Tom &amp; Jerry", "Tom & Jerry"),
        ("Tom &amp;amp; Jerry", "Tom &amp; Jerry"),
        ("&lt;b&gt; &#39;x&#39; &quot;y&quot; &eacute;", "<b> 'x' \"y\" é"),
        ("  a \t\r\n b\u00a0\u2003c&nbsp;&#10;d ", "a b c d"),
        ("R&D, AT&T; a & b", "R&D, AT&T; a & b"),
        ("zero\u200bwidth", "zero\u200bwidth"),
    ),
)
def test_titles_are_cleaned_once(tmp_path, raw, cleaned):
    rows = [("u", item, place) for place, item in enumerate("abc")]
    data = made_up(write_interactions(tmp_path / "clean", rows, {"a": raw, "b": "b", "c": "c"}))
    names = {"1": raw, "2": "b"}
    presplit = load(write_presplit(tmp_path / "split", [([1, 2], 1)] * 3, [([1, 2], 2)] * 2, names))
    assert clean_title(raw, "here") == data.titles[0] == presplit.titles[0] == cleaned


def test_items_that_share_a_title_are_one_answer(tmp_path):
    rows = [("u", item, place) for place, item in enumerate("abcd")]
    data = made_up(
        write_interactions(
            tmp_path / "shared", rows, {"a": "X", "b": "Y &amp; Z", "c": " X\n", "d": "Y & Z"}
        )
    )
    assert data.titles == ["X", "Y & Z"]
    assert data.entries.tolist() == [0, 1, 0, 1]


def test_the_catalogue_is_in_the_order_of_the_item_file(tmp_path):
    rows = [("u", item, place) for place, item in enumerate("cab")]
    data = made_up(
        write_interactions(tmp_path / "order", rows, {"b": "B", "z": "Z", "a": "A", "c": "C"})
    )
    assert data.titles == ["B", "A", "C"]


def test_gzip_files_read_like_plain_ones(tmp_path, interactions_folder):
    packed = made_up(write_interactions(tmp_path / "packed", made_up_rows(), suffix=".gz"))
    plain = made_up(interactions_folder)
    assert packed.titles == plain.titles and packed.entries.tolist() == plain.entries.tolist()
    assert shown(packed, packed.test) == shown(plain, plain.test)


def test_byte_order_mark_blank_lines_and_further_columns_change_nothing(
    tmp_path, interactions_folder
):
    for name in ("interactions.csv", "items.csv"):
        header, *rows = (interactions_folder / name).read_text(encoding="utf-8").splitlines()
        lines = [f"extra,{header}", "", *(f"7,{row}" for row in rows), ""]
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert made_up(tmp_path).entries.tolist() == made_up(interactions_folder).entries.tolist()
    assert made_up(tmp_path).titles == list(made_up(interactions_folder).titles)


# --- data that is split already


def test_presplit_validation_is_the_last_twentieth_of_training_in_time(presplit_folder):
    data = load(presplit_folder, history=50)
    in_time = [items for items, _ in sorted(presplit_rows(40, 1000), key=lambda row: row[1])]
    later = [items for items, _ in sorted(presplit_rows(8, 2000, seed=1), key=lambda row: row[1])]
    numbers = {title: int(title.split('"')[1]) for title in data.titles}
    found = [
        [[numbers[t] for t in w] for w in shown(data, part)]
        for part in (data.train, data.valid, data.test)
    ]
    assert found == [in_time[:38], in_time[38:], later]


@pytest.mark.parametrize("loss", LOSSES)
def test_presplit_training_holds_no_row_of_validation_or_test(tmp_path, loss):
    names = {
        f"{row}-{place}": f"row {row} place {place}" for row in range(50) for place in range(6)
    }
    rows = [([f"{row}-{place}" for place in range(6)], row) for row in range(50)]
    data = load(write_presplit(tmp_path / "own", rows[:40][::-1], rows[40:], names), history=3)
    seen = {
        t for w in shown(data, data.training_windows(loss, np.random.default_rng(0))) for t in w
    }
    assert seen == {f"row {row} place {place}" for row in range(38) for place in range(2, 6)}
    assert set(np.flatnonzero(data.training_counts())) == {
        data.titles.index(title) for title in seen
    }


def test_presplit_windows_keep_their_last_entries(tmp_path):
    names = {str(i): f"t{i}" for i in range(9)}
    data = load(
        write_presplit(
            tmp_path / "cut", [(list(range(9)), 1)] * 3, [(list(range(9)), 2)] * 2, names
        ),
        history=4,
    )
    assert all(
        window == ["t4", "t5", "t6", "t7", "t8"]
        for part in (data.train, data.valid, data.test)
        for window in shown(data, part)
    )


def test_presplit_items_without_a_title_are_left_out_and_counted(tmp_path):
    names = {"1": "a", "2": "", "3": "c", "4": "  "}
    train = [([1, 2, 3], 1), ([1, 3, 2], 2), ([2, 4, 1], 3), ([3, 1], 4), ([1, 3], 5)]
    data = load(write_presplit(tmp_path / "untitled", train, [([1, 2, 3], 9)] * 2, names))
    windows = shown(data, data.train) + shown(data, data.valid) + shown(data, data.test)
    assert windows == [["a", "c"], ["c", "a"], ["a", "c"], ["a", "c"], ["a", "c"]]
    assert "2 items without a title" in data.notes[0] and "2 rows" in data.notes[0]


# --- the embedded data


@pytest.fixture(scope="module")
def embedded():
    return load()


def test_the_embedded_data_has_the_size_that_its_notice_says(embedded):
    with gzip.open(dataset.EMBEDDED / "interactions.csv.gz", "rt", encoding="utf-8") as file:
        header, *rows = [line.strip().split(",") for line in file]
    assert header == ["user_id", "item_id", "timestamp"] and len(rows) == 99_997
    assert len({user for user, _, _ in rows}) == 671 == len(embedded.test)
    items = [item for _, item, _ in rows]
    assert (
        sum(n >= 10 for n in np.unique(items, return_counts=True)[1])
        == 2_245
        == len(embedded.titles)
    )


def test_embedded_histories_and_targets_are_those_of_a_loop(embedded):
    with gzip.open(dataset.EMBEDDED / "items.csv.gz", "rt", encoding="utf-8", newline="") as file:
        titles = {
            row["item_id"]: " ".join(row["title"].split()) for row in dataset.csv.DictReader(file)
        }
    with gzip.open(dataset.EMBEDDED / "interactions.csv.gz", "rt", encoding="utf-8") as file:
        rows = [
            (u, i, int(t)) for u, i, t in (line.strip().split(",") for line in file.readlines()[1:])
        ]
    items, counts = np.unique([i for _, i, _ in rows], return_counts=True)
    frequent = set(items[counts >= 10])
    sequences = sequences_by_hand([row for row in rows if row[1] in frequent])
    assert min(map(len, sequences)) >= 5
    assert shown(embedded, embedded.test) == [[titles[i] for i in s[-11:]] for s in sequences]
    assert shown(embedded, embedded.valid) == [[titles[i] for i in s[:-1][-11:]] for s in sequences]


# --- wrong files

ITEMS, INTERACTIONS = (
    b"item_id,title\n1,A\n2,B\n3,C\n",
    b"user_id,item_id,timestamp\nu,1,1\nu,2,2\nu,3,3\n",
)
NAMES, ROWS = (
    b'{"1": "A", "2": "B"}',
    b'user_id,item_ids,timestamp\nu,"[1, 2]",1\nu,"[2, 1]",2\nu,"[1, 2]",3\n',
)
PLAIN = {"items.csv": ITEMS, "interactions.csv": INTERACTIONS}
SPLIT = {"id2name4Rec.json": NAMES, "train.csv": ROWS, "test.csv": ROWS}

WRONG = {
    "items missing": (PLAIN, {"items.csv": None}, ("items.csv",)),
    "interactions missing": (PLAIN, {"interactions.csv": None}, ("interactions.csv",)),
    "train missing": (SPLIT, {"train.csv": None}, ("train.csv",)),
    "test missing": (SPLIT, {"test.csv": None}, ("test.csv",)),
    "title column missing": (
        PLAIN,
        {"items.csv": b"item_id,name\n1,A\n"},
        ("items.csv", "'title'", "name"),
    ),
    "timestamp column missing": (
        PLAIN,
        {"interactions.csv": b"user_id,item_id\nu,1\n"},
        ("interactions.csv", "'timestamp'"),
    ),
    "item_ids column missing": (
        SPLIT,
        {"test.csv": b"user_id,timestamp\nu,1\n"},
        ("test.csv", "'item_ids'"),
    ),
    "empty items": (PLAIN, {"items.csv": b""}, ("items.csv", "item_id")),
    "empty interactions": (PLAIN, {"interactions.csv": b""}, ("interactions.csv", "user_id")),
    "item without title": (
        PLAIN,
        {"interactions.csv": INTERACTIONS + b"u,9,4\n"},
        ("interactions.csv, line 5", "'9'", "items.csv"),
    ),
    "row of an unknown item": (
        SPLIT,
        {"train.csv": ROWS + b'u,"[1, 9]",4\n'},
        ("train.csv, line 5", "9", "id2name4Rec.json"),
    ),
    "empty title": (PLAIN, {"items.csv": ITEMS + b"4,\n"}, ("items.csv, line 5", "'4'", "empty")),
    "blank title": (PLAIN, {"items.csv": ITEMS + b'4,"&nbsp;\n"\n'}, ("items.csv", "'4'", "empty")),
    "duplicate item": (
        PLAIN,
        {"items.csv": ITEMS + b"2,D\n"},
        ("items.csv, line 5", "'2'", "twice"),
    ),
    "duplicate item in JSON": (
        SPLIT,
        {"id2name4Rec.json": b'{"1": "A", "2": "B", "1": "C"}'},
        ("id2name4Rec.json", "'1'", "twice"),
    ),
    "timestamp no integer": (
        PLAIN,
        {"interactions.csv": INTERACTIONS + b"u,1,1.5\n"},
        ("interactions.csv, line 5", "'1.5'", "integer"),
    ),
    "timestamp negative": (
        PLAIN,
        {"interactions.csv": INTERACTIONS + b"u,1,-4\n"},
        ("interactions.csv, line 5", "'-4'", "0 or more"),
    ),
    "timestamp empty": (
        PLAIN,
        {"interactions.csv": INTERACTIONS + b"u,1,\n"},
        ("interactions.csv, line 5", "''", "integer"),
    ),
    "timestamp a word": (
        SPLIT,
        {"train.csv": ROWS + b'u,"[1, 2]",now\n'},
        ("train.csv, line 5", "'now'", "integer"),
    ),
    "timestamp huge": (
        PLAIN,
        {"interactions.csv": INTERACTIONS + b"u,1," + b"9" * 30 + b"\n"},
        ("interactions.csv, line 5", "integer"),
    ),
    "timestamp in other digits": (
        PLAIN,
        {"interactions.csv": INTERACTIONS + "u,1,\u0663\n".encode()},
        ("interactions.csv, line 5", "integer"),
    ),
    "broken JSON": (SPLIT, {"id2name4Rec.json": b'{"1": "A",'}, ("id2name4Rec.json", "JSON")),
    "empty JSON": (SPLIT, {"id2name4Rec.json": b""}, ("id2name4Rec.json", "JSON")),
    "deep JSON": (SPLIT, {"id2name4Rec.json": b"[" * 100_000}, ("id2name4Rec.json", "JSON")),
    "JSON with a number of 5,000 digits": (
        SPLIT,
        {"id2name4Rec.json": b'{"1": ' + b"9" * 5000 + b"}"},
        ("id2name4Rec.json",),
    ),
    "JSON list": (SPLIT, {"id2name4Rec.json": b'["A"]'}, ("id2name4Rec.json", "list")),
    "JSON title a number": (
        SPLIT,
        {"id2name4Rec.json": b'{"1": "A", "2": 5}'},
        ("id2name4Rec.json", "'2'", "5", "text"),
    ),
    "JSON title null": (
        SPLIT,
        {"id2name4Rec.json": b'{"1": "A", "2": null}'},
        ("id2name4Rec.json", "'2'", "None", "text"),
    ),
    "half surrogate": (
        SPLIT,
        {"id2name4Rec.json": b'{"1": "A", "2": "B\\ud800"}'},
        ("id2name4Rec.json", "'2'", "surrogate"),
    ),
    "half surrogate in an item id": (
        SPLIT,
        {"id2name4Rec.json": b'{"1": "A", "2": "B", "\\ud800": ""}'},
        ("id2name4Rec.json", "surrogate"),
    ),
    "broken gzip": (
        PLAIN,
        {"items.csv": None, "items.csv.gz": gzip.compress(ITEMS)[:-9]},
        ("items.csv.gz", "gzip"),
    ),
    "no gzip at all": (PLAIN, {"items.csv": None, "items.csv.gz": ITEMS}, ("items.csv.gz", "gzip")),
    "gzip with a wrong checksum": (
        PLAIN,
        {"items.csv": None, "items.csv.gz": gzip.compress(ITEMS)[:-8] + bytes(8)},
        ("items.csv.gz", "gzip"),
    ),
    "not UTF-8": (PLAIN, {"items.csv": ITEMS + b"4,caf\xe9\n"}, ("items.csv", "UTF-8")),
    "UTF-16": (
        PLAIN,
        {"interactions.csv": INTERACTIONS.decode().encode("utf-16")},
        ("interactions.csv", "UTF-8"),
    ),
    "JSON not UTF-8": (
        SPLIT,
        {"id2name4Rec.json": b'{"1": "A", "2": "caf\xe9"}'},
        ("id2name4Rec.json", "UTF-8"),
    ),
    "NUL in a title": (PLAIN, {"items.csv": ITEMS + b"4,D\0\n"}, ("items.csv", "NUL")),
    "NUL in a JSON title": (
        SPLIT,
        {"id2name4Rec.json": b'{"1": "A", "2": "B\\u0000"}'},
        ("id2name4Rec.json", "'2'", "NUL"),
    ),
    "NUL in a user": (
        PLAIN,
        {"interactions.csv": INTERACTIONS + b"u\0,1,4\n"},
        ("interactions.csv", "NUL"),
    ),
    "NUL in a timestamp": (
        PLAIN,
        {"interactions.csv": INTERACTIONS + b"u,1,\x004\n"},
        ("interactions.csv, line 5",),
    ),
    "unclosed quote": (
        PLAIN,
        {"items.csv": b'item_id,title\n1,"A\n2,B\n3,C\n'},
        ("items.csv: ", "broken CSV"),
    ),
    "unclosed quote at the end": (
        PLAIN,
        {"interactions.csv": INTERACTIONS + b'u,1,"4'},
        ("interactions.csv: ", "broken CSV"),
    ),
    "text after a quote": (
        PLAIN,
        {"items.csv": b'item_id,title\n1,"A"x\n'},
        ("items.csv: ", "broken CSV"),
    ),
    "field missing": (
        PLAIN,
        {"interactions.csv": INTERACTIONS + b"u,1\n"},
        ("interactions.csv, line 5", "2", "3"),
    ),
    "field too many": (PLAIN, {"items.csv": ITEMS + b"4,D,E\n"}, ("items.csv, line 5", "3", "2")),
    "column twice": (
        PLAIN,
        {"items.csv": b"item_id,title,title\n1,A,X\n2,B,Y\n3,C,Z\n"},
        ("items.csv", "'title'"),
    ),
    "user empty": (
        PLAIN,
        {"interactions.csv": INTERACTIONS + b",1,4\n,2,5\n,3,6\n"},
        ("interactions.csv, line 5", "user_id"),
    ),
    "huge field": (PLAIN, {"items.csv": ITEMS + b"4," + b"x" * 200_000 + b"\n"}, ("items.csv",)),
    "no rows": (
        PLAIN,
        {"interactions.csv": b"user_id,item_id,timestamp\n"},
        ("interactions.csv", "no users left"),
    ),
    "too few entries": (
        PLAIN,
        {"interactions.csv": INTERACTIONS[:-6]},
        ("interactions.csv", "no users left of 1"),
    ),
    "presplit without rows": (
        SPLIT,
        {"test.csv": b"user_id,item_ids,timestamp\n"},
        ("test.csv", "0 usable rows"),
    ),
} | {
    f"item_ids is {value}": (
        SPLIT,
        {"train.csv": ROWS + f'u,"{value}",4\n'.encode()},
        ("train.csv, line 5", "item_ids", "list"),
    )
    for value in (
        "5",
        "{}",
        "[]",
        "[1]",
        "[1,",
        "1;2",
        "null",
        "[1, 2.0]",
        "[true, 1]",
        "[[1], 2]",
        "[1, NaN]",
        "",
    )
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_gives_one_clear_line(tmp_path, name):
    files, changes, fragments = WRONG[name]
    for file, content in (files | changes).items():
        if content is not None:
            (tmp_path / file).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        made_up(tmp_path)
    message = str(error.value)
    assert all(fragment in message for fragment in fragments), message
    assert len(message.splitlines()) == 1 and str(tmp_path) in message


@pytest.mark.parametrize("files", (PLAIN, SPLIT), ids=("plain", "presplit"))
def test_the_files_that_the_wrong_ones_are_made_from_are_right(tmp_path, files):
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    assert made_up(tmp_path).titles[:2] == ["A", "B"]


def test_a_missing_folder_and_a_file_in_its_place_are_named(tmp_path):
    (tmp_path / "file").write_bytes(csv_bytes(("item_id",), []))
    for path in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(FileNotFoundError, match=path.name):
            load(path)


@pytest.mark.parametrize(
    "option, value", (("history", 0), ("min_item", 0), ("min_user", 2), ("history", -1))
)
def test_options_that_leave_nothing_to_predict_are_refused(interactions_folder, option, value):
    with pytest.raises(ValueError, match=f"{option} is {value}"):
        made_up(interactions_folder, **{option: value})


def test_the_error_of_a_filter_says_what_was_found(interactions_folder):
    with pytest.raises(ValueError, match=r"interactions\.csv.*12.*96.*at least 50.*at least 3"):
        made_up(interactions_folder, min_item=50)


def test_json_with_escapes_reads_like_plain_text(tmp_path):
    names = {"1": "caf\u00e9 \U0001f600", "2": "b"}
    folder = write_presplit(tmp_path / "escaped", [([1, 2], 1)] * 2, [([2, 1], 2)] * 2, names)
    (folder / "id2name4Rec.json").write_text(
        json.dumps(names, ensure_ascii=False), encoding="utf-8-sig"
    )
    assert load(folder).titles == ["caf\u00e9 \U0001f600", "b"]
