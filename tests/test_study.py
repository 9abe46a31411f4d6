"""The study's runner and report (tests/study): nothing is trained here."""

import base64
import json
import re
import zlib
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import evaluate
from ref.data.dataset import EMBEDDED, load
from ref.masks import MaskScheme, build_masks
from ref.report.users import test_users as users_to_rank_for

from study import records, report, run, smollm, ten_targets
from support.catalogue import TITLES
from support.data import TITLES as DATA_TITLES
from support.data import write_interactions
from support.masks import mask_table

RUNS = [run.Run("movielens", schedule, 0) for schedule in ((0, 0), (1, 1), (2, 1))]


# --- plan


@pytest.mark.parametrize("history", (TITLES[:1], TITLES[3:9], ["Heat", "Heat"]))
def test_isolated_text_changes_no_mask_where_a_prompt_has_no_text(encoder_for, history):
    s = encoder_for().encode(history, "Alien").segment_ids
    segment_ids = torch.from_numpy(s)[None]
    visible = build_masks(segment_ids, MaskScheme(1, 1, text="visible"))
    isolated = build_masks(segment_ids, MaskScheme(1, 1, text="isolated"))
    assert s.min() == 1
    for kind in ("IN", "OR", "CR"):
        expected = mask_table(kind, s.tolist(), MaskScheme(1, 1, text="visible"))
        assert visible[kind][0].tolist() == isolated[kind][0].tolist() == expected


def test_the_list_of_runs_is_that_of_the_plan():
    expected = set()
    for data in ("movielens", "ml-100k"):
        for schedule in ("0-0", "1-0", "1-1", "1-2", "2-1", "0-1", "2-2"):
            expected |= {f"{data}/{schedule}/{seed}" for seed in range(5)}
    names = [each.name for each in run.all_runs(["movielens", "ml-100k"])]
    assert len(names) == 70 and set(names) == expected


def test_the_first_runs_of_a_data_set_compare_causal_1_0_and_1_1_over_all_seeds():
    first = run.all_runs(["movielens"])[:15]
    assert {each.schedule for each in first} == {(0, 0), (1, 0), (1, 1)}
    assert [each.seed for each in first[::3]] == [0, 1, 2, 3, 4]
    assert first[0].schedule == (0, 0)


# --- records


def numbers_by_hand(text):
    """The numbers of a packed text: first all low bytes, then all high ones."""
    halves = zlib.decompress(base64.b64decode(text))
    middle = len(halves) // 2
    return [low + 256 * high for low, high in zip(halves[:middle], halves[middle:])]


def test_a_packed_text_holds_the_numbers():
    numbers = [0, 1, 255, 256, 65_535, 4711]
    text = records.pack(numbers)
    assert numbers_by_hand(text) == numbers
    assert records.unpack(text).tolist() == numbers


@pytest.mark.parametrize("number", (-1, 65_536, 0.5, np.nan))
def test_a_number_that_two_bytes_cannot_hold_is_refused(number):
    with pytest.raises(ValueError, match="65535"):
        records.pack([1, number])


def test_likelihoods_are_kept_in_hundredths_and_ranks_up_to_a_hundred():
    text = records.pack_nll([6.688, 0.004, 12.0])
    assert numbers_by_hand(text) == [669, 0, 1200]
    assert records.unpack_nll(text).tolist() == [6.69, 0.0, 12.0]
    assert numbers_by_hand(records.pack_ranks([1, 100, 101, None, np.inf])) == [1, 100, 0, 0, 0]


# --- runner


class PretendedWork:
    """Work on RUNS, each of which is only noted; those of which the name is in `broken` fail."""

    def __init__(self, folder):
        self.place = run.Place(folder, {"movielens": None})
        self.done = []
        self.broken = set()

    def pretend(self, one, place):
        if one.name in self.broken:
            raise RuntimeError("exit code 1")
        self.done.append(one.name)
        return {"run": one.name, "seconds": 0}

    def kept(self):
        """Names of the runs that are on disk."""
        return list(records.read(self.place.runs_file))

    def __call__(self, workers=1):
        """The number of runs that failed."""
        return run.work(RUNS, self.place, workers)


