"""The SVG writer, and that the committed pictures are what their commands draw."""

import json
import shutil
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import evaluate
from ref.masks import MaskScheme
from ref.report import draw_curve, draw_masks
from ref.report.svg import Svg

from support.commands import ROOT
from support.svg import SVG

PICTURES = ROOT / "ref" / "report" / "pictures"
MODEL = ROOT / "weights" / "movielens-hat"
TITLES = (
    "Gods Must Be Crazy, The (1980)",
    "Willow (1988)",
    "Time Bandits (1981)",
    "Cinema Paradiso (Nuovo cinema Paradiso) (1989)",
)


def test_text_and_attributes_are_escaped():
    svg = Svg(20, 10)
    svg.text(1, 2, "<a & b>", fill='"red"')
    (text,) = ElementTree.fromstring(svg.render()).iter(SVG + "text")
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
    frames = [rect for rect in root.iter(SVG + "rect") if rect.get("fill") == "none"]
    labels = [text for text in root.iter(SVG + "text") if text.text == "Next:"]
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
    with pytest.raises(ValueError, match="titles and --weights go together; --weights is missing"):
        drawn(draw_masks.main, "Willow (1988)")


@pytest.mark.parametrize("draw", [draw_masks.main, draw_curve.main])
def test_a_picture_that_cannot_be_written_is_refused_before_anything_is_read(
    draw, monkeypatch, tmp_path
):
    arguments = ["--weights", "no folder", "title"] if draw is draw_masks.main else ["no log"]
    monkeypatch.setattr(sys, "argv", ["command", *arguments, "--svg", str(tmp_path)])
    with pytest.raises(ValueError, match="is a folder; expected the name of a file"):
        draw()


