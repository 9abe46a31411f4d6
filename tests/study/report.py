"""The tables and pictures of the README from the raw runs.

    python tests/study/report.py [RUNS.jsonl] [--svg FILE] [--curves FILE]

Intervals: bootstrap over users and seeds, both drawn with replacement, 10,000 draws (plan.md said
2,000 at 95 %). Differences are paired, user by user and seed by seed, so below 0 is better for the
negative log-likelihood (NLL, nats a title); behind them, how many seeds are below 0. A star: the
comparison was planned, and the interval at 99 % leaves out 0, too. A bootstrap of few seeds covers
less than its name says (five: about 90 % where seeds differ much), so fewer than five get no star.

A *row* is a model: its key is (group, schedule), its records are the runs of its seeds.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ref.files import read_text, write_atomically
from ref.report.attention import skew
from ref.report.metrics import metrics_of, slices
from ref.report.svg import Svg

HERE = Path(__file__).parent
DRAWS = 10_000
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
POST_HOC = {"validation"}  # groups that the plan does not name
BLACK, DARK_GREY, GREY, LIGHT_GREY = "#202124", "#5f6368", "#9aa0a6", "#e0e0e0"
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


@cache
def times_drawn(seeds, users):
    """How often each draw holds each seed and each user: int16 (DRAWS, seeds), (DRAWS, users)."""
    rng = np.random.default_rng(0)
    times = [rng.multinomial(size, np.full(size, 1 / size), DRAWS) for size in (seeds, users)]
    return [array.astype(np.int16) for array in times]


def interval(values, level=95):
    """(mean, low, high) of values (seeds, users)."""
    seeds, users = values.shape
    seed_times, user_times = times_drawn(seeds, users)
    of_seeds = user_times @ values.T / users  # (DRAWS, seeds)
    means = (of_seeds * seed_times).sum(1) / seeds
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
    """The difference of a row to its reference, its seeds below 0, and a star where it is clear.

    A comparison that was not planned gets no star, however clear it is.
    """
    other = reference(group, schedule, rows)
    if other is None:
        return "–"
    values = paired(rows[group, schedule], rows[other])
    text = f"{interval_text(values)} ({(values.mean(1) < 0).sum()})"
    has_star = group not in POST_HOC and is_clear(values)
    return f"{text} \\*" if has_star else text


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
    is_planned: bool

    @property
    def text_colour(self):
        """Of heading and name."""
        return BLACK if self.is_planned else GREY

    @property
    def is_near(self):
        return abs(self.mean) <= REACH

    @property
    def colour(self):
        if not self.is_planned:
            return GREY
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
            mean, low, high = interval(values)
            difference = Difference(
                heading=SECTIONS[kind_of(key[0])],
                name=name_of(*key),
                mean=mean,
                low=low,
                high=high,
                seeds=values.mean(1),
                is_clear=is_clear(values),
                is_planned=key[0] not in POST_HOC,
            )
            compared.append(difference)
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
            fill = difference.text_colour
            svg.text(8, y + 14, difference.heading, font_weight="bold", fill=fill)
            y += heading_height
        last_heading = difference.heading
        draw_difference(svg, axis, y, difference)
        y += row_height
    foot = (
        "mean, 95 % interval; small circles: single seeds; arrow: beyond the axis; coloured: "
        "five seeds, and 99 % leave out 0; light grey: not planned"
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
    name_colour = difference.text_colour
    svg.text(axis.left - 10, y + 4, difference.name, text_anchor="end", fill=name_colour)
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


CURVE_STEP = 0.04  # nats, between two lines of the grid
PARTS = {"train": "training loss", "valid": "validation loss"}


def curves(rows):
    """SVG: loss of training and validation after each epoch, difference to causal.

    A column a schedule: its mean over the seeds that all schedules have, as far as the shortest
    training goes, in a band from the lowest to the highest of these seeds; the means of the others
    in grey.
    """
    losses, num_seeds = seed_losses(rows)
    differences = {part: differences_to_causal(losses[part]) for part in PARTS}
    schedules = list(differences["train"])
    svg = Svg(Panel.left_of(len(schedules)) + 4, Panel.top_of(len(PARTS)) - 40)
    title = "Loss after each epoch, difference to plain causal attention (nats a title)"
    svg.text(8, 20, title, font_size=14, font_weight="bold")
    legend = (
        f"line: mean of {num_seeds} seeds; band: from the lowest to the highest of them; grey: "
        "the other schedules; lower is better"
    )
    svg.text(8, 38, legend, fill=DARK_GREY)
    for row, part in enumerate(PARTS):
        axis_values = [line for of_seeds in differences[part].values() for line in of_seeds]
        for column, schedule in enumerate(schedules):
            panel = Panel(svg, column, row, *rounded_ends(axis_values))
            panel.draw_frame(PARTS[part], epochs=len(axis_values[0]))
            panel.draw_schedule(schedule, differences[part])
    return svg.render()


def seed_losses(rows):
    """{"train" or "valid": {schedule: float (seeds, epochs)}} from scratch, and how many seeds."""
    runs = {schedule: records for (group, schedule), records in rows.items() if group == "scratch"}
    seeds = set.intersection(*({r["seed"] for r in records} for records in runs.values()))
    epochs = np.inf
    for schedule, records in runs.items():
        runs[schedule] = [record for record in records if record["seed"] in seeds]
        epochs = min(epochs, *(len(record["train"]) for record in runs[schedule]))
    losses = {}
    for part in PARTS:
        losses[part] = {
            schedule: np.array([record[part][:epochs] for record in records])
            for schedule, records in runs.items()
        }
    return losses, len(seeds)


def differences_to_causal(losses):
    """{schedule: float (seeds, epochs)} of all but causal, seed by seed and in order."""
    causal = losses["0/0"]
    return {name: losses[name] - causal for name in sorted(losses) if name != "0/0"}


def rounded_ends(values):
    """The multiples of CURVE_STEP below and above 0 and all of `values`."""
    low = np.floor(min(0, np.min(values)) / CURVE_STEP) * CURVE_STEP
    high = np.ceil(max(0, np.max(values)) / CURVE_STEP) * CURVE_STEP
    return low, max(high, low + CURVE_STEP)


@dataclass(frozen=True)
class Panel:
    """One of the diagrams, in a column and a row: nats from `low` to `high` upwards."""

    svg: Svg
    column: int
    row: int
    low: float
    high: float

    WIDTH: ClassVar = 124
    HEIGHT: ClassVar = 170

    @staticmethod
    def left_of(column):
        return 56 + 168 * column  # the label of a line stands behind it

    @staticmethod
    def top_of(row):
        return 76 + 232 * row

    def x(self, epoch, epochs):
        return self.left_of(self.column) + self.WIDTH * epoch / max(epochs - 1, 1)

    def y(self, value):
        top = self.top_of(self.row)
        return top + self.HEIGHT * (self.high - value) / (self.high - self.low)

    def points(self, line):
        return [(self.x(epoch, len(line)), self.y(value)) for epoch, value in enumerate(line)]

    def draw_frame(self, heading, epochs):
        """Heading and numbers of nats beside the first panel of a row, epochs below each."""
        left, bottom = self.left_of(self.column), self.top_of(self.row) + self.HEIGHT
        if self.column == 0:
            self.svg.text(8, self.top_of(self.row) - 12, heading, font_weight="bold")
        ticks = np.arange(self.low, self.high + CURVE_STEP / 2, CURVE_STEP)
        for tick in np.round(ticks, 6) + 0.0:  # + 0.0: no tick is -0
            y = self.y(tick)
            stroke = BLACK if tick == 0 else LIGHT_GREY
            self.svg.line(left, y, left + self.WIDTH, y, stroke=stroke)
            if self.column == 0:
                self.svg.text(left - 8, y + 4, f"{tick:g}", text_anchor="end", fill=DARK_GREY)
        for epoch in (1, epochs):
            x = self.x(epoch - 1, epochs)
            self.svg.text(x, bottom + 18, str(epoch), text_anchor="middle", fill=DARK_GREY)
        x = left + self.WIDTH / 2
        self.svg.text(x, bottom + 18, "epoch", text_anchor="middle", fill=DARK_GREY)

    def draw_schedule(self, schedule, differences):
        """differences: {schedule: float (seeds, epochs)}, the others in the background."""
        for other in differences:
            if other != schedule:
                self.svg.polyline(self.points(differences[other].mean(0)), stroke="#d0d3d6")
        seeds, colour = differences[schedule], LINE_COLOURS[schedule]
        outline = self.points(seeds.max(0)) + self.points(seeds.min(0))[::-1]
        self.svg.polygon(outline, fill=colour, fill_opacity="0.2")
        line = self.points(seeds.mean(0))
        self.svg.polyline(line, stroke=colour, stroke_width=2)
        x, y = line[-1]
        self.svg.text(x + 6, y + 4, schedule, fill=colour, font_weight="bold")


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