@pytest.fixture
def work(tmp_path, monkeypatch):
    pretended = PretendedWork(tmp_path)
    monkeypatch.setattr(run, "do", pretended.pretend)
    return pretended


@pytest.mark.parametrize("workers", (1, 2))
def test_finished_runs_are_not_repeated(work, workers):
    for _ in range(3):
        assert work(workers) == 0
        names = sorted(each.name for each in RUNS)
        assert sorted(work.done) == names
        assert sorted(work.kept()) == names


def test_a_run_that_fails_is_named_and_tried_again(work, capsys):
    work.broken.add("movielens/1-1/0")
    assert work() == 1
    assert work.kept() == ["movielens/0-0/0", "movielens/2-1/0"]
    assert "movielens/1-1/0 failed: exit code 1" in capsys.readouterr().err
    work.broken.clear()
    assert work() == 0
    assert work.done == ["movielens/0-0/0", "movielens/2-1/0", "movielens/1-1/0"]


def test_a_crash_loses_only_the_run_in_progress(work, monkeypatch):
    def crash(one, place):
        if one.schedule == (2, 1):
            raise SystemError("power cut")
        return work.pretend(one, place)

    monkeypatch.setattr(run, "do", crash)
    with pytest.raises(SystemError):
        work()
    assert work.kept() == ["movielens/0-0/0", "movielens/1-1/0"]


def test_the_record_of_a_data_set_describes_its_targets(tmp_path):
    rows = [(f"u{user}", f"i{(user + n * n) % 12}", n) for user in range(8) for n in range(30)]
    folder = write_interactions(tmp_path / "data", rows)
    record = run.targets_of("made-up", folder)
    sequences = [
        [DATA_TITLES[int(item[1:])] for _, item, _ in rows[i : i + 30]] for i in range(0, 240, 30)
    ]
    training = [title for sequence in sequences for title in sequence[:19]]
    targets = [title for sequence in sequences for title in sequence[20:]]
    assert (record["users"], record["targets"], record["training"]) == (8, 80, 8 * 19)
    assert numbers_by_hand(record["count"]) == [training.count(title) for title in targets]
    assert numbers_by_hand(record["characters"]) == [len(title) for title in targets]
    shown = [sum(map(len, s[i - 10 : i])) / 10 for s in sequences for i in range(20, 30)]
    assert numbers_by_hand(record["history_characters"]) == [round(mean) for mean in shown]
    assert len(numbers_by_hand(record["ranks"]["most popular"])) == 80


# --- ten targets a user


@pytest.fixture
def ten_target_runs(tmp_path):
    """A file of runs: four users of ten targets; 1/1 is better by 0.5 in each of five seeds."""
    rng = np.random.default_rng(0)
    count = [0] * 20 + [50] * 20
    packed = {name: records.pack(count) for name in ("count", "characters", "history_characters")}
    runs = [{"run": "targets/m", "data": "m", "users": 4, "targets": 40, **packed}]
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
    table = ten_targets.table(records.read(ten_target_runs), "m").splitlines()[2:]
    for row, schedule in zip(table, ([0, 0], [1, 0], [1, 1]), strict=True):
        nll = []
        for line in lines:
            if line.get("schedule") == schedule:
                nll += numbers_by_hand(line["nll"])
        assert row.split(" | ")[2].startswith(f"{sum(nll) / len(nll) / 100:.3f} [")
        assert row.split(" | ")[4].startswith("0.500 [")


def test_a_clear_difference_of_ten_targets_has_a_star(ten_target_runs):
    _, _, _, reversed_row, better_row = ten_targets.table(
        records.read(ten_target_runs), "m"
    ).splitlines()
    assert "| -0.500 [-0.500, -0.500] \\*; 5; [-0.500, -0.500] |" in better_row
    assert "\\*" not in reversed_row


def test_the_committed_tables_are_what_the_command_prints():
    runs = records.read(Path(run.__file__).parent / "ten_targets.jsonl")
    readme = (Path(run.__file__).parent / "README.md").read_text()
    assert ten_targets.table(runs, "movielens") in readme
    assert ten_targets.slice_table(runs, "movielens") in readme


