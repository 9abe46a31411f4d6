"""Draw the masks of a prompt, in the terminal and as SVG.

python -m ref.report.draw_masks                                an example, with the default scheme
python -m ref.report.draw_masks TITLE ... --weights FOLDER     a prompt as a model reads it
python -m ref.report.draw_masks ... --svg FILE                 the same picture as SVG, too
"""

from dataclasses import dataclass

import torch

from ref import cli, recommender
from ref.files import check_writable, write_atomically
from ref.masks import MaskScheme, build_masks
from ref.report.svg import Svg
from ref.text import clean_title

_DEPTHS = {"IN": "shallow layers", "OR": "middle layers", "CR": "deep layers"}
_RULES = {
    "IN": "no look into another item",
    "OR": "plain causal",
    "CR": "no look inside the own item",
}
_EXAMPLE_TOKENS = "Seen:|Toy| Story|⏎|Heat|⏎|The| Lion| King|⏎|Next:|Cas|ino".split("|")
_EXAMPLE_SEGMENTS = [0, 1, 1, 1, 2, 2, 3, 3, 3, 3, 0, 4, 4]
_EXAMPLE_PROMPT_LENGTH = 11
# of text, and of items 1 to 7
_COLOURS = "#9aa0a6 #4c78a8 #e45756 #54a24b #f58518 #72b7b2 #ff9da6 #9d755d".split()
_TARGET_COLOUR = "#b279a2"
_MASKED = "#f3f3f3"
_FRAME = "#202124"
_FRAMED = "the target's first token is predicted from here"
_PAGE = 920  # width of a page, in pixels: a wider picture is scaled down, and its letters with it
_CHARACTER = 7  # width of a letter
_SMALLEST_CELL, _LARGEST_CELL = 12, 17  # width and height of a cell with the gap after it
_GAP = 16  # between panels


@dataclass(frozen=True)
class MaskedPrompt:
    """T tokens and who may look at whom.

    labels: T strings. segments: T integers, the segment ids. target: the segment of the target,
    None where it counts as text. last_query: the row before the target's first token, which it is
    predicted from. masks: {kind: T lists of T booleans, a row a query, a column a key}.
    layers: {kind: in which layers it stands, in words}.
    """

    labels: list
    segments: list
    target: int | None
    last_query: int
    masks: dict
    layers: dict

    def name(self, segment):
        """The word for a segment: padding, text, item 1, target."""
        names = {-1: "padding", 0: "text", self.target: "target"}
        return names.get(segment, f"item {segment}")

    def colour(self, segment):
        """Text and target have colours of their own; after the seventh item they begin anew."""
        if segment == self.target:
            return _TARGET_COLOUR
        if segment < 1:
            return _COLOURS[0]
        return _COLOURS[1:][(segment - 1) % (len(_COLOURS) - 1)]


def masked_prompt(tokens, segments, prompt_length, scheme, kinds=None) -> MaskedPrompt:
    """The MaskedPrompt of T tokens (strings) with their segment ids.

    prompt_length: tokens before the target. kinds: of each layer of a model, which is then drawn
    with the kinds that it has; None: all three.
    """
    labels = [_with_visible_spaces(token) for token in tokens]
    layers = layers_of_kinds(kinds) if kinds else _DEPTHS
    masks = build_masks(torch.tensor([segments]), scheme)
    masks = {kind: masks[kind][0].tolist() for kind in layers}
    target = max(segments) if scheme.target == "item" else None
    return MaskedPrompt(labels, segments, target, prompt_length - 1, masks, layers)


def layers_of_kinds(kinds):
    """["IN", "OR", "OR", "CR"] as {"IN": "layer 0", "OR": "layers 1–2", "CR": "layer 3"}."""
    layers = {}
    for kind in dict.fromkeys(kinds):
        first = kinds.index(kind)
        last = first + kinds.count(kind) - 1  # layers of a kind stand together
        layers[kind] = f"layer {first}" if first == last else f"layers {first}–{last}"
    return layers


def masks_text(prompt: MaskedPrompt) -> str:
    """The masks as lines for a terminal: a row a query, a column a key; █ allowed, · masked."""
    width = max(map(len, prompt.labels))
    columns = " ".join(f"{_segment_mark(segment):>2}" for segment in prompt.segments)
    lines = []
    for kind, mask in prompt.masks.items():
        lines.append(f"{kind} · {prompt.layers[kind]}: {_RULES[kind]}")
        lines.append("")
        lines.append(" " * (width + 13) + columns + "   segment of the key")
        for query, row in enumerate(mask):
            arrow = "→" if query == prompt.last_query else " "
            name = prompt.name(prompt.segments[query])
            cells = " ".join(" █" if allowed else " ·" for allowed in row)
            lines.append(f"{arrow} {prompt.labels[query]:>{width}}  {name:<8} {cells}")
        lines.append("")
    lines.append(f"→ {_FRAMED}")
    return "\n".join(lines)


@dataclass(frozen=True)
class Grid:
    """How panels stand on the page; in pixels, but for `columns`, the panels side by side.

    cell: width and height of a square of a mask. left: room for the labels of rows. top: room for
    heading and labels of columns. width, height: of a panel.
    """

    columns: int
    cell: int
    left: int
    top: int
    width: int
    height: int


