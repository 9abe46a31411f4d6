"""The table and the figure of the README from the raw runs: python tests/study/report.py [RUNS.jsonl] [--svg FILE]

Intervals: bootstrap over users and seeds, both drawn with replacement, 2,000 draws (plan.md). Differences are paired, user by user and
seed by seed, so below 0 is better for the negative log-likelihood (NLL, nats a title). A star: also the interval at 99 % leaves out 0.
"""

import argparse
import json
import sys
from html import escape
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))
from evaluate import metrics_of  # noqa: E402
from ref.files import read_text, write_atomically  # noqa: E402

DRAWS = 2000
TITLES = {"scratch": "from scratch, MovieLens", "sasrec": "", "flip": "best schedule with one option changed (difference to it)",
          "tiny": "from a language model of titles, MovieLens", "books": "from scratch, Amazon Books", "books-sasrec": ""}  # fmt: skip


def read(path):
    """{(group, schedule): [records by seed]} and {data: record of its users}."""
    rows, users = {}, {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        record = json.loads(line)
        if record["group"] == "users":
            users[record["data"]] = record
        elif "nll" in record:
            rows.setdefault((record["group"], "/".join(map(str, record["schedule"]))), []).append(record)
    return {key: sorted(records, key=lambda r: r["seed"]) for key, records in rows.items()}, users


def of_ranks(ranks):
    """Metrics of each user; rank 0 means not returned."""
    return metrics_of([rank or np.inf for rank in ranks])


def columns(records):
    """{"NLL", "HR@10", "NDCG@10": float (seeds, users)}."""
    metrics = [of_ranks(record["ranks"]) for record in records]
    return {"NLL": np.array([record["nll"] for record in records])} | {name: np.array([m[name] for m in metrics]) for name in ("HR@10", "NDCG@10")}


def interval(values, level=95):
    """(mean, low, high) of values (seeds, users)."""
    rng = np.random.default_rng(0)
    seeds, people = values.shape
    draws = [values[rng.integers(0, seeds, seeds)].mean(0)[rng.integers(0, people, people)].mean() for _ in range(DRAWS)]
    return (values.mean(), *np.percentile(draws, ((100 - level) / 2, (100 + level) / 2)))


def paired(records, others, name="NLL", mask=slice(None)):
    """values - others (seeds, users), over the seeds that both have."""
    both = sorted({r["seed"] for r in records} & {r["seed"] for r in others})
    one, two = (columns([r for r in side if r["seed"] in both])[name] for side in (records, others))
    return (one - two)[:, mask]


def reference(group, schedule, rows):
    """The key of what a row is compared with: causal of its group and data; the same schedule unchanged for a flip; None for itself."""
    home = {"sasrec": "scratch", "books-sasrec": "books"}.get(group, group)
    key = ("scratch", schedule) if group.startswith("flip") else (home, "0/0")
    return key if key in rows and key != (group, schedule) else None


def ordered(rows):
    """Keys in the order of the table."""
    place = [*TITLES]
    return sorted(rows, key=lambda key: (place.index(key[0].split("-")[0] if key[0].startswith("flip") else key[0]), *key))


def name_of(group, schedule):
    return {"sasrec": "SASRec", "books-sasrec": "SASRec"}.get(group) or (f"{schedule}, {group[5:]}" if group.startswith("flip") else
                                                                         "causal (0/0)" if schedule == "0/0" else schedule)  # fmt: skip


def show(values, digits=3):
    mean, low, high = values
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def table(rows, users):
    """Markdown: a row a model."""
    lines = ["| model | seeds | NLL | NLL, difference to causal | HR@10 | NDCG@10 |", "| --- | --- | --- | --- | --- | --- |"]
    for group, schedule in ordered(rows):
        records, other = rows[group, schedule], reference(group, schedule, rows)
        title = TITLES.get("flip" if group.startswith("flip") else group)
        if title and f"| *{title}* | | | | | |" not in lines:
            lines.append(f"| *{title}* | | | | | |")
        found, difference = columns(records), "–"
        if other:
            values = paired(records, rows[other])
            _, low, high = interval(values, 99)
            difference = show(interval(values)) + " \\*" * bool(low > 0 or high < 0)
        cells = [name_of(group, schedule), str(len(records)), show(interval(found["NLL"])), difference]
        lines.append("| " + " | ".join([*cells, *(show(interval(found[name])) for name in ("HR@10", "NDCG@10"))]) + " |")
    for data, record in users.items():
        for name, ranks in record["ranks"].items():
            found = of_ranks(ranks)
            lines.append(f"| {name}, {data} | – | – | – | " + " | ".join(show(interval(found[m][None])) for m in ("HR@10", "NDCG@10")) + " |")
    return "\n".join(lines)


def slices(record):
    """{name: bool (users,)} of a data set: history length and how often the target is in training."""
    length, count = np.array(record["history"]), np.array(record["count"])
    masks = {f"history of {low} to {high}": (length >= low) & (length <= high) for low, high in ((1, 4), (5, 9))}
    masks["history of 10"] = length == 10
    masks["target never in training"] = count == 0
    for low, high in ((1, 9), (10, 49), (50, 99), (100, 10**9)):
        masks[f"target {low} to {high} times" if high < 10**9 else "target 100 times or more"] = (count >= low) & (count <= high)
    return {name: mask for name, mask in masks.items() if mask.sum() >= 10}


def slice_table(rows, users):
    """Markdown: NLL, difference to causal, on each slice of at least ten users."""
    lines = []
    for data, record in users.items():
        compared = [key for key in ordered(rows) if rows[key][0]["data"] == data and reference(*key, rows) and not key[0].startswith("flip")]
        if not compared:
            continue
        lines += ["", f"| {data}: NLL, difference to causal | users | " + " | ".join(f"{g} {name_of(g, s)}" for g, s in compared) + " |"]
        lines.append("| --- " * (len(compared) + 2) + "|")
        for name, mask in slices(record).items():
            cells = [show(interval(paired(rows[key], rows[reference(*key, rows)], mask=mask)), 2) for key in compared]
            lines.append(f"| {name} | {mask.sum()} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(rows):
    """SVG: a row a model, its difference to causal in NLL with the interval, and a dot for each seed."""
    compared = [key for key in ordered(rows) if reference(*key, rows)]
    found = {key: paired(rows[key], rows[reference(*key, rows)]) for key in compared}
    means = {key: interval(values) for key, values in found.items()}
    ends = [v for key in compared for v in (*means[key][1:], *found[key].mean(1))] + [0.0]
    low, high = min(ends), max(ends)
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5) if (high - low) / s <= 10)
    low, high = np.floor(low / step) * step, np.ceil(high / step) * step
    left, width, top, out, y, said = 170, 560, 54, [], 54, None

    def x(value):
        return left + width * (value - low) / max(high - low, step)

    for key in compared:
        group = "flip" if key[0].startswith("flip") else key[0].removeprefix("books-").replace("sasrec", "books" if key[0][0] == "b" else "scratch")
        if group != said:
            y, said = y + 14, group
            out.append(f'<text x="8" y="{y}" font-weight="bold">{escape(TITLES[group])}</text>')
            y += 20
        mean, begin, end = means[key]
        colour = "#5f6368" if begin <= 0 <= end else "#2e7d32" if end < 0 else "#c62828"
        out.append(f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{escape(name_of(*key))}</text>')
        out.append(f'<path d="M{x(begin):.1f} {y}H{x(end):.1f}" stroke="{colour}" stroke-width="3"/>')
        out.append(f'<circle cx="{x(mean):.1f}" cy="{y}" r="5" fill="{colour}"/>')
        out += [f'<circle cx="{x(value):.1f}" cy="{y}" r="2" fill="white" stroke="{colour}"/>' for value in found[key].mean(1)]
        out.append(f'<text x="{left + width + 14}" y="{y + 4}" fill="{colour}">{mean:+.3f} [{begin:+.3f}, {end:+.3f}]</text>')
        y += 20
    ticks = [f'<path d="M{x(t):.1f} {top - 8}V{y}" stroke="{"#202124" if abs(t) < step / 2 else "#e0e0e0"}"/>'
             f'<text x="{x(t):.1f}" y="{top - 12}" text-anchor="middle" fill="#5f6368">{t:g}</text>'
             for t in np.round(np.arange(low, high + step / 2, step), 6) + 0.0]  # fmt: skip
    size = f"{left + width + 190} {y + 20}"
    title = "Negative log-likelihood of the next title, difference to plain causal attention (nats; left is better)"
    foot = "mean over seeds and users, 95 % interval; small circles: single seeds"
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" font-family="sans-serif" font-size="12">',
                      '<rect width="100%" height="100%" fill="white"/>', f'<text x="8" y="20" font-size="13" font-weight="bold">{title}</text>',
                      *ticks, *out, f'<text x="8" y="{y + 12}" fill="#5f6368">{foot}</text></svg>\n'])  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="?", type=Path, default=HERE / "runs.jsonl")
    parser.add_argument("--svg", metavar="FILE", help="draw the figure")
    options = parser.parse_args()
    rows, users = read(options.runs)
    print(table(rows, users) + "\n" + slice_table(rows, users))
    if options.svg:
        write_atomically(options.svg, picture(rows).encode())


if __name__ == "__main__":
    sys.exit(main())
