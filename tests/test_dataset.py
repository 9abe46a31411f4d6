"""The readers, the filters, the split and the training windows, against plain loops."""

import csv
import gzip
import io
import json

import numpy as np
import pytest

from ref.data import dataset, readers
from ref.data.columns import Columns
from ref.data.dataset import Windows, linked_windows, load, prefix_windows
from ref.data.histories import load_histories
from ref.text import clean_title

from support.data import (
    TITLES,
    csv_bytes,
    made_up_rows,
    presplit_rows,
    titles_in,
    write_interactions,
    write_presplit,
)

LOSSES = ("target", "all", "titles")


def load_unfiltered(folder, **options):
    """The Dataset with all items, and all users that can be split."""
    return load(folder, **{"min_item": 1, "min_user": 3} | options)


def training_titles(data, loss, seed=0):
    """The titles of each training window of one epoch."""
    return titles_in(data, data.training_windows(loss, np.random.default_rng(seed)))


def sequences_by_hand(rows):
    """Each user's item ids: users as they first appear, items by time, ties as in the file."""
    sequences = {}
    for place, (user, item, time) in enumerate(rows):
        sequences.setdefault(user, []).append((time, place, item))
    return [[item for _, _, item in sorted(sequence)] for sequence in sequences.values()]


def title_sequences(rows):
    """The same as titles, for item ids "i0", "i1", ... of TITLES."""
    return [[TITLES[int(item[1:])] for item in items] for items in sequences_by_hand(rows)]


def rows_of_distinct_items(users=5, length=9):
    """Rows of which no two have the same item; its title is "title USER-PLACE IN TIME"."""
    rows = []
    for user in range(users):
        rows += [(f"u{user}", f"{user}-{place}", place) for place in range(length)]
    return rows[::-1], {item: f"title {item}" for _, item, _ in rows}


@pytest.fixture
def distinct_items(tmp_path):
    """A folder with rows_of_distinct_items."""
    return write_interactions(tmp_path / "distinct", *rows_of_distinct_items())


def rows_of_lengths(*lengths):
    """Rows of one user for each length of a sequence."""
    rows = []
    for user, length in enumerate(lengths):
        rows += [(f"u{user}", f"i{(user + n) % len(TITLES)}", n) for n in range(length)]
    return rows


def test_the_last_item_is_the_test_target_and_the_one_before_it_the_validation_target(
    interactions_folder,
):
    data = load_unfiltered(interactions_folder, history=4)
    sequences = title_sequences(made_up_rows())
    assert titles_in(data, data.test) == [s[-5:] for s in sequences]
    assert titles_in(data, data.valid) == [s[:-1][-5:] for s in sequences]
    assert titles_in(data, data.train) == [s[:-2] for s in sequences]


@pytest.mark.parametrize("test_items", (1, 2, 5))
@pytest.mark.parametrize("history", (1, 4, 10))
def test_the_last_items_are_targets_each_after_its_true_history(tmp_path, history, test_items):
    rows = rows_of_lengths(3, 4, 7, 8, 12, 30)
    folder = write_interactions(tmp_path / "last", rows)
    data = load_unfiltered(folder, history=history, test_items=test_items)
    train, valid, test, users = [], [], [], []
    for sequence in title_sequences(rows):
        if len(sequence) < test_items + 2:
            train.append(sequence)
            continue
        first_target = len(sequence) - test_items
        train.append(sequence[: first_target - 1])
        valid.append(sequence[max(first_target - 1 - history, 0) : first_target])
        users += [len(valid) - 1] * test_items
        for target in range(first_target, len(sequence)):
            test.append(sequence[max(target - history, 0) : target + 1])
    assert [titles_in(data, part) for part in (data.train, data.valid, data.test)] == [
        train,
        valid,
        test,
    ]
    assert data.test_users.tolist() == users


@pytest.mark.parametrize("loss", LOSSES)
def test_no_training_window_holds_one_of_several_test_targets(distinct_items, loss):
    data = load_unfiltered(distinct_items, history=3, test_items=3)
    trained = set()
    for seed in range(20):
        for window in training_titles(data, loss, seed):
            trained.update(window)
    before_the_targets = {f"title {user}-{place}" for user in range(5) for place in range(5)}
    assert trained and trained <= before_the_targets


def test_more_test_items_than_any_user_has_are_refused(distinct_items):
    with pytest.raises(ValueError, match=r"interactions\.csv: .*the 10 .*test_items 8 .*are 9"):
        load_unfiltered(distinct_items, test_items=8)