def test_the_committed_differences_are_the_means_of_the_packed_numbers():
    folder = Path(run.__file__).parent
    totals = {}
    for line in (folder / "ten_targets.jsonl").read_text().splitlines():
        of_run = json.loads(line)
        if "nll" in of_run:
            schedule = "/".join(map(str, of_run["schedule"]))
            totals.setdefault(schedule, []).extend(numbers_by_hand(of_run["nll"]))
    means = {schedule: sum(numbers) / len(numbers) / 100 for schedule, numbers in totals.items()}
    readme = (folder / "README.md").read_text()
    for schedule in ("1/0", "1/1"):
        row = readme.partition(f"\n| {schedule} | 2 | {means[schedule]:.3f} [")[2].splitlines()[0]
        assert f"| {means[schedule] - means['0/0']:.3f} [" in row


def test_two_way_intervals_count_users_and_not_their_targets():
    users = np.random.default_rng(1).normal(size=900)
    mean, low, high = ten_targets.interval(np.tile(np.repeat(users, 10), (5, 1)), 900)
    assert mean == pytest.approx(users.mean())
    assert high - low == pytest.approx(2 * 1.96 * users.std() / 30, rel=0.05)


def test_two_way_intervals_count_seeds():
    seeds = np.random.default_rng(1).normal(size=(25, 1))
    _, low, high = ten_targets.interval(np.zeros((1, 900)) + seeds, 90)
    assert high - low == pytest.approx(2 * 1.96 * seeds.std() / 5, rel=0.05)


def test_a_slice_has_the_mean_of_its_targets_alone():
    values = np.arange(12.0)[None]
    mask = np.array([True, False, False] * 3 + [False] * 3)
    mean, low, high = ten_targets.interval(values, 4, mask=mask)
    assert mean == 3.0 and 0 <= low < mean < high <= 6  # of 0, 3 and 6


def test_the_picture_of_ten_targets_has_a_row_for_each_schedule(ten_target_runs):
    svg = ElementTree.fromstring(ten_targets.picture(records.read(ten_target_runs)))
    assert {"1/0, m", "1/1, m"} <= set(texts_of(svg))
    assert len(list(svg.iter(SVG + "circle"))) == 2 * (1 + 5)


# --- report

SVG = "{http://www.w3.org/2000/svg}"
COUNTS = [0] * 12 + [5] * 12 + [100] * 16  # how often each user's target is in training
BETTER_FOR_COMMON = [6.0 - 0.5 * (count == 100) for count in COUNTS]


def record(group, schedule, seed, nll, ranks=None):
    return {
        "run": f"{group}/{schedule}/{seed}",
        "group": group,
        "schedule": schedule,
        "seed": seed,
        "data": "movielens",
        "nll": nll,
        "best": 7 + seed,
        "ranks": ranks or [1] * len(nll),
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
        "history": [10] * 40,
        "count": COUNTS,
        "titles": 9,
        "ranks": {"most popular": [1, 0] * 20},
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
    rows, users, _ = report.read(runs)
    lines = [line.strip("| ").split(" | ") for line in report.table(rows, users).splitlines()]
    return {cells[0]: cells[1:] for cells in lines}


def test_records_are_read_in_the_order_of_their_seeds(runs):
    rows, _, _ = report.read(runs)
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
    assert report.difference_text("validation", "1/1", rows) == "-1.000 [-1.000, -1.000] (5)"


def test_a_difference_that_is_clear_at_95_percent_alone_has_no_star(runs, table):
    rows, _, _ = report.read(runs)
    difference = report.paired(rows["scratch", "0/1"], rows["scratch", "0/0"])
    assert table["0/1"][2].startswith("0.130 [0.0") and table["0/1"][2].endswith("] (0)")
    _, low, _ = report.interval(difference, 99)
    assert low < 0


def test_a_flip_is_compared_with_the_schedule_that_it_changes(table):
    seeds, _, difference, *_ = table["1/1, target"]
    assert seeds == "1" and difference.startswith("0.450 [")  # 6.25 - 5.8


def test_a_counting_baseline_has_ranks_alone(table):
    seeds, nll, difference, hit_rate, _, validation = table["most popular, movielens"]
    assert (seeds, nll, difference, validation) == ("–", "–", "–", "–")
    assert hit_rate.startswith("0.500 [")


def test_slices_are_those_of_the_users_and_small_ones_are_left_out(runs):
    rows, users, _ = report.read(runs)
    _, header, _, *lines = report.slice_table(rows, users).splitlines()
    assert header == (
        "| NLL, movielens | history of 10 or more (40) | "
        "target never in training (cold) (12) | target 1 to 9 times in training (12) | "
        "target 100 times or more (16) |"
    )
    cells = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in lines}
    assert list(cells) == ["0/1", "1/0", "1/1", "2/1"]
    everybody, *by_count = cells["1/1"]
    assert everybody.startswith("-0.20 [")
    assert by_count == ["0.00 [0.00, 0.00]"] * 2 + ["-0.50 [-0.50, -0.50]"]


