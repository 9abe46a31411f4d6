"""The tables and figures of the README from the raw runs: python tests/study/report.py [RUNS.jsonl] [--svg FILE] [--curves FILE]

Intervals: bootstrap over users and seeds, both drawn with replacement (plan.md). Differences are paired, user by user and seed by seed, so
below 0 is better for the negative log-likelihood (NLL, nats a title); behind them, how many seeds are below 0. A star: the interval at 99 % leaves
out 0, too. A bootstrap of few seeds covers less than its name says (five: about 90 % where seeds differ much), so fewer than five get no star.
"""

import argparse
import json
import sys
from html import escape
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))
from ref.files import read_text, write_atomically  # noqa: E402
from ref.report.attention import skew  # noqa: E402
from ref.report.metrics import metrics_of, slices  # noqa: E402

DRAWS = {95: 2000, 99: 10_000}
REACH = 0.5  # nats; a larger difference is an arrow, that the others can be told apart
COLOURS = {
    "0/1": "#b06000",
    "1/0": "#1a73e8",
    "1/1": "#188038",
    "1/2": "#12808f",
    "2/1": "#9334e6",
}  # of the lines of the loss
SECTIONS = {  # group: heading of its rows; groups of one heading stand together
    "scratch": "from scratch, MovieLens",
    "sasrec": "from scratch, MovieLens",
    "validation": "the same, validation targets (the epoch was chosen by them; not planned)",
    "flip": "best schedule with one option changed (difference to it)",
    "tiny": "from a language model of titles, MovieLens",
    "books": "from scratch, Amazon Books",
    "books-sasrec": "from scratch, Amazon Books",
    "llm": "SmolLM2-135M-Instruct, Amazon Books, 500 users",
    "lora": "SmolLM2-135M-Instruct, Amazon Books, 500 users",
}
COMPARED_WITH = {"sasrec": "scratch", "books-sasrec": "books"}  # their causal models
ATTENTION = {
    "attention-llm": "SmolLM2 as it comes",
    "lora": "SmolLM2 after LoRA",
    "attention-pretrain": "language model of titles",
    "attention-tiny": "fine-tuned from it",
    "attention-scratch": "from scratch",
}


def read(path):
    """{(group, schedule): [records by seed]}, {data: record of its users}, and the records that hold attention."""
    rows, users, attention = {}, {}, []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        record = json.loads(line)
        if record["group"] == "users":
            users[record["data"]] = record
        elif "nll" in record:
            rows.setdefault((record["group"], "/".join(map(str, record["schedule"]))), []).append(
                record
            )
        if "share" in record:
            attention.append(record)
    return (
        {key: sorted(records, key=lambda r: r["seed"]) for key, records in rows.items()},
        users,
        attention,
    )


def of_ranks(ranks):
    """Metrics of each user; rank 0 means not returned."""
    return metrics_of([rank or np.inf for rank in ranks])


def columns(records):
    """{"NLL" and, where all titles were ranked, "HR@10", "NDCG@10": float (seeds, users)}."""
    found = {"NLL": np.array([record["nll"] for record in records])}
    if "ranks" in records[0]:
        metrics = [of_ranks(record["ranks"]) for record in records]
        found |= {name: np.array([m[name] for m in metrics]) for name in ("HR@10", "NDCG@10")}
    return found


def interval(values, level=95):
    """(mean, low, high) of values (seeds, users)."""
    rng = np.random.default_rng(0)
    seeds, people = values.shape
    draws = [
        values[rng.integers(0, seeds, seeds)].mean(0)[rng.integers(0, people, people)].mean()
        for _ in range(DRAWS[level])
    ]
    return (values.mean(), *np.percentile(draws, ((100 - level) / 2, (100 + level) / 2)))


def clear(values):
    """Does the interval at 99 % leave out 0, of five seeds at least?"""
    _, low, high = interval(values, 99)
    return bool(len(values) >= 5 and (low > 0 or high < 0))


