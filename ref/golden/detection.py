"""python -m ref.golden.detection [--svg FILE]: print which case detects which known bug; draw it.

Exit code 0: every bug is detected by a case; 1: one is missed. The committed picture is
ref/golden/detection.svg.
"""

import argparse
import sys
from pathlib import Path

from ref.golden import case as cases
from ref.golden import diagnosis
from ref.golden.plants import descriptions
from ref.report.svg import Svg

CELL, LEFT, TOP = 11, 250, 165  # pixels: a cell with its gap, the space for names of bugs and cases
RIGHT, BOTTOM = 90, 45
FAMILIES = {
    "mask": "#1b6ca8",
    "schedule": "#c8553d",
    "segments": "#3a7d44",
    "positions": "#8e5572",
    "decoding": "#b8860b",
    "numerics": "#3d5a80",
    "model": "#6b4226",
    "loss": "#444444",
}
NOT_DETECTED = "#eeeeee"


def missed_bugs(matrix):
    """The bugs that no case of a detection matrix detects."""
    return [bug for bug, sizes in matrix.items() if max(sizes.values()) < diagnosis.DETECTED]


def table(matrix):
    """The matrix as text: of each bug how many cases detect it, and the clearest one."""
    lines = []
    for bug, sizes in matrix.items():
        num_cases = sum(size >= diagnosis.DETECTED for size in sizes.values())
        clearest = max(sizes, key=sizes.get)
        lines.append(
            f"{bug:36s}{num_cases:3d} cases, clearest {clearest} ({sizes[clearest]:.0f} tolerances)"
        )
    num_detected = len(matrix) - len(missed_bugs(matrix))
    num_cases = len(case_names(matrix))
    lines.append(f"{num_detected} of {len(matrix)} known bugs are detected by {num_cases} cases")
    return "\n".join(lines)


def case_names(matrix):
    """The names of all cases of a detection matrix, in its order."""
    return list(dict.fromkeys(name for sizes in matrix.values() for name in sizes))


def picture(matrix):
    """The matrix as SVG: a row a bug, a column a case, filled where the case detects the bug."""
    names = case_names(matrix)
    width = LEFT + CELL * len(names) + RIGHT
    height = TOP + CELL * len(matrix) + BOTTOM
    svg = Svg(width, height, font_size=9)
    svg.text(8, 18, "Known bugs (rows) detected by golden cases (columns)", font_size=13)
    svg.text(8, 34, "filled: logits or loss deviate by at least")
    svg.text(8, 46, f"{diagnosis.DETECTED} times the float32 tolerance")
    for column, name in enumerate(names):
        svg.vertical_text(LEFT + CELL * column + 8, TOP - 5, name)
    described = descriptions()
    for row, (bug, sizes) in enumerate(matrix.items()):
        colour = FAMILIES[described[bug]["family"]]
        draw_row(svg, TOP + CELL * row, bug, [sizes.get(name) for name in names], colour)
    draw_legend(svg, height)
    return svg.render()


def draw_row(svg, top, bug, sizes, colour):
    """The name of a bug and its cells; none where a case is of a stage without this bug."""
    svg.text(LEFT - 6, top + 8, bug, text_anchor="end", fill=colour)
    cells = {colour: "", NOT_DETECTED: ""}  # the outlines of each colour, for one path each
    for column, size in enumerate(sizes):
        if size is None:
            continue
        fill = colour if size >= diagnosis.DETECTED else NOT_DETECTED
        cells[fill] += f"M{LEFT + CELL * column} {top}h{CELL - 1}v{CELL - 1}h{1 - CELL}z"
    for fill, outlines in cells.items():
        svg.path(outlines, fill=fill)


def draw_legend(svg, height):
    """The colours of the families, at the bottom."""
    for column, (family, colour) in enumerate(FAMILIES.items()):
        x = 20 + 85 * column
        svg.rect(x, height - 25, 9, 9, fill=colour)
        svg.text(x + 13, height - 17, family)


def main(arguments=None):
    """Print the matrix, draw it where asked to; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ref.golden.detection",
        description="Which golden case detects which known bug. Exit code 1: a bug is missed.",
    )
    parser.add_argument("--svg", metavar="FILE", help="draw the matrix into this file")
    options = parser.parse_args(arguments)
    matrix = diagnosis.detection_matrix([cases.load(name) for name in cases.names()])
    print(table(matrix))
    if options.svg:
        Path(options.svg).write_text(picture(matrix), encoding="utf-8")
    return 1 if missed_bugs(matrix) else 0


if __name__ == "__main__":
    sys.exit(main())
