"""python -m ref.golden.detection: compute again which case detects which known bug, and print it.

Exit code 0: every bug is detected by a case; 1: one is missed; others as at the head of ref/cli.py.
`python -m ref.golden write` draws the same: detection.svg and families.svg.
"""

from pathlib import Path

from ref import cli
from ref.golden import case as cases
from ref.golden.planted import DETECTED, detection_matrix
from ref.golden.plants import descriptions
from ref.golden.stages import STAGES
from ref.report.svg import Svg

CELL, LEFT, TOP = 11, 250, 185  # pixels: a cell with its gap, the space for names of bugs and cases
RIGHT, BOTTOM, HEAD = 110, 20, 60
COLOURS = ("#1b6ca8", "#c8553d", "#3a7d44", "#8e5572", "#b8860b", "#3d5a80", "#6b4226", "#444444")
NOT_DETECTED = "#eeeeee"
# The columns of families.svg: so many cases detect a bug, from the first number to the second.
BINS = ((1, 1), (2, 2), (3, 5), (6, 10), (11, 20), (21, 40), (41, 999))
BIN_WIDTH, LINE = 62, 19


def missed_bugs(matrix):
    """The bugs that no case of a detection matrix detects."""
    return [bug for bug in matrix if num_detecting(matrix[bug]) == 0]


def num_detecting(sizes):
    """How many cases detect a bug; sizes: name of case -> deviation in tolerances."""
    return sum(size >= DETECTED for size in sizes.values())


def table(matrix):
    """The matrix as text: of each bug how many cases detect it, and the clearest one."""
    lines = []
    for bug, sizes in matrix.items():
        clearest = max(sizes, key=sizes.get)
        lines.append(
            f"{bug:40s}{num_detecting(sizes):3d} cases, "
            f"clearest {clearest} ({sizes[clearest]:.0f} tolerances)"
        )
    num_detected = len(matrix) - len(missed_bugs(matrix))
    num_cases = len(case_names(matrix))
    lines.append(f"{num_detected} of {len(matrix)} known bugs are detected by {num_cases} cases")
    return "\n".join(lines)


def case_names(matrix):
    """The names of all cases of a detection matrix, in its order."""
    return list(dict.fromkeys(name for sizes in matrix.values() for name in sizes))


def families():
    """The families of all known bugs, in the order of the stages."""
    described = descriptions()
    bugs = [bug for stage in STAGES.values() for bug in stage.plants]
    return list(dict.fromkeys(described[bug]["family"] for bug in bugs))


def colour_of(family):
    """The colour of a family; neighbours differ."""
    return COLOURS[families().index(family) % len(COLOURS)]


def picture(matrix, stage_of_case):
    """The matrix as SVG, a panel a stage: a row a bug, a column a case; stage_of_case is a dict."""
    panels = []
    for stage in STAGES:
        names = [name for name in case_names(matrix) if stage_of_case[name] == stage]
        bugs = [bug for bug in matrix if set(names) & set(matrix[bug])]
        if names and bugs:
            panels.append((stage, bugs, names))
    width = LEFT + CELL * max(len(names) for _, _, names in panels) + RIGHT
    height = HEAD + sum(TOP + CELL * len(bugs) + BOTTOM for _, bugs, _ in panels)
    svg = Svg(width, height, font_size=9)
    svg.text(8, 18, "Known bugs (rows) detected by golden cases (columns)", font_size=13)
    svg.text(8, 34, "filled: what is decisive deviates by at least")
    svg.text(8, 46, f"{DETECTED} times the float32 tolerance")
    top = HEAD
    for stage, bugs, names in panels:
        with svg.shifted(0, top):
            draw_panel(svg, stage, {bug: matrix[bug] for bug in bugs}, names)
        top += TOP + CELL * len(bugs) + BOTTOM
    return svg.render()


