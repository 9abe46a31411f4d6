"""The runner of the study (tests/study): nothing is trained here."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluate
from ref import llama
from ref.data.dataset import EMBEDDED, load
from ref.masks import MaskScheme, build_masks
from ref.report.targets import targets_of
from ref.training.options import parse_options

from study import part_of_users, pretrained, records, run
from study.part_of_users import part_of
from support.catalogue import TITLES
from support.data import TINY, made_up_rows, write_interactions
from support.data import TITLES as DATA_TITLES
from support.masks import mask_table
from support.study import numbers_by_hand

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
        for schedule in ("0-0", "1-0", "1-1", "1-2", "2-1", "0-1", "2-2", "SASRec"):
            expected |= {f"{data}/{schedule}/{seed}" for seed in range(5)}
    for users in ("50", "25"):
        for schedule in ("0-0", "1-0", "1-1"):
            expected |= {f"movielens/{users}/{schedule}/{seed}" for seed in range(5)}
    names = [each.name for each in run.all_runs(["movielens", "ml-100k"])]
    assert len(names) == 110 and set(names) == expected


def test_the_first_runs_of_a_data_set_compare_causal_1_0_and_1_1_over_all_seeds():
    first = run.all_runs(["movielens"])[:15]
    assert {each.schedule for each in first} == {(0, 0), (1, 0), (1, 1)}
    assert [each.seed for each in first[::3]] == [0, 1, 2, 3, 4]
    assert first[0].schedule == (0, 0)


def test_the_language_model_is_trained_with_each_schedule_seed_by_seed():
    names = [each.name for each in run.runs_of_smollm("movielens")]
    schedules = ("0-0", "6-6", "6-0", "0-6")
    assert names == [f"movielens/SmolLM2/{each}/{seed}" for seed in (0, 1) for each in schedules]


# --- records


def test_a_packed_text_holds_the_numbers():
    numbers = [0, 1, 255, 256, 65_535, 4711]
    text = records.pack(numbers)
    assert numbers_by_hand(text) == numbers
    assert records.unpack(text).tolist() == numbers


@pytest.mark.parametrize("number", (-1, 65_536, 0.5, np.nan))
def test_a_number_that_two_bytes_cannot_hold_is_refused(number):
    with pytest.raises(ValueError, match="65535"):
        records.pack([1, number])


def test_likelihoods_are_kept_in_hundredths_and_ranks_up_to_ten():
    text = records.pack_nll([6.688, 0.004, 12.0])
    assert numbers_by_hand(text) == [669, 0, 1200]
    assert records.unpack_nll(text).tolist() == [6.69, 0.0, 12.0]
    assert numbers_by_hand(records.pack_ranks([1, 10, 11, None, np.inf])) == [1, 10, 0, 0, 0]


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
    times = [*range(24), 24, 24, 24, *range(27, 30)]  # number 24 to 26 are of one second
    rows = [(f"u{u}", f"i{(u + n * n) % 12}", times[n]) for u in range(8) for n in range(30)]
    folder = write_interactions(tmp_path / "data", rows)
    record = run.record_of_targets("made-up", folder)
    sequences = [
        [DATA_TITLES[int(item[1:])] for _, item, _ in rows[i : i + 30]] for i in range(0, 240, 30)
    ]
    training = [title for sequence in sequences for title in sequence[:19]]
    targets = [title for sequence in sequences for title in sequence[20:]]
    assert (record["users"], record["targets"], record["training"]) == (8, 80, 8 * 19)
    assert numbers_by_hand(record["count"]) == [training.count(title) for title in targets]
    assert numbers_by_hand(record["characters"]) == [len(title) for title in targets]
    assert numbers_by_hand(record["tied"]) == [0, 0, 0, 0, 0, 1, 1, 0, 0, 0] * 8
    assert len(numbers_by_hand(record["ranks"]["most popular"])) == 80


# --- a run


def options_of(command):
    """{option: the word after it}."""
    return dict(zip(command, command[1:]))


def pretend_to_train(command):
    options = options_of(command)
    model = Path(options.get("--out") or options["--resume"])
    lines = [
        {"options": {"seed": 4, "lr": 0.1, "out": "here"}, "torch": "1"},
        {"step": 5, "train": 7.0, "valid": 6.5, "train_by_ten_steps": [7.0]},
        {"step": 10, "train": 6.0, "valid": 6.75, "train_by_ten_steps": [6.00004]},
    ]
    model.mkdir(parents=True, exist_ok=True)
    (model / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def pretend_to_run_sasrec(command):
    values = {
        "options": {"size": 64},
        "torch": "1",
        "valid": [7.0, 6.5],
        "metrics": {"HR@10": 0.123456},
        "ranks": [3, 200],
        "nll": [0.5, 2.25],
    }
    Path(options_of(command)["--json"]).write_text(json.dumps(values))


def pretend_to_train_smollm(command):
    pretend_to_train(command)
    Path(command[1]).write_text("[6.123, 7.5]")


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
        if words[0] in ("train.py", "tests/study/part_of_users.py"):
            pretend_to_train(words)
        elif words[0] == "tests/study/pretrained.py":
            pretend_to_train_smollm(words)
        elif words[0] == "tests/study/sasrec.py":
            pretend_to_run_sasrec(words)
        else:
            pretend_to_evaluate(words)

    def do_one(one, max_steps=None):
        place = run.Place(tmp_path, {"movielens": None}, tmp_path / "smollm", max_steps)
        return run.do(one, place), commands

    monkeypatch.setattr(run, "call", call)
    return do_one


def test_a_run_trains_and_evaluates_what_its_name_says(do, tmp_path):
    _, (train, evaluation) = do(run.Run("movielens", (2, 1), 4))
    options = options_of(train)
    assert options["--intra-layers"] == "2" and options["--cross-layers"] == "1"
    assert options["--seed"] == "4" and options["--threads"] == "1"
    assert options["--min-user"] == "25" and options["--test-items"] == "10"
    defaults = parse_options([])
    assert options["--epochs"] == str(defaults.epochs)
    assert options["--patience"] == str(defaults.patience)
    model = str(tmp_path / "models/movielens/2-1/4")
    assert options["--out"] == options_of(evaluation)["--weights"] == model
    assert options_of(evaluation)["--ranking"] == "full"


def test_a_run_of_a_fourth_of_the_users_takes_four_times_the_epochs_and_the_patience(do):
    one = run.Run("movielens", (1, 0), 3, percent=25)
    line, commands = do(one)
    assert (line["run"], line["percent"]) == ("movielens/25/1-0/3", 25)
    assert commands[0][:3] == ["tests/study/part_of_users.py", "25", "3"]
    options = options_of(commands[0])
    assert (options["--seed"], options["--epochs"], options["--patience"]) == ("3", "48", "20")
    model = options["--out"]
    do(one)
    assert commands[2] == ["tests/study/part_of_users.py", "25", "3", "--resume", model]


@pytest.mark.parametrize(
    "one, script",
    [
        (run.Run("movielens", (1, 0), 3), ["train.py"]),
        (run.Run("movielens", (1, 0), 3, percent=25), ["tests/study/part_of_users.py", "25", "3"]),
        (run.Run("movielens", (6, 6), 0, start=run.SMOLLM), ["tests/study/pretrained.py", "FILE"]),
    ],
)
def test_a_trial_takes_the_steps_that_are_asked_for_by_options_that_train_py_accepts(
    one, script, do
):
    _, commands = do(one, max_steps=3)
    options = parse_options(commands[0][len(script) :])
    assert commands[0][0] == script[0]
    assert options.max_steps == 3


def test_a_part_of_the_users_is_drawn_by_its_seed_and_changes_training_sequences_alone():
    data = load(min_user=25, test_items=10)
    small, large, other = (part_of(data, *each) for each in ((25, 0), (50, 0), (50, 1)))
    starts = [set(part.train.starts.tolist()) for part in (small, large, other, data)]
    assert [len(each) for each in starts] == [144, 288, 288, 576]
    assert starts[0] < starts[1] < starts[3] and starts[1] != starts[2] < starts[3]
    for part in (small, large):
        assert np.array_equal(part.train.starts, np.sort(part.train.starts))
        assert set(zip(part.train.starts, part.train.ends)) < set(
            zip(data.train.starts, data.train.ends)
        )
        assert replace(part, train=data.train) == data


def test_train_py_sees_the_sequences_of_the_part_alone(tmp_path, monkeypatch, capsys):
    folder = write_interactions(tmp_path / "data", made_up_rows())
    options = ["--data", folder, "--out", tmp_path / "model", *TINY]
    monkeypatch.setattr("sys.argv", ["part_of_users.py", "50", "0", *map(str, options)])
    monkeypatch.setattr(part_of_users.dataset, "load", load)
    assert part_of_users.main() == 0
    assert " 6 training sequences, 12 validation and 12 test targets" in capsys.readouterr().out


@pytest.mark.slow  # it compiles
def test_a_pretrained_model_is_trained_on_and_each_test_target_is_measured(
    report_of, made_up_data, tiny_model, tmp_path, monkeypatch
):
    for owner, name in ((llama, "attend"), (llama.Block, "forward")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # given back after the test
    model, file = tmp_path / "model", tmp_path / "nll.json"
    split = ("--data", made_up_data, "--min-item", 1, "--test-items", 2)
    options = ("--weights", tiny_model, "--out", model, "--max-steps", 3, "--cross-layers", 0)
    words = ["pretrained.py", file, *split, *options, "--dtype", "bfloat16", "--threads", 1]
    monkeypatch.setattr("sys.argv", list(map(str, words)))
    with torch.compiler.set_stance("force_eager"):
        assert pretrained.main() == 0
    report = report_of(made_up_data, model, "--ranking", "full")
    likelihoods = json.loads(file.read_text())
    assert len(likelihoods) == 24  # two of each of twelve users
    np.testing.assert_allclose(likelihoods, report["nll"][str(model)], atol=0.02)  # bfloat16


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


def test_a_run_of_sasrec_has_the_split_of_the_others_and_a_line_like_theirs(do):
    line, (command,) = do(run.Run("movielens", "SASRec", 3))
    options = options_of(command)
    assert options["--min-user"] == "25" and options["--test-items"] == "10"
    assert options["--seed"] == "3"
    assert (line["run"], line["schedule"], line["seed"]) == ("movielens/SASRec/3", "SASRec", 3)
    assert line["metrics"] == {"HR@10": 0.12346} and line["valid"] == [7.0, 6.5]
    assert numbers_by_hand(line["nll"]) == [50, 225]
    assert numbers_by_hand(line["ranks"]) == [3, 0]


def test_a_run_of_the_language_model_starts_from_it_and_has_no_ranks(do, tmp_path):
    one = run.Run("movielens", (6, 0), 1, start="SmolLM2")
    line, commands = do(one)
    assert commands[0][0] == "tests/study/pretrained.py"
    options = options_of(commands[0])
    model = str(tmp_path / "models/movielens/SmolLM2/6-0/1")
    assert (options["--weights"], options["--out"]) == (str(tmp_path / "smollm"), model)
    assert (options["--intra-layers"], options["--cross-layers"]) == ("6", "0")
    assert options["--seed"] == "1"
    assert options["--min-user"] == "25" and options["--test-items"] == "10"
    assert (line["run"], line["start"]) == ("movielens/SmolLM2/6-0/1", "SmolLM2")
    assert line["train_by_ten_steps"] == [7.0, 6.0] and line["valid"] == [6.5, 6.75]
    assert numbers_by_hand(line["nll"]) == [612, 750]
    assert "ranks" not in line and str(tmp_path) not in json.dumps(line)
    do(one)
    assert commands[1][2:] == ["--resume", model]


def test_a_training_that_was_stopped_is_resumed(do, tmp_path):
    do(run.Run("movielens", (2, 1), 4))
    _, commands = do(run.Run("movielens", (2, 1), 4))
    assert commands[2] == ["train.py", "--resume", str(tmp_path / "models/movielens/2-1/4")]


def test_likelihoods_are_those_that_evaluation_reports():
    folder = EMBEDDED.parents[2] / "weights" / "movielens-hat"
    data, options = load(), evaluate.parse_options(["--limit", "6"])
    result = evaluate.evaluate_model(folder, data, targets_of(data, options), options)
    likelihoods = pretrained.likelihoods(folder, None, limit=6)
    np.testing.assert_allclose(likelihoods, result.metrics["NLL"], atol=6e-4)