def paired(records, others, name="NLL", mask=slice(None)):
    """values - others (seeds, users), over the seeds that both have."""
    both = sorted({r["seed"] for r in records} & {r["seed"] for r in others})
    one, two = (columns([r for r in side if r["seed"] in both])[name] for side in (records, others))
    return (one - two)[:, mask]


def reference(group, schedule, rows):
    """The key of what a row is compared with: causal of its group and data; the same schedule unchanged for a flip; None for itself."""
    key = (
        ("scratch", schedule)
        if group.startswith("flip")
        else (COMPARED_WITH.get(group, group), "0/0")
    )
    return key if key in rows and key != (group, schedule) else None


def kind_of(group):
    return "flip" if group.startswith("flip") else group


def ordered(rows):
    """Keys in the order of the table."""
    return sorted(rows, key=lambda key: ([*SECTIONS].index(kind_of(key[0])), *key))


def name_of(group, schedule):
    special = {"sasrec": "SASRec", "books-sasrec": "SASRec", "llm": "as it comes"}.get(group)
    return special or (
        f"{schedule}, {group[5:]}"
        if group.startswith("flip")
        else "causal (0/0)"
        if schedule == "0/0"
        else schedule
    )


def show(values, digits=3):
    mean, low, high = values
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def table(rows, users):
    """Markdown: a row a model."""
    lines = [
        "| model | seeds | NLL | NLL, difference to causal (seeds below 0) | HR@10 | NDCG@10 | validation NLL |",
        "| --- " * 7 + "|",
    ]
    for group, schedule in ordered(rows):
        records, other = rows[group, schedule], reference(group, schedule, rows)
        heading = f"| *{SECTIONS[kind_of(group)]}* | | | | | | |"
        lines += [] if heading in lines else [heading]
        found, difference = columns(records), "–"
        if other:
            values = paired(records, rows[other])
            difference = (
                f"{show(interval(values))} ({(values.mean(1) < 0).sum()})" + " \\*" * clear(values)
            )
        cells = [
            name_of(group, schedule),
            str(len(records)),
            show(interval(found["NLL"])),
            difference,
        ]
        cells += [
            show(interval(found[name])) if name in found else "–" for name in ("HR@10", "NDCG@10")
        ]
        cells.append(
            f"{np.mean([record['best'] for record in records]):.3f}"
            if "best" in records[0]
            else "–"
        )
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("| *counting* | | | | | | |")
    for data, record in users.items():
        for name, ranks in record["ranks"].items():
            found = of_ranks(ranks)
            lines.append(
                f"| {name}, {data} | – | – | – | "
                + " | ".join(show(interval(found[m][None])) for m in ("HR@10", "NDCG@10"))
                + " | – |"
            )
    return "\n".join(lines)


def slice_table(rows, users, metric="NLL"):
    """Markdown, a table a data set: difference to causal on each slice of at least ten users."""
    lines = []
    for data, record in users.items():
        compared = [
            key
            for key in ordered(rows)
            if rows[key][0]["data"] == data
            and reference(*key, rows)
            and kind_of(key[0]) not in ("validation", "flip", "lora")
        ]
        masks = slices(np.array(record["history"]), np.array(record["count"]))
        masks = {name: mask for name, mask in masks.items() if mask.sum() >= 10}
        lines += [
            "",
            f"| {metric}, {data} | "
            + " | ".join(f"{name} ({mask.sum()})" for name, mask in masks.items())
            + " |",
            "| --- " * (len(masks) + 1) + "|",
        ]
        for group, schedule in compared:
            name = name_of(group, schedule) + ", fine-tuned" * (group == "tiny")
            differences = [
                paired(rows[group, schedule], rows[reference(group, schedule, rows)], metric, mask)
                for mask in masks.values()
            ]
            lines.append(
                f"| {name} | "
                + " | ".join(show(interval(values), 2) for values in differences)
                + " |"
            )
    return "\n".join(lines)


