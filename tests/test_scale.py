"""Many interactions: how long reading them and beginning to train takes, and how much memory."""

import csv
import random
import subprocess
import sys
from collections import Counter
from typing import NamedTuple

import pytest

from ref.data import dataset

from bench.make_interactions import Sizes, make
from support.commands import ROOT
from support.data import titles_in

# Begins a training, and prints seconds and peak memory when the data is read and when the gradients
# of the first step are there. The peak is VmHWM: ru_maxrss would count that of the parent.
FIRST_STEP = """
import os, re, sys, time
since = time.perf_counter()
import train
load = train.dataset.load
def report():
    peak = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]
    print("at", time.perf_counter() - since, int(peak) / 1024, flush=True)
def load_and_report(*arguments):
    data = load(*arguments)
    data.training_windows("titles", train.np.random.default_rng(0))
    report()
    return data
def report_and_end(*_):
    report()
    os._exit(0)
train.dataset.load, train.set_learning_rate = load_and_report, report_and_end
train.main(sys.argv[1:])
"""


class Moment(NamedTuple):
    """When something is done: seconds from the start, and the most memory so far, in MB."""

    seconds: float
    megabytes: float


def begin_training(folder):
    """The Moments when the data is read and when the first step is computed."""
    options = ["--data", str(folder), "--out", str(folder / "model"), "--threads", "2"]
    command = [sys.executable, "-c", FIRST_STEP, *options]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    lines = [line for line in ended.stdout.splitlines() if line.startswith("at ")]
    read, computed = (Moment(*map(float, line.split()[1:])) for line in lines)
    return read, computed


def test_many_interactions_are_read_in_seconds(tmp_path):
    folder = make(tmp_path, Sizes(interactions=70_000, users=2_000, items=4_000))
    read, computed = begin_training(folder)
    assert read.seconds < 20
    assert read.megabytes < 800
    assert computed.seconds < 60


def frequent(rows, min_user, min_item):
    """The rows whose user and item have enough rows among those that are left."""
    while True:
        users = Counter(user for user, _, _ in rows)
        items = Counter(item for _, item, _ in rows)
        kept = [row for row in rows if users[row[0]] >= min_user and items[row[1]] >= min_item]
        if kept == rows:
            return rows
        rows = kept


def title_sequences(all_rows, rows, titles):
    """The titles of each user in order of time, users as they first appear in the file."""
    sequences = {user: [] for user, _, _ in all_rows}
    for user, item, time in rows:
        sequences[user].append((int(time), titles[item]))
    in_order = []
    for sequence in sequences.values():
        sequence.sort(key=lambda timed: timed[0])  # stable
        if sequence:
            in_order.append([title for _, title in sequence])
    return in_order


@pytest.fixture
def shuffled_folder(tmp_path):
    """70,000 interactions, more than are read at a time, that are not in order of time."""
    make(tmp_path, Sizes(interactions=70_000, users=1_000, items=2_800))
    path = tmp_path / "interactions.csv"
    header, *lines = path.read_text().splitlines()
    random.Random(0).shuffle(lines)
    path.write_text("\n".join([header, *lines]))
    return tmp_path


def test_a_shuffled_file_is_filtered_and_split_as_by_loops(shuffled_folder):
    lines = (shuffled_folder / "interactions.csv").read_text().splitlines()
    rows = list(dict.fromkeys(tuple(line.split(",")) for line in lines[1:]))  # each once
    with open(shuffled_folder / "items.csv", newline="") as file:
        titles = {row["item_id"]: row["title"] for row in csv.DictReader(file)}
    kept = frequent(rows, min_user=30, min_item=12)
    assert 0 < len(kept) < len(rows)
    expected = title_sequences(rows, kept, titles)
    data = dataset.load(shuffled_folder, history=10, min_user=30, min_item=12)
    assert titles_in(data, data.test) == [sequence[-11:] for sequence in expected]
    assert titles_in(data, data.valid) == [sequence[-12:-1] for sequence in expected]
    assert titles_in(data, data.train) == [sequence[:-2] for sequence in expected]


@pytest.mark.slow
def test_ten_million_interactions_are_read_in_a_minute_and_trained_on_after_ninety_seconds(
    tmp_path,
):
    read, computed = begin_training(make(tmp_path, Sizes()))
    print(f"read: {read}; gradients of the first step: {computed}")
    assert read.seconds < 60
    assert computed.seconds < 90
    assert max(read.megabytes, computed.megabytes) < 3000
