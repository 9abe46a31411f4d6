"""Pictures of masks, for the terminal and as SVG."""

from html import escape

_TITLES = {
    "IN": "IN · shallow layers: no look into another item",
    "OR": "OR · middle layers: plain causal",
    "CR": "CR · deep layers: no look inside the own item",
}
_NAMES = {-1: "padding", 0: "text"}
_COLOURS = ["#9aa0a6", "#4c78a8", "#e45756", "#54a24b", "#b279a2", "#f58518", "#72b7b2", "#ff9da6", "#9d755d"]


def _visible(token):
    """A token as a label: spaces and newlines must be seen."""
    return token.replace("\n", "⏎").replace(" ", "·").replace("\u2581", "·")


def masks_text(masks, tokens, segments):
    """The masks as lines for a terminal: a row a query, a column a key; █ allowed, · masked.

    masks: {kind: list of T lists of T booleans}; tokens: T strings; segments: T integers.
    """
    labels = [_visible(token) for token in tokens]
    width, lines = max(map(len, labels)), []
    head = " " * (width + 13)
    for kind, mask in masks.items():
        lines += [_TITLES[kind], "", head + " ".join(f"{max(s, 0) or '·':>2}" for s in segments) + "   segment of the key"]
        for label, segment, row in zip(labels, segments, mask):
            cells = " ".join(" █" if allowed else " ·" for allowed in row)
            lines.append(f"  {label:>{width}}  {_NAMES.get(segment) or f'item {segment}':<8} {cells}")
        lines.append("")
    return "\n".join(lines)


def masks_svg(masks, tokens, segments, cell=17):
    """The masks side by side as an SVG document; arguments as in masks_text, `cell` in pixels.

    A cell has the colour of the key's segment where the query may look, and is empty elsewhere.
    """
    labels = [_visible(token) for token in tokens]
    left, top = 7 * max(map(len, labels)) + 20, 7 * max(map(len, labels)) + 40
    side = cell * len(tokens)
    panel = left + side + 24
    width, height = panel * len(masks) + 8, top + side + 44
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
           f'height="{height}" font-family="monospace" font-size="11">', f'<rect width="{width}" height="{height}" fill="white"/>']  # fmt: skip
    for number, (kind, mask) in enumerate(masks.items()):
        out.append(f'<g transform="translate({panel * number + left} {top})">')
        out.append(f'<text x="0" y="{14 - top}" font-size="12" font-weight="bold">{escape(_TITLES[kind].split(":")[0])}</text>')
        for j, (label, segment) in enumerate(zip(labels, segments)):
            colour, middle = _COLOURS[max(segment, 0) % len(_COLOURS)], cell * j + cell / 2
            out.append(f'<text x="-6" y="{middle + 4}" text-anchor="end" fill="{colour}">{escape(label)}</text>')
            out.append(f'<text transform="translate({middle + 4} -6) rotate(-90)" fill="{colour}">{escape(label)}</text>')
            for k, allowed in enumerate(mask[j]):
                fill = _COLOURS[max(segments[k], 0) % len(_COLOURS)] if allowed else "#f3f3f3"
                out.append(f'<rect x="{cell * k}" y="{cell * j}" width="{cell - 1}" height="{cell - 1}" fill="{fill}"/>')
        out.append("</g>")
    x = left
    for segment in sorted(set(segments)):
        name = _NAMES.get(segment) or f"item {segment}"
        out.append(f'<rect x="{x}" y="{height - 26}" width="12" height="12" fill="{_COLOURS[max(segment, 0) % len(_COLOURS)]}"/>')
        out.append(f'<text x="{x + 17}" y="{height - 16}">{name}</text>')
        x += 40 + 7 * len(name)
    out.append(f'<text x="{x + 10}" y="{height - 16}" fill="#5f6368">row: looks · column: is looked at</text></svg>')
    return "\n".join(out) + "\n"
