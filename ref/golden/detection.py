"""python -m ref.golden.detection: print which case detects which known bug; draw it as ref/golden/detection.svg."""

import sys
from html import escape
from pathlib import Path

from ref.golden import case as cases
from ref.golden import diagnosis

CELL, LEFT, TOP = 11, 250, 165
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


def caught(matrix):
    """The matrix as text: a line a bug, with the number of cases that detect it and the clearest one."""
    for bug, row in matrix.items():
        hits = [case for case, size in row.items() if size >= 100]
        clearest = max(row, key=row.get)
        yield f"{bug:36s}{len(hits):3d} cases, clearest {clearest} ({row[clearest]:.0f} tolerances)"


def picture(matrix):
    """SVG: a row a bug, a column a case; filled where the deviation is at least 100 float32 tolerances."""
    names, families = (
        list(next(iter(matrix.values()))),
        {b: t["family"] for b, t in diagnosis.texts().items()},
    )
    width, height = LEFT + CELL * len(names) + 90, TOP + CELL * len(matrix) + 45
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="9"><rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="8" y="18" font-size="13">Known bugs (rows) detected by golden cases (columns)</text>',
        '<text x="8" y="34">filled: logits or loss deviate by at least</text>',
        '<text x="8" y="46">100 times the float32 tolerance</text>',
    ]
    for x, name in enumerate(names):
        at = LEFT + CELL * x + 8
        parts.append(
            f'<text transform="translate({at},{TOP - 5}) rotate(-90)">{escape(name)}</text>'
        )
    for y, (bug, row) in enumerate(matrix.items()):
        top, colour = TOP + CELL * y, FAMILIES[families[bug]]
        parts.append(
            f'<text x="{LEFT - 6}" y="{top + 8}" text-anchor="end" fill="{colour}">{escape(bug)}</text>'
        )
        for fill, hit in ((colour, True), ("#eeeeee", False)):
            cells = "".join(
                f"M{LEFT + CELL * x} {top}h{CELL - 1}v{CELL - 1}h{1 - CELL}z"
                for x, name in enumerate(names)
                if (row[name] >= 100) is hit
            )
            parts.append(f'<path fill="{fill}" d="{cells}"/>')
    for x, (family, colour) in enumerate(FAMILIES.items()):
        at = 20 + 85 * x
        parts.append(
            f'<rect x="{at}" y="{height - 25}" width="9" height="9" fill="{colour}"/>'
            f'<text x="{at + 13}" y="{height - 17}">{family}</text>'
        )
    return "\n".join(parts) + "\n</svg>\n"


def main():
    matrix = diagnosis.detection_matrix([cases.load(name) for name in cases.names()])
    print("\n".join(caught(matrix)))
    missed = [bug for bug, row in matrix.items() if max(row.values()) < 100]
    print(
        f"{len(matrix) - len(missed)} of {len(matrix)} known bugs are detected by {len(cases.names())} cases"
    )
    Path(__file__).with_name("detection.svg").write_text(picture(matrix), encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
