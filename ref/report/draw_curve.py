"""Draw how the losses of one or several trainings fell, from the logs that train.py writes.

python -m ref.report.draw_curve runs/a/log.jsonl runs/b/log.jsonl --svg FILE
"""

import math
from dataclasses import dataclass

from ref import cli
from ref.files import check_writable, parse_json, read_text, write_atomically
from ref.report.svg import Svg, round_numbers

_COLOURS = ("#1a73e8", "#b06000", "#188038", "#9334e6", "#c62828", "#12808f")
_GREY, _LIGHT_GREY = "#5f6368", "#e0e0e0"
_NUMBERS = ("step", "train", "valid")  # what a record must have
_LINE = 18  # height of a line of the legend


@dataclass(frozen=True)
class Curve:
    """The losses of a training, each as [(step, loss), ...].

    train: means of ten steps, or of an epoch where the log holds no more, in nats a title, or a
    token if unit says so. valid: after each epoch, in nats a title.
    """

    name: str
    train: list
    valid: list
    unit: str

    @property
    def best(self):
        """(step, loss) of the epoch with the lowest validation loss."""
        return min(self.valid, key=lambda point: point[1])


def read_curve(path) -> Curve:
    """The Curve of a log.

    Raises FileNotFoundError, or ValueError for what is no log of a training or holds no epoch.
    """
    first, *lines = read_text(path).splitlines() or [""]
    unit = _unit_of(first, f"{path}, line 1")
    if not lines:
        raise ValueError(f"{path}: holds no epoch; expected one that train.py has finished")
    train, valid, before = [], [], 0
    for number, line in enumerate(lines, start=2):
        record = _read_record(line, f"{path}, line {number}")
        train += training_points(record, before)
        before = record["step"]
        valid.append((before, record["valid"]))
    return Curve(str(path).removesuffix("/log.jsonl"), train, valid, unit)


def _unit_of(first, source):
    """What the first line of a log says that the training loss is a mean over."""
    expected = "expected the log.jsonl of a model that train.py made"
    try:
        description = parse_json(first, source)
    except ValueError as error:
        raise ValueError(f"{error}; {expected}") from None
    if "loss" not in description:
        raise ValueError(f"{source}: has no 'loss'; {expected}")
    return "token" if description["loss"] == "all" else "title"


def _read_record(line, source):
    record = parse_json(line, source)
    for name in _NUMBERS:
        _check_number(record.get(name), f"{source}: {name!r}")
    if record["step"] < 1:
        raise ValueError(f"{source}: 'step' is {record['step']}; expected 1 or more")
    losses = record.get("train_by_ten_steps", [])
    if not isinstance(losses, list):
        raise ValueError(f"{source}: 'train_by_ten_steps' is {losses!r}; expected a list")
    for loss in losses:
        _check_number(loss, f"{source}: 'train_by_ten_steps'")
    return record


def _check_number(value, source):
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{source} is {value!r}; expected a number, as train.py writes it")


def training_points(record, before):
    """[(step, loss), ...] of an epoch that began after the step `before`.

    A mean of ten steps stands at the last of them.
    """
    losses = record.get("train_by_ten_steps")
    if not losses:
        return [(record["step"], record["train"])]
    ends = [min(before + 10 * number, record["step"]) for number in range(1, len(losses) + 1)]
    return list(zip(ends, losses))


@dataclass(frozen=True)
class Panel:
    """A diagram: steps from 0 to the right; nats from the first to the last tick upwards."""

    svg: Svg
    left: float
    top: float
    last_step: int
    ticks: list
    width: float = 380
    height: float = 260

    def x(self, step):
        return self.left + self.width * step / self.last_step

    def y(self, loss):
        low, high = self.ticks[0], self.ticks[-1]
        return self.top + self.height * (high - loss) / (high - low)

    def draw_frame(self, heading):
        self.svg.text(self.left, self.top - 12, heading, font_weight="bold")
        for loss in self.ticks:
            y = self.y(loss)
            self.svg.line(self.left, y, self.left + self.width, y, stroke=_LIGHT_GREY)
            self.svg.text(self.left - 8, y + 4, f"{loss:g}", text_anchor="end", fill=_GREY)
        for step in round_numbers(0, self.last_step):
            if step <= self.last_step:
                y = self.top + self.height + 18
                self.svg.text(self.x(step), y, f"{step:g}", text_anchor="middle", fill=_GREY)

    def draw_line(self, points, colour, width):
        points = [(self.x(step), self.y(loss)) for step, loss in points]
        self.svg.polyline(points, stroke=colour, stroke_width=width)


def curves_svg(curves: list[Curve]) -> str:
    """Training loss on the left and validation loss on the right, a colour a training.

    A circle marks the epoch whose model was kept: that of the lowest validation loss.
    """
    legend_height = _LINE * len(curves)
    top = 62 + legend_height
    svg = Svg(904, top + 312)
    svg.text(8, 20, "Learning curve", font_size=14, font_weight="bold")
    last_step = max(curve.valid[-1][0] for curve in curves)
    units = " or ".join(sorted({curve.unit for curve in curves}))
    train_ticks = _ticks_of(curve.train for curve in curves)
    valid_ticks = _ticks_of(curve.valid for curve in curves)
    left = Panel(svg, 52, top, last_step, train_ticks)
    right = Panel(svg, 504, top, last_step, valid_ticks)
    left.draw_frame(f"training loss, nats a {units}")
    right.draw_frame("validation loss after each epoch, nats a title")
    for number, curve in enumerate(curves):
        colour = _COLOURS[number % len(_COLOURS)]
        left.draw_line(curve.train, colour, 1)
        right.draw_line(curve.valid, colour, 2)
        step, loss = curve.best
        svg.circle(right.x(step), right.y(loss), 4, fill=colour)
        y = 24 + _LINE * (number + 1)
        svg.rect(8, y - 6, 22, 3, fill=colour)
        svg.text(38, y, f"{curve.name}: best validation loss {loss:.3f} at step {step}")
    svg.text(8, top + 304, "steps; circle: the epoch whose model was kept", fill=_GREY)
    return svg.render()


def _ticks_of(lines):
    losses = [loss for line in lines for _, loss in line]
    return round_numbers(min(losses), max(losses))


def parse_options():
    """The options of the command line."""
    parser = cli.Parser(prog="python -m ref.report.draw_curve", description=main.__doc__)
    parser.add_argument("logs", nargs="+", metavar="LOG", help="log.jsonl of a model folder")
    parser.add_argument("--svg", metavar="FILE", required=True, help="the picture")
    return parser.parse_args()


def main():
    """Draw training and validation loss of trainings, step by step, as SVG."""
    options = parse_options()
    check_writable(options.svg)
    curves = [read_curve(path) for path in options.logs]
    write_atomically(options.svg, curves_svg(curves).encode())
    print(f"wrote {options.svg}")


if __name__ == "__main__":
    cli.run("ref.report.draw_curve", main)
