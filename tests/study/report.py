"""The tables and pictures of the README from the raw runs.

    python tests/study/report.py [RUNS.jsonl] [--svg FILE] [--curves FILE]

Intervals: bootstrap over users and seeds, both drawn with replacement (plan.md). Differences are
paired, user by user and seed by seed, so below 0 is better for the negative log-likelihood (NLL,
nats a title); behind them, how many seeds are below 0. A star: the interval at 99 % leaves out 0,
too. A bootstrap of few seeds covers less than its name says (five: about 90 % where seeds differ
much), so fewer than five get no star.

A *row* is a model: its key is (group, schedule), its records are the runs of its seeds.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ref.files import read_text, write_atomically
from ref.report.attention import skew
from ref.report.metrics import metrics_of, slices
from ref.report.svg import Svg

HERE = Path(__file__).parent
DRAWS = {95: 2000, 99: 10_000}
REACH = 0.5  # nats; a larger difference is an arrow, that the others can be told apart
# heading of the rows of a group; groups of one heading stand together
SECTIONS = {
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
NAMES = {"sasrec": "SASRec", "books-sasrec": "SASRec", "llm": "as it comes"}
ATTENTION = {
    "attention-llm": "SmolLM2 as it comes",
    "lora": "SmolLM2 after LoRA",
    "attention-pretrain": "language model of titles",
    "attention-tiny": "fine-tuned from it",
    "attention-scratch": "from scratch",
}
BLACK, DARK_GREY, LIGHT_GREY = "#202124", "#5f6368", "#e0e0e0"
GREEN, RED = "#2e7d32", "#c62828"
LINE_COLOURS = {
    "0/1": "#b06000",
    "1/0": "#1a73e8",
    "1/1": "#188038",
    "1/2": "#12808f",
    "2/1": "#9334e6",
}


# --- reading


def read(path):
    """What a file of runs holds: rows, users, attention.

    rows: {(group, schedule): [records by seed]}. users: {data set: the record of its users}.
    attention: the records that hold attention.
    """
    rows, users, attention = {}, {}, []
    for line in read_text(path).splitlines():
        record = json.loads(line)
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


# --- figures


def metrics_of_ranks(ranks):
    """Metrics of each user; rank 0 means not returned."""
    return metrics_of([rank or np.inf for rank in ranks])


def values_of(records, name):
    """float (seeds, users) of "NLL", "HR@10" or "NDCG@10"."""
    if name == "NLL":
        return np.array([record["nll"] for record in records])
    return np.array([metrics_of_ranks(record["ranks"])[name] for record in records])


def interval(values, level=95):
    """(mean, low, high) of values (seeds, users)."""
    rng = np.random.default_rng(0)
    seeds, users = values.shape
    means = []
    for _ in range(DRAWS[level]):
        drawn = values[rng.integers(0, seeds, seeds)].mean(0)
        means.append(drawn[rng.integers(0, users, users)].mean())
    outside = (100 - level) / 2
    low, high = np.percentile(means, (outside, 100 - outside))
    return values.mean(), low, high


def is_clear(values):
    """Does the interval at 99 % leave out 0, of five seeds at least?"""
    if len(values) < 5:
        return False
    _, low, high = interval(values, 99)
    return bool(low > 0 or high < 0)


def paired(records, others, name="NLL", mask=slice(None)):
    """values - others (seeds, users), over the seeds that both have; mask: of the users."""
    seeds = {record["seed"] for record in records} & {record["seed"] for record in others}
    values = values_of([record for record in records if record["seed"] in seeds], name)
    other_values = values_of([record for record in others if record["seed"] in seeds], name)
    return (values - other_values)[:, mask]


# --- tables


def interval_text(values, digits=3):
    mean, low, high = interval(values)
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def table_line(cells):
    return f"| {' | '.join(cells)} |"


def head(cells):
    return [table_line(cells), "| --- " * len(cells) + "|"]


def table(rows, users):
    """Markdown: a line a model."""
    lines = head(
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
            metrics = metrics_of_ranks(ranks)
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
    """The difference of a row to its reference, its seeds below 0, and a star where it is clear."""
    other = reference(group, schedule, rows)
    if other is None:
        return "–"
    values = paired(rows[group, schedule], rows[other])
    text = f"{interval_text(values)} ({(values.mean(1) < 0).sum()})"
    return f"{text} \\*" if is_clear(values) else text


def slice_table(rows, users, metric="NLL"):
    """Markdown, a table a data set: difference to causal on each slice of at least ten users."""
    lines = []
    for data, record in users.items():
        masks = slices(np.array(record["history"]), np.array(record["count"]))
        masks = {name: mask for name, mask in masks.items() if mask.sum() >= 10}
        titles = [f"{name} ({mask.sum()})" for name, mask in masks.items()]
        lines += ["", *head([f"{metric}, {data}", *titles])]
        for group, schedule in sliced_rows(rows, data):
            records = rows[group, schedule]
            others = rows[reference(group, schedule, rows)]
            name = name_of(group, schedule)
            cells = [f"{name}, fine-tuned" if group == "tiny" else name]
            for mask in masks.values():
                cells.append(interval_text(paired(records, others, metric, mask), digits=2))
            lines.append(table_line(cells))
    return "\n".join(lines)


def sliced_rows(rows, data):
    """Keys of the rows that are compared on all test users of a data set."""
    keys = []
    for key in in_order(rows):
        is_compared = kind_of(key[0]) not in ("validation", "flip", "lora")
        if is_compared and rows[key][0]["data"] == data and reference(*key, rows):
            keys.append(key)
    return keys


def attention_table(records):
    """Markdown: shares of the attention of history tokens, and skew (ref/report/attention.py).

    Both are means over OR layers and models.
    """
    lines = head(
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
    """Number of OR layers, shares and skews of some records of the same models' shape."""
    is_or = np.array(records[0]["kinds"]) == "OR"
    share = stacked(records, "share")  # (models, L, 3, 4)
    per_pair = stacked(records, "per_pair")  # (models, L, 3, 4)
    even = stacked(records, "even")  # (models, L, 3, 4)
    shares = share[:, is_or].mean((0, 1))[0]
    # models stand where skew() expects heads
    skews = skew(per_pair.swapaxes(0, 1), even[0])[is_or].mean(0)
    history, target = skews[0], skews[2]
    cells = [str(is_or.sum()), *(f"{value:.1%}" for value in shares)]
    return [*cells, f"{history:.1f}", f"{target:.1f}"]


