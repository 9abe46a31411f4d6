"""What evaluate.py prints for people: the width of its tables, and probabilities in percent."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

import evaluate
from ref.report import tables
from ref.report.attention import Attention
from ref.report.metrics import metrics_of
from ref.report.ranking import Summary

WITHOUT_AUC = tuple(name for name in tables.WIDE_COLUMNS if name != "AUC")
LONG = "runs/" + "of-a-long-experiment/" * 4 + "seed-1"


def row_of(columns, low=-0.1234, high=10.1234):
    return {column: (0.05, low, high) for column in columns}


@pytest.fixture
def summary():
    """Of a beam search, so without AUC: two models, one of them with a long name."""
    overall = {"weights/movielens-hat": row_of(WITHOUT_AUC), LONG: row_of(WITHOUT_AUC)}
    overall["most popular"] = row_of(("HR@10", "NDCG@10"))
    differences = {f"{LONG} - weights/movielens-hat": row_of(WITHOUT_AUC)}
    sizes = {"history of 10 or more (20 users)": 20, "target never in training (19 users)": 19}
    return Summary(overall, differences, {name: overall for name in sizes}, sizes)


def widest(text):
    return max(map(len, text.splitlines()))


def test_tables_have_at_most_80_columns_unless_they_are_wide(summary):
    assert widest(tables.summary_text(summary)) <= 80
    assert widest(tables.summary_text(summary, is_wide=True)) > 80


def test_a_wide_table_has_a_column_for_each_metric():
    computed = metrics_of(np.array([1.0])).keys() | {"AUC", "NLL"}
    assert set(tables.WIDE_COLUMNS) == computed - {"NDCG@1"}  # which is HR@1


def test_a_wide_table_has_all_metrics_but_those_that_no_row_has(summary):
    header, *_ = tables.summary_text(summary, is_wide=True).splitlines()
    assert header.split() == list(WITHOUT_AUC)


def test_a_metric_that_one_row_lacks_is_a_dash(summary):
    lines = tables.table(summary.overall, ("HR@10", "NLL", "AUC")).splitlines()
    (row,) = (line for line in lines if line.startswith("most popular"))
    assert row.split()[2:] == ["0.0500", "-"]


def test_a_long_name_stands_in_a_line_of_its_own_and_keeps_its_end(summary):
    lines = tables.table(summary.overall, ("HR@10",)).splitlines()
    number = next(number for number, line in enumerate(lines) if line.endswith("/seed-1"))
    assert lines[number] == "…" + LONG[-79:]
    assert lines[number + 1].split() == ["0.0500"]
    assert lines[number + 2].split() == ["[-0.1234", "10.1234]"]


def test_the_rows_of_differences_name_the_model_that_differs_alone(summary):
    text = tables.summary_text(summary)
    _, difference, *_ = text.split("\n\n")
    assert difference.startswith("differences to weights/movielens-hat, target by target\n")
    assert " - weights" not in text


def test_a_slice_of_fewer_than_20_users_is_named_and_not_shown(summary):
    *_, shown, note = tables.summary_text(summary).split("\n\n")
    assert shown.startswith("history of 10 or more (20 users)\n")
    assert note == "not shown, of fewer than 20 users: target never in training (19 users)"


def test_intervals_of_large_numbers_do_not_touch():
    line = tables.table({"a": row_of(("HR@10", "NLL"), 1234.5678, 1234.5678)}, ("HR@10", "NLL"))
    assert line.splitlines()[-1].split() == ["[1234.57", "1234.57]"] * 2


def test_one_model_without_baselines_has_no_table_of_differences(summary):
    alone = Summary({"a": row_of(("NLL",))}, {}, {}, {})
    assert "differences" not in tables.summary_text(alone)


@pytest.mark.parametrize("words, removed", [([], "not removed"), (["--exclude-seen"], "removed")])
def test_the_heading_is_wrapped_and_says_the_same_words(words, removed):
    options = evaluate.parse_options(words)
    note = "2,245 of 9,061 titles and 81,915 of 99,997 interactions are left " * 2
    data = SimpleNamespace(source="data", notes=[note], titles=["a", "b"])
    targets = SimpleNamespace(user_ids=np.arange(3))
    results = [SimpleNamespace(is_model=True, softmax=softmax) for softmax in ("full", "catalogue")]
    results.append(SimpleNamespace(is_model=False, softmax=None))
    lines = tables.heading(data, targets, results, options)
    assert max(map(len, lines)) <= 80
    words = " ".join(" ".join(lines).split())
    assert note.strip() in words
    assert f"beam search of width 10; items of the history {removed}; means over users" in words
    assert "normalized over the catalogue and the whole vocabulary; do not compare them" in words


@pytest.mark.parametrize(
    "probability, text",
    [
        (1.0, "100.00%"),
        (0.03456, "3.46%"),
        (0.00006, "0.01%"),
        (0.000049, "<0.01%"),
        (0.0, "<0.01%"),
    ],
)
def test_no_probability_is_shown_as_zero(probability, text):
    assert tables.percent_text(probability) == text


def test_recommended_titles_have_their_probability_in_percent():
    targets = SimpleNamespace(user_ids=[6], histories=[[0, 1]], titles=[2])
    top = [(2, np.log(0.25)), (1, np.log(1e-6))]
    model = SimpleNamespace(
        name="m", is_model=True, rankings=[SimpleNamespace(top=top)], true_titles=[2]
    )
    lines = tables.user_text(0, targets, [model], ["A", "B", "C"]).splitlines()
    assert lines[0] == "user 7 chose, oldest first"
    assert lines[-2:] == ["    1.  25.00%  C  <- the true one", "    2.  <0.01%  B"]


def attention_of_two_layers():
    """Random shares of kinds IN and CR; 5 heads, 3 sorts of queries, 4 of keys."""
    rng = np.random.default_rng(0)
    share, per_pair = rng.random((2, 2, 5, 3, 4))
    return Attention(["IN", "CR"], share, per_pair, np.ones((2, 3, 4)), [100000] * 3)


@pytest.mark.parametrize("is_wide, numbers", [(False, 4), (True, 8)])
def test_attention_per_pair_is_shown_in_wide_tables_alone(is_wide, numbers):
    text = tables.attention_table("model", attention_of_two_layers(), is_wide)
    assert (widest(text) > 80) == is_wide
    rows = re.findall(r"^ +\d (?:IN|CR) .*$", text, re.MULTILINE)
    assert len(rows) == 2 * 3
    assert all(len(re.findall(r"\d\.\d{4}", row)) == numbers for row in rows)


def test_a_row_of_attention_holds_the_means_over_the_heads_of_its_layer():
    attention = attention_of_two_layers()
    text = tables.attention_table("model", attention, is_wide=True)
    expected = []
    for query in range(3):
        for layer in range(2):
            for values in (attention.share, attention.per_pair):
                for key in range(4):
                    mean = sum(values[layer, head, query, key] for head in range(5)) / 5
                    expected.append(f"{mean:.4f}")
    assert re.findall(r"\d\.\d{4}", text) == expected


@pytest.mark.parametrize("arguments, is_wide", [([], False), (["--wide"], True)])
def test_the_option_wide_is_off_by_default(arguments, is_wide):
    assert evaluate.parse_options(arguments).wide is is_wide
