"""A picture of differences to causal attention: a line a comparison."""

from dataclasses import dataclass

import numpy as np

from ref.report.svg import Svg, round_numbers

from study.intervals import interval, is_clear

REACH = 0.5  # nats; a larger difference is an arrow, that the others can be told apart
BLACK, DARK_GREY, GREY, LIGHT_GREY = "#202124", "#5f6368", "#9aa0a6", "#e0e0e0"
GREEN, RED = "#2e7d32", "#c62828"


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


def difference_of(values, heading, name, level, is_planned=True):
    """The Difference of paired values, (S, U) or (S, U, N), as in intervals.py.

    level: percent, of the interval that leaves out 0 where it is clear.
    """
    mean, low, high = interval(values)
    return Difference(
        heading=heading,
        name=name,
        mean=mean,
        low=low,
        high=high,
        seeds=values.reshape(len(values), -1).mean(1),
        is_clear=is_clear(values, level),
        is_planned=is_planned,
    )


@dataclass(frozen=True)
class Axis:
    """Nats from the first of `ticks` to the last, over `width` pixels from `left`."""

    ticks: list
    left: float = 170
    width: float = 560

    def x(self, value):
        return self.left + self.width * (value - self.low) / (self.high - self.low)

    @property
    def low(self):
        return self.ticks[0]

    @property
    def high(self):
        return self.ticks[-1]


def axis_for(compared):
    """The Axis that holds 0 and all that is near."""
    ends = [0.0]
    for difference in compared:
        if difference.is_near:
            ends += [difference.low, difference.high, *difference.seeds]
    return Axis(round_numbers(min(ends), max(ends)))


def picture(compared, level):
    """SVG: a line a Difference, under its heading.

    level: percent, of the interval of a clear difference. An arrow stands for what the axis does
    not reach.
    """
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
        f"five seeds, and {level:.4g} % leave out 0; light grey: not planned"
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
