"""The SVG writer, and that the committed pictures are what their commands draw."""

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

import evaluate
from ref.masks import MaskScheme
from ref.report import draw_masks
from ref.report.svg import Svg

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "ref" / "report" / "pictures"
MODEL = ROOT / "weights" / "movielens-hat"
TITLES = (
    "Gods Must Be Crazy, The (1980)",
    "Willow (1988)",
    "Time Bandits (1981)",
    "Cinema Paradiso (Nuovo cinema Paradiso) (1989)",
)
NAMESPACE = "{http://www.w3.org/2000/svg}"


def test_text_and_attributes_are_escaped():
    svg = Svg(20, 10)
    svg.text(1, 2, "<a & b>", fill='"red"')
    (text,) = ElementTree.fromstring(svg.render()).iter(NAMESPACE + "text")
    assert text.text == "<a & b>"
    assert text.get("fill") == '"red"'


def test_lengths_are_written_to_a_tenth():
    svg = Svg(20, 10)
    svg.polyline([(1, 2.26), (3.04, 4)], stroke_width=2)
    line = '<polyline points="1,2.3 3,4" fill="none" stroke-width="2"/>'
    assert line in svg.render().splitlines()


def test_what_is_shifted_stands_in_a_group_of_its_own():
    svg = Svg(20, 10)
    with svg.shifted(5, 6):
        svg.circle(1, 2, 3)
    svg.vertical_text(7, 8, "up")
    assert svg.render().splitlines()[2:] == [
        '<g transform="translate(5 6)">',
        '<circle cx="1" cy="2" r="3"/>',
        "</g>",
        '<text x="7" y="8" transform="rotate(-90 7 8)">up</text>',
        "</svg>",
    ]


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Calls a command with --svg, and gives back what it draws."""

    def draw(main, *arguments):
        path = tmp_path / "picture.svg"
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments), "--svg", str(path)])
        monkeypatch.chdir(ROOT)
        main()
        return path.read_text(encoding="utf-8")

    return draw


@pytest.mark.parametrize(
    "name, arguments",
    [("masks.svg", ()), ("prompt.svg", (*TITLES, "--weights", MODEL))],
)
def test_the_committed_masks_are_what_the_command_draws(drawn, name, arguments):
    assert drawn(draw_masks.main, *arguments) == (PICTURES / name).read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_committed_attention_is_what_the_command_draws(drawn):
    """A length that lies between two tenths may be rounded otherwise on another machine."""
    folders = ("weights/movielens-hat", "weights/movielens-causal")
    svg = drawn(evaluate.main, "--attention", "--weights", *folders)
    committed = (PICTURES / "attention.svg").read_text(encoding="utf-8")
    elements = list(ElementTree.fromstring(svg).iter())
    expected = list(ElementTree.fromstring(committed).iter())
    assert [element.text for element in elements] == [element.text for element in expected]
    for element, other in zip(elements, expected):
        assert element.keys() == other.keys()
        for name in {"x", "y", "width", "height"}.intersection(element.keys()):
            assert float(element.get(name)) == pytest.approx(float(other.get(name)), abs=0.11)


def numbers(element, *names):
    return [float(element.get(name)) for name in names]


def test_a_framed_row_is_the_one_that_the_target_is_predicted_from(drawn):
    root = ElementTree.fromstring(drawn(draw_masks.main))
    frames = [rect for rect in root.iter(NAMESPACE + "rect") if rect.get("fill") == "none"]
    labels = [text for text in root.iter(NAMESPACE + "text") if text.text == "Next:"]
    (base_line,) = {float(label.get("y")) for label in labels if label.get("text-anchor") == "end"}
    assert len(frames) == 3 + 1  # one a kind, and one of the legend
    for frame in frames[:3]:
        y, height = numbers(frame, "y", "height")
        assert y < base_line < y + height < y + 20


@pytest.mark.parametrize(
    "kinds, layers",
    [
        (["IN", "OR", "OR", "CR"], {"IN": "layer 0", "OR": "layers 1–2", "CR": "layer 3"}),
        (["OR"] * 3, {"OR": "layers 0–2"}),
        (["IN", "IN", "CR"], {"IN": "layers 0–1", "CR": "layer 2"}),
    ],
)
def test_layers_are_numbered_from_0_and_only_the_kinds_of_the_model_are_drawn(kinds, layers):
    prompt = draw_masks.masked_prompt(["a", "b"], [1, 2], 1, MaskScheme(), kinds)
    assert (prompt.layers, list(prompt.masks)) == (layers, list(layers))


@pytest.mark.parametrize("target, name", [("item", "target"), ("text", "item 2")])
def test_the_last_segment_is_named_target_if_the_target_has_one(target, name):
    scheme = MaskScheme(target=target)
    prompt = draw_masks.masked_prompt(["a", "b", "c"], [0, 1, 2], 2, scheme)
    assert [prompt.name(segment) for segment in (-1, 0, 1, 2)] == [
        "padding",
        "text",
        "item 1",
        name,
    ]


@pytest.mark.parametrize("num_tokens, columns", [(13, 3), (28, 2), (50, 1), (200, 1)])
def test_panels_stand_side_by_side_only_where_letters_stay_legible(num_tokens, columns):
    prompt = draw_masks.masked_prompt(["·Paradiso"] * num_tokens, [1] * num_tokens, 1, MaskScheme())
    grid = draw_masks.grid_for(prompt)
    assert grid.columns == columns
    assert grid.cell >= 12  # the letters are 11 high
    assert grid.width * columns <= 920 or num_tokens == 200


def test_titles_without_a_model_are_refused(drawn):
    with pytest.raises(ValueError, match="titles and --weights go together"):
        drawn(draw_masks.main, "Willow (1988)")


def test_the_terminal_shows_the_masks_row_by_row(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command"])
    draw_masks.main()
    lines = capsys.readouterr().out.splitlines()
    rows = {line[:20].strip(): line[20:] for line in lines[3:16]}
    assert lines[0] == "IN · shallow layers: no look into another item"
    assert [line.split()[1] for line in lines if line.startswith("→")] == ["Next:"] * 3 + ["the"]
    assert rows["Heat  item 2"] == "█  ·  ·  ·  █  ·  ·  ·  ·  ·  ·  ·  ·"
