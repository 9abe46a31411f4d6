"""Tables and pictures of the study (tests/study/report.py), from made-up and committed runs."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from ref.data.dataset import load
from ref.training.options import parse_options

from study import (
    amount_picture,
    differences,
    intervals,
    one_target,
    one_target_pictures,
    pretrained_picture,
    records,
    report,
    ten_targets,
)
from support.study import numbers_by_hand
from support.svg import SVG, texts_of

PICTURES = ["amount_of_data.svg", "curves.svg", "pretrained.svg", "study.svg", "ten_targets.svg"]


# --- intervals


def test_intervals_count_users_and_not_their_targets():
    users = np.random.default_rng(1).normal(size=900)
    of_targets = np.tile(np.repeat(users, 10), (5, 1)).reshape(5, 900, 10)
    mean, low, high = intervals.interval(of_targets)
    assert mean == pytest.approx(users.mean())
    assert high - low == pytest.approx(2 * 1.96 * users.std() / 30, rel=0.05)
    assert intervals.interval(of_targets[:, :, 0]) == pytest.approx((mean, low, high))


def test_intervals_count_seeds():
    seeds = np.random.default_rng(1).normal(size=(25, 1))
    _, low, high = intervals.interval(np.zeros((1, 90)) + seeds)
    assert high - low == pytest.approx(2 * 1.96 * seeds.std() / 5, rel=0.05)


def test_an_interval_at_99_percent_is_wider_by_what_the_normal_distribution_says():
    users = np.random.default_rng(1).normal(size=(1, 900))
    _, low, high = intervals.interval(users)
    _, lower, higher = intervals.interval(users, 99)
    assert (higher - lower) / (high - low) == pytest.approx(2.576 / 1.96, rel=0.05)


def test_a_slice_has_the_mean_of_its_targets_alone():
    values = np.arange(12.0).reshape(1, 4, 3)
    mask = np.array([[True, False, False]] * 3 + [[False] * 3])
    mean, low, high = intervals.interval(values, mask=mask)
    assert mean == 3.0 and 0 <= low < mean < high <= 6  # of 0, 3 and 6


def test_only_five_seeds_make_a_difference_clear():
    assert intervals.is_clear(np.full((5, 3), -0.1), 99)
    assert not intervals.is_clear(np.full((4, 3), -0.1), 99)


# --- ten targets a user

GROUP = ten_targets.Group("m")


@pytest.fixture
def ten_target_runs(tmp_path):
    """A file of runs: four users of ten targets; 1/1 is better by 0.5 in each of five seeds."""
    rng = np.random.default_rng(0)
    count = [0] * 20 + [50] * 20
    packed = {name: records.pack(count) for name in ("count", "characters")}
    packed["tied"] = records.pack([1] + [0] * 39)
    ranks = {"most popular": records.pack_ranks([1] * 10 + [None] * 30)}
    runs = [{"run": "targets/m", "data": "m", "users": 4, "ranks": ranks, **packed}]
    for seed in range(5):
        nll = np.round(6 + rng.random(40), 2)
        for schedule, values in (([0, 0], nll), ([1, 1], nll - 0.5), ([1, 0], nll[::-1])):
            of_run = {"run": f"m/{schedule}/{seed}", "data": "m", "seed": seed}
            figures = {"nll": records.pack_nll(values), "ranks": records.pack_ranks([1, 11] * 20)}
            runs.append({"schedule": schedule, **of_run, **figures})
    records.write(tmp_path / "runs.jsonl", {record["run"]: record for record in runs})
    return tmp_path / "runs.jsonl"


def test_the_means_of_the_table_are_those_of_the_packed_numbers(ten_target_runs):
    lines = [json.loads(line) for line in ten_target_runs.read_text().splitlines()]
    *table, popular = ten_targets.table(records.read(ten_target_runs), GROUP).splitlines()[2:]
    assert popular.startswith("| most popular | – | – | – | – | 0.250 [0.000, 0.750] | 0.250 [")
    for row, schedule in zip(table, ([0, 0], [1, 0], [1, 1]), strict=True):
        nll = []
        for line in lines:
            if line.get("schedule") == schedule:
                nll += numbers_by_hand(line["nll"])
        assert row.split(" | ")[1].startswith(f"{sum(nll) / len(nll) / 100:.3f} [")
        assert row.split(" | ")[5].startswith("0.500 [")


def test_sasrec_has_a_row_like_a_schedule(ten_target_runs):
    runs = records.read(ten_target_runs)
    for seed in range(5):
        better = runs[f"m/[1, 1]/{seed}"]
        runs[f"m/SASRec/{seed}"] = better | {"schedule": "SASRec"}
    *_, better_row, sasrec_row, _ = ten_targets.table(runs, GROUP).splitlines()
    assert sasrec_row == better_row.replace("| 1/1 |", "| SASRec |")


def test_runs_of_another_start_are_compared_with_each_other_alone_and_may_lack_ranks(
    ten_target_runs,
):
    runs = records.read(ten_target_runs)
    of_new = ten_targets.table(runs, GROUP), ten_targets.slice_table(runs, GROUP)
    for schedule, better in (("[0, 0]", "[1, 1]"), ("[1, 1]", "[0, 0]")):
        record = runs[f"m/{better}/0"] | {"schedule": json.loads(schedule), "start": "LLM"}
        del record["ranks"]
        runs[f"m/LLM/{schedule}/0"] = record
    assert (ten_targets.table(runs, GROUP), ten_targets.slice_table(runs, GROUP)) == of_new
    started = ten_targets.Group("m", start="LLM")
    assert ten_targets.groups(runs) == [GROUP, started]
    head, _, causal, masked = ten_targets.table(runs, started).splitlines()
    assert head.startswith("| m, from LLM | NLL |")
    assert causal.startswith("| causal (0/0) | ") and causal.endswith(" | – | – | – | – | – |")
    assert masked.startswith("| 1/1 | ")
    assert masked.endswith(" | 0.500 [0.500, 0.500] | 0.500 | – | – | – |")


def test_runs_of_a_part_of_the_users_are_compared_with_each_other_alone(ten_target_runs):
    runs = records.read(ten_target_runs)
    of_all = ten_targets.table(runs, GROUP), ten_targets.slice_table(runs, GROUP)
    for seed in range(5):
        causal, better = runs[f"m/[0, 0]/{seed}"], runs[f"m/[1, 1]/{seed}"]
        runs[f"m/25/[0, 0]/{seed}"] = better | {"schedule": [0, 0], "percent": 25}
        runs[f"m/25/[1, 1]/{seed}"] = causal | {"schedule": [1, 1], "percent": 25}
    assert (ten_targets.table(runs, GROUP), ten_targets.slice_table(runs, GROUP)) == of_all
    part = ten_targets.Group("m", 25)
    assert ten_targets.groups(runs) == [GROUP, part]
    head, _, causal_row, other_row = ten_targets.table(runs, part).splitlines()
    assert head.startswith("| m, 25 % of the users | NLL |")
    assert causal_row.split(" | ")[1] == of_all[0].splitlines()[4].split(" | ")[1]
    assert "| 0.500 [0.500, 0.500] \\* | 0.500, 0.500, " in other_row
    assert "at most 9 times in training (20)" in of_all[1]
    of_part = ten_targets.slice_table(runs, part)
    assert "at most 9 times in the training of all users (20)" in of_part


def test_a_clear_difference_of_ten_targets_has_a_star(ten_target_runs):
    table = ten_targets.table(records.read(ten_target_runs), GROUP).splitlines()
    reversed_row, better_row = table[3:5]
    seeds = ", ".join(["-0.500"] * 5)
    assert f"| -0.500 [-0.500, -0.500] \\* | {seeds} | [-0.500, -0.500] |" in better_row
    assert "\\*" not in reversed_row


def test_the_picture_of_ten_targets_has_a_row_for_each_schedule(ten_target_runs):
    svg = ElementTree.fromstring(
        differences.picture(ten_targets.all_differences(records.read(ten_target_runs)), 99)
    )
    assert {"m", "1/0", "1/1"} <= set(texts_of(svg))
    assert len(list(svg.iter(SVG + "circle"))) == 2 * (1 + 5)


def with_half_of_the_users(runs):
    """The runs, and the same with half of the users, where 1/1 is as good as causal."""
    halves = {}
    for name, of_run in runs.items():
        if "nll" in of_run:
            nll = runs[name.replace("[1, 1]", "[0, 0]")]["nll"]
            halves[f"{name}/50"] = of_run | {"percent": 50, "nll": nll}
    return runs | halves


def test_the_picture_of_the_amount_of_data_has_what_each_part_of_the_users_brings(ten_target_runs):
    runs = with_half_of_the_users(records.read(ten_target_runs))
    runs["m/25"] = runs["m/[0, 0]/0"] | {"percent": 25}  # causal alone: not drawn
    assert amount_picture.percents_of("m", runs) == [50, 100]
    svg = ElementTree.fromstring(amount_picture.picture("m", runs))
    assert {"50 %", "100 %"} == {text for text in texts_of(svg) if text.endswith("0 %")}
    all_targets, short_titles, *_ = lines_in_nats(svg, "#188038")
    assert all_targets == pytest.approx([0, -0.5], abs=0.001)
    assert short_titles == all_targets
    of_all, of_short, of_long, *_ = lines_in_nats(svg, "#1a73e8")
    causal = np.array([numbers_by_hand(runs[f"m/[0, 0]/{seed}"]["nll"]) for seed in range(5)]) / 100
    difference = causal[:, ::-1] - causal  # of 1/0: see the fixture
    assert of_all == pytest.approx([0, 0], abs=0.01)
    assert of_short == pytest.approx([difference[:, :20].mean()] * 2, abs=0.01)
    assert of_long == pytest.approx([difference[:, 20:].mean()] * 2, abs=0.01)


def lines_in_nats(svg, colour):
    """The heights of the lines of a colour, panel by panel of the upper row, in nats."""
    heights = {}
    for text in svg.iter(SVG + "text"):
        heights.setdefault(text.text, float(text.get("y")) - 4)
    lowest = min(float(text) for text in heights if re.fullmatch(r"-?[\d.]+", text))
    pixels = (heights[f"{lowest:g}"] - heights["0"]) / lowest  # of a nat
    assert pixels < 0  # the better, the lower
    lines = [line for line in svg.iter(SVG + "polyline") if line.get("stroke") == colour]
    return [[(y - heights["0"]) / pixels for y in heights_of(line)] for line in lines[:3]]


def test_a_slice_without_targets_has_no_panel_in_the_picture_of_the_amount_of_data(ten_target_runs):
    runs = with_half_of_the_users(records.read(ten_target_runs))
    texts = texts_of(ElementTree.fromstring(amount_picture.picture("m", runs)))
    assert "50 times or more" in texts and "10 to 49 times" not in texts


def smollm_record(schedule, seed, curve):
    name = f"m/SmolLM2/{schedule}/{seed}"
    of_run = {"run": name, "data": "m", "start": "SmolLM2", "schedule": schedule, "seed": seed}
    return {name: of_run | {"train_by_ten_steps": curve}}


def test_curves_of_a_pretrained_model_are_means_over_fifty_steps_and_common_seeds():
    runs = smollm_record([0, 0], 0, [7.0] * 12) | smollm_record([0, 0], 1, [6.0] * 12)
    runs |= smollm_record([6, 0], 0, [8, 7, 7, 7, 7, 6.5, 6.5, 6.5, 6.5, 6.5, 9, 9])
    runs |= smollm_record([6, 0], 1, [6.0] * 12) | smollm_record([6, 0], 2, [1.0] * 12)
    runs |= smollm_record([0, 6], 1, [6.25] * 12)
    group = ten_targets.Group("m", start="SmolLM2")
    lines = pretrained_picture.curves(group, runs)
    np.testing.assert_allclose(lines["6/0"], [0.1, -0.25])  # half of 0.2 and of -0.5
    np.testing.assert_allclose(lines["0/6"], [0.25, 0.25])
    svg = ElementTree.fromstring(pretrained_picture.picture(group, runs))
    texts = texts_of(svg)
    assert texts[0].startswith("m, from SmolLM2: ")
    assert [text for text in texts if "/" in text] == ["0/6", "6/0"]
    assert {"0", "0.3", "-0.3", "100"} <= set(texts)
    flat, falling = (line.get("points") for line in svg.iter(SVG + "polyline"))
    heights = [[float(point.split(",")[1]) for point in each.split()] for each in (flat, falling)]
    assert heights[0][0] == heights[0][1] < heights[1][0] < heights[1][1]  # up is more


# --- one target a user

COUNTS = [0] * 12 + [5] * 12 + [100] * 16  # how often each user's target is in training
BETTER_FOR_COMMON = [6.0 - 0.5 * (count == 100) for count in COUNTS]


def record(group, schedule, seed, nll, ranks=None):
    return {
        "run": f"{group}/{schedule}/{seed}",
        "group": group,
        "schedule": schedule,
        "seed": seed,
        "data": "movielens",
        "nll": records.pack_nll(nll),
        "best": 7 + seed,
        "ranks": records.pack_ranks(ranks or [1] * len(nll)),
    }


@pytest.fixture
def runs(tmp_path):
    """A file of runs. Causal: 6.0 for every user. 1/1: better by 0.5 for the 16 users of common
    targets, in each of five seeds. 1/0: noise around causal. 2/1: 1/1 with three seeds. 0/1: such
    that the interval at 95 % alone leaves out 0.
    """
    rng = np.random.default_rng(0)
    users = {
        "run": "users/movielens",
        "group": "users",
        "data": "movielens",
        "titles": 9,
        "ranks": {"most popular": records.pack_ranks([1, 0] * 20)},
    }
    lines = [users]
    for seed in range(5):
        lines.append(record("scratch", [0, 0], seed, [6.0] * 40, [2, 0] * 20))
        lines.append(record("scratch", [1, 1], seed, BETTER_FOR_COMMON))
        lines.append(record("scratch", [1, 0], seed, (6 + rng.normal(size=40)).tolist()))
        lines.append(record("scratch", [0, 1], seed, [6.0 - 0.35 + 0.13, 6.0 + 0.35 + 0.13] * 20))
        if seed < 3:
            lines.append(record("scratch", [2, 1], seed, BETTER_FOR_COMMON))
    lines.append(record("flip-target", [1, 1], 1, [6.25] * 40))
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in reversed(lines)))
    return path


@pytest.fixture
def table(runs):
    """{model: its cells} of the table."""
    rows, users, _ = one_target.rows_of(records.read(runs))
    lines = [line.strip("| ").split(" | ") for line in one_target.table(rows, users).splitlines()]
    return {cells[0]: cells[1:] for cells in lines}


def test_records_are_read_in_the_order_of_their_seeds(runs):
    rows, _, _ = one_target.rows_of(records.read(runs))
    seeds = {key: [record["seed"] for record in records] for key, records in rows.items()}
    assert seeds["scratch", "0/0"] == [0, 1, 2, 3, 4]
    assert seeds["scratch", "2/1"] == [0, 1, 2]
    assert seeds["flip-target", "1/1"] == [1]


def test_the_causal_model_has_means_and_no_difference(table):
    seeds, nll, difference, hit_rate, _, validation = table["causal (0/0)"]
    assert (seeds, nll, difference) == ("5", "6.000 [6.000, 6.000]", "–")
    assert hit_rate.startswith("0.500 [")
    assert validation == "9.000"  # 7 to 11


def test_a_clear_difference_of_five_seeds_has_a_star(table):
    assert table["1/1"][1].startswith("5.800 [")
    assert table["1/1"][2].startswith("-0.200 [") and table["1/1"][2].endswith("] (5) \\*")
    assert "\\*" not in table["1/0"][2]


def test_three_seeds_are_too_few_for_a_star(table):
    assert table["2/1"][2].startswith("-0.200 [") and table["2/1"][2].endswith("] (3)")


def test_a_comparison_that_was_not_planned_has_no_star_however_clear():
    causal = [record("validation", [0, 0], seed, [6.0] * 40) for seed in range(5)]
    better = [record("validation", [1, 1], seed, [5.0] * 40) for seed in range(5)]
    rows = {("validation", "0/0"): causal, ("validation", "1/1"): better}
    assert one_target.difference_text("validation", "1/1", rows) == "-1.000 [-1.000, -1.000] (5)"


def test_a_difference_that_is_clear_at_95_percent_alone_has_no_star(runs, table):
    rows, _, _ = one_target.rows_of(records.read(runs))
    difference = one_target.paired(rows["scratch", "0/1"], rows["scratch", "0/0"])
    assert table["0/1"][2].startswith("0.130 [0.0") and table["0/1"][2].endswith("] (0)")
    _, low, _ = intervals.interval(difference, 99)
    assert low < 0


def test_a_flip_is_compared_with_the_schedule_that_it_changes(table):
    seeds, _, difference, *_ = table["1/1, target"]
    assert seeds == "1" and difference.startswith("0.450 [")  # 6.25 - 5.8


def test_a_counting_baseline_has_ranks_alone(table):
    seeds, nll, difference, hit_rate, _, validation = table["most popular, movielens"]
    assert (seeds, nll, difference, validation) == ("–", "–", "–", "–")
    assert hit_rate.startswith("0.500 [")


def test_differences_pair_the_same_seeds():
    one = [record("scratch", [1, 1], seed, [float(seed), 2.0 * seed]) for seed in (0, 1, 2)]
    other = [record("scratch", [0, 0], seed, [10.0 * seed, 1.0]) for seed in (1, 2)]
    assert one_target.paired(one, other).tolist() == [[-9.0, 1.0], [-18.0, 3.0]]


def drawn(runs):
    """The root of the picture of some runs."""
    rows, *_ = one_target.rows_of(records.read(runs))
    return ElementTree.fromstring(differences.picture(one_target_pictures.differences(rows), 99))


def test_the_picture_has_a_line_for_each_comparison(runs):
    svg = drawn(runs)
    texts = texts_of(svg)
    assert {"1/1", "1/0", "1/1, target"} <= set(texts)
    assert "causal (0/0)" not in texts
    assert any(text.startswith("-0.200 [") for text in texts)
    # one of the mean and one of each seed
    assert len(list(svg.iter(SVG + "circle"))) == 3 * (1 + 5) + (1 + 3) + (1 + 1)


def test_rows_that_were_not_planned_are_grey_even_if_they_are_clear(runs):
    lines = [record("validation", [0, 0], seed, [6.0] * 40) for seed in range(5)]
    lines += [record("validation", [1, 1], seed, BETTER_FOR_COMMON) for seed in range(5)]
    with open(runs, "a") as file:
        file.writelines(json.dumps(each) + "\n" for each in lines)
    texts = drawn(runs).iter(SVG + "text")
    colours = [text.get("fill") for text in texts if text.text.startswith("-0.200 [")]
    assert colours[-1] == "#9aa0a6"
    assert "#9aa0a6" not in colours[:-1] and len(set(colours[:-1])) == 2  # clear, and three seeds


def greatest_tick(svg):
    return max(float(text) for text in texts_of(svg) if re.fullmatch(r"-?[0-9.]+", text))


def test_a_difference_that_the_axis_reaches_is_no_arrow(runs):
    svg = drawn(runs)  # the flip differs by 0.45, in one seed
    assert list(svg.iter(SVG + "path")) == []
    assert greatest_tick(svg) >= 0.45


def test_a_difference_beyond_the_axis_is_an_arrow_and_does_not_stretch_it(runs, monkeypatch):
    circles = len(list(drawn(runs).iter(SVG + "circle")))
    monkeypatch.setattr(differences, "REACH", 0.3)
    svg = drawn(runs)
    assert len(list(svg.iter(SVG + "path"))) == 1
    assert len(list(svg.iter(SVG + "circle"))) == circles - 2
    assert greatest_tick(svg) < 0.45


def test_curves_are_differences_over_common_seeds_and_epochs():
    longer = {"seed": 0, "train": [6.99, 5.97, 1], "valid": [8, 7, 1]}
    another_seed = {"seed": 1, "train": [1] * 3, "valid": [1] * 3}
    rows = {
        ("scratch", "0/0"): [{"seed": 0, "train": [7, 6], "valid": [8, 7]}],
        ("scratch", "1/1"): [longer, another_seed],
        ("tiny", "1/1"): [{"seed": 0, "train": [1], "valid": [1]}],
    }
    svg = ElementTree.fromstring(one_target_pictures.curves(rows))
    lines = [line.get("points") for line in svg.iter(SVG + "polyline")]
    # training from 0 at 76 to -0.04 at 246, validation from 0.04 at 308 to 0 at 478
    assert lines == ["56,118.5 180,203.5", "56,478 180,478"]


def test_the_band_of_a_curve_holds_all_seeds_each_with_its_own_causal_model():
    losses = {"0/0": ([6, 5], [8, 7]), "1/1": ([5.98, 4.965], [7.97, 7.01])}
    rows = {("scratch", name): records_of_losses(of_seeds) for name, of_seeds in losses.items()}
    svg = ElementTree.fromstring(one_target_pictures.curves(rows))
    band, _ = (heights_of(area) for area in svg.iter(SVG + "polygon"))
    line, _ = (heights_of(line) for line in svg.iter(SVG + "polyline"))
    # 0.01 is at 76, -0.04 at 246; the differences are -0.02 and -0.035, -0.03 and 0.01
    assert band == pytest.approx([178, 76, 229, 212], abs=0.051)
    assert line == pytest.approx([195, 152.5], abs=0.051)


def heights_of(element):
    return [float(point.split(",")[1]) for point in element.get("points").split()]


def records_of_losses(of_seeds):
    return [{"seed": n, "train": losses, "valid": losses} for n, losses in enumerate(of_seeds)]


def test_the_label_of_a_curve_stands_at_its_end():
    losses = {"0/0": [[6, 6]], "1/1": [[6, 5.99]], "1/0": [[6, 5.97]]}
    rows = {("scratch", name): records_of_losses(of_seeds) for name, of_seeds in losses.items()}
    svg = ElementTree.fromstring(one_target_pictures.curves(rows))
    for name, colour in (("1/0", "#1a73e8"), ("1/1", "#188038")):
        line, _ = (line for line in svg.iter(SVG + "polyline") if line.get("stroke") == colour)
        x, y = map(float, line.get("points").split()[-1].split(","))
        label, _ = (text for text in svg.iter(SVG + "text") if text.text == name)
        assert float(label.get("x")) - x == 6
        assert abs(float(label.get("y")) - y) <= 4.1


# --- attention


def attention_of_two_layers(same):
    """What a record keeps of a model of two layers, IN and OR, whose OR layer gives so much to the
    same item; even attention gives the same item twice what it gives others."""
    share = np.zeros((2, 3, 4))
    share[0, 0] = (1, 0, 0, 0)
    share[1, 0] = (same, 0.25, 0.25, 0.5 - same)
    per_pair, even = np.full((2, 2, 3, 4), None)
    per_pair[1, :, :2] = (1.5 * same, 0.15)
    even[1, :, :2] = (0.4, 0.2)
    return share.tolist(), per_pair.tolist(), even.tolist()


def test_attention_is_averaged_over_models_and_or_layers():
    models = attention_of_two_layers(0.2), attention_of_two_layers(0.4)
    row = dict(zip(("share", "per_pair", "even"), map(list, zip(*models))), kinds=["IN", "OR"])
    row |= {"group": "attention-scratch", "schedule": [1, 0], "data": "movielens"}
    expected = "| from scratch | 1/0 | movielens | 1 | 30.0% | 25.0% | 25.0% | 20.0% | 1.5 | 1.5 |"
    assert one_target.attention_table([row]).splitlines()[2:] == [expected]
    assert one_target.attention_table([row, row]).splitlines()[2:] == [expected]


# --- committed runs


COMMITTED = report.HERE.parents[1] / "ref" / "report" / "pictures"
PAGES = "\n\n".join(path.read_text() for path in sorted(report.HERE.glob("*.md")))


def tables_of_the_command(tmp_path, monkeypatch, capsys):
    """The tables that report.py prints for the pages; its pictures are in tmp_path."""
    monkeypatch.setattr("sys.argv", ["report.py", "--pictures", str(tmp_path)])
    report.main()
    assert sorted(path.name for path in tmp_path.iterdir()) == PICTURES
    return capsys.readouterr().out.strip().split("\n\n")


def test_the_committed_picture_of_ten_targets_is_that_of_the_runs():
    runs = records.read(report.HERE / "ten_targets.jsonl")
    svg = report.picture(ten_targets.all_differences(runs), ten_targets.CLEAR)
    assert svg == (COMMITTED / "ten_targets.svg").read_text()


@pytest.fixture
def few_draws(monkeypatch):
    """Bootstraps of a hundred draws."""
    monkeypatch.setattr(intervals, "DRAWS", 100)
    intervals.times_drawn.cache_clear()
    yield
    intervals.times_drawn.cache_clear()


def without_intervals(text):
    """Neither intervals nor the stars of clear ones."""
    return re.sub(r" \[[-\d., ]+\]| \\\*", "", text)


def test_the_committed_tables_are_those_of_the_command_up_to_intervals(
    tmp_path, monkeypatch, capsys, few_draws
):
    tables = tables_of_the_command(tmp_path, monkeypatch, capsys)
    assert len(tables) >= 5
    for table in tables:
        assert without_intervals(table) in without_intervals(PAGES)


@pytest.mark.slow
def test_the_committed_tables_and_pictures_are_those_of_the_command(tmp_path, monkeypatch, capsys):
    for table in tables_of_the_command(tmp_path, monkeypatch, capsys):
        assert PAGES.count(table) == 1
    for name in PICTURES:
        assert (tmp_path / name).read_bytes() == (COMMITTED / name).read_bytes()


def strings_in(value):
    """All strings of a JSON value, keys too."""
    if isinstance(value, str):
        return {value}
    if isinstance(value, dict):
        value = [*value, *value.values()]
    return set().union(*map(strings_in, value)) if isinstance(value, list) else set()


def test_the_committed_runs_are_figures_and_small():
    paths = [report.HERE / name for name in ("one_target.jsonl", "ten_targets.jsonl")]
    assert sum(path.stat().st_size for path in paths) < 2_000_000
    lines = "".join(path.read_text() for path in paths).splitlines()
    strings = strings_in([json.loads(line) for line in lines])
    others = {text for text in strings if not re.fullmatch("[!-~]*", text)}
    assert others == {"most popular", "co-occurrence, last item", "co-occurrence, ten items"}
    assert strings.isdisjoint(load().titles)


def test_the_committed_runs_are_those_of_the_defaults_but_for_split_schedule_and_seed():
    # item_dropout was an option then, and off
    defaults = vars(parse_options([])) | {"item_dropout": 0.0}
    others = {"min_user", "test_items", "intra_layers", "cross_layers", "seed", "threads"}
    for of_run in records.read(report.HERE / "ten_targets.jsonl").values():
        if isinstance(of_run.get("schedule"), list):
            options = of_run["options"]
            changed = {name for name in options if options[name] != defaults[name]}
            assert {"batch_size", "lr", "dropout"} < options.keys()
            planned = set()
            if "percent" in of_run:
                planned = {"epochs", "patience"}
            elif "start" in of_run:
                planned = {"layout", "dtype", "epochs", "batch_size", "lr", "warmup", "dropout"}
                planned.add("state_every")
            assert changed <= others | planned


def likelihoods_by_hand(data, start=None, percent=None):
    """{schedule: {seed: likelihoods in hundredths}} of the committed runs; None: on all users."""
    numbers = {}
    for line in (report.HERE / "ten_targets.jsonl").read_text().splitlines():
        of_run = json.loads(line)
        is_asked = (of_run["data"], of_run.get("start")) == (data, start)
        if "nll" in of_run and is_asked and of_run.get("percent") == percent:
            schedule = of_run["schedule"]
            schedule = schedule if schedule == "SASRec" else "/".join(map(str, schedule))
            by_seed = numbers.setdefault(schedule, {})
            by_seed[of_run["seed"]] = numbers_by_hand(of_run["nll"])
    return numbers


def mean_nll(of_seeds):
    """The mean over all seeds and targets of {seed: likelihoods in hundredths}."""
    return np.mean(list(of_seeds.values())) / 100


@pytest.mark.parametrize(
    "data, start, percent, schedules",
    [
        ("movielens", None, None, ("0/1", "1/0", "1/1", "1/2", "2/1", "2/2", "SASRec")),
        ("ml-100k", None, None, ("0/1", "1/0", "1/1", "1/2", "2/1", "2/2", "SASRec")),
        ("movielens", None, 25, ("1/0", "1/1")),
        ("movielens", None, 50, ("1/0", "1/1")),
        ("movielens", "SmolLM2", None, ("6/6",)),
    ],
)
def test_the_committed_differences_are_the_means_of_the_packed_numbers(
    data, start, percent, schedules
):
    numbers = likelihoods_by_hand(data, start, percent)
    causal = mean_nll(numbers["0/0"])
    assert set(numbers) == {"0/0", *schedules}
    for schedule in schedules:
        mean = mean_nll(numbers[schedule])
        of_seeds = []
        for seed in sorted(numbers[schedule]):
            difference = np.subtract(numbers[schedule][seed], numbers["0/0"][seed]).mean() / 100
            of_seeds.append(f"{difference:.3f}")
        begin, seeds = f"| {schedule} | {mean:.3f} [", f" | {', '.join(of_seeds)} | "
        (row,) = [row for row in PAGES.splitlines() if row.startswith(begin) and seeds in row]
        assert f"| {mean - causal:.3f} [" in row


@pytest.mark.parametrize(
    "data, schedule, other, words, of_later_targets",
    [
        ("movielens", "1/1", "1/0", "1/1 is behind 1/0 by {}", False),
        ("movielens", "1/1", "1/0", "but by {} without the targets of the same second", True),
        ("movielens", "1/2", "1/1", "1/2 and 1/1 differ by {}", False),
        ("movielens", "2/1", "1/1", "2/1 is behind 1/1 by {}", False),
        ("movielens", "2/2", "1/2", "2/2 is behind 1/2 by {}", False),
        ("ml-100k", "1/0", "0/0", "1/0 differs by {}", False),
        ("ml-100k", "1/1", "0/0", "(1/1) the difference is {}", False),
        ("ml-100k", "1/1", "1/0", "1/1 differs from 1/0 by {}", False),
        ("ml-100k", "1/2", "1/1", "1/2 and 1/1 differ by {} here", False),
        ("ml-100k", "2/1", "1/1", "2/1 is behind 1/1 by {}", False),
    ],
)
def test_the_differences_of_two_schedules_in_the_text_are_those_of_the_runs(
    data, schedule, other, words, of_later_targets
):
    runs = records.read(report.HERE / "ten_targets.jsonl")
    by_schedule = ten_targets.Group(data).by_schedule(runs)
    values = ten_targets.differences(by_schedule[schedule], by_schedule[other])
    mask = ten_targets.slices_of(runs[f"targets/{data}"])["later"] if of_later_targets else None
    interval = intervals.interval_text(values, mask).replace("-", "−")
    assert words.format(interval) in " ".join(PAGES.split())