def test_data_that_comes_split_takes_one_test_item_alone(presplit_folder):
    data = load(presplit_folder, test_items=1)
    assert data.test_users.tolist() == list(range(8))
    with pytest.raises(ValueError, match="test_items is 2, but .* comes split"):
        load(presplit_folder, test_items=2)


def test_data_that_comes_split_has_no_columns_to_name_and_no_ratings(presplit_folder):
    plain = load(presplit_folder)
    rated = load(presplit_folder, columns=Columns(min_rating=4.0))

    assert [note for note in rated.notes if "min_rating 4.0 is not applied" in note]
    assert np.array_equal(rated.items, plain.items)
    with pytest.raises(ValueError, match="comes split, with fixed columns"):
        load(presplit_folder, columns=Columns(title_column="name", min_rating=4.0))


def test_interactions_of_the_same_time_stay_in_the_order_of_the_file(tmp_path):
    of_u = [("u", "i3", 7), ("u", "i1", 7), ("u", "i2", 7), ("u", "i0", 6)]
    of_v = [("v", "i5", 7), ("v", "i4", 7), ("v", "i6", 7)]
    rows = [*of_u[:2], of_v[0], *of_u[2:], *of_v[1:]]
    data = load_unfiltered(write_interactions(tmp_path / "ties", rows))
    expected = [[TITLES[i] for i in (0, 3, 1, 2)], [TITLES[i] for i in (5, 4, 6)]]
    assert titles_in(data, data.test) == expected


def test_times_are_ordered_as_numbers_and_not_as_text(tmp_path):
    rows = [("u", "i0", 100), ("u", "i1", 9), ("u", "i2", 10), ("u", "i3", 10**17)]
    data = load_unfiltered(write_interactions(tmp_path / "numbers", rows))
    assert titles_in(data, data.test) == [[TITLES[i] for i in (1, 2, 0, 3)]]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("history", (1, 3, 10))
def test_no_training_window_holds_a_validation_or_test_target(distinct_items, loss, history):
    data = load_unfiltered(distinct_items, history=history)
    trained = set()
    for seed in range(20):
        for window in training_titles(data, loss, seed):
            trained.update(window)
    before_the_targets = {f"title {user}-{place}" for user in range(5) for place in range(7)}
    assert trained and trained <= before_the_targets
    if loss == "titles":
        assert trained == before_the_targets


def test_no_history_holds_its_target_or_anything_later(distinct_items):
    data = load_unfiltered(distinct_items, history=3)
    for windows, target in ((data.valid, 7), (data.test, 8)):
        places = range(target - 3, target + 1)
        expected = [[f"title {user}-{place}" for place in places] for user in (4, 3, 2, 1, 0)]
        assert titles_in(data, windows) == expected


def test_training_counts_leave_out_validation_and_test(distinct_items):
    data = load_unfiltered(distinct_items)
    counts = dict(zip(data.titles, data.training_counts().tolist(), strict=True))
    assert len(counts) == 45
    for title, count in counts.items():
        assert count == (1 if int(title[-1]) < 7 else 0)


def test_training_counts_are_those_of_a_loop(interactions_folder):
    data = load_unfiltered(interactions_folder)
    train = [title for sequence in title_sequences(made_up_rows()) for title in sequence[:-2]]
    assert data.training_counts().tolist() == [train.count(title) for title in data.titles]


class FixedOffset:
    """A generator that draws the same offset, of those below a history, for every sequence."""

    def __init__(self, offset, history):
        self.offset = offset
        self.history = history

    def integers(self, low, high, size):
        assert (low, high) == (0, self.history)
        return np.full(size, self.offset)


def letters(windows):
    return ["abcdefgh"[start:end] for start, end in zip(windows.starts, windows.ends)]


def test_the_windows_are_those_of_the_pictures_in_the_docstrings():
    seven, eight = (Windows(np.array([0]), np.array([length])) for length in (7, 8))
    assert letters(prefix_windows(seven, 5)) == ["abcde", "abcdef", "bcdefg"]
    assert letters(linked_windows(eight, 4, FixedOffset(2, 4))) == ["abc", "cdefg", "gh"]


@pytest.mark.parametrize("loss", ("target", "all"))
@pytest.mark.parametrize("history", (1, 2, 3, 10, 50))
def test_prefix_windows_are_those_of_a_loop(tmp_path, history, loss):
    rows = rows_of_lengths(3, 5, 6, 7, 8, 16, 30)
    data = load_unfiltered(write_interactions(tmp_path / "prefixes", rows), history=history)
    expected = []
    for sequence in title_sequences(rows):
        for target in range(4, len(sequence) - 2):
            expected.append(sequence[max(target - history, 0) : target + 1])
    assert training_titles(data, loss) == expected