def test_the_interval_counts_users():
    users = np.random.default_rng(1).normal(size=(1, 900))
    mean, low, high = report.interval(users + np.zeros((25, 1)))
    assert mean == pytest.approx(users.mean())
    assert high - low == pytest.approx(2 * 1.96 * users.std() / 30, rel=0.1)


def test_the_interval_counts_seeds():
    seeds = np.random.default_rng(1).normal(size=(25, 1))
    _, low, high = report.interval(np.zeros((1, 900)) + seeds)
    assert high - low == pytest.approx(2 * 1.96 * seeds.std() / 5, rel=0.15)


def test_the_interval_at_99_percent_is_wider():
    users = np.random.default_rng(1).normal(size=(1, 900))
    _, low, high = report.interval(users)
    _, lower, higher = report.interval(users, 99)
    assert higher - lower > high - low


def test_differences_pair_the_same_seeds():
    one = [record("scratch", [1, 1], seed, [float(seed), 2.0 * seed]) for seed in (0, 1, 2)]
    other = [record("scratch", [0, 0], seed, [10.0 * seed, 1.0]) for seed in (1, 2)]
    assert report.paired(one, other).tolist() == [[-9.0, 1.0], [-18.0, 3.0]]


def drawn(runs):
    """The root of the picture of some runs."""
    rows, *_ = report.read(runs)
    return ElementTree.fromstring(report.picture(rows))


def texts_of(svg):
    return ["".join(text.itertext()) for text in svg.iter(SVG + "text")]


def test_the_picture_has_a_line_for_each_comparison(runs):
    svg = drawn(runs)
    texts = texts_of(svg)
    assert {"1/1", "1/0", "1/1, target"} <= set(texts)
    assert "causal (0/0)" not in texts
    assert any(text.startswith("-0.200 [") for text in texts)
    # one of the mean and one of each seed
    assert len(list(svg.iter(SVG + "circle"))) == 3 * (1 + 5) + (1 + 3) + (1 + 1)


def test_rows_that_were_not_planned_are_grey_even_if_they_are_clear(runs):
    records = [record("validation", [0, 0], seed, [6.0] * 40) for seed in range(5)]
    records += [record("validation", [1, 1], seed, BETTER_FOR_COMMON) for seed in range(5)]
    with open(runs, "a") as file:
        file.writelines(json.dumps(each) + "\n" for each in records)
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
    monkeypatch.setattr(report, "REACH", 0.3)
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
    svg = ElementTree.fromstring(report.curves(rows))
    lines = [line.get("points") for line in svg.iter(SVG + "polyline")]
    # training from 0 at 76 to -0.04 at 246, validation from 0.04 at 308 to 0 at 478
    assert lines == ["56,118.5 180,203.5", "56,478 180,478"]