def grid_for(prompt: MaskedPrompt) -> Grid:
    """As many panels side by side as the page holds with legible letters, one at least."""
    longest_label = _CHARACTER * max(map(len, prompt.labels))
    left, top = longest_label + 14, longest_label + 40
    num_tokens = len(prompt.labels)
    for columns in range(len(prompt.masks), 0, -1):
        cell = (_PAGE // columns - left - _GAP) // num_tokens
        if cell >= _SMALLEST_CELL:
            break
    cell = max(_SMALLEST_CELL, min(cell, _LARGEST_CELL))
    side = cell * num_tokens
    return Grid(columns, cell, left, top, width=left + side + _GAP, height=top + side + _GAP)


def masks_svg(prompt: MaskedPrompt) -> str:
    """The masks as an SVG document, a panel a kind of layer.

    A cell has the colour of the key's segment where the query may look, and is empty elsewhere.
    """
    grid = grid_for(prompt)
    num_rows = -(-len(prompt.masks) // grid.columns)
    height = grid.height * num_rows + 36
    svg = Svg(grid.width * grid.columns + 4, height, font_size=11, font_family="monospace")
    for number, (kind, mask) in enumerate(prompt.masks.items()):
        row, column = divmod(number, grid.columns)
        with svg.shifted(grid.width * column + grid.left, grid.height * row + grid.top):
            heading = f"{kind} · {prompt.layers[kind]}"
            svg.text(0, 16 - grid.top, heading, font_size=14, font_weight="bold")
            _draw_labels(svg, prompt, grid.cell)
            _draw_cells(svg, prompt, mask, grid.cell)
            _draw_frame(svg, prompt, grid)
    with svg.shifted(14, height - 36):
        _draw_legend(svg, prompt)
    return svg.render()


def _draw_labels(svg, prompt, cell):
    """Each token in front of its row and above its column."""
    for number, (label, segment) in enumerate(zip(prompt.labels, prompt.segments)):
        base_line = cell * number + cell / 2 + 4
        colour = prompt.colour(segment)
        svg.text(-6, base_line, label, text_anchor="end", fill=colour)
        svg.vertical_text(base_line, -6, label, fill=colour)


def _draw_cells(svg, prompt, mask, cell):
    for query, row in enumerate(mask):
        for key, allowed in enumerate(row):
            fill = prompt.colour(prompt.segments[key]) if allowed else _MASKED
            svg.rect(cell * key, cell * query, cell - 1, cell - 1, fill=fill)


def _draw_frame(svg, prompt, grid):
    """A frame around the row that the target is predicted from, its label included."""
    label = _CHARACTER * len(prompt.labels[prompt.last_query]) + 10
    y = grid.cell * prompt.last_query - 1
    width = label + grid.cell * len(prompt.labels)
    svg.rect(-label, y, width, grid.cell + 1, fill="none", stroke=_FRAME, stroke_width=1.5)


def _draw_legend(svg, prompt):
    x = 0
    for segment in sorted(set(prompt.segments)):
        name = prompt.name(segment)
        svg.rect(x, 0, 12, 12, fill=prompt.colour(segment))
        svg.text(x + 17, 10, name)
        x += 36 + _CHARACTER * len(name)
    svg.rect(x + 1, 1, 22, 10, fill="none", stroke=_FRAME, stroke_width=1.5)
    svg.text(x + 30, 10, _FRAMED)
    svg.text(0, 26, "row: looks · column: is looked at", fill="#5f6368")


def _with_visible_spaces(token):
    return cli.printable(token.replace("\n", "⏎").replace(" ", "·").replace("\u2581", "·"))


def _segment_mark(segment):
    return str(segment) if segment >= 1 else "·"


def parse_options():
    """The options of the command line; raises ValueError for titles without --weights."""
    parser = cli.Parser(prog="python -m ref.report.draw_masks", description=main.__doc__)
    parser.add_argument(
        "titles", nargs="*", help="history, oldest first, and target; needs --weights"
    )
    parser.add_argument(
        "--weights", metavar="FOLDER", help="model folder: its tokenizer, layout and mask scheme"
    )
    parser.add_argument("--svg", metavar="FILE", help="write the same picture as SVG")
    options = parser.parse_args()
    if bool(options.titles) != bool(options.weights):
        missing = "--weights" if options.titles else "titles after it"
        raise ValueError(f"titles and --weights go together; {missing} is missing")
    return options


def main():
    """Draw the masks of an example, or of a prompt made of TITLES (the last is the target)."""
    options = parse_options()
    if options.svg:
        check_writable(options.svg)
    if options.weights:
        # on "meta": no weights are needed
        model, encoder, _ = recommender.load_model_and_encoder(options.weights, device="meta")
        *history, target = [clean_title(title, "titles") for title in options.titles]
        encoded = encoder.encode(history, target)
        if encoded.prompt_length == 0:
            raise ValueError("nothing stands before the target: name a history, too")
        print(*map(cli.printable, encoded.text.splitlines()), sep="\n")
        print(f"\nlayers: {' '.join(model.kinds)}\n")
        tokens = encoder.tokenizer.pieces(encoded.input_ids.tolist())
        segments = encoded.segment_ids.tolist()
        prompt = masked_prompt(tokens, segments, encoded.prompt_length, model.scheme, model.kinds)
    else:
        example = (_EXAMPLE_TOKENS, _EXAMPLE_SEGMENTS, _EXAMPLE_PROMPT_LENGTH)
        prompt = masked_prompt(*example, MaskScheme())
    print(masks_text(prompt))
    if options.svg:
        write_atomically(options.svg, masks_svg(prompt).encode())
        print(f"wrote {options.svg}")


if __name__ == "__main__":
    cli.run("ref.report.draw_masks", main)
