"""Tables of the earlier study, with one target a user, from its raw runs (one_target.jsonl).

A *row* is a model: its key is (group, schedule), its records are the runs of its seeds. Differences
are paired, user by user and seed by seed, so below 0 is better for the negative log-likelihood
(NLL, nats a title); after them, how many seeds are below 0. A star: the comparison was planned,
there are five seeds at least, and the interval at 99 % leaves out 0, too.

Letters: S seeds, U users.
"""

import numpy as np

from ref.report.attention import QUERIES, skew

from study.intervals import interval_text, is_clear, table_head, table_line
from study.records import metrics_of_packed, unpack_nll

# heading of the rows of a group; groups of one heading stand together
SECTIONS = {
    "scratch": "from scratch, MovieLens",
    "sasrec": "from scratch, MovieLens",
    "validation": "the same, validation targets (the epoch was chosen by them; not planned)",
    "flip": "1/1 with one option changed (difference to 1/1)",
    "tiny": "from a language model of titles, MovieLens",
    "books": "from scratch, Amazon Books",
    "books-sasrec": "from scratch, Amazon Books",
    "llm": "SmolLM2-135M-Instruct, Amazon Books, 500 users",
    "lora": "SmolLM2-135M-Instruct, Amazon Books, 500 users",
}
COMPARED_WITH = {"sasrec": "scratch", "books-sasrec": "books"}  # their causal models
NAMES = {"sasrec": "SASRec", "books-sasrec": "SASRec", "llm": "as it comes"}
ATTENTION = {
    "attention-llm": "SmolLM2 as it comes",
    "lora": "SmolLM2 after LoRA",
    "attention-pretrain": "language model of titles",
    "attention-tiny": "fine-tuned from it",
    "attention-scratch": "from scratch",
}
LEVEL = 99  # percent, of the interval of a clear difference
POST_HOC = {"validation"}  # groups that the plan does not name


def rows_of(runs):
    """What the records of a file hold, {name of the run: record}: rows, users, attention.

    rows: {(group, schedule): [records by seed]}. users: {data set: the record of its users}.
    attention: the records that hold attention.
    """
    rows, users, attention = {}, {}, []
    for record in runs.values():
        if record["group"] == "users":
            users[record["data"]] = record
        elif "nll" in record:
            key = (record["group"], schedule_text(record))
            rows.setdefault(key, []).append(record)
        if "share" in record:
            attention.append(record)
    for records in rows.values():
        records.sort(key=lambda record: record["seed"])
    return rows, users, attention


def schedule_text(record):
    """IN layers, a slash, CR layers."""
    return "/".join(map(str, record["schedule"]))


def kind_of(group):
    return "flip" if group.startswith("flip") else group


def in_order(rows):
    """The keys of the rows as the table has them."""
    groups = list(SECTIONS)
    return sorted(rows, key=lambda key: (groups.index(kind_of(key[0])), *key))


def name_of(group, schedule):
    if group in NAMES:
        return NAMES[group]
    if group.startswith("flip"):
        return f"{schedule}, {group.removeprefix('flip-')}"
    return "causal (0/0)" if schedule == "0/0" else schedule


def reference(group, schedule, rows):
    """The key of what a row is compared with, None for the causal model itself.

    That is the causal model of its group and data; for a flip the same schedule unchanged.
    """
    key = (COMPARED_WITH.get(group, group), "0/0")
    if group.startswith("flip"):
        key = ("scratch", schedule)
    return key if key in rows and key != (group, schedule) else None


def values_of(records, name):
    """float (seeds, users) of "NLL", "HR@10" or "NDCG@10"."""
    if name == "NLL":
        return np.array([unpack_nll(record["nll"]) for record in records])
    return np.array([metrics_of_packed(record["ranks"])[name] for record in records])


def has_star(group, values):
    """Is a difference clear, and was it planned?"""
    return group not in POST_HOC and is_clear(values, LEVEL)