def test_the_band_of_a_curve_holds_all_seeds_each_with_its_own_causal_model():
    losses = {"0/0": ([6, 5], [8, 7]), "1/1": ([5.98, 4.97], [7.97, 7.01])}
    rows = {("scratch", name): records_of_losses(of_seeds) for name, of_seeds in losses.items()}
    svg = ElementTree.fromstring(report.curves(rows))
    band, _ = (heights_of(area) for area in svg.iter(SVG + "polygon"))
    line, _ = (heights_of(line) for line in svg.iter(SVG + "polyline"))
    # 0.04 is at 76, -0.04 at 246; the differences are -0.02 and -0.03, -0.03 and 0.01
    assert band == pytest.approx([203.5, 139.75, 224.75, 224.75], abs=0.051)
    assert line == pytest.approx([214.125, 182.25], abs=0.051)


def heights_of(element):
    return [float(point.split(",")[1]) for point in element.get("points").split()]


def records_of_losses(of_seeds):
    return [{"seed": n, "train": losses, "valid": losses} for n, losses in enumerate(of_seeds)]


def test_the_label_of_a_curve_stands_at_its_end():
    losses = {"0/0": [[6, 6]], "1/1": [[6, 5.99]], "1/0": [[6, 5.97]]}
    rows = {("scratch", name): records_of_losses(of_seeds) for name, of_seeds in losses.items()}
    svg = ElementTree.fromstring(report.curves(rows))
    for name, colour in (("1/0", "#1a73e8"), ("1/1", "#188038")):
        line, _ = (line for line in svg.iter(SVG + "polyline") if line.get("stroke") == colour)
        x, y = map(float, line.get("points").split()[-1].split(","))
        label, _ = (text for text in svg.iter(SVG + "text") if text.text == name)
        assert float(label.get("x")) - x == 6
        assert abs(float(label.get("y")) - y) <= 4.1


def test_the_committed_pictures_are_what_the_command_draws(tmp_path, monkeypatch):
    pictures = {"--svg": "study.svg", "--curves": "curves.svg"}
    options = [word for pair in pictures.items() for word in (pair[0], str(tmp_path / pair[1]))]
    monkeypatch.setattr("sys.argv", ["report.py", *options])
    report.main()
    committed = Path(report.HERE).parents[1] / "ref" / "report" / "pictures"
    for name in pictures.values():
        assert (tmp_path / name).read_bytes() == (committed / name).read_bytes()


# --- attention


def null_for_nan(array):
    return np.where(np.isnan(array), None, array).tolist()


def attention_of_two_layers(same):
    """Two layers, IN and OR, of two heads; in the OR layer the second head gives twice the first.

    Even attention gives the same item twice what it gives others.
    """
    share = np.zeros((2, 2, 3, 4))
    share[0, :, 0] = (1, 0, 0, 0)
    share[1, :, 0] = (same, 0.25, 0.25, 0.5 - same)
    per_pair = np.full((2, 2, 3, 4), np.nan)
    per_pair[1, 0, :, :2] = (same, 0.1)
    per_pair[1, 1, :, :2] = (2 * same, 0.2)
    even = np.full((2, 3, 4), np.nan)
    even[1, :, :2] = (0.4, 0.2)
    return {
        "kinds": ["IN", "OR"],
        "share": share.tolist(),
        "per_pair": null_for_nan(per_pair),
        "even": null_for_nan(even),
    }


def test_attention_is_averaged_over_heads_models_and_or_layers():
    models = {"a": attention_of_two_layers(0.2), "b": attention_of_two_layers(0.4)}
    figures = smollm.attention_figures({"models": models})
    per_pair = figures["per_pair"]
    assert per_pair[0][0] == [[None] * 4] * 3
    assert per_pair[1][1][2][:2] == [0.6, 0.15]
    row = {"group": "attention-scratch", "schedule": [1, 0], "data": "movielens", **figures}
    expected = "| from scratch | 1/0 | movielens | 1 | 30.0% | 25.0% | 25.0% | 20.0% | 1.5 | 1.5 |"
    assert report.attention_table([row]).splitlines()[2:] == [expected]
    assert report.attention_table([row, row]).splitlines()[2:] == [expected]


# --- a run


def options_of(command):
    """{option: the word after it}."""
    return dict(zip(command, command[1:]))