def attention_table(records):
    """Markdown: from history tokens, shares of attention; and skew (ref/attention.py). Both means over OR layers and models."""
    lines = [
        "| attention of | schedule | data | OR layers | same item | other items | text | itself | skew, history tokens | skew, target tokens |",
        "| --- " * 10 + "|",
    ]
    rows = {}
    for record in records:
        key = (
            [*ATTENTION].index(record["group"]),
            "/".join(map(str, record["schedule"])),
            record["data"],
        )
        rows.setdefault(key, []).append(record)
    for key in sorted(rows):
        kinds = np.array(rows[key][0]["kinds"])
        share, per_pair, even = (
            np.concatenate([np.array(r[name], float) for r in rows[key]])
            for name in ("share", "per_pair", "even")
        )
        preference = skew(per_pair.swapaxes(0, 1), even[0])[kinds == "OR"].mean(
            0
        )  # per_pair (models, L, 3, 4)
        cells = [[*ATTENTION.values()][key[0]], *key[1:], str((kinds == "OR").sum())]
        cells += [f"{value:.1%}" for value in share[:, kinds == "OR"].mean((0, 1))[0]]
        lines.append("| " + " | ".join([*cells, *(f"{preference[q]:.1f}" for q in (0, 2))]) + " |")
    return "\n".join(lines)


def picture(rows):
    """SVG: a row a model, its difference to causal in NLL with the interval, and a dot for each seed; an arrow for what the axis does not reach."""
    compared = [key for key in ordered(rows) if reference(*key, rows)]
    found = {key: paired(rows[key], rows[reference(*key, rows)]) for key in compared}
    means = {key: interval(values) for key, values in found.items()}
    near = [key for key in compared if abs(means[key][0]) <= REACH]
    ends = [v for key in near for v in (*means[key][1:], *found[key].mean(1))] + [0.0]
    low, high = min(ends), max(ends)
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5) if (high - low) / s <= 10)
    low, high = np.floor(low / step) * step, np.ceil(high / step) * step
    left, width, top, out, y, said = 170, 560, 54, [], 54, None

    def x(value):
        return left + width * (value - low) / max(high - low, step)

    for key in compared:
        heading = SECTIONS[kind_of(key[0])]
        if heading != said:
            y, said = y + 14, heading
            out.append(f'<text x="8" y="{y}" font-weight="bold">{escape(heading)}</text>')
            y += 20
        mean, begin, end = means[key]
        colour = "#5f6368" if not clear(found[key]) else "#2e7d32" if mean < 0 else "#c62828"
        out.append(
            f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{escape(name_of(*key))}</text>'
        )
        if key in near:
            out.append(
                f'<path d="M{x(begin):.1f} {y}H{x(end):.1f}" stroke="{colour}" stroke-width="3"/>'
            )
            out.append(f'<circle cx="{x(mean):.1f}" cy="{y}" r="5" fill="{colour}"/>')
            out += [
                f'<circle cx="{x(value):.1f}" cy="{y}" r="2" fill="white" stroke="{colour}"/>'
                for value in found[key].mean(1)
            ]
        else:
            out.append(
                f'<path d="M{x(low if mean < 0 else high):.1f} {y}l{12 if mean < 0 else -12} -6v12z" fill="{colour}"/>'
            )
        out.append(
            f'<text x="{left + width + 14}" y="{y + 4}" fill="{colour}">{mean:+.3f} [{begin:+.3f}, {end:+.3f}]</text>'
        )
        y += 20
    ticks = [
        f'<path d="M{x(t):.1f} {top - 8}V{y}" stroke="{"#202124" if abs(t) < step / 2 else "#e0e0e0"}"/>'
        f'<text x="{x(t):.1f}" y="{top - 12}" text-anchor="middle" fill="#5f6368">{t:g}</text>'
        for t in np.round(np.arange(low, high + step / 2, step), 6) + 0.0
    ]
    size = f"{left + width + 190} {y + 20}"
    title = "Negative log-likelihood of the next title, difference to plain causal attention (nats; left is better)"
    foot = "mean over seeds and users, 95 % interval; small circles: single seeds; arrow: beyond the axis; coloured: five seeds, and 99 % leave out 0"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" font-family="sans-serif" font-size="12">',
            '<rect width="100%" height="100%" fill="white"/>',
            f'<text x="8" y="20" font-size="13" font-weight="bold">{title}</text>',
            *ticks,
            *out,
            f'<text x="8" y="{y + 12}" fill="#5f6368">{foot}</text></svg>\n',
        ]
    )


