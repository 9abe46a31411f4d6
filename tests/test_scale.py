"""Many interactions: how long reading them and beginning to train takes, and how much memory."""

import csv
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from ref.data import dataset

from bench.make_interactions import make

ROOT = Path(__file__).parents[1]
# Trains one step; prints the seconds and MB (peak of the resident set) when the data is read and when the step is done.
ONE_STEP = """
import os, re, sys, time
since = time.perf_counter()
import train
load, step = train.dataset.load, train.step_gradients
def say():
    peak = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]  # ru_maxrss would count the parent's
    print("at", time.perf_counter() - since, int(peak) / 1024, flush=True)
def load_and_say(*arguments):
    data = load(*arguments)
    data.training_windows("titles", train.np.random.default_rng(0))
    say()
    return data
def step_and_say(*arguments):
    step(*arguments)
    say()
    os._exit(0)
train.dataset.load, train.step_gradients = load_and_say, step_and_say
train.train(train.parse_options(sys.argv[1:]))
"""


def begin(folder):
    """[(seconds, MB) when the data is read, (seconds, MB) when the first step is done]"""
    command = [
        sys.executable,
        "-c",
        ONE_STEP,
        "--data",
        str(folder),
        "--out",
        str(folder / "model"),
        "--threads",
        "2",
    ]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return [
        tuple(map(float, line.split()[1:]))
        for line in found.stdout.splitlines()
        if line.startswith("at ")
    ]


def test_half_a_million_interactions_are_read_in_seconds(tmp_path):
    (read, memory), (started, _) = begin(make(tmp_path, 500_000, 5_000, 10_000))
    assert read < 20 and started < 60 and memory < 800


def test_a_shuffled_file_is_filtered_and_split_as_by_loops(tmp_path):
    folder, fewest = make(tmp_path, 200_000, 2_000, 8_000), {"user": 30, "item": 12}
    header, *lines = (folder / "interactions.csv").read_text().splitlines()
    random.Random(0).shuffle(lines)
    (folder / "interactions.csv").write_text("\n".join([header, *lines]))
    with open(folder / "items.csv", newline="") as file:
        titles = {row["item_id"]: row["title"] for row in csv.DictReader(file)}
    sequences, kept, before = {line.split(",")[0]: [] for line in lines}, lines, None
    while kept != before:
        users, items = (Counter(line.split(",")[column] for line in kept) for column in (0, 1))
        before, kept = (
            kept,
            [
                k
                for k in kept
                if users[k.split(",")[0]] >= fewest["user"]
                and items[k.split(",")[1]] >= fewest["item"]
            ],
        )
    assert 0 < len(kept) < len(lines)
    for line in kept:
        user, item, time = line.split(",")
        sequences[user].append((int(time), titles[item]))
    expected = [
        [title for _, title in sorted(sequence, key=lambda entry: entry[0])]
        for sequence in sequences.values()
        if sequence
    ]
    data = dataset.load(folder, 10, fewest["item"], fewest["user"])
    for windows, (begin, end) in (
        (data.test, (-11, None)),
        (data.valid, (-12, -1)),
        (data.train, (None, -2)),
    ):
        shown = [
            [data.titles[entry] for entry in data.entries[s:e]]
            for s, e in zip(windows.starts, windows.ends)
        ]
        assert shown == [sequence[begin:end] for sequence in expected]


@pytest.mark.slow
def test_ten_million_interactions_are_read_within_a_minute_and_training_begins_within_ninety_seconds(
    tmp_path,
):
    (read, memory), (started, most) = begin(make(tmp_path))
    print(
        f"read after {read:.0f} s, {memory:.0f} MB; first step done after {started:.0f} s, {most:.0f} MB"
    )
    assert read < 60 and memory < 3000 and started < 90 and most < 3000
