"""Pictures of the earlier study, with one target a user (one_target.py)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ref.report.svg import Svg, round_numbers

from study.differences import BLACK, DARK_GREY, LIGHT_GREY, difference_of
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

LINE_COLOURS = {
    "0/1": "#b06000",
    "1/0": "#1a73e8",
    "1/1": "#188038",
    "1/2": "#12808f",
    "2/1": "#9334e6",
}


def differences(rows):
    """The Differences of all rows that are compared."""
    compared = []
    for key in in_order(rows):
        other = reference(*key, rows)
        if other is not None:
            values = paired(rows[key], rows[other])
            heading, is_planned = SECTIONS[kind_of(key[0])], key[0] not in POST_HOC
            compared.append(difference_of(values, heading, name_of(*key), LEVEL, is_planned))
    return compared


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
        values = [line for of_seeds in differences[part].values() for line in of_seeds]
        ticks = round_numbers(min(0.0, np.min(values)), max(0.0, np.max(values)))
        for column, schedule in enumerate(schedules):
            panel = Panel(svg, column, row, ticks)
            panel.draw_frame(PARTS[part], epochs=len(values[0]))
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


@dataclass(frozen=True)
class Panel:
    """One of the diagrams, in a column and a row; ticks: nats, from the lowest to the highest."""

    svg: Svg
    column: int
    row: int
    ticks: list

    WIDTH: ClassVar = 124
    HEIGHT: ClassVar = 170

    @staticmethod
    def left_of(column):
        return 56 + 168 * column  # the label of a line stands to the right of it

    @staticmethod
    def top_of(row):
        return 76 + 232 * row

    def x(self, epoch, epochs):
        return self.left_of(self.column) + self.WIDTH * epoch / max(epochs - 1, 1)

    def y(self, value):
        share = (self.ticks[-1] - value) / (self.ticks[-1] - self.ticks[0])
        return self.top_of(self.row) + self.HEIGHT * share

    def points(self, line):
        return [(self.x(epoch, len(line)), self.y(value)) for epoch, value in enumerate(line)]

    def draw_frame(self, heading, epochs):
        """Heading and numbers of nats beside the first panel of a row, epochs below each."""
        left, bottom = self.left_of(self.column), self.top_of(self.row) + self.HEIGHT
        if self.column == 0:
            self.svg.text(8, self.top_of(self.row) - 12, heading, font_weight="bold")
        for tick in self.ticks:
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
