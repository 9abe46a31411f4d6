"""Data as people have it: every form gives the same Dataset as interactions.csv and items.csv."""

import csv
import gzip
import io
import json
import os

import numpy as np
import pytest

from ref.data import dataset, readers, tables
from ref.data.columns import Columns
from ref.data.times import Times
from ref.settings import Settings

from support.data import made_up_rows, titles_in, write_interactions, write_presplit

TITLES = {f"i{n}": f"Title, number {n} (19{n:02d})" for n in range(20)}
TITLES["i7"] = '"Quoted" tale'
ROWS = [(user, item, 10 * time) for user, item, time in made_up_rows()]
RATED = [(user, item, 1 + n % 5, time) for n, (user, item, time) in enumerate(ROWS)]


def load(folder, **columns):
    return dataset.load(folder, min_item=1, min_user=3, columns=Columns(**columns))


def write(folder, files):
    """Write {name: text}, in .gz files packed; return the folder."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        data = text if isinstance(text, bytes) else text.encode()
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder


def table(header, rows, separator=","):
    """A table as text; fields that hold a separator or a quote are quoted."""
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def unquoted(header, rows, separator):
    lines = [[str(field) for field in row] for row in rows]
    return "".join(separator.join(line) + "\n" for line in [*([header] if header else []), *lines])


def json_lines(names, rows):
    return "".join(json.dumps(dict(zip(names, row))) + "\n" for row in rows)


def iso(time):
    return f"2015-03-01T00:{time // 60:02d}:{time % 60:02d}"


MOVIELENS = ("userId", "movieId", "rating", "timestamp")


def movielens_csv(rows, titles):
    items = [(item, title, "x|y") for item, title in titles.items()]
    return {
        "ratings.csv": table(MOVIELENS, rows),
        "movies.csv": table(("movieId", "title", "genres"), items),
        "links.csv": "movieId,imdbId\n",
    }


def movielens_dat(rows, titles):
    items = [(item, title, "x|y") for item, title in titles.items()]
    return {
        "ratings.dat": unquoted(None, rows, "::"),
        "movies.dat": unquoted(None, items, "::"),
    }


def recbole(rows, titles):
    header = ("user_id:token", "item_id:token", "rating:float", "timestamp:float")
    return {
        "any.inter": unquoted(header, rows, "\t"),
        "any.item": unquoted(("item_id:token", "movie_title:token_seq"), titles.items(), "\t"),
    }


ITEMS = table(("item_id", "title"), TITLES.items())
# name of a form: its files
FORMS = {
    "MovieLens, csv": movielens_csv(RATED, TITLES),
    "MovieLens, dat": movielens_dat(RATED, TITLES),
    "RecBole": recbole(RATED, TITLES),
    "tsv": {
        "interactions.tsv": table(("user", "item", "time"), ROWS, "\t"),
        "items.tsv": table(  # more commas than tabs in its first line
            ("item", "name", "all, some, few, or no remarks"),
            [(item, title, "none") for item, title in TITLES.items()],
            "\t",
        ),
    },
    "semicolons": {
        "interactions.csv": table(("user_id", "item_id", "timestamp"), ROWS, ";"),
        "items.csv": table(("item_id", "title"), TITLES.items(), ";"),
    },
    "JSON lines, packed": {
        "interactions.jsonl.gz": json_lines(("user_id", "item_id", "timestamp"), ROWS),
        "items.jsonl.gz": json_lines(("item_id", "title"), TITLES.items()),
    },
    "fractions of a second": {
        "interactions.csv": table(
            ("user_id", "item_id", "timestamp"), [(u, i, f"{t}.25") for u, i, t in ROWS]
        ),
        "items.csv": ITEMS,
    },
    "fractions from the second row on": {
        "interactions.csv": table(
            ("user_id", "item_id", "timestamp"),
            [(u, i, f"{t}.0" if n else t) for n, (u, i, t) in enumerate(ROWS)],
        ),
        "items.csv": ITEMS,
    },
    "dates": {
        "interactions.csv": table(
            ("user_id", "item_id", "date"), [(u, i, iso(t)) for u, i, t in ROWS]
        ),
        "items.csv": ITEMS,
    },
    "no times, in order": {
        "interactions.csv": table(
            ("user_id", "item_id"), [row[:2] for row in sorted(ROWS, key=lambda row: row[2])]
        ),
        "items.csv": ITEMS,
    },
    "one file": {
        "interactions.csv": table(
            ("user", "title", "time"), [(user, TITLES[item], time) for user, item, time in ROWS]
        ),
    },
}


@pytest.fixture
def expected(tmp_path):
    return load(write_interactions(tmp_path / "expected", ROWS, TITLES))


def by_title(data):
    """The windows of a Dataset as titles, user by user."""
    return {part: titles_in(data, getattr(data, part)) for part in ("train", "valid", "test")}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_windows(form, tmp_path, expected):
    data = load(write(tmp_path / "form", FORMS[form]))
    if form == "no times, in order":  # users are numbered as they appear in another file
        assert sorted(by_title(data)["test"]) == sorted(by_title(expected)["test"])
    else:
        assert by_title(data) == by_title(expected)


def test_the_order_of_the_file_is_said_to_be_taken_for_time(tmp_path):
    data = load(write(tmp_path / "form", FORMS["no times, in order"]))
    assert any("order is taken for time" in note for note in data.notes)


def test_columns_of_any_name_are_read_where_options_name_them(tmp_path, expected):
    files = {
        "interactions.csv": table(("wer", "was", "wann"), ROWS),
        "items.csv": table(("was", "wie"), TITLES.items()),
    }
    names = {"user_column": "wer", "item_column": "was", "time_column": "wann"}
    data = load(write(tmp_path / "form", files), **names, title_column="wie")
    assert by_title(data) == by_title(expected)


def test_titles_that_stand_beside_interactions_are_found_by_the_name_that_an_option_says(
    tmp_path, expected
):
    rows = [(user, TITLES[item], time, "not") for user, item, time in ROWS]
    files = {"interactions.csv": table(("user", "wie", "time", "title"), rows)}
    folder = write(tmp_path / "form", files)
    assert by_title(load(folder, title_column="wie")) == by_title(expected)
    with pytest.raises(FileNotFoundError, match=r"interactions.csv holds no titles.* no items.csv"):
        load(folder, title_column="was")


def test_low_ratings_are_left_out_and_counted(tmp_path):
    folder = write(tmp_path / "form", FORMS["MovieLens, csv"])
    kept = [(user, item, time) for user, item, rating, time in RATED if rating >= 3]
    expected = readers.read(write_interactions(tmp_path / "expected", kept, TITLES))
    data = readers.read(folder, Columns(min_rating=3))
    assert data.items.tolist() == expected.items.tolist()
    assert data.times.tolist() == expected.times.tolist()
    lower = sum(rating < 3 for _, _, rating, _ in RATED)
    assert data.notes == (f"{lower} interactions rated lower than asked for left out",)


def test_rows_that_stand_twice_are_left_out_and_counted(tmp_path, expected):
    data = load(write_interactions(tmp_path / "form", [*ROWS, ROWS[3], ROWS[5], ROWS[3]], TITLES))
    assert by_title(data) == by_title(expected)
    assert data.notes == ("3 rows that repeat an earlier one left out",)


def test_of_repetitions_the_first_stays_and_rows_that_differ_in_one_column_stay_all(tmp_path):
    rows = [("u", "i1", 5), ("v", "i1", 5), ("u", "i2", 5), ("u", "i1", 6)]
    rows += [("v", "i3", 8), ("v", "i2", 8), ("v", "i2", 7)]
    data = readers.read(
        write_interactions(tmp_path / "form", [*rows, rows[2], rows[0], rows[1], rows[3]], TITLES)
    )
    kept = zip(data.users.tolist(), data.items.tolist(), data.times.tolist())
    users = ("u", "v")
    assert [(users[user], f"i{item}", time) for user, item, time in kept] == rows


def test_recbole_titles_get_their_year_back_where_they_do_not_end_in_one(tmp_path):
    items = [
        ("a", "Sabrina", "1954"),
        ("b", "Sabrina", "1995"),
        ("c", "1984", "1984"),
        ("d", "Land (1995)", "V"),
        ("e", "Heat (1995)", "1995"),
        ("f", "unknown", ""),
        ("g", " ", "1995"),
    ]
    rows = [("u", item, 1, time) for time, (item, *_) in enumerate(items)]
    header = ("item_id:token", "movie_title:token_seq", "release_year:token")
    files = {
        "any.inter": unquoted(("user_id", "item_id", "rating", "timestamp"), rows, "\t"),
        "any.item": unquoted(header, items, "\t"),
    }
    data = readers.read(write(tmp_path / "form", files))
    with_year = ["Sabrina (1954)", "Sabrina (1995)", "1984 (1984)"]
    assert data.titles == [*with_year, "Land (1995)", "Heat (1995)", "unknown"]
    assert data.notes[0] == "the year in any.item was added to 3 titles"
    assert data.notes[1].startswith("1 items without a title left out ('g')")


def test_a_year_beside_titles_of_any_other_form_stays_beside_them(tmp_path):
    items = table(("item_id", "title", "release_year"), [("a", "Sabrina", "1954")])
    rows = table(("user_id", "item_id", "timestamp"), [("u", "a", 1)])
    data = readers.read(write(tmp_path / "form", {"interactions.csv": rows, "items.csv": items}))
    assert data.titles == ["Sabrina"]
    assert data.notes == ()


@pytest.mark.parametrize("beside", [True, False], ids=["titles beside it", "titles elsewhere"])
def test_an_empty_item_id_is_refused(tmp_path, beside):
    if beside:
        rows = [("u", "a", "Heat", 1), ("u", "", "Casino", 2)]
        files = {"interactions.csv": table(("user_id", "item_id", "title", "timestamp"), rows)}
    else:
        rows = [("u", "i1", 1), ("u", "", 2)]
        files = {"interactions.csv": table(("user_id", "item_id", "timestamp"), rows)}
        files["items.csv"] = ITEMS
    with pytest.raises(ValueError, match="interactions.csv, line 3: item_id is ''; expected one"):
        readers.read(write(tmp_path / "form", files))


def test_items_without_a_title_are_left_out_and_counted(tmp_path):
    titles = {item: title for item, title in TITLES.items() if item != "i3"} | {"i4": "&nbsp; "}
    data = readers.read(write_interactions(tmp_path / "form", ROWS, titles))
    rows = [row for row in ROWS if row[1] not in ("i3", "i4")]
    assert len(data.items) == len(rows)
    num_rows = {item: [row[1] for row in ROWS].count(item) for item in ("i3", "i4")}
    assert data.notes == (
        f"1 items without a title left out ('i4'), and {num_rows['i4']} interactions",
        f"1 items that no file of items lists left out ('i3'), and {num_rows['i3']} interactions",
    )


@pytest.mark.parametrize(
    "items, fragment",
    [
        ("1,A\n2,B\n", "is listed in items.csv (interactions.csv has '1.0', items.csv '1')"),
        ("", "is listed in items.csv (interactions.csv has '1.0', items.csv none)"),
        ("1.0,\n2.0, \n", "has a title in items.csv: 2 are listed there without one ('1.0')"),
        ("1.0,\n", "1 are listed there without one ('1.0'), 1 are not listed ('2.0')"),
    ],
)
def test_where_no_item_has_a_title_an_example_of_each_file_is_quoted(items, fragment, tmp_path):
    files = {
        "interactions.csv": "user,item,time\nu,1.0,1\nu,2.0,2\nu,2.0,3\n",
        "items.csv": f"item,title\n{items}",
    }
    with pytest.raises(ValueError, match="interactions.csv: none of its 2 items ") as error:
        readers.read(write(tmp_path / "form", files))
    assert fragment in str(error.value)


def test_what_could_steer_a_terminal_is_escaped_in_the_id_of_an_item_that_is_left_out(tmp_path):
    rows = [(f"u{number}", "\x1b[31m", number) for number in range(3)] + ROWS
    data = readers.read(write_interactions(tmp_path / "form", rows, TITLES | {"\x1b[31m": ""}))
    assert data.notes[0].startswith("1 items without a title left out ('\\x1b[31m')")


@pytest.mark.parametrize("last", ["\u00e9".encode("latin-1"), "\u00e9".encode()])
def test_the_encoding_of_a_dat_file_may_show_in_its_last_byte_alone(tmp_path, last):
    files = {"ratings.dat": "\ufeff1::0::5::0\n".encode(), "movies.dat": b"0::Plain::Dram" + last}
    data = readers.read(write(tmp_path / "form", files))
    assert (data.titles, data.user_ids) == (["Plain"], ["1"])


def test_an_empty_title_that_stands_for_its_item_is_left_out_and_counted(tmp_path):
    rows = [("u", "A", 1), ("u", "", 2), ("v", "", 3), ("u", "B", 4)]
    rows = table(("user_id", "title", "timestamp"), rows)
    data = readers.read(write(tmp_path / "form", {"interactions.csv": rows}))
    assert (data.titles, data.items.tolist()) == (["A", "B"], [0, 1])
    assert data.notes[0].endswith("left out (''), and 2 interactions")


def beside(folder, *rows):
    """What is read of interactions.csv with these rows of item, title and rating."""
    rows = [(f"u{number}", *row, number) for number, row in enumerate(rows)]
    text = table(("user_id", "asin", "title", "rating", "timestamp"), rows)
    return readers.read(write(folder, {"interactions.csv": text}), Columns(min_rating=2))


def test_another_title_of_an_item_beside_its_interactions_is_refused(tmp_path):
    with pytest.raises(ValueError) as error:
        beside(tmp_path, ("B1", "Such a lovely scent", 5), ("B2", "X", 5), ("B1", "Do not buy", 5))
    assert str(error.value) == (
        f"{tmp_path}/interactions.csv, line 4: item 'B1' has the title 'Do not buy' here and "
        "'Such a lovely scent' before; put the titles into a file of items, or name their column "
        "(--title-column)"
    )


def test_a_title_of_an_item_that_had_none_before_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match="line 3: item 'B1' has the title 'A' here and none in its first row"
    ):
        beside(tmp_path, ("B1", " ", 5), ("B1", "A", 5))


def test_an_empty_title_is_left_out_where_an_option_makes_titles_the_ids(tmp_path):
    text = "user_id,name,timestamp\nu,A,1\nu,,2\nu,,3\n"
    folder = write(tmp_path / "form", {"interactions.csv": text})
    assert readers.read(folder, Columns(item_column="name")).titles == ["A"]


def test_later_titles_of_an_item_may_be_empty_or_written_otherwise_or_left_out(tmp_path):
    rows = (("B1", "Tom &amp; Jerry", 5), ("B1", "", 5), ("B1", " Tom  & Jerry", 5))
    data = beside(tmp_path, *rows, ("B1", "Other", 1), ("B1", "Tom &amp; Jerry", 5))
    assert (data.titles, data.items.tolist()) == (["Tom & Jerry"], [0, 0, 0, 0])


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_dat_files_of_movielens_are_read_in_either_of_its_encodings(tmp_path, encoding, pack):
    titles = ["\u00c9clair (1995)", "Plain (1995)", "Mis\u00e9rables, Les (1995)"]
    ratings = "".join(f"1::{number}::5::{number}\n" for number in range(3))
    movies = "".join(f"{number}::{title}::Drama\n" for number, title in enumerate(titles))
    suffix = ".dat" if pack is bytes else ".dat.gz"
    for name, text in (("ratings", ratings), ("movies", movies)):
        (tmp_path / f"{name}{suffix}").write_bytes(pack(text.encode(encoding)))
    assert readers.read(tmp_path).titles == titles


def test_what_filters_leave_is_said(tmp_path):
    folder = write_interactions(tmp_path / "form", ROWS, TITLES)
    data = dataset.load(folder, min_item=5, min_user=3)
    counts = np.unique([item for _, item, _ in ROWS], return_counts=True)[1]
    (note,) = data.notes
    assert note.startswith(f"{len(data.titles)} of {len(counts)} titles, 12 of 12 users")
    assert f"{len(data.items)} of {len(ROWS)} interactions" in note


def test_titles_that_filters_leave_are_counted_as_the_catalogue_counts_them(tmp_path):
    """Two of the five items share a title, and the rarest item goes."""
    titles = {"a": "A", "b": "B", "c": "C", "d": "C", "e": "E"}
    rows = [(user, item, time) for user in "uvw" for time, item in enumerate("abcd")]
    folder = write_interactions(tmp_path / "form", [*rows, ("u", "e", 9)], titles)
    data = dataset.load(folder, min_item=2, min_user=3)
    assert data.titles == ["A", "B", "C"]
    assert data.notes == ("3 of 4 titles, 3 of 3 users and 12 of 13 interactions are left",)


@pytest.mark.parametrize("form", [name for name in FORMS if "MovieLens" in name] + ["RecBole"])
def test_every_filter_says_what_it_removes(form, tmp_path):
    """Of six interactions each of four users: a rating, a repetition and items without a title.

    Then an item of one interaction goes, and with it a user who has too few left.
    """
    titles = {f"i{n}": f"T{n}" for n in range(5)} | {"i5": " "}
    rows = [(user, f"i{n}", 5, n) for user in "abcd" for n in range(4)]
    rows += [rows[0], ("a", "i2", 1, 8), ("b", "i5", 5, 8), ("c", "i4", 5, 8)]
    rows += [("e", item, 5, 1) for item in ("i0", "i1", "i4")]
    files = {"RecBole": recbole, "MovieLens, csv": movielens_csv, "MovieLens, dat": movielens_dat}
    folder = write(tmp_path / "form", files[form](rows, titles))
    data = dataset.load(folder, min_item=3, min_user=3, columns=Columns(min_rating=2))
    assert data.notes == (
        "1 interactions rated lower than asked for left out",
        "1 items without a title left out ('i5'), and 1 interactions",
        "1 rows that repeat an earlier one left out",
        "4 of 5 titles, 4 of 5 users and 16 of 20 interactions are left",
    )


def test_dates_with_and_without_a_zone_are_ordered_in_time():
    times = Times()
    for text in ("2015-03-01", "2015-03-01T02:00:00+02:00", "2015-03-01 00:00:00.5Z", "1e3"):
        times.append(text, "here")
    day = 16495 * 86400 * 10**6  # days from 1970 to March 2015
    assert times.values.tolist() == [day, day, day + 500_000, 10**9]


def test_a_large_number_is_read_before_and_after_a_date():
    for texts in (("253402300799", "2015-03-31"), ("2015-03-31", "253402300799")):
        times = Times()
        for text in texts:
            times.append(text, "here")
        assert sorted(times.values) == [16525 * 86400 * 10**6, 253402300799 * 10**6]


@pytest.mark.parametrize("number", ["253402300800", "1427784000000", "1427784000000.5"])
def test_a_date_beside_a_number_that_is_none_of_seconds_is_refused(number):
    date = "2015-03-31"
    for texts in ((number, date), (date, number), ("2.5", number, date), (number, "2.5", date)):
        times = Times()
        with pytest.raises(ValueError, match=rf"^here: dates stand beside .* {number[:12]}"):
            for text in texts:
                times.append(text, "here")


def test_numbers_of_milliseconds_may_have_fractions_where_there_are_no_dates():
    times = Times()
    for text in ("1427784000000.5", "1427784000000"):
        times.append(text, "here")
    assert times.values.tolist() == [1427784000000_500_000, 1427784000000_000_000]


def test_nanoseconds_since_1970_are_whole_numbers_too():
    times = Times()
    for text in ("1420070400000000000", "0", "9223372036854775807"):
        times.append(text, "here")
    assert times.values.tolist() == [1_420_070_400_000_000_000, 0, 2**63 - 1]


@pytest.mark.parametrize("texts", [("1420070400000000000", "1.5"), ("1.5", "1420070400000000000")])
def test_a_time_that_is_too_large_beside_fractions_is_named(texts):
    times = Times()
    times.append(texts[0], "line 1")
    with pytest.raises(ValueError, match="line 2: the timestamp '?1420070400000000000'? is too"):
        times.append(texts[1], "line 2")


# Of the last three the first is 2^63; datetime.fromisoformat takes the others for dates of 1420.
@pytest.mark.parametrize(
    "text",
    ["yesterday", "-4", "", "nan", "inf", "1,5", "2015-13-01", "\u0663"]
    + ["9223372036854775808", "14200704000000000000", " 1420070400000000000"],
)
def test_what_is_no_time_is_refused_with_its_line(text, tmp_path):
    rows = [*ROWS[:4], ("u1", "i1", text)]
    folder = write_interactions(tmp_path / "form", rows, TITLES)
    with pytest.raises(ValueError, match=r"interactions.csv, line 6: timestamp is '.*'; expected"):
        readers.read(folder)


@pytest.mark.parametrize(
    "files, fragments",
    [
        ({"data.parquet": ""}, ("data.parquet is parquet", "to_csv('interactions.csv'")),
        (
            {"interactions.csv": "user_id\n", "interactions.parquet": "", "items.parquet": ""},
            ("no items.csv", "items.parquet is parquet", "to_csv('items.csv'"),
        ),
        ({"other.csv": "a,b\n"}, ("found other.csv", "interactions.csv and items.csv")),
        ({}, ("found nothing",)),
        ({"x.inter": "user_id\titem_id\n"}, ("x.inter holds no titles", "x.item")),
        ({"ratings.dat": "1::2::3\n", "movies.dat": "1::A::x\n"}, ("line 1: 3 fields", "has 4")),
        ({"interactions.jsonl": "[1]\n"}, ("line 1: a JSON array", "an object a line", "jq")),
        ({"interactions.jsonl": "1\n"}, ("interactions.jsonl, line 1", "JSON object a line")),
        ({"interactions.jsonl": '{"title"\n'}, ("interactions.jsonl, line 1", "broken JSON")),
        (
            {"interactions.jsonl": '{"user": 1, "title": "A"}\n{"user": 1, "Time": 5}\n'},
            ("interactions.jsonl, line 2", "has 'Time'"),
        ),
        (
            {"interactions.jsonl": '{"user": 1, "title": "A", "title": "B"}\n'},
            ("interactions.jsonl, line 1", "twice"),
        ),
        (
            {"interactions.jsonl": '{"user": "half \\ud83d", "title": "A"}\n'},
            ("interactions.jsonl, line 1", "user is 'half"),
        ),
    ],
)
def test_what_cannot_be_read_is_one_clear_line(files, fragments, tmp_path):
    folder = write(tmp_path / "form", files)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        readers.read(folder)
    assert all(fragment in str(error.value) for fragment in (str(folder), *fragments))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_blank_lines_before_the_header_among_rows_and_at_the_end_are_passed_over(
    separator, tmp_path
):
    header = ("user_id", "item_id", "title", "timestamp")
    lines = table(header, [("u", "a", "A, B", 1), ("v", "a", "A, B", 2)], separator).splitlines()
    text = "\n".join(["", " ", *lines[:2], "", "  ", lines[2], "   "])
    data = readers.read(write(tmp_path / "form", {"interactions.csv": text}))
    assert (data.titles, data.users.tolist(), data.times.tolist()) == (["A, B"], [0, 1], [1, 2])
    broken = write(tmp_path / "broken", {"interactions.csv": text + f"\nw{separator}a\n"})
    with pytest.raises(ValueError, match="interactions.csv, line 9: 2 fields; the header has 4"):
        readers.read(broken)


def test_in_a_table_of_one_column_a_field_of_spaces_is_a_row(tmp_path):
    (tmp_path / "one.csv").write_text("title\nA\n  \n\nB\n")
    with tables.opened(tmp_path / "one.csv") as opened:
        assert list(opened.rows) == [["A"], ["  "], ["B"]]


@pytest.mark.parametrize("name", ["interactions.csv", "interactions.tsv", "interactions.jsonl"])
@pytest.mark.parametrize("text", ["", "\n \n"])
def test_a_file_without_a_line_is_said_to_be_empty(name, text, tmp_path):
    folder = write(tmp_path / "form", {name: text, "items.csv": ITEMS})
    with pytest.raises(ValueError, match=f"{name}: is empty; expected"):
        readers.read(folder)


MINIMAL = {"interactions.csv": "user,item\nu,a\n", "items.csv": "item,title\na,A\n"}
BESIDE = "user,item,title\nu,a,A\n"


@pytest.mark.parametrize(
    "files, first, second",
    [
        ({"ratings.csv": BESIDE, "movies.csv": ""}, "interactions.csv", "ratings.csv"),
        ({"ratings.csv": BESIDE}, "interactions.csv", "ratings.csv"),
        ({"interactions.jsonl.gz": ""}, "interactions.csv", "interactions.jsonl.gz"),
        ({"items.tsv": ""}, "items.csv", "items.tsv"),
        ({"a.inter": "", "a.item": ""}, "interactions.csv", "a.inter"),
        ({"id2name4Rec.json": "{}"}, "id2name4Rec.json", "interactions.csv"),
    ],
)
def test_a_folder_that_holds_two_forms_is_refused(files, first, second, tmp_path):
    folder = write(tmp_path / "form", MINIMAL | files)
    message = f"form: holds both {first} and {second}; which one is meant"
    with pytest.raises(ValueError, match=message):
        readers.read(folder)


def test_two_pairs_of_recbole_are_refused(tmp_path):
    names = ("b.item", "b.inter", "a.inter", "a.item")
    folder = write(tmp_path / "form", dict.fromkeys(names, "x\n"))
    with pytest.raises(ValueError, match="holds both a.inter and b.inter"):
        readers.read(folder)


@pytest.mark.parametrize(
    "files",
    [
        {"a.inter": "user\titem\n"},
        {"ratings.csv": "user,item\nv,b\n"},
        {"ratings.jsonl": '{"user": 1, "item": 2}'},
        {"movies.csv": "item,title\na,B\n"},
        {"interactions.csv.gz": "x"},
        {"ratings.csv": ""},
        {"ratings.json": '[\n{"user": 1}\n]'},
        {"a.inter": "user\titem\tt\xeftle\n".encode("latin-1")},
    ],
)
def test_an_incomplete_form_beside_a_complete_one_is_passed_over(files, tmp_path):
    data = readers.read(write(tmp_path / "form", MINIMAL | files))
    assert (data.titles, data.user_ids) == (["A"], ["u"])


def test_an_empty_file_of_interactions_beside_split_data_is_passed_over(tmp_path):
    train, test = [(["i1", "i2"], 1)] * 2, [(["i2", "i3"], 3)]
    folder = write_presplit(tmp_path / "split", train, test, TITLES)
    (folder / "interactions.csv").write_text("")
    assert len(readers.read(folder).test) == 1


def test_an_incomplete_form_does_not_hide_one_of_recbole(tmp_path):
    files = {"interactions.csv": "user,item\n", "a.inter": "user\titem\n"}
    complete = {"b.inter": "user\titem\nu\ta\n", "b.item": "item\ttitle\na\tA\n"}
    assert readers.read(write(tmp_path / "form", files | complete)).titles == ["A"]


def test_a_pipe_that_is_called_like_a_file_of_recbole_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "x.inter")
    (tmp_path / "x.item").write_text("item_id\ttitle\n")
    with pytest.raises(FileNotFoundError, match="found x.inter, x.item"):
        readers.read(tmp_path)


def test_a_column_that_nobody_reads_may_begin_in_a_later_object(tmp_path, expected):
    form = FORMS["JSON lines, packed"]
    lines = form["interactions.jsonl.gz"].splitlines()
    lines[3] = lines[3].replace("{", '{"votes": 3, ', 1)
    files = {"interactions.jsonl": "\n".join(lines), "items.jsonl": form["items.jsonl.gz"]}
    assert by_title(load(write(tmp_path / "form", files))) == by_title(expected)


def test_a_rating_that_is_no_number_is_refused_where_ratings_count(tmp_path):
    files = FORMS["MovieLens, csv"]
    ratings = files["ratings.csv"] + "u1,i1,good,7\n"
    folder = write(tmp_path / "form", files | {"ratings.csv": ratings})
    assert len(readers.read(folder).items) == len(ROWS) + 1
    with pytest.raises(ValueError, match=r"ratings.csv, line \d+: the rating is 'good'"):
        readers.read(folder, Columns(min_rating=2))


def test_of_a_long_rating_that_is_no_number_40_characters_are_quoted(tmp_path):
    files = FORMS["MovieLens, csv"]
    ratings = files["ratings.csv"] + f"u1,i1,{'x' * 41},7\n"
    folder = write(tmp_path / "form", files | {"ratings.csv": ratings})
    with pytest.raises(ValueError, match=f"the rating is '{'x' * 40}'; expected"):
        readers.read(folder, Columns(min_rating=2))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_least_rating_that_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match="min_rating is (nan|inf); expected a number"):
        Columns(min_rating=value)
    with pytest.raises(ValueError, match="min_rating is (nan|inf); expected a number or null"):
        Settings(min_rating=value)


def test_a_column_that_an_option_names_has_to_be_there(tmp_path):
    folder = write_interactions(tmp_path / "form", ROWS, TITLES)
    with pytest.raises(ValueError, match="column 'when' is missing; found .*'timestamp'") as error:
        readers.read(folder, Columns(time_column="when"))
    assert "--time-column names another, in all files" in str(error.value)


def test_spaces_around_the_names_of_columns_do_not_matter(tmp_path):
    files = {"interactions.csv": "user_id, title ,timestamp\nu,A,2\nu,B,1\n"}
    assert readers.read(write(tmp_path / "form", files)).titles == ["A", "B"]


def test_titles_that_are_ids_may_hold_line_breaks(tmp_path):
    rows = [("u", "A\nb", 1), ("u", "C", 2), ("u", "A\nb", 3)]
    files = {"interactions.csv": table(("user_id", "title", "timestamp"), rows)}
    data = readers.read(write(tmp_path / "form", files))
    assert data.titles == ["A b", "C"] and data.items.tolist() == [0, 1, 0]


@pytest.mark.parametrize("value", [["A", "b"], {"en": "A"}, True])
@pytest.mark.parametrize("column", ["who", "headline", "when", "stars"])
def test_a_value_of_json_that_is_no_text_and_no_number_is_refused(value, column, tmp_path):
    names = ("who", "headline", "when", "stars")
    odd = {"who": "u", "headline": "B", "when": 2, "stars": 3} | {column: value}
    files = {"interactions.jsonl": json_lines(names, [("u", "A", 1, 3), odd.values()])}
    columns = Columns("who", None, "when", "headline", min_rating=1)
    with pytest.raises(ValueError, match=f"line 2: {column} is .*; expected text or a number"):
        readers.read(write(tmp_path / "form", files), columns)


@pytest.mark.parametrize("value", [["A", "b"], {"en": "A"}, True])
def test_a_title_of_json_beside_no_interactions_is_text_or_a_number(value, tmp_path):
    files = {
        "interactions.csv": "user_id,item_id,timestamp\nu,1,1\nu,2,2\n",
        "items.jsonl": json_lines(("item_id", "title"), [(1, 1984), (2, value)]),
    }
    with pytest.raises(ValueError, match="items.jsonl, line 2: title is .*; expected text or a"):
        readers.read(write(tmp_path / "form", files))


def test_a_list_in_a_column_that_is_not_read_does_not_matter(tmp_path):
    rows = [("u", "A", 1, ["Drama"], True), ("u", "B", 2, {"no": 1}, None)]
    names = ("user_id", "title", "timestamp", "name", "rating")
    files = {"interactions.jsonl": json_lines(names, rows)}
    assert readers.read(write(tmp_path / "form", files)).titles == ["A", "B"]


def test_a_later_row_may_have_a_title_of_white_space_in_html(tmp_path):
    rows = [("u", 1, "A", 1), ("u", 2, "B", 2), ("v", 1, "&nbsp;", 3)]
    files = {"interactions.csv": table(("user_id", "item_id", "title", "timestamp"), rows)}
    data = readers.read(write(tmp_path / "form", files))
    assert data.items.tolist() == [0, 1, 0] and data.notes == ()


@pytest.mark.parametrize("title", ["A\0", "\0"])
def test_a_title_beside_interactions_is_refused_as_any_other(title, tmp_path):
    rows = [("u", 1, title, 1)]
    files = {"interactions.csv": table(("user_id", "item_id", "title", "timestamp"), rows)}
    with pytest.raises(ValueError, match="NUL"):
        readers.read(write(tmp_path / "form", files))


def test_an_item_without_a_title_beside_interactions_is_one_without_a_title(tmp_path):
    rows = [("u", 1, "A", 1), ("u", 2, "", 2)]
    files = {"interactions.csv": table(("user_id", "item_id", "title", "timestamp"), rows)}
    data = readers.read(write(tmp_path / "form", files))
    assert data.notes == ("1 items without a title left out ('2'), and 1 interactions",)


def test_a_year_is_added_to_no_title_of_white_space(tmp_path):
    files = {
        "any.inter": unquoted(
            ("user_id", "item_id", "timestamp"), [("u", 1, 1), ("u", 2, 2)], "\t"
        ),
        "any.item": unquoted(
            ("item_id", "title", "release_year"), [(1, "A", 1999), (2, "&nbsp;", 1999)], "\t"
        ),
    }
    assert readers.read(write(tmp_path / "form", files)).titles == ["A (1999)"]