@pytest.mark.parametrize("history", (1, 2, 3, 10, 50))
def test_title_windows_predict_every_item_but_the_first_exactly_once(tmp_path, history):
    rows = rows_of_lengths(3, 4, 5, 14, 15, 16, 30)
    data = load_unfiltered(write_interactions(tmp_path / "titles", rows), history=history)
    for seed in range(30):
        windows = data.training_windows("titles", np.random.default_rng(seed))
        assert (windows.ends - windows.starts <= history + 1).all()
        assert sorted(predicted_by(windows)) == sorted(predicted_by(data.train))


def predicted_by(windows):
    """Where in Dataset.items the items stand that are predicted from others of their window."""
    places = []
    for start, end in zip(windows.starts, windows.ends):
        places += range(start + 1, end)
    return places


@pytest.mark.parametrize("offset", range(4))
def test_title_windows_of_an_offset_are_those_of_a_loop(tmp_path, offset):
    rows, history = rows_of_lengths(3, 4, 5, 6, 7, 8, 9, 10, 19), 4
    data = load_unfiltered(write_interactions(tmp_path / "offsets", rows), history=history)
    expected = []
    for sequence in (sequence[:-2] for sequence in title_sequences(rows)):
        shared = offset  # the item that one window ends with and the next begins with
        windows = [sequence[: shared + 1]]
        while shared < len(sequence) - 1:
            windows.append(sequence[shared : shared + history + 1])
            shared += history
        expected += [window for window in windows if len(window) > 1]
    windows = data.training_windows("titles", FixedOffset(offset, history))
    assert titles_in(data, windows) == expected


def test_the_offset_of_title_windows_is_drawn_for_each_sequence(tmp_path):
    rows = rows_of_lengths(*[40] * 100)
    data = load_unfiltered(write_interactions(tmp_path / "drawn", rows), history=10)
    windows = data.training_windows("titles", np.random.default_rng(0))
    offsets = set()
    for start in data.train.starts:
        end_of_first = min(end for end in windows.ends if end > start)
        offsets.add(int(end_of_first - start) - 1)
    assert offsets == set(range(1, 11))  # 10: a first window of one item is left out


def filtered_by_hand(rows, min_item, min_user):
    while True:
        users = [user for user, _, _ in rows]
        items = [item for _, item, _ in rows]
        kept = []
        for row in rows:
            if users.count(row[0]) >= min_user and items.count(row[1]) >= min_item:
                kept.append(row)
        if kept == rows:
            return rows
        rows = kept


@pytest.mark.parametrize("min_item, min_user", ((1, 3), (4, 3), (5, 4), (6, 5), (3, 7)))
def test_filters_hold_for_items_and_users_at_once(tmp_path, min_item, min_user):
    rows = made_up_rows(users=14, interactions=9, seed=3)[:115]
    folder = write_interactions(tmp_path / "filtered", rows)
    data = load(folder, history=50, min_item=min_item, min_user=min_user)
    expected = title_sequences(filtered_by_hand(rows, min_item, min_user))
    assert sorted(titles_in(data, data.test)) == sorted(expected)
    assert set(data.titles) == {title for sequence in expected for title in sequence}


def test_a_filter_that_removes_in_turns_removes_all_that_it_must(tmp_path):
    rows = []
    for user, items in {"u": "abcd", "v": "abcd", "w": "cde", "x": "ef"}.items():
        rows += [(user, item, 1) for item in items]
    folder = write_interactions(tmp_path / "turns", rows, {item: item for item in "abcdef"})
    data = load(folder, min_item=2, min_user=3)
    assert data.titles == ["a", "b", "c", "d"]
    assert titles_in(data, data.test) == [["a", "b", "c", "d"], ["a", "b", "c", "d"]]


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
    rows = [("u", "a", 1), ("u", "b", 2), ("u", "c", 3)]
    plain = write_interactions(tmp_path / "plain", rows, {"a": raw, "b": "b", "c": "c"})
    windows = [([1, 2], 1)] * 3
    presplit = write_presplit(tmp_path / "split", windows, windows, {"1": raw, "2": "b"})
    assert clean_title(raw, "here") == cleaned
    assert load_unfiltered(plain).titles[0] == cleaned
    assert load(presplit).titles[0] == cleaned


