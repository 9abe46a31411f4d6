"""The study's runner and report (tests/study): nothing is trained here."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from ref.data.dataset import EMBEDDED, load
from ref.masks import MaskScheme, build_masks

from study import report, run
from support.catalogue import TITLES
from support.masks import mask_table

RUNS = [
    run.Run("scratch", (0, 0), 0),
    run.Run("scratch", (1, 1), 0),
    run.Run("flip-x", "best", 0, after=("scratch/1-1/0",)),
]


# --- plan


def test_isolated_text_changes_no_mask_where_a_prompt_has_no_text(encoder_for):
    for history in (TITLES[:1], TITLES[3:9], ["Heat", "Heat"]):
        s = encoder_for().encode(history, "Alien").segment_ids
        assert s.min() == 1
        visible, isolated = (
            build_masks(torch.from_numpy(s)[None], MaskScheme(1, 1, text=text))
            for text in ("visible", "isolated")
        )
        for kind in ("IN", "OR", "CR"):
            assert torch.equal(visible[kind], isolated[kind])
            assert isolated[kind][0].tolist() == mask_table(
                kind, s.tolist(), MaskScheme(1, 1, text="visible")
            )


def test_the_grid_is_that_of_the_plan():
    runs = run.grid(books=True)
    assert len({r.name for r in runs}) == len(runs)
    count = {}
    for r in runs:
        count.setdefault((r.group, r.schedule), []).append(r.seed)
    schedules = [(0, 0), (1, 0), (0, 1), (1, 1), (2, 1), (1, 2)]
    expected = {("scratch", s): [0, 1, 2, 3, 4] for s in schedules} | {
        ("tiny", s): [0, 1, 2] for s in schedules
    }
    expected |= {
        (f"flip-{option}", "best"): [0, 1, 2] for option in ("cross-self", "delimiters", "target")
    }
    expected |= {
        ("books", (0, 0)): [0, 1, 2],
        ("books", "best"): [0, 1, 2],
        ("pretrain", (0, 0)): [0],
    }
    expected |= {("validation", s): [0, 1, 2, 3, 4] for s in schedules}
    expected |= {
        (f"attention-{group}", s): ["all"] for group in ("scratch", "tiny") for s in schedules
    } | {("attention-pretrain", (0, 0)): ["all"]}
    assert count == expected | {("sasrec", "-"): [0, 1, 2, 3, 4], ("books-sasrec", "-"): [0, 1, 2]}
    place = {r.name: number for number, r in enumerate(runs)}
    assert all(place[name] < place[r.name] for r in runs for name in r.after)
    assert not any("books" in r.group for r in run.grid(books=None))


def test_the_best_schedule_is_chosen_by_validation_over_all_seeds():
    losses = {(1, 1): (6.0, 6.9), (2, 1): (6.4, 6.4), (1, 2): (6.5, 6.5), (0, 0): (1.0, 1.0)}
    records = {
        f"{s}{n}": {
            "group": "scratch",
            "schedule": list(s),
            "best": value,
            "metrics": {"NLL": -value},
        }
        for s, values in losses.items()
        for n, value in enumerate(values)
    }
    records |= {
        "t": {"group": "tiny", "schedule": [1, 2], "best": 1.0},
        "u": {"run": "users/movielens"},
    }
    assert run.best_schedule(records) == (2, 1)


# --- runner


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Call `work` with runs that only note that they were done; names in `broken` fail."""
    done, broken = [], set()

    def pretend(one, folder, folders, records, extra):
        if one.name in broken:
            raise RuntimeError("exit code 1")
        done.append(one.name)
        return {"run": one.name, "group": one.group, "seconds": 0}

    monkeypatch.setattr(run, "do", pretend)
    return lambda workers=1: (
        run.work(tmp_path, RUNS, {}, workers),
        done,
        broken,
        tmp_path / "runs.jsonl",
    )