def pretend_to_train(command):
    options = options_of(command)
    model = Path(options.get("--out") or options["--resume"])
    lines = [
        {"options": {"seed": 4, "lr": 0.1, "out": "here"}, "torch": "1"},
        {"step": 5, "train": 7.0, "valid": 6.5},
        {"step": 10, "train": 6.0, "valid": 6.75},
    ]
    model.mkdir(parents=True, exist_ok=True)
    (model / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def pretend_to_evaluate(command):
    options = options_of(command)
    name = options["--weights"]
    values = {
        "metrics": {name: {"HR@10": [0.5, 0.4, 0.6]}},
        "ranks": {name: [1, None]},
        "nll": {name: [1.23456, 2.0]},
    }
    Path(options["--json"]).write_text(json.dumps(values))


@pytest.fixture
def do(tmp_path, monkeypatch):
    """Call run.do with commands that write what train.py and evaluate.py would, and are noted."""
    commands = []

    def call(command, log):
        words = [str(word) for word in command]
        commands.append(words)
        if words[0] == "train.py":
            pretend_to_train(words)
        else:
            pretend_to_evaluate(words)

    def do_one(one):
        return run.do(one, run.Place(tmp_path, {"movielens": None})), commands

    monkeypatch.setattr(run, "call", call)
    return do_one


def test_a_run_trains_and_evaluates_what_its_name_says(do, tmp_path):
    _, (train, evaluation) = do(run.Run("movielens", (2, 1), 4))
    options = options_of(train)
    assert options["--intra-layers"] == "2" and options["--cross-layers"] == "1"
    assert options["--seed"] == "4" and options["--threads"] == "1"
    assert options["--min-user"] == "25" and options["--test-items"] == "10"
    model = str(tmp_path / "models/movielens/2-1/4")
    assert options["--out"] == options_of(evaluation)["--weights"] == model
    assert options_of(evaluation)["--ranking"] == "full"


def test_the_line_of_a_run_holds_figures_and_no_path(do, tmp_path):
    line, _ = do(run.Run("movielens", (2, 1), 4))
    expected = {
        "schedule": (2, 1),
        "seed": 4,
        "options": {"seed": 4, "lr": 0.1},
        "valid": [6.5, 6.75],
        "steps": 10,
        "metrics": {"HR@10": 0.5},
    }
    assert {name: line[name] for name in expected} == expected
    assert numbers_by_hand(line["nll"]) == [123, 200]
    assert numbers_by_hand(line["ranks"]) == [1, 0]
    assert str(tmp_path) not in json.dumps(line)


def test_a_training_that_was_stopped_is_resumed(do, tmp_path):
    do(run.Run("movielens", (2, 1), 4))
    _, commands = do(run.Run("movielens", (2, 1), 4))
    assert commands[2] == ["train.py", "--resume", str(tmp_path / "models/movielens/2-1/4")]


def test_the_committed_runs_are_figures_and_small():
    path = report.HERE / "runs.jsonl"
    assert path.stat().st_size < 1_000_000
    words = set(re.findall(r'"([^"]*)"', path.read_text()))
    others = {word for word in words if not re.fullmatch("[a-zA-Z0-9_@/.+,-]{1,40}", word)}
    assert others == {"most popular", "co-occurrence, last item", "co-occurrence, ten items"}
    assert words.isdisjoint(load().titles)
    assert len({word for word in words if "/" not in word}) < 120


def test_likelihoods_are_those_that_evaluation_reports():
    folder = EMBEDDED.parents[2] / "weights" / "movielens-hat"
    data, options = load(), evaluate.parse_options(["--limit", "6"])
    result = evaluate.evaluate_model(folder, data, users_to_rank_for(data, options), options)
    likelihoods = smollm.likelihoods(folder, None, limit=6)
    np.testing.assert_allclose(likelihoods, result.metrics["NLL"], atol=6e-4)


def test_likelihoods_of_validation_are_not_those_of_the_test():
    folder = EMBEDDED.parents[2] / "weights" / "movielens-hat"
    validation = np.array(smollm.likelihoods(folder, None, "valid", limit=6))
    assert len(validation) == 6
    assert np.abs(validation - smollm.likelihoods(folder, None, limit=6)).min() > 0.01