def stacked(records, name):
    return np.concatenate([np.array(record[name], float) for record in records])


# --- pictures


@dataclass(frozen=True)
class Difference:
    """A row of the picture: the difference to its reference. seeds: mean of each seed."""

    heading: str
    name: str
    mean: float
    low: float
    high: float
    seeds: np.ndarray
    is_clear: bool

    @property
    def is_near(self):
        return abs(self.mean) <= REACH

    @property
    def colour(self):
        if not self.is_clear:
            return DARK_GREY
        return GREEN if self.mean < 0 else RED


def differences(rows):
    """The Differences of all rows that are compared."""
    compared = []
    for key in in_order(rows):
        other = reference(*key, rows)
        if other is not None:
            values = paired(rows[key], rows[other])
            heading = SECTIONS[kind_of(key[0])]
            mean, low, high = interval(values)
            compared.append(
                Difference(
                    heading, name_of(*key), mean, low, high, values.mean(1), is_clear(values)
                )
            )
    return compared


@dataclass(frozen=True)
class Axis:
    """Nats from `low` to `high`, a tick each `step`, over `width` pixels from `left`."""

    low: float
    high: float
    step: float
    left: float = 170
    width: float = 560

    def x(self, value):
        return self.left + self.width * (value - self.low) / max(self.high - self.low, self.step)

    @property
    def ticks(self):
        # + 0.0: no tick is -0
        return np.round(np.arange(self.low, self.high + self.step / 2, self.step), 6) + 0.0