@pytest.mark.parametrize("workers", (1, 2))
def test_finished_runs_are_not_repeated(work, workers):
    for _ in range(3):
        failed, done, _, path = work(workers)
        assert failed == 0 and sorted(done) == sorted(r.name for r in RUNS)
        assert sorted(json.loads(line)["run"] for line in path.read_text().splitlines()) == sorted(
            done
        )


def test_a_run_that_fails_stops_only_those_that_need_it_and_is_tried_again(work, capsys):
    _, done, broken, path = work()
    path.unlink()
    done.clear()
    broken.add("scratch/1-1/0")
    assert work()[0] == 2 and done == ["scratch/0-0/0"]
    said = capsys.readouterr().err
    assert "scratch/1-1/0 failed: exit code 1" in said and "flip-x/best/0 not done" in said
    broken.clear()
    assert work()[0] == 0 and done == ["scratch/0-0/0", "scratch/1-1/0", "flip-x/best/0"]


def test_a_crash_loses_only_the_run_in_progress(work, monkeypatch, tmp_path):
    pretend = run.do

    def crash(one, *arguments):
        if one.group == "flip-x":
            raise SystemError("power cut")
        return pretend(one, *arguments)

    monkeypatch.setattr(run, "do", crash)
    with pytest.raises(SystemError):
        run.work(tmp_path, RUNS, {}, 1)
    assert list(run.read_runs(tmp_path / "runs.jsonl")) == ["scratch/0-0/0", "scratch/1-1/0"]


def test_lists_of_titles_hold_every_film_and_no_order(tmp_path):
    run.write_titles(tmp_path)
    data = load(tmp_path)
    counts = np.bincount(data.entries, minlength=len(data.titles))
    assert (
        data.source != str(EMBEDDED)
        and len(data.titles) > 9000
        and counts.min() > 0
        and counts.max() < 400
    )
    lists = [
        data.entries[start : end + 2] for start, end in zip(data.train.starts, data.train.ends)
    ]
    assert {len(one) for one in lists} == {100} and all(
        (np.diff(one.astype(int)) < 0).any() for one in lists
    )


# --- report

SVG = "{http://www.w3.org/2000/svg}"
COUNTS = [0] * 12 + [5] * 12 + [100] * 16


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
    """Causal 6.0 for every user; 1/1 better by 0.5 for the 16 users of common targets, in each of five seeds; 1/0 noise around causal;
    2/1 is 1/1 with three seeds; 0/1 is so that the interval at 95 % alone leaves out 0."""
    rng, lines = (
        np.random.default_rng(0),
        [
            {
                "run": "users/movielens",
                "group": "users",
                "data": "movielens",
                "history": [10] * 40,
                "count": COUNTS,
                "titles": 9,
                "ranks": {"most popular": [1, 0] * 20},
            }
        ],
    )
    for seed in range(5):
        lines.append(record("scratch", [0, 0], seed, [6.0] * 40, [2, 0] * 20))
        lines.append(
            record("scratch", [1, 1], seed, [6.0 - 0.5 * (count == 100) for count in COUNTS])
        )
        lines.append(record("scratch", [1, 0], seed, (6 + rng.normal(size=40)).tolist()))
        lines.append(
            record("scratch", [0, 1], seed, [6.0 + 0.35 * sign + 0.13 for sign in (-1, 1) * 20])
        )
        lines += [
            record("scratch", [2, 1], seed, [6.0 - 0.5 * (count == 100) for count in COUNTS])
        ] * (seed < 3)
    lines.append(record("flip-target", [1, 1], 1, [6.25] * 40))
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in reversed(lines)))
    return path