def paired(records, others):
    """The NLL of some records minus that of others, (seeds, users), over the seeds of both."""
    seeds = {record["seed"] for record in records} & {record["seed"] for record in others}
    values = values_of([record for record in records if record["seed"] in seeds], "NLL")
    other_values = values_of([record for record in others if record["seed"] in seeds], "NLL")
    return values - other_values


def table(rows, users):
    """Markdown: a line a model."""
    lines = table_head(
        (
            "model",
            "seeds",
            "NLL",
            "NLL, difference to causal (seeds below 0)",
            "HR@10",
            "NDCG@10",
            "validation NLL",
        )
    )
    last_heading = None
    for group, schedule in in_order(rows):
        heading = SECTIONS[kind_of(group)]
        if heading != last_heading:
            lines.append(f"| *{heading}* | | | | | | |")
        last_heading = heading
        lines.append(table_line(model_cells(group, schedule, rows)))
    lines.append("| *counting* | | | | | | |")
    for data, record in users.items():
        for name, ranks in record["ranks"].items():
            metrics = metrics_of_packed(ranks)
            figures = [interval_text(metrics[metric][None]) for metric in ("HR@10", "NDCG@10")]
            lines.append(table_line([f"{name}, {data}", "–", "–", "–", *figures, "–"]))
    return "\n".join(lines)


def model_cells(group, schedule, rows):
    """The cells of a line; NLL alone where not all titles were ranked."""
    records = rows[group, schedule]
    cells = [name_of(group, schedule), str(len(records)), interval_text(values_of(records, "NLL"))]
    cells.append(difference_text(group, schedule, rows))
    for metric in ("HR@10", "NDCG@10"):
        is_ranked = "ranks" in records[0]
        cells.append(interval_text(values_of(records, metric)) if is_ranked else "–")
    if "best" in records[0]:
        cells.append(f"{np.mean([record['best'] for record in records]):.3f}")
    else:
        cells.append("–")
    return cells


def difference_text(group, schedule, rows):
    """The difference of a row to its reference, its seeds below 0, and a star where it is clear.

    A comparison that was not planned gets no star, however clear it is.
    """
    other = reference(group, schedule, rows)
    if other is None:
        return "–"
    values = paired(rows[group, schedule], rows[other])
    text = f"{interval_text(values)} ({(values.mean(1) < 0).sum()})"
    return f"{text} \\*" if has_star(group, values) else text


def attention_table(records):
    """Markdown: shares of the attention of history tokens, and skew (ref/report/attention.py).

    Both are means over OR layers and models.
    """
    lines = table_head(
        (
            "attention of",
            "schedule",
            "data",
            "OR layers",
            "same item",
            "other items",
            "text",
            "itself",
            "skew, history tokens",
            "skew, target tokens",
        )
    )
    groups = list(ATTENTION)
    rows = {}
    for record in records:
        key = (groups.index(record["group"]), schedule_text(record), record["data"])
        rows.setdefault(key, []).append(record)
    for key in sorted(rows):
        group, schedule, data = key
        cells = [ATTENTION[groups[group]], schedule, data]
        lines.append(table_line([*cells, *attention_cells(rows[key])]))
    return "\n".join(lines)


def attention_cells(records):
    """Number of OR layers, shares and skews of some records of models of one shape."""
    is_or = np.array(records[0]["kinds"]) == "OR"
    share = stacked(records, "share")  # (models, L, 3, 4)
    per_pair = stacked(records, "per_pair")  # (models, L, 3, 4)
    even = stacked(records, "even")  # (models, L, 3, 4)
    shares = share[:, is_or].mean((0, 1))[0]
    # models stand where skew() expects heads
    skews = skew(per_pair.swapaxes(0, 1), even[0])[is_or].mean(0)
    history = skews[QUERIES.index("history tokens")]
    target = skews[QUERIES.index("target tokens")]
    cells = [str(is_or.sum()), *(f"{value:.1%}" for value in shares)]
    return [*cells, f"{history:.1f}", f"{target:.1f}"]


def stacked(records, name):
    return np.concatenate([np.array(record[name], float) for record in records])
