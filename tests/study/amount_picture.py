"""A picture: what masks bring, against how many users are trained on."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ref.report.svg import Svg, round_numbers

from study.differences import BLACK, DARK_GREY, LIGHT_GREY
from study.intervals import FEWEST_SEEDS, interval
from study.ten_targets import Group, differences, slices_of

PERCENTS = (25, 50, 100)
COLOURS = {"1/0": "#1a73e8", "1/1": "#188038"}
ALL = "all targets"
PANELS = (  # two rows; all but the first are names of slices
    (ALL, "title of at most 20 characters", "title of more"),
    ("at most 9 times in training", "10 to 49 times", "50 times or more"),
)
APART = 8  # pixels between what two schedules have at a place


def percents_of(data, runs):
    """Those of PERCENTS of which all that is compared is there, with enough seeds."""
    complete = []
    for percent in PERCENTS:
        by_schedule = Group(data, percent).by_schedule(runs)
        num_seeds = [len(by_schedule.get(schedule, ())) for schedule in ("0/0", *COLOURS)]
        if min(num_seeds) >= FEWEST_SEEDS:
            complete.append(percent)
    return complete


def picture(data, runs):
    """SVG: a panel a slice of the targets, in each a line a schedule over `percents_of`."""
    percents = percents_of(data, runs)
    masks = {ALL: None, **slices_of(runs[f"targets/{data}"])}
    panels = {}
    for row, names in enumerate(PANELS):
        for column, name in enumerate(names):
            if name in masks:
                panels[row, column] = name, lines_of(data, percents, runs, masks[name])
    values = [line for _, lines in panels.values() for line in lines.values()]
    ticks = round_numbers(min(0.0, np.min(values)), max(0.0, np.max(values)))
    svg = Svg(Panel.left_of(len(PANELS[0])), Panel.top_of(len(PANELS)) - 40)
    title = f"{data}: difference to plain causal attention, by the share of users in training"
    svg.text(8, 20, title, font_size=13, font_weight="bold")
    legend = "nats of the next title, mean and 95 % interval of five seeds; lower is better:"
    svg.text(8, 38, legend, fill=DARK_GREY)
    for number, (schedule, colour) in enumerate(COLOURS.items()):
        svg.text(476 + 34 * number, 38, schedule, fill=colour, font_weight="bold")
    for (row, column), (name, lines) in panels.items():
        panel = Panel(svg, row, column, ticks)
        panel.draw_frame(name, percents)
        panel.draw_lines(lines)
    return svg.render()


def lines_of(data, percents, runs, mask):
    """{schedule: float (P, 3)}: mean, low and high of its difference to causal for P percents.

    mask: bool (U, N), the targets that count; None: all.
    """
    lines = {schedule: [] for schedule in COLOURS}
    for percent in percents:
        by_schedule = Group(data, percent).by_schedule(runs)
        for schedule, line in lines.items():
            values = differences(by_schedule[schedule], by_schedule["0/0"])
            line.append(interval(values, mask=mask))
    return {schedule: np.array(line) for schedule, line in lines.items()}


@dataclass(frozen=True)
class Panel:
    """One of the diagrams, in a row and a column; ticks: nats, from the lowest to the highest."""

    svg: Svg
    row: int
    column: int
    ticks: list

    WIDTH: ClassVar = 190
    HEIGHT: ClassVar = 170

    @staticmethod
    def left_of(column):
        return 56 + 230 * column

    @staticmethod
    def top_of(row):
        return 82 + 240 * row

    def x(self, place, places):
        return self.left_of(self.column) + self.WIDTH * (place + 0.5) / places

    def y(self, nats):
        share = (self.ticks[-1] - nats) / (self.ticks[-1] - self.ticks[0])
        return self.top_of(self.row) + self.HEIGHT * share

    def draw_frame(self, heading, percents):
        """Heading, numbers of nats beside the first panel of a row, parts of the users below."""
        left, top = self.left_of(self.column), self.top_of(self.row)
        self.svg.text(left, top - 12, heading, font_weight="bold")
        for tick in self.ticks:
            y, stroke = self.y(tick), BLACK if tick == 0 else LIGHT_GREY
            self.svg.line(left, y, left + self.WIDTH, y, stroke=stroke)
            if self.column == 0:
                self.svg.text(left - 8, y + 4, f"{tick:g}", text_anchor="end", fill=DARK_GREY)
        for place, percent in enumerate(percents):
            at = self.x(place, len(percents)), top + self.HEIGHT + 18
            self.svg.text(*at, f"{percent} %", text_anchor="middle", fill=DARK_GREY)

    def draw_lines(self, lines):
        """A line a schedule: means, and intervals as bars; schedules side by side."""
        for number, (schedule, line) in enumerate(lines.items()):
            shift = APART * (number - (len(lines) - 1) / 2)
            colour = COLOURS[schedule]
            points = []
            for place, (mean, low, high) in enumerate(line):
                x = self.x(place, len(line)) + shift
                self.svg.line(x, self.y(low), x, self.y(high), stroke=colour, stroke_width=2)
                self.svg.circle(x, self.y(mean), 4, fill=colour)
                points.append((x, self.y(mean)))
            self.svg.polyline(points, stroke=colour)