def test_the_table_says_what_the_runs_say(runs, capsys):
    rows, users, _ = report.read(runs)
    assert {tuple(r["seed"] for r in records) for records in rows.values()} == {
        (0, 1, 2, 3, 4),
        (0, 1, 2),
        (1,),
    }
    lines = {
        line.split(" | ")[0].strip("| "): line for line in report.table(rows, users).splitlines()
    }
    assert lines["causal (0/0)"].startswith(
        "| causal (0/0) | 5 | 6.000 [6.000, 6.000] | – | 0.500 ["
    )
    assert (
        lines["1/1"].startswith("| 1/1 | 5 | 5.800 [")
        and "| -0.200 [" in lines["1/1"]
        and "] (5) \\* |" in lines["1/1"]
    )
    assert (
        "\\*" not in lines["1/0"] and "| -0.200 [" in lines["2/1"] and "] (3) |" in lines["2/1"]
    )  # too few seeds for a star
    assert (
        "| 0.130 [0.0" in lines["0/1"]
        and "] (0) |" in lines["0/1"]
        and report.interval(report.paired(rows["scratch", "0/1"], rows["scratch", "0/0"]), 99)[1]
        < 0
    )
    assert (
        "| 0.450 [" in lines["1/1, target"] and "| 1 |" in lines["1/1, target"]
    )  # 6.25 - 5.8: to the schedule that it flips
    assert lines["causal (0/0)"].endswith(" | 9.000 |")  # 7 to 11
    assert (
        lines["most popular, movielens"].endswith("] | – |")
        and "| – | – | – | 0.500 [" in lines["most popular, movielens"]
    )


def test_slices_are_those_of_the_users_and_small_ones_are_left_out(runs):
    rows, users, _ = report.read(runs)
    _, header, _, *lines = report.slice_table(rows, users).splitlines()
    assert header == (
        "| NLL, movielens | history of 10 or more (40) | target never in training (cold) (12) | "
        "target 1 to 9 times in training (12) | target 100 times or more (16) |"
    )
    cells = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in lines}
    assert list(cells) == ["0/1", "1/0", "1/1", "2/1"]
    assert cells["1/1"][0].startswith("-0.20 [") and cells["1/1"][1:] == [
        "0.00 [0.00, 0.00]"
    ] * 2 + ["-0.50 [-0.50, -0.50]"]


def test_the_interval_counts_users_and_seeds():
    rng = np.random.default_rng(1)
    users, seeds = rng.normal(size=(1, 900)), rng.normal(size=(25, 1))
    mean, low, high = report.interval(users + np.zeros((25, 1)))
    assert high - low == pytest.approx(
        2 * 1.96 * users.std() / 30, rel=0.1
    ) and mean == pytest.approx(users.mean())
    _, low, high = report.interval(np.zeros((1, 900)) + seeds)
    assert high - low == pytest.approx(2 * 1.96 * seeds.std() / 5, rel=0.15)
    assert np.diff(report.interval(users, 99)[1:]) > np.diff(report.interval(users)[1:])


def test_differences_pair_the_same_seeds():
    one = [record("scratch", [1, 1], seed, [float(seed), 2.0 * seed]) for seed in (0, 1, 2)]
    other = [record("scratch", [0, 0], seed, [10.0 * seed, 1.0]) for seed in (2, 1)]
    assert report.paired(
        sorted(one, key=lambda r: r["seed"]), sorted(other, key=lambda r: r["seed"])
    ).tolist() == [[-9.0, 1.0], [-18.0, 3.0]]


def test_the_figure_has_a_row_for_each_comparison(runs):
    rows, *_ = report.read(runs)
    svg = ElementTree.fromstring(report.picture(rows))
    texts = ["".join(text.itertext()) for text in svg.iter(SVG + "text")]
    assert (
        {"1/1", "1/0", "1/1, target"} <= set(texts)
        and "causal (0/0)" not in texts
        and any(text.startswith("-0.200 [") for text in texts)
    )
    circles = list(svg.iter(SVG + "circle"))
    assert len(circles) == 4 + 3 * 5 + 3 + 1 + 1