def axis_for(compared):
    """The Axis that holds 0 and all that is near, in at most ten steps."""
    ends = [0.0]
    for difference in compared:
        if difference.is_near:
            ends += [difference.low, difference.high, *difference.seeds]
    low, high = min(ends), max(ends)
    steps = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
    step = next(step for step in steps if (high - low) / step <= 10)
    return Axis(np.floor(low / step) * step, np.ceil(high / step) * step, step)


def picture(rows):
    """SVG: a line a model, its difference to causal in NLL with interval, and a dot a seed.

    An arrow stands for what the axis does not reach.
    """
    compared = differences(rows)
    axis = axis_for(compared)
    headings = {difference.heading for difference in compared}
    top, row_height, heading_height = 54, 20, 34
    bottom = top + row_height * len(compared) + heading_height * len(headings)
    svg = Svg(axis.left + axis.width + 190, bottom + 20)
    title = (
        "Negative log-likelihood of the next title, difference to plain causal attention "
        "(nats; left is better)"
    )
    svg.text(8, 20, title, font_size=13, font_weight="bold")
    draw_vertical_ticks(svg, axis, top, bottom)
    y, last_heading = top, None
    for difference in compared:
        if difference.heading != last_heading:
            svg.text(8, y + 14, difference.heading, font_weight="bold")
            y += heading_height
        last_heading = difference.heading
        draw_difference(svg, axis, y, difference)
        y += row_height
    foot = (
        "mean over seeds and users, 95 % interval; small circles: single seeds; arrow: beyond the "
        "axis; coloured: five seeds, and 99 % leave out 0"
    )
    svg.text(8, bottom + 12, foot, fill=DARK_GREY)
    return svg.render()


def draw_vertical_ticks(svg, axis, top, bottom):
    for tick in axis.ticks:
        x = axis.x(tick)
        svg.line(x, top - 8, x, bottom, stroke=BLACK if tick == 0 else LIGHT_GREY)
        svg.text(x, top - 12, f"{tick:g}", text_anchor="middle", fill=DARK_GREY)


def draw_difference(svg, axis, y, difference):
    colour = difference.colour
    svg.text(axis.left - 10, y + 4, difference.name, text_anchor="end")
    if difference.is_near:
        low, high = axis.x(difference.low), axis.x(difference.high)
        svg.line(low, y, high, y, stroke=colour, stroke_width=3)
        svg.circle(axis.x(difference.mean), y, 5, fill=colour)
        for seed in difference.seeds:
            svg.circle(axis.x(seed), y, 2, fill="white", stroke=colour)
    elif difference.mean < 0:
        svg.path(f"M{axis.x(axis.low):.1f} {y}l12 -6v12z", fill=colour)
    else:
        svg.path(f"M{axis.x(axis.high):.1f} {y}l-12 -6v12z", fill=colour)
    text = f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
    svg.text(axis.left + axis.width + 14, y + 4, text, fill=colour)


PANELS = {"train": "training loss", "valid": "validation loss"}


def curves(rows):
    """SVG: loss of training and validation after each epoch, difference to causal.

    Means over the seeds that all schedules have, as far as the shortest training goes.
    """
    losses, num_seeds = mean_losses(rows)
    lines = {}
    for part, of_schedules in losses.items():
        causal = of_schedules["0/0"]
        lines[part] = {schedule: loss - causal for schedule, loss in of_schedules.items()}
    values = [line for panel in lines.values() for line in panel.values()]
    step = 0.02
    low = np.floor(np.min(values) / step) * step
    high = np.ceil(np.max(values) / step) * step
    svg = Svg(800, 310)
    title = (
        "Loss after each epoch, difference to plain causal attention (nats a title; mean of "
        f"{num_seeds} seeds; lower is better)"
    )
    svg.text(8, 20, title, font_size=13, font_weight="bold")
    for left, part in ((60, "train"), (440, "valid")):
        panel = Panel(svg, left, low, high, step)
        panel.draw_frame(PANELS[part], epochs=len(values[0]))
        panel.draw_lines(lines[part])
    svg.text(8, 304, "epochs; IN layers / CR layers of four", fill=DARK_GREY)
    return svg.render()