def test_items_that_share_a_title_are_one(tmp_path):
    rows = [("u", item, time) for time, item in enumerate("abcd")]
    titles = {"a": "X", "b": "Y &amp; Z", "c": " X\n", "d": "Y & Z"}
    data = load_unfiltered(write_interactions(tmp_path / "shared", rows, titles))
    assert data.titles == ["X", "Y & Z"]
    assert data.items.tolist() == [0, 1, 0, 1]


def test_the_catalogue_is_in_the_order_of_the_item_file(tmp_path):
    rows = [("u", item, time) for time, item in enumerate("cab")]
    titles = {"b": "B", "z": "Z", "a": "A", "c": "C"}
    data = load_unfiltered(write_interactions(tmp_path / "order", rows, titles))
    assert data.titles == ["B", "A", "C"]


def test_gzip_files_read_like_plain_ones(tmp_path, interactions_folder):
    packed = load_unfiltered(write_interactions(tmp_path / "gz", made_up_rows(), suffix=".gz"))
    plain = load_unfiltered(interactions_folder)
    assert packed.titles == plain.titles
    assert packed.items.tolist() == plain.items.tolist()
    assert titles_in(packed, packed.test) == titles_in(plain, plain.test)


def test_byte_order_mark_blank_lines_and_further_columns_change_nothing(
    tmp_path, interactions_folder
):
    for name in ("interactions.csv", "items.csv"):
        header, *rows = (interactions_folder / name).read_text(encoding="utf-8").splitlines()
        lines = [f"extra,{header}", "", *(f"7,{row}" for row in rows), ""]
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    plain, changed = load_unfiltered(interactions_folder), load_unfiltered(tmp_path)
    assert changed.items.tolist() == plain.items.tolist()
    assert changed.titles == plain.titles


def test_presplit_validation_is_the_last_twentieth_of_training_in_time(presplit_folder):
    data = load(presplit_folder, history=50)
    number = {title: int(title.split('"')[1]) for title in data.titles}
    parts = []
    for windows in (data.train, data.valid, data.test):
        parts.append([[number[title] for title in titles] for titles in titles_in(data, windows)])
    train = [items for items, _ in sorted(presplit_rows(40, 1000), key=lambda row: row[1])]
    test = [items for items, _ in sorted(presplit_rows(8, 2000, seed=1), key=lambda row: row[1])]
    assert parts == [train[:38], train[38:], test]