def test_a_difference_beyond_the_axis_is_an_arrow_and_does_not_stretch_it(runs, monkeypatch):
    def drawn():
        svg = ElementTree.fromstring(report.picture(report.read(runs)[0]))
        numbers = [
            float(text.text)
            for text in svg.iter(SVG + "text")
            if re.fullmatch(r"-?[0-9.]+", text.text)
        ]
        return (
            len(list(svg.iter(SVG + "circle"))),
            sum(path.get("d").endswith("z") for path in svg.iter(SVG + "path")),
            max(numbers),
        )

    circles, arrows, end = drawn()
    assert (circles, arrows) == (24, 0) and end >= 0.45  # the flip differs by 0.45, in one seed
    monkeypatch.setattr(report, "REACH", 0.3)
    circles, arrows, end = drawn()
    assert (circles, arrows) == (22, 1) and end < 0.45


def test_curves_are_differences_over_common_seeds_and_epochs():
    rows = {
        ("scratch", "0/0"): [{"seed": 0, "train": [7, 6], "valid": [8, 7]}],
        ("scratch", "1/1"): [
            {"seed": 0, "train": [6.99, 5.97, 1], "valid": [8, 7, 1]},
            {"seed": 1, "train": [1] * 3, "valid": [1] * 3},
        ],
        ("tiny", "1/1"): [{"seed": 0, "train": [1], "valid": [1]}],
    }
    svg = ElementTree.fromstring(report.curves(rows))
    lines = [line.get("points") for line in svg.iter(SVG + "polyline")]
    assert lines == [
        "60.0,120.0 340.0,220.0",
        "440.0,70.0 720.0,70.0",
    ]  # from 0 at 70 to -0.04 at 270


def test_attention_is_averaged_over_heads_models_and_or_layers():
    def model(same):
        """Two layers, IN and OR, of two heads; in the OR layer the second head gives twice what the first gives. Even attention gives 2 to 1."""
        share, per_pair, even = (
            np.zeros((2, 2, 3, 4)),
            np.full((2, 2, 3, 4), np.nan),
            np.full((2, 3, 4), np.nan),
        )
        share[0, :, 0], share[1, :, 0] = (1, 0, 0, 0), (same, 0.25, 0.25, 0.5 - same)
        per_pair[1, 0, :, :2], per_pair[1, 1, :, :2], even[1, :, :2] = (
            (same, 0.1),
            (2 * same, 0.2),
            (0.4, 0.2),
        )
        some = {
            name: np.where(np.isnan(value), None, value).tolist()
            for name, value in (("per_pair", per_pair), ("even", even))
        }
        return {"kinds": ["IN", "OR"], "share": share.tolist(), **some}

    found = run.attention_figures({"models": {"a": model(0.2), "b": model(0.4)}})
    assert found["per_pair"][0][0] == [[None] * 4] * 3 and found["per_pair"][1][1][2][:2] == [
        0.6,
        0.15,
    ]
    records = [{"group": "attention-scratch", "schedule": [1, 0], "data": "movielens", **found}]
    expected = "| from scratch | 1/0 | movielens | 1 | 30.0% | 25.0% | 25.0% | 20.0% | 1.5 | 1.5 |"
    assert report.attention_table(records).splitlines()[2:] == [expected]
    assert report.attention_table(records * 2).splitlines()[2:] == [expected]