def test_masks_of_a_model_are_drawn_without_its_weights_being_read(drawn, tmp_path):
    folder = shutil.copytree(MODEL, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    no_numbers = {name: np.full_like(tensor, np.nan) for name, tensor in weights.items()}
    save_file(no_numbers, folder / "model.safetensors")
    titles = ["Willow (1988)", "Heat (1995)"]
    expected = drawn(draw_masks.main, "--weights", str(MODEL), *titles)
    assert drawn(draw_masks.main, "--weights", str(folder), *titles) == expected


def test_titles_are_cleaned_and_cannot_steer_the_terminal(monkeypatch, capsys):
    titles = ["a\nb\x1b[31m", "Willow&#32;(1988)"]
    monkeypatch.setattr(sys, "argv", ["command", *titles, "--weights", str(MODEL)])
    draw_masks.main()
    out = capsys.readouterr().out
    assert out.startswith("a b\\x1b[31m\nWillow (1988)\n\nlayers: ")
    assert "\x1b" not in out


def test_a_token_with_a_control_character_is_escaped():
    tokens = ["a\x1b[31m", "\n"]
    prompt = draw_masks.masked_prompt(tokens, segments=[1, 1], prompt_length=1, scheme=MaskScheme())
    assert prompt.labels == ["a\\x1b[31m", "⏎"]


def test_a_target_without_a_prompt_is_refused(drawn):
    with pytest.raises(ValueError, match="nothing stands before the target: name a history"):
        drawn(draw_masks.main, "--weights", str(MODEL), "Willow (1988)")


def test_the_terminal_shows_the_masks_row_by_row(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command"])
    draw_masks.main()
    lines = capsys.readouterr().out.splitlines()
    rows = {line[:20].strip(): line[20:] for line in lines[3:16]}
    assert lines[0] == "IN · shallow layers: no look into another item"
    assert [line.split()[1] for line in lines if line.startswith("→")] == ["Next:"] * 3 + ["the"]
    assert lines[2].split() == [*"·111223333·44", *"segment of the key".split()]
    assert rows["Heat  item 2"] == "█  ·  ·  ·  █  ·  ·  ·  ·  ·  ·  ·  ·"


# --- learning curves

DESCRIPTION = {"options": {}, "loss": "titles"}
RECORDS = (
    {"step": 15, "train": 6.0, "valid": 7.0, "train_by_ten_steps": [8.0, 4.0]},
    {"step": 30, "train": 3.0, "valid": 5.0, "train_by_ten_steps": [3.5, 2.5]},
    {"step": 40, "train": 2.0, "valid": 6.0, "train_by_ten_steps": [2.0]},
)


@pytest.fixture
def log(tmp_path):
    """Calls a function that writes values as the lines of a log, and gives its path."""

    def write(*values):
        path = tmp_path / "log.jsonl"
        path.write_text("".join(json.dumps(value) + "\n" for value in values))
        return path

    return write


def test_a_curve_has_a_point_every_ten_steps_and_at_the_end_of_each_epoch(log):
    curve = draw_curve.read_curve(log(DESCRIPTION, *RECORDS))
    assert curve.train == [(10, 8.0), (15, 4.0), (25, 3.5), (30, 2.5), (40, 2.0)]
    assert curve.valid == [(15, 7.0), (30, 5.0), (40, 6.0)]
    assert curve.best == (30, 5.0)


def test_a_log_without_the_losses_of_ten_steps_has_those_of_its_epochs(log):
    records = [{"step": 15, "train": 6.0, "valid": 7.0}, {"step": 30, "train": 3.0, "valid": 5.0}]
    curve = draw_curve.read_curve(log(DESCRIPTION, *records))
    assert curve.train == [(15, 6.0), (30, 3.0)]


def test_a_curve_is_drawn_between_the_ticks_that_hold_it(drawn, log):
    root = ElementTree.fromstring(drawn(draw_curve.main, log(DESCRIPTION, *RECORDS)))
    train, valid = (line.get("points") for line in root.iter(SVG + "polyline"))
    # steps 0 to 40 over 380 from 52 and from 504; nats 8 to 2 and 7 to 5 over 260 from 80
    assert train.startswith("147,80 ") and train.endswith(" 432,340")
    assert valid == "646.5,80 789,340 884,210"
    (circle,) = root.iter(SVG + "circle")
    assert numbers(circle, "cx", "cy") == [789, 340]
    texts = [text.text for text in root.iter(SVG + "text")]
    assert "steps; circle: the epoch whose model was kept" in texts


@pytest.mark.parametrize("loss, unit", [("titles", "title"), ("target", "title"), ("all", "token")])
def test_the_training_loss_is_a_token_s_where_all_tokens_are_predicted(drawn, log, loss, unit):
    path = log(DESCRIPTION | {"loss": loss}, *RECORDS)
    assert f">training loss, nats a {unit}<" in drawn(draw_curve.main, path)


def test_each_of_several_logs_has_its_name_and_colour(drawn):
    logs = [f"weights/movielens-{name}/log.jsonl" for name in ("hat", "causal")]
    root = ElementTree.fromstring(drawn(draw_curve.main, *logs))
    names = [text.text.split(":")[0] for text in root.iter(SVG + "text")]
    assert {"weights/movielens-hat", "weights/movielens-causal"} <= set(names)
    lines = [line.get("stroke") for line in root.iter(SVG + "polyline")]
    assert len(lines) == 4 and len(set(lines)) == 2


@pytest.mark.parametrize(
    "low, high, ticks",
    [
        (6.1, 7.9, [6.0, 6.5, 7.0, 7.5, 8.0]),
        (0, 269, [0, 100, 200, 300]),
        (2.013, 2.049, [2.01, 2.02, 2.03, 2.04, 2.05]),
        (5, 5, [5.0, 5.2]),
    ],
)
def test_ticks_are_round_numbers_that_hold_the_values(low, high, ticks):
    assert draw_curve.round_numbers(low, high) == ticks


@pytest.mark.parametrize(
    "values, message",
    [
        ([], "line 1: broken JSON.*; expected the log.jsonl of a model that train.py made"),
        ([[1, 2]], "line 1: holds an array; expected an object; expected the log.jsonl"),
        ([{"a": 1}], "line 1: has no 'loss'; expected the log.jsonl"),
        ([DESCRIPTION], "log.jsonl: holds no epoch; expected one that train.py has finished"),
        ([DESCRIPTION, {"step": 3}], "line 2: 'train' is None; expected a number"),
        ([DESCRIPTION, RECORDS[0] | {"valid": np.nan}], "line 2: 'valid' is nan; expected"),
        ([DESCRIPTION, RECORDS[0] | {"step": 0}], "line 2: 'step' is 0; expected"),
        (
            [DESCRIPTION, RECORDS[0] | {"train_by_ten_steps": ["a"]}],
            "line 2: 'train_by_ten_steps' is 'a'; expected a number",
        ),
        (
            [DESCRIPTION, RECORDS[0] | {"train_by_ten_steps": 5}],
            "line 2: 'train_by_ten_steps' is 5; expected a list",
        ),
    ],
)
def test_what_is_no_log_is_refused_in_one_line(log, values, message):
    with pytest.raises(ValueError, match=message):
        draw_curve.read_curve(log(*values))