def curves(rows):
    """SVG: loss of training and validation after each epoch, difference to causal, mean over the seeds that all schedules have."""
    runs = {schedule: records for (group, schedule), records in rows.items() if group == "scratch"}
    seeds = set.intersection(*({r["seed"] for r in records} for records in runs.values()))
    runs = {
        schedule: [r for r in records if r["seed"] in seeds] for schedule, records in runs.items()
    }
    epochs = min(len(record["train"]) for records in runs.values() for record in records)
    losses = {
        (s, part): np.array([r[part][:epochs] for r in records]).mean(0)
        for s, records in runs.items()
        for part in ("train", "valid")
    }
    found = {key: loss - losses["0/0", key[1]] for key, loss in losses.items()}
    ends, step = np.array([*found.values()]), 0.02
    low, high = np.floor(ends.min() / step) * step, np.ceil(ends.max() / step) * step
    width, height, top, out = 280, 200, 70, []

    def y(value):
        return top + height * (high - value) / (high - low)

    for left, part, heading in ((60, "train", "training loss"), (440, "valid", "validation loss")):
        out.append(f'<text x="{left}" y="{top - 18}" font-weight="bold">{heading}</text>')
        for tick in np.round(np.arange(low, high + step / 2, step), 6) + 0.0:
            out.append(
                f'<path d="M{left} {y(tick):.1f}H{left + width}" stroke="{"#202124" if tick == 0 else "#e0e0e0"}"/>'
            )
            out.append(
                f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end" fill="#5f6368">{tick:g}</text>'
            )
        x = [left + width * i / max(epochs - 1, 1) for i in range(epochs)]
        out += [
            f'<text x="{x[i]:.1f}" y="{top + height + 18}" text-anchor="middle" fill="#5f6368">{i + 1}</text>'
            for i in range(epochs)
        ]
        place = -np.inf  # of the last name: names keep 13 apart
        for schedule in sorted(runs, key=lambda s: -found[s, part][-1]):
            place, line = max(y(found[schedule, part][-1]), place + 13), found[schedule, part]
            if schedule == "0/0":
                colour, name = "#202124", "causal"
            else:
                colour, name = COLOURS[schedule], schedule
                points = " ".join(f"{a:.1f},{y(b):.1f}" for a, b in zip(x, line))
                out.append(
                    f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
                )
            out.append(
                f'<text x="{left + width + 8}" y="{place + 4:.1f}" fill="{colour}">{name}</text>'
            )
    title = f"Loss after each epoch, difference to plain causal attention (nats a title; mean of {len(seeds)} seeds; lower is better)"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 {top + height + 40}" font-family="sans-serif" font-size="12">',
            '<rect width="100%" height="100%" fill="white"/>',
            f'<text x="8" y="20" font-size="13" font-weight="bold">{title}</text>',
            *out,
            f'<text x="8" y="{top + height + 34}" fill="#5f6368">epochs; IN layers / CR layers of four</text></svg>\n',
        ]
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="?", type=Path, default=HERE / "runs.jsonl")
    parser.add_argument("--svg", metavar="FILE", help="draw the differences")
    parser.add_argument(
        "--curves",
        metavar="FILE",
        help="draw the losses of the models from scratch, epoch by epoch (SVG)",
    )
    options = parser.parse_args()
    rows, users, attention = read(options.runs)
    parts = [slice_table(rows, users, metric).strip() for metric in ("NLL", "HR@10", "NDCG@10")]
    print(table(rows, users), *parts, attention_table(attention), sep="\n\n")
    if options.svg:
        write_atomically(options.svg, picture(rows).encode())
    if options.curves:
        write_atomically(options.curves, curves(rows).encode())


if __name__ == "__main__":
    sys.exit(main())