@pytest.fixture
def do(tmp_path, monkeypatch):
    """Call `do` with commands that write what train.py and evaluate.py would, and are noted."""
    commands = []

    def call(command, log):
        command = [str(word) for word in command]
        commands.append(command)
        value = dict(zip(command, command[1:])).get
        if command[0].endswith("train.py"):
            model = Path(value("--out") or value("--resume"))
            first = {
                "options": {
                    "intra_layers": 2,
                    "cross_layers": 1,
                    "seed": 4,
                    "max_steps": None,
                    "lr": 0.1,
                    "out": "here",
                },
                "torch": "1",
            }
            lines = [
                first,
                {"step": 5, "train": 7.0, "valid": 6.5},
                {"step": 10, "train": 6.0, "valid": 6.75},
            ]
            model.mkdir(parents=True, exist_ok=True)
            (model / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        else:
            name = value("--weights")
            report = {
                "metrics": {name: {"HR@10": [0.5, 0.4, 0.6]}},
                "ranks": {name: [1, None]},
                "nll": {name: [1.23456, 2.0]},
            }
            Path(value("--json")).write_text(json.dumps(report))

    monkeypatch.setattr(run, "call", call)
    (tmp_path / "logs").mkdir()
    return lambda one, records={}: (
        run.do(one, tmp_path, {"movielens": None}, records, ()),
        commands,
    )


def test_a_run_trains_and_evaluates_what_its_name_says(do, tmp_path):
    found, (train, evaluate) = do(run.Run("scratch", (2, 1), 4))
    value = dict(zip(train, train[1:])).get
    assert [value(f"--{name}") for name in ("intra-layers", "cross-layers", "seed", "threads")] == [
        "2",
        "1",
        "4",
        "1",
    ]
    assert (
        value("--out")
        == str(tmp_path / "models/scratch/2-1/4")
        == dict(zip(evaluate, evaluate[1:]))["--weights"]
        and "full" in evaluate
    )
    assert {
        name: found[name]
        for name in ("schedule", "seed", "best", "valid", "steps", "ranks", "nll", "metrics")
    } == {
        "schedule": (2, 1),
        "seed": 4,
        "best": 6.5,
        "valid": [6.5, 6.75],
        "steps": 10,
        "ranks": [1, 0],
        "nll": [1.235, 2.0],
        "metrics": {"HR@10": 0.5},
    }
    assert str(tmp_path) not in json.dumps(found)


def test_a_training_that_was_stopped_is_resumed(do, tmp_path):
    do(run.Run("scratch", (2, 1), 4))
    _, commands = do(run.Run("scratch", (2, 1), 4))
    assert commands[2][1:] == ["--resume", str(tmp_path / "models/scratch/2-1/4")]


def test_the_best_schedule_is_put_in_and_another_training_in_its_place_is_refused(do):
    records = {str(s): {"group": "scratch", "schedule": list(s), "best": sum(s)} for s in run.BOTH}
    with pytest.raises(
        ValueError, match="flip-x.best.4 holds another training: .*'intra_layers': 2"
    ):
        do(run.Run("flip-x", "best", 4, after=("a",)), records)


def test_the_committed_runs_are_figures_and_small():
    path = Path(run.HERE) / "runs.jsonl"
    assert path.stat().st_size < 1_000_000
    words = set(re.findall(r'"([^"]*)"', path.read_text()))
    assert {w for w in words if not re.fullmatch("[a-zA-Z0-9_@/.+,-]{1,40}", w)} == {
        "most popular",
        "co-occurrence, last item",
        "co-occurrence, ten items",
    }
    assert (
        not {title for title in load().titles} & words
        and len({word for word in words if "/" not in word}) < 120
    )


def test_likelihoods_are_those_that_evaluation_reports(tmp_path, monkeypatch):
    folder = EMBEDDED.parents[2] / "weights" / "movielens-hat"
    found = run.likelihoods(folder, None, limit=6)
    data = load()
    users = run.evaluate.test_users(
        data, run.evaluate.parse_options(["--limit", "6", "--ranking", "full"])
    )
    result, _ = run.evaluate.evaluate_model(
        folder, data, users, run.evaluate.parse_options(["--limit", "6"])
    )
    np.testing.assert_allclose(found, result.metrics["NLL"], atol=6e-4)
    validation = run.likelihoods(folder, None, "valid", limit=6)
    assert len(validation) == 6 and np.abs(np.subtract(validation, found)).min() > 0.01
