"""Draw masks, in the terminal and as SVG: python -m ref.report.draw_masks [TITLE ... --weights FOLDER] [--svg FILE]"""

import argparse
from html import escape

import torch

from ref import cli, recommender
from ref.files import write_atomically
from ref.masks import MaskScheme, build_masks

_TITLES = {
    "IN": "IN · shallow layers: no look into another item",
    "OR": "OR · middle layers: plain causal",
    "CR": "CR · deep layers: no look inside the own item",
}
_NAMES = {-1: "padding", 0: "text"}
_COLOURS = [
    "#9aa0a6",
    "#4c78a8",
    "#e45756",
    "#54a24b",
    "#b279a2",
    "#f58518",
    "#72b7b2",
    "#ff9da6",
    "#9d755d",
]


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
        lines += [
            _TITLES[kind],
            "",
            head + " ".join(f"{max(s, 0) or '·':>2}" for s in segments) + "   segment of the key",
        ]
        for label, segment, row in zip(labels, segments, mask):
            cells = " ".join(" █" if allowed else " ·" for allowed in row)
            lines.append(
                f"  {label:>{width}}  {_NAMES.get(segment) or f'item {segment}':<8} {cells}"
            )
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
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="monospace" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for number, (kind, mask) in enumerate(masks.items()):
        out.append(f'<g transform="translate({panel * number + left} {top})">')
        out.append(
            f'<text x="0" y="{14 - top}" font-size="12" font-weight="bold">{escape(_TITLES[kind].split(":")[0])}</text>'
        )
        for j, (label, segment) in enumerate(zip(labels, segments)):
            colour, middle = _COLOURS[max(segment, 0) % len(_COLOURS)], cell * j + cell / 2
            out.append(
                f'<text x="-6" y="{middle + 4}" text-anchor="end" fill="{colour}">{escape(label)}</text>'
            )
            out.append(
                f'<text transform="translate({middle + 4} -6) rotate(-90)" fill="{colour}">{escape(label)}</text>'
            )
            for k, allowed in enumerate(mask[j]):
                fill = _COLOURS[max(segments[k], 0) % len(_COLOURS)] if allowed else "#f3f3f3"
                out.append(
                    f'<rect x="{cell * k}" y="{cell * j}" width="{cell - 1}" height="{cell - 1}" fill="{fill}"/>'
                )
        out.append("</g>")
    x = left
    for segment in sorted(set(segments)):
        name = _NAMES.get(segment) or f"item {segment}"
        out.append(
            f'<rect x="{x}" y="{height - 26}" width="12" height="12" fill="{_COLOURS[max(segment, 0) % len(_COLOURS)]}"/>'
        )
        out.append(f'<text x="{x + 17}" y="{height - 16}">{name}</text>')
        x += 40 + 7 * len(name)
    out.append(
        f'<text x="{x + 10}" y="{height - 16}" fill="#5f6368">row: looks · column: is looked at</text></svg>'
    )
    return "\n".join(out) + "\n"


_EXAMPLE = [
    ("Seen:", 0),
    ("Toy", 1),
    (" Story", 1),
    ("⏎", 1),
    ("Heat", 2),
    ("⏎", 2),
    ("The", 3),
    (" Lion", 3),
    (" King", 3),
    ("⏎", 3),
    ("Next:", 0),
    ("Cas", 4),
    ("ino", 4),
]


def example(folder, titles):
    """(text, tokens as text, segment ids, scheme, layers) of a prompt, the last title its target, for a model folder."""
    model, encoder, _ = recommender.load(folder)
    prompt = encoder.encode(titles[:-1], titles[-1])
    tokens = encoder.tokenizer.pieces(prompt.input_ids.tolist())
    return prompt.text, tokens, prompt.segment_ids.tolist(), model.scheme, len(model.layers)


def main():
    """Draw the masks of an example, or of a prompt made of TITLES (the last one is the target) for a model."""
    parser = argparse.ArgumentParser(
        prog="python -m ref.report.draw_masks", description=main.__doc__
    )
    parser.add_argument(
        "titles", nargs="*", help="history, oldest first, and target; needs --weights"
    )
    parser.add_argument(
        "--weights", metavar="FOLDER", help="model folder: its tokenizer, layout and mask scheme"
    )
    parser.add_argument("--svg", metavar="FILE", help="write the same picture as SVG")
    options = parser.parse_args()
    if bool(options.titles) != bool(options.weights):
        raise ValueError("titles and --weights go together")
    if options.weights:
        text, tokens, segments, scheme, layers = example(options.weights, options.titles)
        print(f"{text}\nlayers: {' '.join(scheme.kinds(layers))}\n")
    else:
        (tokens, segments), scheme = zip(*_EXAMPLE), MaskScheme()
    masks = {
        kind: mask[0].tolist()
        for kind, mask in build_masks(torch.tensor([segments]), scheme).items()
    }
    print(masks_text(masks, tokens, segments))
    if options.svg:
        write_atomically(options.svg, masks_svg(masks, tokens, segments).encode())
        print(f"wrote {options.svg}")


if __name__ == "__main__":
    cli.run("ref.report.draw_masks", main)