def test_presplit_windows_of_the_same_time_stay_in_the_order_of_the_file(tmp_path):
    """Of 40 training windows the last two in time are for validation; many have the same time."""
    times = [3, 1, 3, 2, 3] * 8
    train = [([n % 10, 10 + n // 10], time) for n, time in enumerate(times)]
    test = [([n, n + 1], 7) for n in (5, 2, 9, 0)]
    titles = {str(number): f"t{number}" for number in range(20)}
    data = load(write_presplit(tmp_path / "ties", train, test, titles))
    in_time = [items for time in (1, 2, 3) for items, own in train if own == time]
    expected = [in_time[:38], in_time[38:], [items for items, _ in test]]
    for windows, items in zip((data.train, data.valid, data.test), expected):
        assert titles_in(data, windows) == [[f"t{item}" for item in pair] for pair in items]


@pytest.fixture
def distinct_presplit(tmp_path):
    """40 windows for training and 10 for the test, each of six items of its own."""
    windows = [([f"{row}-{place}" for place in range(6)], row) for row in range(50)]
    titles = {item: f"title {item}" for items, _ in windows for item in items}
    return write_presplit(tmp_path / "distinct", windows[:40][::-1], windows[40:], titles)


@pytest.mark.parametrize("loss", LOSSES)
def test_presplit_training_holds_no_row_of_validation_or_test(distinct_presplit, loss):
    data = load(distinct_presplit, history=3)
    trained = {title for window in training_titles(data, loss) for title in window}
    assert trained == {f"title {row}-{place}" for row in range(38) for place in range(2, 6)}
    counted = {data.titles[index] for index in np.flatnonzero(data.training_counts())}
    assert counted == trained


def test_presplit_windows_keep_their_last_items(tmp_path):
    windows = [(list(range(9)), 1)] * 3
    titles = {str(number): f"t{number}" for number in range(9)}
    data = load(write_presplit(tmp_path / "cut", windows, windows, titles), history=4)
    for part in (data.train, data.valid, data.test):
        for window in titles_in(data, part):
            assert window == ["t4", "t5", "t6", "t7", "t8"]


def test_presplit_windows_may_have_dates_and_are_compared_in_one_unit_across_files(tmp_path):
    """The test's numbers are seconds since 1970, so later than the dates of 1970 in train.csv."""
    titles = {str(number): f"t{number}" for number in range(1, 7)}
    train = [([1, 2], "1970-01-03"), ([3, 4], "1970-01-01T00:00:00.5"), ([2, 5], 86400)]
    folder = write_presplit(tmp_path / "dates", train, [([2, 6], 300_000)], titles)
    data = load(folder)
    assert titles_in(data, data.train) == [["t3", "t4"], ["t2", "t5"]]
    assert titles_in(data, data.valid) == [["t1", "t2"]]
    windows = readers.read(folder)
    times = [window.time for window in windows.train + windows.test]
    assert times == [2 * 86400 * 10**6, 500_000, 86400 * 10**6, 300_000 * 10**6]


def test_the_latest_presplit_window_of_a_user_is_found_across_the_units_of_both_files(tmp_path):
    titles = {str(number): f"t{number}" for number in range(4)}
    train, test = [([0, 1], 5), ([1, 0], 6)], [([2, 3], "1970-01-01T00:00:01")]  # row n: user n
    histories = load_histories(write_presplit(tmp_path / "units", train, test, titles))
    assert histories.items[0].tolist() == [2, 3, 0, 1]


def test_a_presplit_test_of_one_row_is_enough(tmp_path):
    windows = [([1, 2], 1)] * 2
    data = load(write_presplit(tmp_path / "one", windows, windows[:1], {"1": "a", "2": "b"}))
    assert (len(data.train), len(data.valid), len(data.test)) == (1, 1, 1)


def test_presplit_items_without_a_title_are_left_out_and_counted(tmp_path):
    titles = {"1": "a", "2": "", "3": "c", "4": " &nbsp; "}
    train = [([1, 2, 3], 1), ([1, 3, 2], 2), ([2, 4, 1], 3), ([3, 1], 4), ([1, 3], 5)]
    test = [([1, 2, 3], 9)] * 2
    data = load(write_presplit(tmp_path / "untitled", train, test, titles))
    assert titles_in(data, data.train) == [["a", "c"], ["c", "a"]]
    assert titles_in(data, data.valid) == [["a", "c"]]
    assert titles_in(data, data.test) == [["a", "c"], ["a", "c"]]
    assert data.notes == ("2 items without a title left out ('2', '4'), and 2 rows",)


def test_of_many_presplit_items_without_a_title_five_are_named(tmp_path):
    titles = {"1": "a", "3": "c"} | {str(number): "" for number in range(4, 10)}
    windows = [([1, 3, 1], 3)] * 3
    data = load(write_presplit(tmp_path / "untitled", windows, windows, titles))
    (note,) = data.notes
    assert note.startswith("6 items without a title left out ('4', '5', '6', '7', '8'), and")


def test_json_with_escapes_reads_like_plain_text(tmp_path):
    titles = {"1": "caf\u00e9 \U0001f600", "2": "b"}
    windows = [([1, 2], 1)] * 2
    folder = write_presplit(tmp_path / "escaped", windows, windows, titles)
    escaped = load(folder).titles
    plain = json.dumps(titles, ensure_ascii=False)
    (folder / "id2name4Rec.json").write_text(plain, encoding="utf-8-sig")
    assert escaped == load(folder).titles == ["caf\u00e9 \U0001f600", "b"]


@pytest.fixture(scope="module")
def embedded():
    return load()


@pytest.fixture(scope="module")
def embedded_rows():
    """(user, item, time) of the embedded file."""
    rows = read_embedded("interactions.csv.gz")
    return [(row["user_id"], row["item_id"], int(row["timestamp"])) for row in rows]


def read_embedded(name):
    text = gzip.decompress((dataset.EMBEDDED / name).read_bytes()).decode()
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_the_embedded_data_has_the_size_that_its_notice_says(embedded, embedded_rows):
    users = {user for user, _, _ in embedded_rows}
    _, counts = np.unique([item for _, item, _ in embedded_rows], return_counts=True)
    assert len(embedded_rows) == 99_997
    assert len(users) == len(embedded.test) == 671
    assert sum(counts >= 10) == len(embedded.titles) == 2_245


def test_embedded_histories_and_targets_are_those_of_a_loop(embedded, embedded_rows):
    titles = {}
    for row in read_embedded("items.csv.gz"):
        titles[row["item_id"]] = " ".join(row["title"].split())
    items, counts = np.unique([item for _, item, _ in embedded_rows], return_counts=True)
    frequent = set(items[counts >= 10])
    sequences = sequences_by_hand([row for row in embedded_rows if row[1] in frequent])
    expected = [[titles[item] for item in items] for items in sequences]
    assert min(map(len, sequences)) >= 5
    assert titles_in(embedded, embedded.test) == [items[-11:] for items in expected]
    assert titles_in(embedded, embedded.valid) == [items[:-1][-11:] for items in expected]


ITEMS = b"item_id,title\n1,A\n2,B\n3,C\n"
INTERACTIONS = b"user_id,item_id,timestamp\nu,1,1\nu,2,2\nu,3,3\n"
NAMES = b'{"1": "A", "2": "B"}'
ROWS = b'user_id,item_ids,timestamp\nu,"[1, 2]",1\nu,"[2, 1]",2\nu,"[1, 2]",3\n'
PLAIN = {"items.csv": ITEMS, "interactions.csv": INTERACTIONS}
SPLIT = {"id2name4Rec.json": NAMES, "train.csv": ROWS, "test.csv": ROWS}

# fmt: off
NO_LISTS_OF_TWO = (
    "5", "{}", "[]", "[1]", "[1,", "1;2", "null", "", "[1, 2.0]", "[true, 1]", "[[1], 2]",
    "[1, NaN]",
)
# What is wrong: (the file, its wrong content or None for no file, parts of the message).
# A file of PLAIN is wrong among the other one of PLAIN, and one of SPLIT among the others of SPLIT.
WRONG = {
    "items missing": ("items.csv", None, ("items.csv",)),
    "interactions missing": ("interactions.csv", None, ("interactions.csv",)),
    "train missing": ("train.csv", None, ("train.csv",)),
    "test missing": ("test.csv", None, ("test.csv",)),
    "title column missing": (
        "items.csv", b"item_id,label\n1,A\n", ("items.csv", "'title'", "label"),
    ),
    "user column missing": (
        "interactions.csv", b"item_id,timestamp\n1,1\n", ("'user_id'", "--user-column"),
    ),
    "item_ids column missing": (
        "test.csv", b"user_id,timestamp\nu,1\n", ("test.csv", "'item_ids'", "this name"),
    ),
    "empty items": ("items.csv", b"", ("items.csv", "is empty")),
    "empty interactions": ("interactions.csv", b"", ("interactions.csv", "is empty")),
    "no item with a title": (
        "interactions.csv", INTERACTIONS.replace(b"u,", b"u,x"),
        ("interactions.csv", "none of its 3 items", "items.csv"),
    ),
    "row of an unknown item": (
        "train.csv", ROWS + b'u,"[1, 9]",4\n', ("train.csv, line 5", "9", "id2name4Rec.json"),
    ),
    "duplicate item": ("items.csv", ITEMS + b"2,D\n", ("items.csv, line 5", "'2'", "twice")),
    "duplicate item in JSON": (
        "id2name4Rec.json", b'{"1": "A", "2": "B", "1": "C"}', ("id2name4Rec.json", "'1'", "twice"),
    ),
    "timestamp negative in data that comes split": (
        "train.csv", ROWS + b'u,"[1, 2]",-1.5\n', ("train.csv, line 5", "'-1.5'", "integer"),
    ),
    "timestamp negative": (
        "interactions.csv", INTERACTIONS + b"u,1,-4\n",
        ("interactions.csv, line 5", "'-4'", "0 or more"),
    ),
    "timestamp empty": (
        "interactions.csv", INTERACTIONS + b"u,1,\n", ("interactions.csv, line 5", "''", "integer"),
    ),
    "timestamp a word": (
        "train.csv", ROWS + b'u,"[1, 2]",now\n', ("train.csv, line 5", "'now'", "integer"),
    ),
    "timestamp huge": (
        "interactions.csv", INTERACTIONS + b"u,1," + b"9" * 30 + b"\n",
        ("interactions.csv, line 5", "integer"),
    ),
    "timestamp in other digits": (
        "interactions.csv", INTERACTIONS + "u,1,\u0663\n".encode(),
        ("interactions.csv, line 5", "integer"),
    ),
    "broken JSON": ("id2name4Rec.json", b'{"1": "A",', ("id2name4Rec.json", "JSON")),
    "empty JSON": ("id2name4Rec.json", b"", ("id2name4Rec.json", "JSON")),
    "deep JSON": ("id2name4Rec.json", b"[" * 100_000, ("id2name4Rec.json", "JSON")),
    "JSON with a number of 5,000 digits": (
        "id2name4Rec.json", b'{"1": ' + b"9" * 5000 + b"}", ("id2name4Rec.json",),
    ),
    "JSON array": ("id2name4Rec.json", b'["A"]', ("id2name4Rec.json", "an array")),
    "JSON title a number": (
        "id2name4Rec.json", b'{"1": "A", "2": 5}', ("id2name4Rec.json", "'2'", "5", "text"),
    ),
    "JSON title null": (
        "id2name4Rec.json", b'{"1": "A", "2": null}', ("id2name4Rec.json", "'2'", "None", "text"),
    ),
    "half surrogate": (
        "id2name4Rec.json", b'{"1": "A", "2": "B\\ud800"}',
        ("id2name4Rec.json", "'2'", "surrogate"),
    ),
    "half surrogate in an item id": (
        "id2name4Rec.json", b'{"1": "A", "2": "B", "\\ud800": ""}',
        ("id2name4Rec.json", "surrogate"),
    ),
    "broken gzip": ("items.csv.gz", gzip.compress(ITEMS)[:-9], ("items.csv.gz", "gzip")),
    "no gzip at all": ("items.csv.gz", ITEMS, ("items.csv.gz", "gzip")),
    "gzip with a wrong checksum": (
        "items.csv.gz", gzip.compress(ITEMS)[:-8] + bytes(8), ("items.csv.gz", "gzip"),
    ),
    "not UTF-8": ("items.csv", ITEMS + b"4,caf\xe9\n", ("items.csv", "UTF-8")),
    "UTF-16": (
        "interactions.csv", INTERACTIONS.decode().encode("utf-16"), ("interactions.csv", "UTF-8"),
    ),
    "JSON not UTF-8": (
        "id2name4Rec.json", b'{"1": "A", "2": "caf\xe9"}', ("id2name4Rec.json", "UTF-8"),
    ),
    "NUL in a title": ("items.csv", ITEMS + b"4,D\0\n", ("items.csv", "NUL")),
    "NUL in a JSON title": (
        "id2name4Rec.json", b'{"1": "A", "2": "B\\u0000"}', ("id2name4Rec.json", "'2'", "NUL"),
    ),
    "NUL in a user": (
        "interactions.csv", INTERACTIONS + b"u\0,1,4\n", ("interactions.csv, line 5", "NUL"),
    ),
    "carriage return in a user": (
        "interactions.csv", INTERACTIONS + b'"u\rv",1,4\n', ("interactions.csv, line", "one line"),
    ),
    "HTML with a number of 5,000 digits": (
        "items.csv", ITEMS + b"4,&#" + b"9" * 5000 + b";\n", ("items.csv, line 5", "HTML"),
    ),
    "timestamp of 5,000 decimals": (
        "interactions.csv", INTERACTIONS + b"u,1,1." + b"0" * 5000 + b"\n",
        ("interactions.csv, line 5", "decimal"),
    ),
    "NUL in a timestamp": (
        "interactions.csv", INTERACTIONS + b"u,1,\x004\n", ("interactions.csv, line 5",),
    ),
    "unclosed quote": (
        "items.csv", b'item_id,title\n1,"A\n2,B\n3,C\n', ("items.csv: ", "broken CSV"),
    ),
    "unclosed quote at the end": (
        "interactions.csv", INTERACTIONS + b'u,1,"4', ("interactions.csv: ", "broken CSV"),
    ),
    "text after a quote": ("items.csv", b'item_id,title\n1,"A"x\n', ("items.csv: ", "broken CSV")),
    "field missing": (
        "interactions.csv", INTERACTIONS + b"u,1\n", ("interactions.csv, line 5", "2", "3"),
    ),
    "field too many": ("items.csv", ITEMS + b"4,D,E\n", ("items.csv, line 5", "3", "2")),
    "column twice": (
        "items.csv", b"item_id,title,title\n1,A,X\n2,B,Y\n3,C,Z\n", ("items.csv", "'title'"),
    ),
    "user empty": (
        "interactions.csv", INTERACTIONS + b",1,4\n,2,5\n,3,6\n",
        ("interactions.csv, line 5", "user_id"),
    ),
    "huge field": ("items.csv", ITEMS + b"4," + b"x" * 200_000 + b"\n", ("items.csv",)),
    "no rows": (
        "interactions.csv", b"user_id,item_id,timestamp\n",
        ("interactions.csv", "no interactions; expected"),
    ),
    "too few interactions": (
        "interactions.csv", INTERACTIONS[:-6], ("interactions.csv", "no users left of 1"),
    ),
    "presplit without rows": (
        "test.csv", b"user_id,item_ids,timestamp\n", ("test.csv", "0 usable rows"),
    ),
    "one row for training": (
        "train.csv", b'user_id,item_ids,timestamp\nu,"[1, 2]",1\n',
        ("train.csv", "1 usable rows; expected at least 2"),
    ),
    "no user id in rows": (
        "test.csv", b'user_id,item_ids,timestamp\n,"[1, 2]",1\n',
        ("test.csv, line 2", "user_id is ''"),
    ),
}
# fmt: on
WRONG |= {
    f"item_ids is {value}": (
        "train.csv",
        ROWS + f'u,"{value}",4\n'.encode(),
        ("train.csv, line 5", "item_ids", "expected a JSON list", "[7, 12]"),
    )
    for value in NO_LISTS_OF_TWO
}


def write_files(folder, files):
    for name, content in files.items():
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_gives_one_clear_line(tmp_path, name):
    file, content, fragments = WRONG[name]
    plain_name = file.removesuffix(".gz")
    write_files(tmp_path, PLAIN if plain_name in PLAIN else SPLIT)
    (tmp_path / plain_name).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load_unfiltered(tmp_path)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    for fragment in (str(tmp_path), *fragments):
        assert fragment in message


@pytest.mark.parametrize("files", (PLAIN, SPLIT), ids=("plain", "presplit"))
def test_the_files_that_the_wrong_ones_are_made_from_are_right(tmp_path, files):
    write_files(tmp_path, files)
    assert load_unfiltered(tmp_path).titles[:2] == ["A", "B"]


def test_a_missing_folder_and_a_file_in_its_place_are_named(tmp_path):
    (tmp_path / "file").write_bytes(csv_bytes(("item_id",), []))
    for path in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(FileNotFoundError, match=path.name):
            load(path)


@pytest.mark.parametrize(
    "option, value",
    (("history", 0), ("min_item", 0), ("min_user", 2), ("history", -1), ("test_items", 0)),
)
def test_options_that_leave_nothing_to_predict_are_refused(interactions_folder, option, value):
    with pytest.raises(ValueError, match=f"{option} is {value}"):
        load_unfiltered(interactions_folder, **{option: value})


def test_the_error_of_a_filter_says_how_much_there_was(interactions_folder):
    with pytest.raises(ValueError, match=r"interactions\.csv.*12.*96.*at least 50.*at least 3"):
        load_unfiltered(interactions_folder, min_item=50)


def test_a_history_is_the_latest_window_after_what_only_earlier_ones_hold(tmp_path):
    titles = {str(number): f"t{number}" for number in range(7)}
    train, test = [([3, 1, 2], 1), ([5, 6], 2)], [([2, 3, 4], 9)]  # row n is of user n
    histories = load_histories(write_presplit(tmp_path / "split", train, test, titles))
    assert histories.user_ids == ["0", "1"]
    assert [items.tolist() for items in histories.items] == [[1, 2, 3, 4], [5, 6]]


@pytest.mark.parametrize("load", [load, load_histories])
def test_no_interactions_are_refused(load, tmp_path):
    folder = write_interactions(tmp_path, [])
    with pytest.raises(ValueError, match=r"interactions.csv: no interactions; expected at least"):
        load(folder)


@pytest.mark.parametrize("load", [load, load_histories])
def test_where_no_interaction_is_rated_high_enough_this_is_said(load, tmp_path):
    rows = b"user,item,title,rating\nu,1,A,2\nu,2,B,2\nv,1,A,1\n"
    (tmp_path / "interactions.csv").write_bytes(rows)
    left_out = (
        "csv: no interactions; expected .*; 3 interactions rated lower than asked for left out"
    )
    with pytest.raises(ValueError, match=left_out):
        load(tmp_path, columns=Columns(min_rating=3))


def test_where_filters_leave_no_users_it_is_said_what_was_left_out_before_them(tmp_path):
    rows = b"user,item,title,time,rating\nu,1,A,1,5\nu,2,B,2,5\nu,1,A,3,1\nu,3,,4,5\n"
    (tmp_path / "interactions.csv").write_bytes(rows)
    with pytest.raises(ValueError, match="no users left of 1 .2 interactions. after") as error:
        load_unfiltered(tmp_path, columns=Columns(min_rating=3))
    assert str(error.value).endswith(
        "users with at least 3 interactions; before that: 1 interactions rated lower than asked "
        "for left out; 1 items without a title left out ('3'), and 1 interactions"
    )
