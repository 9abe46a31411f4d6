"""Many interactions: how long reading them and beginning to train takes, and how much memory."""

import subprocess
import sys
from pathlib import Path

import pytest
from make_interactions import make

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
    command = [sys.executable, "-c", ONE_STEP, "--data", str(folder), "--out", str(folder / "model"), "--threads", "2"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return [tuple(map(float, line.split()[1:])) for line in found.stdout.splitlines() if line.startswith("at ")]


def test_half_a_million_interactions_are_read_in_seconds(tmp_path):
    (read, memory), (started, _) = begin(make(tmp_path, 500_000, 5_000, 10_000))
    assert read < 20 and started < 60 and memory < 800


@pytest.mark.slow
def test_ten_million_interactions_are_read_within_a_minute_and_training_begins_within_ninety_seconds(tmp_path):
    (read, memory), (started, most) = begin(make(tmp_path))
    print(f"read after {read:.0f} s, {memory:.0f} MB; first step done after {started:.0f} s, {most:.0f} MB")
    assert read < 60 and memory < 3000 and started < 90 and most < 3000