def draw_panel(svg, stage, matrix, names):
    """The bugs and cases of a stage."""
    count = f"{len(matrix)} bugs, {len(names)} cases"
    svg.text(8, TOP - 20, f"stage {stage}", font_size=13)
    svg.text(8, TOP - 7, count)
    for column, name in enumerate(names):
        svg.vertical_text(LEFT + CELL * column + 8, TOP - 5, name)
    described = descriptions()
    family_before = None
    for row, (bug, sizes) in enumerate(matrix.items()):
        family = described[bug]["family"]
        top = TOP + CELL * row
        draw_row(svg, top, bug, [sizes.get(name) for name in names], colour_of(family))
        if family != family_before:
            right = LEFT + CELL * len(names) + 4
            svg.text(right, top + 8, family, fill=colour_of(family), font_weight="bold")
        family_before = family


def draw_row(svg, top, bug, sizes, colour):
    """The name of a bug and its cells; none where a case is of a stage without this bug."""
    svg.text(LEFT - 6, top + 8, bug, text_anchor="end", fill=colour)
    cells = {colour: "", NOT_DETECTED: ""}  # the outlines of each colour, for one path each
    for column, size in enumerate(sizes):
        if size is None:
            continue
        fill = colour if size >= DETECTED else NOT_DETECTED
        cells[fill] += f"M{LEFT + CELL * column} {top}h{CELL - 1}v{CELL - 1}h{1 - CELL}z"
    for fill, outlines in cells.items():
        if outlines:
            svg.path(outlines, fill=fill)


def picture_of_families(matrix):
    """The known bugs by family and by how many cases detect each, as SVG: a table of counts."""
    counts = counts_by_family(matrix)
    height = 80 + LINE * (len(counts) + 1)
    svg = Svg(190 + BIN_WIDTH * len(BINS), height, font_size=11)
    svg.text(8, 18, f"{len(matrix)} known bugs by family and by", font_size=13)
    svg.text(8, 34, "how many golden cases detect each", font_size=13)
    for column, (low, high) in enumerate(BINS):
        words = f"{low}" if low == high else f"{low}–{high}" if high < 999 else f"over {low - 1}"
        svg.text(160 + BIN_WIDTH * (column + 0.5), 60, words, text_anchor="middle")
    for row, (family, of_family) in enumerate(counts.items()):
        draw_family(svg, 70 + LINE * row, family, of_family)
    top = 70 + LINE * len(counts)
    totals = [sum(of_family[i] for of_family in counts.values()) for i in range(len(BINS))]
    draw_family(svg, top, "all", totals)
    return svg.render()


def counts_by_family(matrix):
    """family -> how many of its bugs fall into each of BINS."""
    described = descriptions()
    counts = {}
    for bug, sizes in matrix.items():
        of_family = counts.setdefault(described[bug]["family"], [0] * len(BINS))
        number = num_detecting(sizes)
        for column, (low, high) in enumerate(BINS):
            of_family[column] += low <= number <= high
    return counts


def draw_family(svg, top, family, counts):
    """A line of the table: the name of a family, how many bugs it has, and the counts."""
    colour = "#222222" if family == "all" else colour_of(family)
    svg.text(110, top + 13, family, text_anchor="end", fill=colour)
    svg.text(148, top + 13, str(sum(counts)), text_anchor="end", font_weight="bold")
    for column, count in enumerate(counts):
        x = 160 + BIN_WIDTH * column
        share = count / max(1, sum(counts))
        svg.rect(x, top, BIN_WIDTH - 2, LINE - 2, fill=NOT_DETECTED)
        svg.rect(x, top, (BIN_WIDTH - 2) * share, LINE - 2, fill=colour, fill_opacity=0.45)
        if count:
            svg.text(x + BIN_WIDTH / 2, top + 13, str(count), text_anchor="middle")


def draw(matrix, stage_of_case, folder):
    """Write both pictures into a folder."""
    detected = Path(folder) / "detection.svg"
    detected.write_text(picture(matrix, stage_of_case), encoding="utf-8")
    by_family = Path(folder) / "families.svg"
    by_family.write_text(picture_of_families(matrix), encoding="utf-8")


def main(arguments=None):
    """Print the matrix; returns the exit code."""
    parser = cli.Parser(
        prog="python -m ref.golden.detection",
        description="Which golden case detects which known bug. Exit code 1: a bug is missed.",
    )
    parser.parse_args(arguments)
    matrix = detection_matrix([cases.load(name) for name in cases.names()])
    print(table(matrix))
    return 1 if missed_bugs(matrix) else 0


if __name__ == "__main__":
    cli.run("ref.golden.detection", main)