def mean_losses(rows):
    """{"train" or "valid": {schedule: float (epochs,)}} from scratch, and of how many seeds."""
    runs = {schedule: records for (group, schedule), records in rows.items() if group == "scratch"}
    seeds = set.intersection(*({r["seed"] for r in records} for records in runs.values()))
    losses = {"train": {}, "valid": {}}
    epochs = np.inf
    for schedule, records in runs.items():
        runs[schedule] = [record for record in records if record["seed"] in seeds]
        epochs = min(epochs, *(len(record["train"]) for record in runs[schedule]))
    for part in losses:
        for schedule, records in runs.items():
            of_seeds = [record[part][:epochs] for record in records]
            losses[part][schedule] = np.mean(of_seeds, axis=0)
    return losses, len(seeds)


@dataclass(frozen=True)
class Panel:
    """One of the two diagrams: nats from `low` to `high` upwards, a tick each `step`."""

    svg: Svg
    left: float
    low: float
    high: float
    step: float
    width: float = 280
    top: float = 70
    height: float = 200

    def x(self, epoch, epochs):
        return self.left + self.width * epoch / max(epochs - 1, 1)

    def y(self, value):
        return self.top + self.height * (self.high - value) / (self.high - self.low)

    def draw_frame(self, heading, epochs):
        self.svg.text(self.left, self.top - 18, heading, font_weight="bold")
        ticks = np.round(np.arange(self.low, self.high + self.step / 2, self.step), 6) + 0.0
        for tick in ticks:
            y, right = self.y(tick), self.left + self.width
            self.svg.line(self.left, y, right, y, stroke=BLACK if tick == 0 else LIGHT_GREY)
            self.svg.text(self.left - 8, y + 4, f"{tick:g}", text_anchor="end", fill=DARK_GREY)
        for epoch in range(epochs):
            x, y = self.x(epoch, epochs), self.top + self.height + 18
            self.svg.text(x, y, str(epoch + 1), text_anchor="middle", fill=DARK_GREY)

    def draw_lines(self, lines):
        """lines: {schedule: difference to causal after each epoch}."""
        y_of_name = -np.inf
        for schedule in sorted(lines, key=lambda schedule: -lines[schedule][-1]):
            line = lines[schedule]
            colour, name = BLACK, "causal"
            if schedule != "0/0":
                colour, name = LINE_COLOURS[schedule], schedule
                points = [(self.x(e, len(line)), self.y(value)) for e, value in enumerate(line)]
                self.svg.polyline(points, stroke=colour, stroke_width=2)
            y_of_name = max(self.y(line[-1]), y_of_name + 13)  # names keep 13 apart
            self.svg.text(self.left + self.width + 8, y_of_name + 4, name, fill=colour)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    curves_help = "draw the losses of the models from scratch, epoch by epoch (SVG)"
    parser.add_argument("runs", nargs="?", type=Path, default=HERE / "runs.jsonl")
    parser.add_argument("--svg", metavar="FILE", help="draw the differences")
    parser.add_argument("--curves", metavar="FILE", help=curves_help)
    options = parser.parse_args()
    rows, users, attention = read(options.runs)
    by_slice = [slice_table(rows, users, metric).strip() for metric in ("NLL", "HR@10", "NDCG@10")]
    print(table(rows, users), *by_slice, attention_table(attention), sep="\n\n")
    if options.svg:
        write_atomically(options.svg, picture(rows).encode())
    if options.curves:
        write_atomically(options.curves, curves(rows).encode())


if __name__ == "__main__":
    sys.exit(main())
