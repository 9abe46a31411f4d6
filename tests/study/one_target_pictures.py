"""Pictures of the earlier study, with one target a user (one_target.py)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ref.report.svg import Svg

from study.intervals import interval, is_clear
from study.one_target import (
    LEVEL,
    POST_HOC,
    SECTIONS,
    in_order,
    kind_of,
    name_of,
    paired,
    reference,
)

REACH = 0.5  # nats; a larger difference is an arrow, that the others can be told apart
BLACK, DARK_GREY, GREY, LIGHT_GREY = "#202124", "#5f6368", "#9aa0a6", "#e0e0e0"
GREEN, RED = "#2e7d32", "#c62828"
LINE_COLOURS = {
    "0/1": "#b06000",
    "1/0": "#1a73e8",
    "1/1": "#188038",
    "1/2": "#12808f",
    "2/1": "#9334e6",
}


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
                is_clear=is_clear(values, LEVEL),
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
