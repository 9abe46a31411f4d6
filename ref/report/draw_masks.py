"""Draw the masks of a prompt, in the terminal and as SVG.

python -m ref.report.draw_masks                                an example, with the default scheme
python -m ref.report.draw_masks TITLE ... --weights FOLDER     a prompt as a model reads it
python -m ref.report.draw_masks ... --svg FILE                 the same picture as SVG, too
"""

import argparse
from dataclasses import dataclass

import torch

from ref import cli, recommender
from ref.files import write_atomically
from ref.masks import MaskScheme, build_masks
from ref.report.svg import Svg

_HEADINGS = {
    "IN": ("IN · shallow layers", "no look into another item"),
    "OR": ("OR · middle layers", "plain causal"),
    "CR": ("CR · deep layers", "no look inside the own item"),
}
_EXAMPLE_TOKENS = "Seen:|Toy| Story|⏎|Heat|⏎|The| Lion| King|⏎|Next:|Cas|ino".split("|")
_EXAMPLE_SEGMENTS = [0, 1, 1, 1, 2, 2, 3, 3, 3, 3, 0, 4, 4]
# of text, and of items 1 to 8
_COLOURS = "#9aa0a6 #4c78a8 #e45756 #54a24b #b279a2 #f58518 #72b7b2 #ff9da6 #9d755d".split()
_MASKED = "#f3f3f3"
_CHARACTER = 7  # width of a letter, in pixels
_CELL = 17  # width and height of a cell with the gap behind it


@dataclass(frozen=True)
class MaskedPrompt:
    """T tokens and who may look at whom.

    labels: T strings; segments: T integers, the segment ids; masks: {kind: T lists of T booleans,
    a row a query, a column a key}.
    """

    labels: list
    segments: list
    masks: dict


def masked_prompt(tokens, segments, scheme) -> MaskedPrompt:
    """The MaskedPrompt of T tokens (strings) with their segment ids, in the order IN, OR, CR."""
    labels = [_with_visible_spaces(token) for token in tokens]
    masks = build_masks(torch.tensor([segments]), scheme)
    masks = {kind: mask[0].tolist() for kind, mask in masks.items()}
    return MaskedPrompt(labels, segments, masks)


def masks_text(prompt: MaskedPrompt) -> str:
    """The masks as lines for a terminal: a row a query, a column a key; █ allowed, · masked."""
    width = max(map(len, prompt.labels))
    columns = " ".join(f"{_segment_mark(segment):>2}" for segment in prompt.segments)
    lines = []
    for kind, mask in prompt.masks.items():
        lines.append(": ".join(_HEADINGS[kind]))
        lines.append("")
        lines.append(" " * (width + 13) + columns + "   segment of the key")
        for label, segment, row in zip(prompt.labels, prompt.segments, mask):
            cells = " ".join(" █" if allowed else " ·" for allowed in row)
            lines.append(f"  {label:>{width}}  {_segment_name(segment):<8} {cells}")
        lines.append("")
    return "\n".join(lines)


def masks_svg(prompt: MaskedPrompt) -> str:
    """The masks side by side as an SVG document.

    A cell has the colour of the key's segment where the query may look, and is empty elsewhere.
    """
    longest_label = _CHARACTER * max(map(len, prompt.labels))
    left, top = longest_label + 20, longest_label + 40
    side = _CELL * len(prompt.labels)
    panel = left + side + 24
    height = top + side + 44
    svg = Svg(panel * len(prompt.masks) + 8, height, font_size=11, font_family="monospace")
    for number, (kind, mask) in enumerate(prompt.masks.items()):
        with svg.shifted(panel * number + left, top):
            svg.text(0, 14 - top, _HEADINGS[kind][0], font_size=12, font_weight="bold")
            _draw_labels(svg, prompt)
            _draw_cells(svg, prompt.segments, mask)
    with svg.shifted(left, height - 26):
        _draw_legend(svg, prompt.segments)
    return svg.render()


def _draw_labels(svg, prompt):
    """Each token in front of its row and above its column."""
    for number, (label, segment) in enumerate(zip(prompt.labels, prompt.segments)):
        base_line = _CELL * number + _CELL / 2 + 4
        svg.text(-6, base_line, label, text_anchor="end", fill=_colour(segment))
        svg.vertical_text(base_line, -6, label, fill=_colour(segment))


def _draw_cells(svg, segments, mask):
    for query, row in enumerate(mask):
        for key, allowed in enumerate(row):
            fill = _colour(segments[key]) if allowed else _MASKED
            svg.rect(_CELL * key, _CELL * query, _CELL - 1, _CELL - 1, fill=fill)


def _draw_legend(svg, segments):
    x = 0
    for segment in sorted(set(segments)):
        name = _segment_name(segment)
        svg.rect(x, 0, 12, 12, fill=_colour(segment))
        svg.text(x + 17, 10, name)
        x += 40 + _CHARACTER * len(name)
    svg.text(x + 10, 10, "row: looks · column: is looked at", fill="#5f6368")


def _with_visible_spaces(token):
    return token.replace("\n", "⏎").replace(" ", "·").replace("\u2581", "·")


def _segment_name(segment):
    names = {-1: "padding", 0: "text"}
    return names.get(segment, f"item {segment}")


def _segment_mark(segment):
    return str(segment) if segment >= 1 else "·"


def _colour(segment):
    """Text has the first colour; after the eighth item they begin anew."""
    return _COLOURS[max(segment, 0) % len(_COLOURS)]


def parse_options():
    """The options of the command line; raises ValueError for titles without --weights."""
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
    return options


def main():
    """Draw the masks of an example, or of a prompt made of TITLES (the last is the target)."""
    options = parse_options()
    if options.weights:
        model, encoder, _ = recommender.load(options.weights)
        *history, target = options.titles
        encoded = encoder.encode(history, target)
        print(f"{encoded.text}\nlayers: {' '.join(model.kinds)}\n")
        tokens = encoder.tokenizer.pieces(encoded.input_ids.tolist())
        prompt = masked_prompt(tokens, encoded.segment_ids.tolist(), model.scheme)
    else:
        prompt = masked_prompt(_EXAMPLE_TOKENS, _EXAMPLE_SEGMENTS, MaskScheme())
    print(masks_text(prompt))
    if options.svg:
        write_atomically(options.svg, masks_svg(prompt).encode())
        print(f"wrote {options.svg}")


if __name__ == "__main__":
    cli.run("ref.report.draw_masks", main)
