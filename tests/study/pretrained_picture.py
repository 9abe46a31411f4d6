"""A picture of trainings from a pretrained model: the masks' difference to causal, step by step."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ref.report.svg import Svg, round_numbers

from study.differences import BLACK, DARK_GREY, LIGHT_GREY

POINT = 50  # steps, of which a point of a curve is the mean
COLOURS = {"0/6": "#b06000", "6/0": "#1a73e8", "6/6": "#188038"}


def curves(group, runs):
    """{schedule: float (points,)}: training loss minus that of causal, in nats a title.

    Paired over the same windows, so over the seeds of both; the mean of the seeds.
    """
    by_schedule = group.by_schedule(runs)
    causal = by_schedule.pop("0/0")
    lines = {}
    for schedule, by_seed in by_schedule.items():
        seeds = by_seed.keys() & causal.keys()
        lines[schedule] = np.mean([difference(by_seed[s], causal[s]) for s in seeds], axis=0)
    return lines


def difference(record, causal):
    """float (points,) of two records; a rest of fewer than POINT steps is left out."""
    values = np.subtract(record["train_by_ten_steps"], causal["train_by_ten_steps"])
    values_of_point = POINT // 10
    num_points = len(values) // values_of_point
    return values[: num_points * values_of_point].reshape(num_points, -1).mean(1)


def picture(group, runs):
    """SVG: a curve a schedule over the steps of the training."""
    lines = curves(group, runs)
    diagram = Diagram.around(lines)
    svg = Svg(diagram.RIGHT + 60, diagram.BOTTOM + 44)
    title = f"{group}: training loss, difference to plain causal attention (nats a title)"
    svg.text(8, 20, title, font_size=13, font_weight="bold")
    legend = f"means of {POINT} steps over the same windows; lower is better"
    svg.text(8, 38, legend, fill=DARK_GREY)
    diagram.draw_frame(svg)
    for schedule, line in lines.items():
        diagram.draw_curve(svg, schedule, line)
    return svg.render()


@dataclass(frozen=True)
class Diagram:
    """Steps to the right, nats upwards, from the lowest of `ticks` to the highest."""

    ticks: list
    num_points: int

    LEFT: ClassVar = 64
    RIGHT: ClassVar = 624
    TOP: ClassVar = 62
    BOTTOM: ClassVar = 322

    @classmethod
    def around(cls, lines):
        """One that holds 0 and all curves."""
        nats = [0.0, *np.concatenate(list(lines.values()))]
        return cls(round_numbers(min(nats), max(nats)), max(map(len, lines.values())))

    def x(self, step):
        return self.LEFT + (self.RIGHT - self.LEFT) * step / (self.num_points * POINT)

    def y(self, nats):
        share = (self.ticks[-1] - nats) / (self.ticks[-1] - self.ticks[0])
        return self.TOP + (self.BOTTOM - self.TOP) * share

    def draw_frame(self, svg):
        for tick in self.ticks:
            y = self.y(tick)
            svg.line(self.LEFT, y, self.RIGHT, y, stroke=BLACK if tick == 0 else LIGHT_GREY)
            svg.text(self.LEFT - 8, y + 4, f"{tick:g}", text_anchor="end", fill=DARK_GREY)
        for step in range(0, self.num_points * POINT + 1, 2 * POINT):
            place = self.x(step), self.BOTTOM + 18
            svg.text(*place, str(step), text_anchor="middle", fill=DARK_GREY)
        middle = (self.LEFT + self.RIGHT) / 2
        svg.text(middle, self.BOTTOM + 36, "step", text_anchor="middle", fill=DARK_GREY)

    def draw_curve(self, svg, schedule, line):
        colour = COLOURS[schedule]
        points = [(self.x((i + 0.5) * POINT), self.y(nats)) for i, nats in enumerate(line)]
        svg.polyline(points, stroke=colour, stroke_width=2)
        x, y = points[-1]
        svg.text(x + 14, y + 4, schedule, fill=colour, font_weight="bold")
