"""One small SVG writer for every picture of the project.

    svg = Svg(200, 100)
    svg.rect(10, 10, 50, 20, fill="#4c78a8")
    svg.text(10, 50, "a label", text_anchor="middle")
    svg.render()

Lengths are in pixels, x to the right and y down, written to a tenth. Keyword arguments become
attributes: text_anchor="end" is written text-anchor="end". Text is escaped.
"""

import math
from contextlib import contextmanager
from html import escape


class Svg:
    """A picture of `width` times `height` pixels on white ground; what is drawn later is on top."""

    def __init__(self, width, height, font_size=12, font_family="sans-serif"):
        self.attributes = {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {_number(width)} {_number(height)}",
            "width": width,
            "height": height,
            "font_family": font_family,
            "font_size": font_size,
        }
        self.lines = []
        self.rect(0, 0, width, height, fill="white")

    def rect(self, x, y, width, height, **attributes):
        """A rectangle; (x, y) is its upper left corner."""
        self._add("rect", x=x, y=y, width=width, height=height, **attributes)

    def line(self, x1, y1, x2, y2, **attributes):
        """A straight line; needs a `stroke` to be seen."""
        self._add("line", x1=x1, y1=y1, x2=x2, y2=y2, **attributes)

    def polyline(self, points, **attributes):
        """An open line through (x, y), (x, y), ...; needs a `stroke` to be seen."""
        self._add("polyline", points=_written_points(points), fill="none", **attributes)

    def polygon(self, points, **attributes):
        """The area inside a closed line through (x, y), (x, y), ..."""
        self._add("polygon", points=_written_points(points), **attributes)

    def circle(self, x, y, radius, **attributes):
        """A circle around (x, y)."""
        self._add("circle", cx=x, cy=y, r=radius, **attributes)

    def path(self, d, **attributes):
        """Any outline, in SVG's own path language: "M10 10h5v5z"."""
        self._add("path", d=d, **attributes)

    def text(self, x, y, text, **attributes):
        """A line of text; (x, y) is where its base line begins, or as `text_anchor` says."""
        self._add("text", text, x=x, y=y, **attributes)

    def vertical_text(self, x, y, text, **attributes):
        """A line of text that runs upwards from (x, y)."""
        turned = f"rotate(-90 {_number(x)} {_number(y)})"
        self._add("text", text, x=x, y=y, transform=turned, **attributes)

    @contextmanager
    def shifted(self, x, y):
        """What is drawn in the `with` block stands x further to the right and y further down."""
        self.lines.append(f'<g transform="translate({_number(x)} {_number(y)})">')
        yield
        self.lines.append("</g>")

    def render(self) -> str:
        """The SVG document, an element a line."""
        return "\n".join([f"<svg{_written(self.attributes)}>", *self.lines, "</svg>", ""])

    def _add(self, tag, text=None, **attributes):
        if text is None:
            self.lines.append(f"<{tag}{_written(attributes)}/>")
        else:
            self.lines.append(f"<{tag}{_written(attributes)}>{escape(text)}</{tag}>")


def _written(attributes):
    """{"font_size": 12} as ' font-size="12"'."""
    pairs = []
    for name, value in attributes.items():
        value = value if isinstance(value, str) else _number(value)
        pairs.append(f' {name.replace("_", "-")}="{escape(value)}"')
    return "".join(pairs)


def _written_points(points):
    """[(1, 2), (3, 4)] as "1,2 3,4"."""
    return " ".join(f"{_number(x)},{_number(y)}" for x, y in points)


def _number(value):
    """A length to a tenth of a pixel: 12.34 is "12.3", 12.0 is "12"."""
    return f"{value:.1f}".removesuffix(".0")


def round_numbers(low, high):
    """Numbers at equal distance, two to seven, the first at most `low`, the last at least `high`.

    The distance is 1, 2 or 5 times a power of ten.
    """
    reach = (high - low) or 1.0
    power = 10.0 ** math.floor(math.log10(reach / 5))
    distance = next(power * factor for factor in (1, 2, 5, 10) if reach / (power * factor) <= 5)
    first, last = math.floor(low / distance), math.ceil(high / distance)
    last = max(last, first + 1)
    return [round(number * distance, 10) for number in range(first, last + 1)]
